import pytest
import torch
from brief import parametrize_briefly
from torch.nn import functional
from zsqbench_plugins.image_prior import ImagePrior
from zsqbench_plugins.shared.jittered import jittered

from zsqbench.synthesis import total_variation
from zsqbench.testing import MemoryReporter, check_generator, context, tiny_teacher, tiny_teacher_without_bn

SHORT = {"images": 6, "batch_size": 4, "iterations": 5, "warmup": 2}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("options", [{"phases": 2, "jitter": 3}, {}], 1)
def test_it_is_a_generator(options):
    check_generator(ImagePrior(**SHORT, **options), tiny_teacher_without_bn())


def curves(**options):
    ctx = context()
    ctx.reporter = reporter = MemoryReporter(rng=ctx.rng)
    made = ImagePrior(**{**SHORT, **options}).generate(tiny_teacher(), ctx)
    return made, {name: [value for _, value in points] for name, points in reporter.curves.items()}


def test_a_step_minimises_what_is_published():
    """The first step of Adam moves each pixel by the rate, against the sign of its gradient."""
    teacher = tiny_teacher()
    options = ImagePrior(images=2, batch_size=2, iterations=1, warmup=1, jitter=2, lr=1e-3).resolved(teacher)
    made = options.generate(teacher, context())
    ctx = context()
    drawn = options._draw(teacher, ctx)
    start = ctx.randn(2, *teacher.input_size).requires_grad_()
    seen = jittered(start, drawn["shifts"][0].tolist(), flip=bool(drawn["flips"][0]))
    loss = functional.cross_entropy(teacher.module(seen), made.labels) + 1e-4 * total_variation(seen)
    loss = loss + 1e-5 * seen.flatten(1).norm(dim=1).mean()
    (gradient,) = torch.autograd.grad(loss, start)
    moved = (start.detach() - 1e-3 * gradient.sign()).clamp(*teacher.valid_range())
    assert torch.equal(made.labels, drawn["labels"])
    torch.testing.assert_close(made.images, moved, rtol=0, atol=2e-5)


@parametrize_briefly(
    "option,falls,to",
    [("variation_weight", "variation", 0.8), ("norm_weight", "norm", 0.8), ("class_weight", "inception_loss", 0.9)],
    1,
)
def test_each_weight_lowers_its_term(option, falls, to):
    off = {"class_weight": 0.0, "variation_weight": 0.0, "norm_weight": 0.0, "iterations": 30}
    _, without = curves(**off)
    _, having = curves(**off | {option: 1.0})
    assert having[falls][-1] < to * without[falls][-1]
