import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from networks import state_of
from torch import nn
from torch.nn import functional
from zsqbench_plugins.adadfq import SMALLEST_SPAN, AdaDFQ, AdaSG, band_loss, entropy

from zsqbench import Pretrained
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import NetworkTraits
from zsqbench.quant import FineTuning, Schedule, activation_quantizers, span_weights
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import HAST, BNLoss, ConditionalGenerator, ConditionalTraining, GeneratorBatch
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 3, "warmup": 5, "lr": 0.01}
METHODS = pytest.mark.parametrize("method", [AdaSG, AdaDFQ])
PRECISIONS = pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, ""), (torch.float64, "_f64")])
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture
def vectors(shared):
    """Vectors computed by the released code, by the name of their file."""

    def load(name):
        path = shared / "golden" / "2025" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"there is no file {path}")
        stored = np.load(path)
        return {each: torch.from_numpy(np.asarray(stored[each])) for each in stored}

    return load


def quantized(quantizer, ctx=None, teacher=None):
    teacher = teacher or tiny_teacher()
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    quantizer.quantize(student, teacher, None, ctx or context())
    return student


def close(found, expected, tolerance):
    assert (found - expected).norm() <= tolerance * expected.norm()


def binary(*probabilities):
    """Logits of two classes whose softmax has these probabilities."""
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in probabilities], dtype=torch.float64)


def in_bits(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@METHODS
@parametrize_briefly("scheme", ["hast/w3a3", "hw/w4a4"], 1)
def test_they_are_quantizers_that_read_no_images(method, scheme):
    assert not method.needs_images
    check_quantizer(method(**SHORT), scheme, tiny_teacher())


@PRECISIONS
def test_band_losses_and_their_gradients_are_those_of_the_release(vectors, dtype, suffix):
    stored = vectors("adadfq_losses_a")
    teacher, student = (stored[f"{name}_logits"].to(dtype).requires_grad_() for name in ("teacher", "student"))
    tolerance = TOLERANCES[dtype]
    close(entropy(teacher - student).detach(), stored[f"entropy{suffix}"], tolerance)
    for index, (low, high) in enumerate(stored["bands"].tolist()):
        loss = band_loss(teacher - student, low, high)
        of_teacher, of_student = torch.autograd.grad(loss, (teacher, student))
        close(loss.detach(), stored[f"band_loss_{index}{suffix}"], tolerance)
        close(of_teacher, stored[f"band_grad_teacher_{index}{suffix}"], tolerance)
        close(of_student, stored[f"band_grad_student_{index}{suffix}"], tolerance)
    method = AdaSG().resolved(NetworkTraits((3, 32, 32), 10), parse_scheme("hast/w3a3"))
    loss = band_loss(teacher - student, method.lambda_l, method.lambda_u)
    close(loss.detach(), stored[f"band_loss_adasg{suffix}"], tolerance)


@PRECISIONS
@pytest.mark.parametrize(("data_set", "temperature"), [("cifar", 20.0), ("imagenet", 5.0)])
def test_the_students_loss_and_its_gradient_are_those_of_the_release(vectors, dtype, suffix, data_set, temperature):
    stored = vectors("adadfq_losses_a")
    student = stored["student_logits"].to(dtype).requires_grad_()
    labels = functional.one_hot(stored["labels"], 10).to(dtype)
    terms = AdaDFQ(temperature=temperature, alpha=1.0).student_terms(
        student, labels, stored["teacher_logits"].to(dtype)
    )
    weight, loss = terms["disagreement"]
    assert (weight, terms["ce"][0]) == (1, 0)
    close(loss.detach(), stored[f"student_loss_{data_set}{suffix}"], TOLERANCES[dtype])
    (gradient,) = torch.autograd.grad(loss, student)
    close(gradient, stored[f"student_grad_{data_set}{suffix}"], TOLERANCES[dtype])


def check_options(method, stored):
    """Compare the published options of a method with the stored ones."""
    for name in ("alpha_ds", "alpha_as", "lambda_l", "lambda_u", "beta", "gamma"):
        assert getattr(method, name) == float(stored[name]), name


@METHODS
def test_a_generators_loss_and_its_gradients_are_those_of_the_release(vectors, method):
    stored, name = vectors("adadfq_losses_a"), method.name
    teacher, student = (stored[f"{each}_logits"].requires_grad_() for each in ("teacher", "student"))
    inputs = [stored[f"bn_input_{layer}"].requires_grad_() for layer in range(3)]
    gaps = [
        functional.mse_loss(maps.mean((0, 2, 3)), stored[f"bn_running_mean_{layer}"])
        + functional.mse_loss(maps.var((0, 2, 3), correction=0), stored[f"bn_running_var_{layer}"])
        for layer, maps in enumerate(inputs)
    ]
    labels = functional.one_hot(stored["labels"], 10).float()
    batch = GeneratorBatch(labels, teacher, torch.stack(gaps).mean(), lambda: student)
    quantizer = method().resolved(NetworkTraits((3, 32, 32), 10), parse_scheme("hast/w3a3"))
    loss, curves = quantizer.generator_loss(batch)
    gradients = torch.autograd.grad(loss, [teacher, student, *inputs])
    close(loss.detach(), stored[f"{name}_loss_G"].squeeze(), 1e-5)
    for curve, expected in {"band": "h_loss", "ds": "loss_ds", "as": "loss_as", "bn": "BNS_loss"}.items():
        close(curves[f"generator_{curve}"].detach(), stored[f"{name}_{expected}"].squeeze(), 1e-5)
    of_classes = quantizer.alpha_ds * curves["generator_ds"] + quantizer.alpha_as * curves["generator_as"]
    close(of_classes.detach(), stored[f"{name}_loss_onehot"], 1e-5)
    if method is AdaDFQ:
        check_options(quantizer, stored)
    for found, of in zip(
        gradients, ["teacher_logits", "student_logits", *map("bn_input_{}".format, range(3))], strict=True
    ):
        close(found, stored[f"{name}_grad_{of}"], 1e-5)


class Stored(ConditionalGenerator):
    """Images that learn."""

    latent = 1

    def __init__(self, images):
        super().__init__()
        self.images = nn.Parameter(images)

    def forward(self, noise, classes):
        return self.images.clone()


def test_a_whole_iteration_of_the_release_comes_out(vectors, resnet20, monkeypatch):
    stored = vectors("adadfq_iteration_resnet20_a")
    teacher = Pretrained(resnet20, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=10)
    scheme = parse_scheme("hast/w4a4")
    method = AdaDFQ().resolved(teacher, scheme)
    check_options(method, stored)
    student = method.prepare(teacher, scheme)
    span_weights(student)
    for (_, quantizer), (low, high) in zip(activation_quantizers(student), stored["act_ranges"], strict=True):
        quantizer.set_range(low, high)
    labels = functional.one_hot(stored["labels"], 10).float()
    monkeypatch.setattr(ConditionalTraining, "draw", lambda _: ((None, stored["labels"]), labels))
    maker, rng = Stored(stored["images"]), torch.Generator()
    with BNLoss(resnet20, HAST) as bn_loss, FineTuning(student, context(), Schedule(1, 1, 0.0), {}) as engine:
        training = ConditionalTraining(maker, bn_loss, 8, 10, rng, loss=method.generator_loss)
        images, _, expected, curves = training.step(0.0, engine.network)
        close(engine.network(images).detach(), stored["student_logits"], 1e-5)
        curves |= method._gradients(engine, context())(images, labels, expected)
        parameters = dict(zip((name for name, _ in student.named_parameters()), engine.parameters, strict=True))
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
    close(expected, stored["teacher_logits"], 1e-5)
    names = {
        "generator_band": "h_loss",
        "generator_ds": "loss_ds",
        "generator_as": "loss_as",
        "generator_bn": "BNS_loss",
        "loss": "loss_S",
    }
    of_classes = method.alpha_ds * curves["generator_ds"] + method.alpha_as * curves["generator_as"]
    whole = curves["generator_band"] + of_classes + curves["generator_bn"]
    for found, name in ((of_classes, "loss_onehot"), (whole, "loss_G")):
        close(found.detach(), stored[name].squeeze(), 1e-5)
    for curve, name in names.items():
        close(curves[curve].detach(), stored[name].squeeze(), 1e-5)
    close(maker.images.grad, stored["grad_images"], 1e-4)
    paths = {
        "conv1.weight": "first_conv_w",
        "linear.weight": "linear_w",
        "linear.bias": "linear_b",
        "bn1.weight": "bn1_w",
    }
    for path, name in paths.items():
        close(gradients[path], stored[f"S_grad_{name}"], 1e-4)


def test_a_band_by_hand_counts_what_is_below_and_above():
    probabilities = 0.01, 0.1, 0.3, 0.5
    bits = [in_bits(p) for p in probabilities]
    spread = [(each - bits[0]) / (1 - bits[0]) for each in bits]
    assert spread[1] < 0.45 < spread[2] < 0.9 < spread[3]
    found = band_loss(binary(*probabilities), 0.45, 0.9)
    assert found.item() == pytest.approx((0.45 + 0.45 - spread[1] + 1 - 0.9) / 4)


def test_the_smallest_entropy_of_a_batch_has_a_gradient_of_its_own():
    difference = binary(0.05, 0.2, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: band_loss(x, 0.3, 0.8), difference)
    (gradient,) = torch.autograd.grad(band_loss(difference[1:], 0.0, 0.5), difference)
    assert gradient[1].abs().max() > 0.01  # the smallest of the last two, which is 0 in the band itself


@pytest.mark.parametrize(("difference", "expected"), [(binary(0.2, 0.2), 0.3), (torch.zeros(4, 7), 0.2)])
def test_equal_images_are_at_an_end_of_the_band(difference, expected):
    # of equal disagreement all are at the lower end; where networks are equal, all agree, at the upper end
    difference = difference.clone().requires_grad_()
    loss = band_loss(difference, 0.3, 0.8)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, difference)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_networks_that_agree_almost_give_finite_gradients(scale, classes):
    generator = torch.Generator().manual_seed(0)
    teacher = 10 * torch.randn(16, classes, generator=generator)
    difference = (teacher - (teacher + scale * torch.randn(16, classes, generator=generator))).requires_grad_()
    loss = band_loss(difference, 0.3, 0.8)
    (gradient,) = torch.autograd.grad(loss, difference)
    assert 0 <= loss <= 0.3 + 0.2
    assert gradient.norm() < 1 / math.sqrt(SMALLEST_SPAN)


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_any_batch_size_works(batch_size):
    quantized(AdaDFQ(**{**SHORT, "epochs": 1, "batch_size": batch_size}))


def test_a_student_that_differs_by_a_constant_has_no_gradient():
    expected = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.arange(5.0, dtype=torch.float64)[:, None]
    labels = functional.one_hot(torch.arange(5), 10).double()
    method = AdaSG(temperature=3.0, alpha=1.0)

    def loss(logits):
        return method.student_terms(logits, labels, expected)["disagreement"][1]

    equal = (expected + shift).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(equal), equal)
    assert loss(equal).item() == pytest.approx(-9 * math.log(10))
    assert gradient.abs().max() < 1e-12
    other = (expected * 0.5).requires_grad_()
    assert torch.autograd.gradcheck(loss, other)
    assert loss(other) > loss(equal)


def test_the_signs_of_both_class_terms():
    # the float network says class 0 by 3, the student by 1: both agree on it, and so does the difference
    teacher, student = (torch.tensor([[each, 0.0]], requires_grad=True) for each in (3.0, 1.0))
    batch = GeneratorBatch(torch.tensor([[1.0, 0.0]]), teacher, torch.tensor(0.0), lambda: student)
    method = AdaDFQ(lambda_l=0.1, alpha_ds=0.2)
    _, curves = method.generator_loss(batch)
    ds, agreeing = curves["generator_ds"], curves["generator_as"]
    assert ds.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert agreeing.item() == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-5)
    (of_ds,) = torch.autograd.grad(ds, student, retain_graph=True)
    (of_as,) = torch.autograd.grad(agreeing, student, retain_graph=True)
    assert of_ds[0, 0] > 0 > of_as[0, 0]
    assert all(torch.autograd.grad(each, teacher, retain_graph=True)[0][0, 0] < 0 for each in (ds, agreeing))


def test_a_generators_gradient_runs_through_the_student_alone_too():
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    labels = functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    frozen = (images @ weights).detach()
    batch = GeneratorBatch(labels, frozen, torch.tensor(0.0), lambda: 0.7 * images @ weights)
    loss, _ = AdaDFQ(lambda_l=0.1, alpha_ds=0.2).generator_loss(batch)
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.norm(dim=1).min() > 1e-3


@parametrize_briefly("method", [AdaDFQ, AdaSG], 1)
def test_the_student_does_not_learn_before_the_warm_up_ends(method, monkeypatch):
    plain, seen = method.generator_loss, []

    def noting(self, batch):
        seen.append(batch.student_logits().detach())
        return plain(self, batch)

    monkeypatch.setattr(method, "generator_loss", noting)
    teacher, ctx = tiny_teacher(), context()
    prepared = dict(method(**SHORT).prepare(teacher, parse_scheme("hast/w3a3")).named_parameters())
    student = quantized(method(**{**SHORT, "epochs": 0}), ctx)
    assert len(seen) == 5  # the generator sees the student all the same
    assert all(torch.equal(value, prepared[name]) for name, value in student.named_parameters())
    assert "loss" not in ctx.reporter.curves
    assert [step for step, _ in ctx.reporter.curves["warmup/generator_band"]] == [1, 2, 3, 4, 5]
    trained = dict(quantized(method(**SHORT)).named_parameters())
    assert not torch.equal(trained["classifier.weight"], prepared["classifier.weight"])


def test_the_student_learns_from_the_difference_alone():
    ctx = context()
    quantized(AdaDFQ(**SHORT), ctx)
    curves = {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}
    assert curves["loss"] == curves["disagreement"]
    assert all(-400 * math.log(10) <= value < 0 for value in curves["loss"])
    assert {"generator_band", "generator_ds", "generator_as", "generator_bn", "agreement", "ce"} <= curves.keys()


@pytest.mark.slow("it trains many times; test_contract interrupts AdaDFQ each time")
@parametrize_briefly("method", [AdaDFQ, AdaSG], 1)
def test_interrupted_at_any_point_they_end_as_undisturbed(method):
    ctx = context()
    expected = state_of(quantized(method(**SHORT), ctx))
    assert len(ctx.reporter.states) == 5 + 6
    for state in ctx.reporter.states[:-1:3]:
        found = state_of(quantized(method(**SHORT), context(resume_from=state)))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_generator_that_diverges_is_one_clear_line():
    with pytest.raises(ZSQBenchError, match=r"generator_\w+ is (nan|inf) at update .* try a smaller 'generator_lr'"):
        quantized(AdaSG(**SHORT, generator_lr=1e30))


def values(method, architecture, bits, size=224, classes=1000):
    network = NetworkTraits((3, size, size), classes, architecture)
    return method().resolved(network, parse_scheme(f"hast/w{bits}a{bits}"))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("classes", [10, 100])
def test_values_for_cifar_are_the_same_at_all_bits(bits, classes):
    for method, ends in ((AdaSG, (0.3, 0.1)), (AdaDFQ, (0.1, 0.2))):
        found = values(method, "pytorchcv/resnet20_cifar10", bits, 32, classes)
        assert (found.lambda_l, found.alpha_ds) == ends
        assert (found.lambda_u, found.alpha_as, found.batch_size, found.temperature) == (0.8, 0.1, 16, 20)
        assert (found.epochs, found.warmup, found.milestones, found.lr) == (396, 800, [96, 196, 296], 1e-4)


@pytest.mark.parametrize(
    ("architecture", "bits", "lambda_l", "alpha_ds"),
    [
        ("pytorchcv/resnet18", 3, 0.1, 0.2),
        ("pytorchcv/resnet18", 4, 0.3, 0.2),
        ("torchvision/resnet18", 5, 0.3, 0.3),
        ("torchvision/resnet18", 8, 0.3, 0.3),
        (None, 2, 0.1, 0.2),
        ("pytorchcv/mobilenetv2_w1", 3, 0.1, 0.2),
        ("torchvision/mobilenet_v2", 4, 0.1, 0.3),
        ("timm/mobilenetv2_100.ra_in1k", 5, 0.1, 0.2),
        ("pytorchcv/resnet50", 3, 0.4, 0.2),
        ("torchvision/resnet50", 4, 0.3, 0.1),
        ("torchvision/resnet50", 5, 0.3, 0.2),
    ],
)
def test_values_for_imagenet_go_by_architecture_and_bits(architecture, bits, lambda_l, alpha_ds):
    found = values(AdaDFQ, architecture, bits)
    assert (found.lambda_l, found.alpha_ds, found.temperature) == (lambda_l, alpha_ds, 5)
    other = values(AdaSG, architecture, bits)
    assert (other.lambda_l, other.alpha_ds) == (0.3, 0.1)
    assert (found.epochs + found.warmup / 200, other.epochs + other.warmup / 200) == (400, 400)


def test_resnet50_has_schedules_of_its_own():
    def schedule(method, architecture, bits):
        found = values(method, architecture, bits)
        return found.lr, found.warmup, found.milestones

    assert schedule(AdaDFQ, "pytorchcv/resnet18", 3) == schedule(AdaSG, None, 5) == (1e-5, 10_000, [300])
    assert [schedule(AdaDFQ, "pytorchcv/resnet50", bits) for bits in (3, 4, 5)] == [
        (1e-4, 20_000, [50, 200]),
        (1e-4, 10_000, [150, 250]),
        (1e-4, 10_000, [300]),
    ]
    assert [schedule(AdaSG, "pytorchcv/resnet50", bits) for bits in (3, 4, 5)] == [
        (1e-4, 20_000, [100, 200]),
        (1e-4, 10_000, [150, 250]),
        (1e-4, 10_000, [150, 250]),
    ]


def test_values_that_go_by_bits_are_left_open_without_a_scheme():
    network = NetworkTraits((3, 224, 224), 1000, "pytorchcv/resnet50")
    for method, of_bits in ((AdaSG, set()), (AdaDFQ, {"lambda_l", "alpha_ds"})):
        options = method().resolved(network).options()
        assert {name for name, value in options.items() if value is None} == {
            "epochs",
            "warmup",
            "milestones",
            *of_bits,
        }
    with pytest.raises(ZSQBenchError, match="needs the student's scheme"):
        quantized(AdaDFQ(batch_size=2), teacher=tiny_teacher((3, 64, 64)))


def test_an_empty_band_is_one_clear_line_when_options_are_read():
    with pytest.raises(ValueError, match=r"the band from lambda_l 0.8 to lambda_u 0.8 is empty: take a smaller"):
        AdaDFQ(lambda_l=0.8)
    network = NetworkTraits((3, 32, 32), 10)
    with pytest.raises(ZSQBenchError, match=r"'adasg' fills in .*the band from lambda_l 0.3 to lambda_u 0.2 is empty"):
        AdaSG(lambda_u=0.2).resolved(network)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (1, "adadfq compares networks by their classes, and this network has 1: take one with at least 2"),
        (None, "has none"),
    ],
)
def test_a_network_without_classes_to_compare_is_one_clear_line(classes, said):
    teacher = replace(tiny_teacher(), classes=classes)
    with pytest.raises(ZSQBenchError, match=said):
        quantized(AdaDFQ(**SHORT), teacher=teacher)


def test_an_empty_band_is_one_clear_line_in_a_plan(bench):
    bench.suite("""
name: toysuite
tasks: {digits: {method: classification, data: digits}}
quantizers: {adasg: {lambda_u: 0.2}}
matrix:
  - {task: digits, model: resnet20, quantizer: adasg, scheme: hast/w4a4, seed: 0}
""")
    (cell,) = bench.plan()["cells"]
    assert cell["reason"].endswith(
        "lambda_l: 0.3, alpha_ds: 0.1 for this network, and its other options contradict them: the band from "
        "lambda_l 0.3 to lambda_u 0.2 is empty: take a smaller lambda_l or a larger lambda_u; give these options too"
    )


def test_a_detector_is_impossible(bench):
    bench.suite("""
name: toysuite
tasks: {scenes: {method: coco_detection, data: scenes}}
matrix:
  - {task: scenes, model: scenedetector, quantizer: adadfq, scheme: hast/w4a4, seed: 0}
""")
    bench.run()
    assert bench.row()["reason"] == "adadfq needs a classifier, and scenedetector is not one"
