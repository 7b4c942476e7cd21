import pytest
import torch
from brief import parametrize_briefly
from networks import state_of
from zsqbench_plugins.gdfq import GDFQ
from zsqbench_plugins.qimera import Qimera

from zsqbench.errors import ZSQBenchError
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import ConditionalTraining
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 3, "warmup": 5, "lr": 0.01}


def quantized(quantizer, ctx=None):
    teacher = tiny_teacher()
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    quantizer.quantize(student, teacher, None, ctx or context())
    return student


@pytest.mark.slow("test_contract checks AdaDFQ, which trains by the same code, each time")
@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("method", [GDFQ, Qimera])
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
def test_they_are_quantizers_that_read_no_images(method, scheme):
    assert not method.needs_images
    check_quantizer(method(**SHORT), scheme, tiny_teacher())


def test_the_student_learns_from_labels_and_a_divergence_averaged_over_classes():
    ctx = context()
    quantized(GDFQ(**SHORT), ctx)
    curves = {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}
    for loss, kl, ce in zip(curves["loss"], curves["kl"], curves["ce"], strict=True):
        assert loss == pytest.approx(kl + ce, rel=1e-5)
    assert {"generator_ce", "generator_bn", "agreement"} <= curves.keys()


@pytest.fixture
def steps(monkeypatch):
    """The arguments and the results of each update of a generator."""
    noted, step = [], ConditionalTraining.step

    def noting(training, lr, *student):
        noted.append((lr, step(training, lr, *student)))
        return noted[-1][1]

    monkeypatch.setattr(ConditionalTraining, "step", noting)
    return noted


def test_the_divergence_is_averaged_over_images_and_classes(steps):
    ctx = context()
    short = {**SHORT, "epochs": 1, "updates_per_epoch": 1, "lr": 0.0, "weight_decay": 0.0}
    student = quantized(GDFQ(**short), ctx)
    images, _, expected, _ = steps[-1][1]
    wanted, found = (expected / 20).softmax(1), (student(images) / 20).softmax(1)
    divergence = 20**2 * (wanted * (wanted / found).log()).mean()
    assert ctx.reporter.curves["kl"][0][1] == pytest.approx(divergence.item(), rel=0.05)  # float32


def test_the_rate_of_the_generator_is_cut_with_the_students(steps):
    quantized(GDFQ(**SHORT, milestones=[1]))
    assert [lr for lr, _ in steps] == pytest.approx([1e-3] * (5 + 3) + [1e-4] * 3)


def test_the_generator_is_alone_at_first():
    ctx = context()
    quantized(GDFQ(**SHORT), ctx)
    assert [step for step, _ in ctx.reporter.curves["warmup/generator_ce"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in ctx.reporter.curves["loss"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow("it trains many times; test_contract interrupts AdaDFQ, which trains by the same code, each time")
@parametrize_briefly("method", [Qimera, GDFQ], 1)
def test_interrupted_at_any_point_they_end_as_undisturbed(method):
    ctx = context()
    expected = state_of(quantized(method(**SHORT), ctx))
    assert len(ctx.reporter.states) == 5 + 6  # of warming up, in the first three of which ranges are averaged; and then
    for state in ctx.reporter.states[:-1:2]:
        found = state_of(quantized(method(**SHORT), context(resume_from=state)))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_generator_that_diverges_is_one_clear_line(epochs):
    with pytest.raises(ZSQBenchError, match=r"generator_\w+ is (nan|inf) at update .* try a smaller 'generator_lr'"):
        quantized(GDFQ(**{**SHORT, "epochs": epochs}, generator_lr=1e30))


def test_published_values_go_by_data_set():
    teacher = tiny_teacher()
    assert GDFQ().resolved(teacher).batch_size == 200
    assert Qimera().resolved(teacher).mixed_classes == 2
    assert Qimera(mixed_classes=4).resolved(teacher).mixed_classes == 4


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("options", [{"embeddings": "network", "mixed": 1.0}, {"mixed": 0.0}, {"mixed_classes": 1}], 1)
def test_qimeras_choices_run(options):
    check_quantizer(Qimera(**SHORT, **options), "hast/w4a4", tiny_teacher())
