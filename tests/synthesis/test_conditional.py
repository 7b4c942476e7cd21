import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.synthesis import HAST, BNLoss, ConditionalGenerator, ConditionalTraining, initialize
from zsqbench.testing import tiny_teacher

SIZE = (3, 8, 8)


class Maker(ConditionalGenerator):
    """A linear layer that reads noise and the class."""

    def __init__(self, rng):
        super().__init__()
        self.latent = 6
        self.linear = nn.Linear(16, 3 * 8 * 8)
        initialize(self.linear, rng)

    def forward(self, noise, classes):
        return self.linear(torch.cat([noise, functional.one_hot(classes, 10)], 1)).view(-1, *SIZE)


class CornerStudent(nn.Module):
    """Ten logits, each of which is the first pixel of an image, times a gain that could learn."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.gain * images[:, :1, 0, 0].expand(-1, 10)


def both(batch):
    ce = functional.cross_entropy(batch.logits, batch.labels)
    return ce + batch.bn_gap, {"ce": ce, "bn": batch.bn_gap}


def training(bn_loss, seed=0, loss=both):
    rng = torch.Generator().manual_seed(seed)
    return ConditionalTraining(Maker(rng), bn_loss, 4, 10, rng, loss=loss)


def test_a_step_trains_towards_what_the_loss_says():
    teacher = tiny_teacher()
    with BNLoss(teacher.module, HAST) as bn_loss:
        trainer = training(bn_loss)
        gaps = []
        for _ in range(60):
            images, labels, logits, curves = trainer.step()
            gaps.append(float(curves["bn"]))
    assert images.shape == (4, *SIZE)
    assert labels.shape == (4, 10)
    assert torch.equal(labels.sum(1), torch.ones(4))
    assert not images.requires_grad
    assert not curves["ce"].requires_grad
    torch.testing.assert_close(logits, teacher.module(images), rtol=1e-4, atol=1e-5)
    assert sum(gaps[-10:]) < sum(gaps[:10])


def test_a_loss_may_compare_the_student_with_the_network():
    student, seen = CornerStudent(), []

    def loss(batch):
        corner = batch.student_logits()
        seen.append((batch.logits - corner).detach())
        return corner.mean(), {"corner": corner.mean()}

    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        trainer = training(bn_loss, loss=loss)
        steps = [trainer.step(lr=0.01, student=student) for _ in range(60)]
    images, _, logits, curves = steps[0]
    torch.testing.assert_close(seen[0], logits - 2 * images[:, :1, 0, 0], rtol=1e-5, atol=1e-6)
    assert curves["corner"].item() == pytest.approx(2 * images[:, 0, 0, 0].mean().item(), rel=1e-5)
    # the gradient that lowers the pixel reaches the generator through the student alone, and the student not at all
    assert steps[-1][0][:, 0, 0, 0].mean() < images[:, 0, 0, 0].mean() - 0.5
    assert student.gain.grad is None


def test_a_student_runs_only_for_a_loss_that_asks_for_it():
    student = CornerStudent()
    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        alone, beside = training(bn_loss), training(bn_loss)
        for _ in range(2):
            assert torch.equal(alone.step()[0], beside.step(student=student)[0])
    assert student.calls == 0


def test_a_loss_is_told_that_there_is_no_student():
    seen = []

    def loss(batch):
        seen.append(batch.student_logits)
        return both(batch)

    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        training(bn_loss, loss=loss).step()
    assert seen == [None]


def test_a_trainer_goes_on_from_its_state():
    with BNLoss(tiny_teacher().module, HAST) as bn_loss:
        first = training(bn_loss)
        for _ in range(3):
            first.step()
        second = training(bn_loss, seed=1)
        second.load({name: value.clone() for name, value in first.state().items()})
        second.rng.set_state(first.rng.get_state())
        for _ in range(2):
            assert torch.equal(first.step()[0], second.step()[0])


def test_images_come_while_gradients_are_off():
    with BNLoss(tiny_teacher().module, HAST) as bn_loss, torch.no_grad():
        batches = list(training(bn_loss).images(3))
    assert len(batches) == 3
    assert not torch.equal(batches[0], batches[1])
