"""The behaviour that quantizers which train a generator have in common."""

import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins.adadfq import AdaDFQ
from zsqbench_plugins.gdfq import GDFQ

from zsqbench import StepContext
from zsqbench.quant import MovingRanges, span_weights
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import ConditionalTraining
from zsqbench.testing import context, tiny_teacher

SHORT = {"epochs": 1, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 2, "warmup": 3, "lr": 0.1}


def quantized(method, ctx=None):
    teacher = tiny_teacher()
    student = method.prepare(teacher, parse_scheme("hast/w3a3"))
    method.quantize(student, teacher, None, ctx or context())
    return student


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


def test_a_generators_loss_may_see_the_student_from_the_start(monkeypatch):
    seen, steps, step = [], [], ConditionalTraining.step

    def noting(training, lr, student):
        steps.append(step(training, lr, student))
        return steps[-1]

    class Looking(GDFQ):
        name = "looking"
        student_from_start = True

        def generator_training(self, teacher, ctx, bn_loss):
            def loss(batch):
                logits = batch.student_logits()
                seen.append(logits.detach())
                return logits.square().mean(), {"square": logits.square().mean()}

            made = super().generator_training(teacher, ctx, bn_loss)
            return ConditionalTraining(made.maker, bn_loss, 8, teacher.classes, ctx.rng, loss=loss)

    monkeypatch.setattr(ConditionalTraining, "step", noting)
    student = quantized(Looking(**SHORT))
    # by hand: ranges are averages over the batches so far, that at hand included, and stay after two
    expected = Looking(**SHORT).prepare(tiny_teacher(), parse_scheme("hast/w3a3"))
    span_weights(expected)
    ranges = MovingRanges(expected)
    for number, (images, *_) in enumerate(steps[:4]):
        if number < SHORT["range_updates"]:
            ranges.update(images)
        with torch.no_grad():
            torch.testing.assert_close(seen[number], expected(images))
    assert len(seen) == 3 + 3
    assert not torch.equal(student.classifier.weight, expected.classifier.weight)


def test_a_student_may_minimise_terms_of_its_own():
    class Shrinking(GDFQ):
        name = "shrinking"

        def student_terms(self, logits, labels, expected):
            return {"size": (0.5, logits.square().mean()), "mean": (2.0, logits.mean())}

    ctx = context()
    quantized(Shrinking(**SHORT), ctx)
    curves = {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}
    assert curves["loss"] == pytest.approx(
        [0.5 * size + 2 * mean for size, mean in zip(curves["size"], curves["mean"], strict=True)], rel=1e-5
    )
    assert "kl" not in curves


@pytest.mark.slow("it compiles an update")
@parametrize_briefly("method", [AdaDFQ, GDFQ], 1)
def test_an_update_is_one_graph_that_serves_all_batches(method, monkeypatch):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        StepContext, "compile", lambda _, function: torch.compile(function, backend=backend, fullgraph=True)
    )
    torch.compiler.reset()
    quantized(method(**SHORT))
    assert len(graphs) == 2  # what rounds the weights, and the update
