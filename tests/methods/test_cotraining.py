"""The behaviour that quantizers which train a generator have in common."""

import torch
from zsqbench_plugins.gdfq import GDFQ

from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import ConditionalTraining
from zsqbench.testing import context, tiny_teacher


def test_the_generators_loss_sees_the_student_after_warming_up():
    seen = []

    class Looking(GDFQ):
        name = "looking"

        def generator_training(self, teacher, ctx, bn_loss):
            def loss(batch):
                seen.append(batch.student_logits and (batch.logits - batch.student_logits()).detach())
                return batch.bn_gap, {"bn": batch.bn_gap}

            made = super().generator_training(teacher, ctx, bn_loss)
            return ConditionalTraining(made.maker, bn_loss, 8, teacher.classes, ctx.rng, loss=loss)

    teacher = tiny_teacher()
    method = Looking(epochs=1, updates_per_epoch=2, batch_size=8, range_updates=3, warmup=3, lr=0.1)
    student = method.prepare(teacher, parse_scheme("hast/w3a3"))
    method.quantize(student, teacher, None, context())
    assert seen[:3] == [None] * 3
    first, second = seen[3:]
    assert first.shape == second.shape == (8, 10)
    assert first.abs().max() > 0.01  # what 3 bits round away
    assert not torch.allclose(first, second)
