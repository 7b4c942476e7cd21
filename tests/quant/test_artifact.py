import copy

import pytest
import torch
from brief import parametrize_briefly
from torch import nn

from zsqbench.quant import (
    Grids,
    WeightQuantizer,
    activation_quantizers,
    calibrate_activations_minmax,
    calibrate_activations_mse,
    calibrate_weights,
    effective_map,
    finalize,
    measured_map,
    prepare,
    quantized_layers,
    restore,
    weight_quantizers,
)
from zsqbench.scheme import TensorOnGrid, parse_scheme
from zsqbench.zoo.resnet import CifarResNet

SIZE = (3, 8, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = CifarResNet(8, width=4).eval().requires_grad_(False)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module


@pytest.fixture
def images():
    return torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))


def calibrated(network, scheme, images):
    student = prepare(network, parse_scheme(scheme), SIZE)
    calibrate_weights(student, "mse")
    calibrate_activations_mse(student, images)
    return student


def test_the_effective_map_is_a_full_account(network):
    entries = effective_map(prepare(network, parse_scheme("hw/w4a5"), SIZE))
    assert entries[0] == TensorOnGrid("weight", "conv1", "first_weight", 4, "affine", axis=0)
    assert entries[8] == TensorOnGrid("activation", "input", "input", 32, "float", axis=None)
    assert [entry.name for entry in entries if entry.kind == "activation" and entry.bits == 32] == [
        "input", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2", "pool"
    ]  # fmt: skip


@parametrize_briefly("scheme", ["hw/w4a4", "hw/w8a8", "hw/w12a16", "hw/w32a4", "hw/w2a32"], 2)
def test_an_artifact_restores_the_student_bit_for_bit(network, images, scheme):
    student = calibrated(network, scheme, images)
    before = student(images)
    finalize(student)
    assert torch.equal(student(images), before)
    fresh = prepare(network, parse_scheme(scheme), SIZE)
    restore(fresh, {name: value.clone() for name, value in student.state_dict().items()})
    assert torch.equal(fresh(images), before)
    assert effective_map(fresh) == effective_map(student)


def test_an_artifact_holds_integers_instead_of_weights(network, images):
    student = calibrated(network, "hw/w4a4", images)
    finalize(student)
    state = student.state_dict()
    assert "conv1.weight" not in state
    assert state["conv1.weight_codes"].dtype == torch.uint8
    assert state["conv1.weight_codes"].max() <= 15
    assert state["conv1.weight_quantizer.scale"].shape == (4, 1, 1, 1)
    assert "activation_quantizers.layer1.0.relu1.zero_point" in state
    student = calibrated(network, "hw/w9a4", images)
    finalize(student)
    assert student.state_dict()["conv1.weight_codes"].dtype == torch.int32


def test_finalizing_twice_changes_nothing(network, images):
    student = calibrated(network, "hw/w4a4", images)
    finalize(student)
    before = copy.deepcopy(student.state_dict())
    finalize(student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_evaluation_changes_no_statistic(network, images):
    student = calibrated(network, "hw/w4a4", images)
    before = copy.deepcopy(student.state_dict())
    student(10 * images)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_what_only_training_needs_is_dropped(network, images):
    class Learned(WeightQuantizer):
        """A rounding of its own, as AdaRound has: here always down."""

        def __init__(self, other):
            super().__init__(other.name, other.role, other.bits, axis=other.axis, shape=tuple(other.scale.shape))
            self.load_state_dict(other.state_dict())
            self.enabled = True
            self.offset = nn.Parameter(torch.tensor(0.5))

        def codes(self, weight):
            return super().codes(weight - self.offset * self.scale)

        def forward(self, weight):
            return (self.codes(weight) - self.zero_point) * self.scale

    student = calibrated(network, "hw/w4a4", images)
    _, layer = quantized_layers(student)[0]
    layer.weight_quantizer = Learned(layer.weight_quantizer)
    before = student(images)
    finalize(student)
    assert torch.equal(student(images), before)
    fresh = prepare(network, parse_scheme("hw/w4a4"), SIZE)
    restore(fresh, student.state_dict())
    assert torch.equal(fresh(images), before)


def test_a_quantizer_that_was_never_calibrated_is_an_error_with_its_name(network, images):
    student = prepare(network, parse_scheme("hw/w4a4"), SIZE)
    calibrate_weights(student, "minmax")
    with pytest.raises(RuntimeError, match="activation quantizer of 'relu' was not calibrated"):
        finalize(student)
    student = prepare(network, parse_scheme("hw/w4a4"), SIZE)
    calibrate_activations_mse(student, images)
    with pytest.raises(RuntimeError, match="weight quantizer of 'conv1' was not calibrated"):
        finalize(student)


def test_a_scale_that_is_not_finite_is_an_error_with_its_name(network, images):
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="quantizer of 'relu' has a scale or zero point that is not finite"):
        finalize(calibrated(network, "hw/w4a4", images))


def test_an_artifact_of_another_structure_is_refused(network, images):
    student = calibrated(network, "hw/w4a4", images)
    finalize(student)
    state = student.state_dict()
    with pytest.raises(RuntimeError, match=r"the student differ in \w+.*\.scale"):
        restore(prepare(network, parse_scheme("hw/w4a32"), SIZE), state)
    del state["conv1.weight_codes"]
    with pytest.raises(RuntimeError, match=r"the student differ in conv1\.weight_codes$"):
        restore(prepare(network, parse_scheme("hw/w4a4"), SIZE), state)


@pytest.mark.parametrize("grid", ["affine", "symmetric", "power_of_two"])
@parametrize_briefly("per_channel", [False, True], 1)
def test_every_grid_is_kept_through_finalize_and_restore(network, grid, per_channel):
    scheme, grids = parse_scheme("hw_strict/w4a5"), Grids(grid, grid, per_channel)
    student = prepare(network, scheme, SIZE, grids)
    images = torch.randn(4, *SIZE)
    calibrate_weights(student, "mse")
    calibrate_activations_mse(student, images)
    expected = student(images)
    finalize(student)
    again = prepare(network, scheme, SIZE, grids)
    restore(again, student.state_dict())
    assert torch.equal(again(images), expected)
    measured = measured_map(again)
    assert {entry.grid for entry in measured} == {grid}
    assert {entry.axis for entry in measured if entry.kind == "weight"} == {0 if per_channel else None}
    assert effective_map(again) == effective_map(prepare(network, scheme, SIZE, grids))


def test_the_measured_map_holds_ranges_and_sizes(network):
    student = prepare(network, parse_scheme("hw/w4a5"), SIZE)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [torch.randn(4, *SIZE)])
    weights = {name: layer.weight.clone() for name, layer in quantized_layers(student)}
    finalize(student)
    entries = {(entry.kind, entry.name): entry for entry in measured_map(student)}
    stem = entries["weight", "conv1"]
    assert stem.elements == weights["conv1"].numel()
    assert stem.groups == len(weights["conv1"])
    assert stem.low <= weights["conv1"].min() + 0.1
    assert stem.high >= weights["conv1"].max() - 0.1
    image = entries["activation", "input"]
    assert (image.grid, image.low, image.groups, image.elements) == ("float", None, None, None)
    assert str(entries["activation", "relu"].low) == "0.0"  # and not -0.0
    assert entries["activation", "relu"].groups == 1


def test_a_scale_that_is_no_power_of_two_is_found(network):
    student = prepare(network, parse_scheme("pot/w8a8"), SIZE, Grids("power_of_two", "power_of_two"))
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [torch.randn(4, *SIZE)])
    activation_quantizers(student)[0][1].scale.mul_(1.5)
    with pytest.raises(RuntimeError, match="'input' has a scale that is not a power of two"):
        finalize(student)


def test_the_effective_map_says_what_live_quantizers_do_not_what_the_scheme_says(network):
    student = prepare(network, parse_scheme("hw/w2a8"), SIZE)
    layers = quantized_layers(student)
    for _, layer in layers[:1]:
        layer.weight_quantizer.bits = 8
    entries = {(entry.kind, entry.name): entry for entry in effective_map(student)}
    assert [entries["weight", name].bits for name, _ in layers[:2]] == [8, 2]


@pytest.mark.parametrize("grid", ["symmetric", "power_of_two"])
def test_a_zero_point_of_a_symmetric_weight_that_is_not_in_the_middle_is_found(network, grid):
    student = prepare(network, parse_scheme("hw/w8a32"), SIZE, Grids(grid))
    calibrate_weights(student, "minmax")
    finalize(copy.deepcopy(student))
    name, quantizer = weight_quantizers(student)[0]
    quantizer.zero_point.sub_(1)
    with pytest.raises(RuntimeError, match=f"weight quantizer of '{name}' has a zero point other than 128, which its"):
        finalize(student)
