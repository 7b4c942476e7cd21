import numpy as np
import pytest
import torch
from brief import each_once, parametrize_briefly
from networks import Cifar, GoldenViT, stored_tensor
from torch import nn

from zsqbench import CalibrationSet, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_by,
    calibrate_weights,
    fake_quantize,
    finalize,
    include_zero,
    minmax,
    prepare,
    quantize,
    quantized_layers,
    switched,
    weight_quantizers,
)
from zsqbench.quant.grids.affine import affine_parameters
from zsqbench.quant.ranges.observers import absmax
from zsqbench.scheme import FLOAT, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

RTN = load_plugins().find("quantizer", "rtn").method
RANGES = ("minmax", "mse", "percentile")


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@parametrize_briefly("ranges, scheme", each_once(RANGES, ["hw/w2a32", "hw/w8a8", "hw/w32a4", "hw/w4a4"]), 3)
def test_rtn_keeps_the_contract_of_quantizers(ranges, scheme):
    check_quantizer(RTN(weight_range=ranges, activation_range=ranges), scheme, tiny_teacher())


@pytest.mark.parametrize(
    ("options", "scheme", "count", "read"),
    [
        ({}, "hw/w4a4", 80, 64),
        ({}, "hw/w4a4", 20, 20),
        ({"search_images": 16}, "hw/w4a4", 20, 16),
        ({"search_images": 16, "activation_range": "percentile"}, "hw/w4a4", 20, 16),
        ({"search_images": 16, "activation_range": "minmax"}, "hw/w4a4", 20, 20),
        ({}, "hw/w4a32", 20, 0),
    ],
)
def test_it_says_how_many_images_it_reads(options, scheme, count, read):
    teacher, ctx = tiny_teacher(), context()
    student = RTN(**options).prepare(teacher, parse_scheme(scheme))
    RTN(**options).quantize(student, teacher, CalibrationSet(torch.zeros(count, *teacher.input_size)), ctx)
    assert ctx.read == read


def deviation(quantizer, scheme):
    """Largest error of the logits, relative to the largest logit."""
    teacher = tiny_teacher()
    images = torch.randn(64, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, CalibrationSet(images), context())
    finalize(student)
    with torch.no_grad():
        expected, result = teacher.module(images), student(images)
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_more_bits_are_closer_to_the_network(ranges):
    quantizer = RTN(weight_range=ranges, activation_range=ranges)
    errors = [deviation(quantizer, scheme) for scheme in ("hw/w3a3", "hw/w6a6", "hw/w12a12")]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2


def test_weight_ranges_by_hand():
    teacher = tiny_teacher()
    images = CalibrationSet(torch.randn(4, *teacher.input_size))
    student = RTN().prepare(teacher, parse_scheme("hw/w4a4"))
    RTN(weight_range="minmax").quantize(student, teacher, images, context())
    weight = teacher.module.classifier.weight  # has no norm to be folded
    span = weight.max(1).values.clamp(min=0) - weight.min(1).values.clamp(max=0)
    torch.testing.assert_close(dict(weight_quantizers(student))["classifier"].scale[:, 0], span / 15)


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("ranges, grid", each_once(RANGES, ["symmetric", "power_of_two", "affine"]), 3)
def test_rtn_runs_on_every_grid(grid, ranges):
    quantizer = RTN(grid=grid, weight_range=ranges, activation_range=ranges, percent=100)
    check_quantizer(quantizer, "hw_strict/w8a8", tiny_teacher())
    assert deviation(quantizer, "hw_strict/w12a12") < 0.02
    per_tensor = RTN(grid=grid, per_channel=False, weight_range=ranges, activation_range=ranges, percent=100)
    assert deviation(per_tensor, "hw_strict/w12a12") < 0.02


@pytest.mark.usefixtures("briefly")
def test_the_grid_that_a_scheme_demands_is_taken_and_no_other_allowed():
    teacher, scheme = tiny_teacher(), parse_scheme("pot/w8a8")
    assert RTN().rejects(scheme) is None
    student = RTN().prepare(teacher, scheme)
    assert {quantizer.grid for _, quantizer in weight_quantizers(student)} == {"power_of_two"}
    check_quantizer(RTN(), "pot/w8a8", tiny_teacher())
    assert RTN(grid="symmetric").rejects(scheme) == (
        "the scheme demands the grid power_of_two, and its option grid is symmetric"
    )


def test_only_the_first_images_are_searched():
    teacher = tiny_teacher()
    images = torch.randn(8, *teacher.input_size)
    outputs = []
    for calibration in (images, torch.cat([images[:4], 100 * images[4:]])):
        student = RTN().prepare(teacher, parse_scheme("hw/w4a4"))
        RTN(search_images=4).quantize(student, teacher, CalibrationSet(calibration), context())
        outputs.append(student(images))
    assert torch.equal(*outputs)


def test_it_rejects_the_float_scheme_and_needs_images():
    assert RTN().rejects(FLOAT)
    assert RTN().rejects(parse_scheme("hw/w4a4")) is None
    teacher = tiny_teacher()
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        RTN().quantize(RTN().prepare(teacher, parse_scheme("hw/w4a4")), teacher, None, context())


@pytest.mark.slow("it evaluates real images; test_main_job does the same with digits")
def test_eight_bits_keep_the_accuracy_of_a_real_network(request):
    cifar = Cifar(request.config.rootpath)
    calibration = CalibrationSet(cifar.read(cifar.train_files[:: 4660 // 64][:64]))
    student = RTN().prepare(cifar.teacher, parse_scheme("hw/w8a8"))
    RTN().quantize(student, cifar.teacher, calibration, context())
    finalize(student)
    # test_classification.py has that the float network is right on 776
    assert abs(cifar.right(student) - 776) <= 8


@pytest.fixture
def psaq(shared):
    """The golden vectors of PSAQ-ViT's released quantizer, by file."""
    return lambda name: np.load(shared / "golden" / "vit" / f"{name}.npz")


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_around_zero_are_those_of_psaq_vit(psaq, bits):
    stored = psaq("psaq_quant_a")
    weight = torch.from_numpy(stored["W"]).float()
    scale, zero_point = absmax(weight, bits, 0)
    assert torch.equal(scale, torch.from_numpy(stored[f"W_scale_{bits}"]))
    codes = quantize(weight, scale[:, None], zero_point[:, None], bits) - zero_point[:, None]
    assert torch.equal(codes * scale[:, None], torch.from_numpy(stored[f"W_q_{bits}"]))


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_from_the_smallest_to_the_largest_are_those_of_psaq_vit(psaq, bits):
    stored = psaq("psaq_quant_a")
    x = torch.from_numpy(stored["X"]).float()
    scale, zero_point = affine_parameters(*include_zero(*minmax(x)), bits)
    assert (scale, zero_point) == (stored[f"X_scale_{bits}"], stored[f"X_zero_{bits}"])
    expected = torch.from_numpy(stored[f"X_q_{bits}"])
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, bits), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("widths", ["w4a8", "w8a8", "w4a4"])
def test_a_transformer_at_psaq_is_that_of_psaq_vit(psaq, widths):
    stored = psaq("psaq_quant_a")
    network = GoldenViT(psaq("tinyvit_a")).double().eval().requires_grad_(requires_grad=False)
    scheme = parse_scheme(f"psaq/{widths}")
    student = prepare(network, scheme, (3, 64, 64)).double()
    images = stored_tensor(stored, "calibration_images")
    for kind in ("test", "calibration"):
        expected = stored_tensor(stored, f"logits_float_{kind}_f64")
        torch.testing.assert_close(network(stored_tensor(stored, f"{kind}_images")), expected, rtol=1e-10, atol=1e-10)
    calibrate_weights(student, "absmax")
    calibrate_activations_by("minmax", student, images, len(images), in_float=True)
    quantizers = [quantizer for _, quantizer in activation_quantizers(student)]
    top = 2 ** quantizers[0].bits - 1
    steps = [(high - low) / top for low, high in zip(stored["act_min_f64"], stored["act_max_f64"], strict=True)]
    assert [quantizer.scale.item() for quantizer in quantizers] == pytest.approx(steps, rel=1e-12)
    for quantizer in quantizers:  # the release adds the zero point before it rounds, which tells for ties alone
        quantizer.forward = lambda x, its=quantizer: (
            ((x / its.scale + its.zero_point).round().clamp(0, top) - its.zero_point) * its.scale
        )
    single = prepare(
        GoldenViT(psaq("tinyvit_a")).float().eval().requires_grad_(requires_grad=False), scheme, (3, 64, 64)
    )
    calibrate_weights(single, "absmax")
    for kind in ("test", "calibration"):
        found = student(stored_tensor(stored, f"{kind}_images"))
        expected = stored_tensor(stored, f"logits_{widths}_{kind}_f64")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (_, layer), (_, in_single) in zip(quantized_layers(student), quantized_layers(single), strict=True):
        layer.weight = nn.Parameter(in_single.quantized_weight().double(), requires_grad=False)
    with switched([quantizer for _, quantizer in weight_quantizers(student)], enabled=False):
        for kind in ("test", "calibration"):  # codes of weights in single precision decide ties as the release does
            found = student(stored_tensor(stored, f"{kind}_images"))
            expected = stored_tensor(stored, f"logits_{widths}_{kind}")
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("briefly")
def test_ranges_of_the_float_network_do_not_depend_on_the_bits_before_them():
    teacher = tiny_teacher()
    images = torch.randn(8, *teacher.input_size)
    found = []
    for scheme in ("hw/w2a8", "hw/w8a8"):
        student = RTN().prepare(teacher, parse_scheme(scheme))
        RTN(float_ranges=True, activation_range="minmax").quantize(student, teacher, CalibrationSet(images), context())
        found.append([quantizer.scale.item() for _, quantizer in activation_quantizers(student)])
    assert found[0] == found[1]
    check_quantizer(RTN(weight_range="absmax", float_ranges=True), "hw/w4a4", teacher)
