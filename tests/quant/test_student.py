import copy

import pytest
import torch
from brief import parametrize_briefly
from networks import from_forward
from torch import fx, nn
from torchvision import models

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    ActivationQuantizer,
    Grids,
    activation_quantizers,
    calibrate_weights,
    effective_map,
    finalize,
    hold_image,
    prepare,
    quantized_layers,
    restore,
    weight_quantizers,
)
from zsqbench.scheme import FLOAT, Placement, parse_scheme
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


@parametrize_briefly(
    "build, size, activations, weights",
    [
        (lambda: CifarResNet(20), (3, 32, 32), 20, 20),
        (lambda: models.mobilenet_v2(weights=None), (3, 64, 64), 53, 53),
        (lambda: models.resnet18(weights=None), (3, 64, 64), 18, 21),
        (lambda: models.resnet50(weights=None), (3, 64, 64), 50, 54),
    ],
    2,
)
def test_hw_quantizes_what_dghs_release_quantizes(build, size, activations, weights):
    student = prepare(build(), parse_scheme("hw/w4a4"), size)
    assert len(activation_quantizers(student)) == activations
    assert len(weight_quantizers(student)) == weights


def test_the_student_computes_what_the_network_does_until_it_is_calibrated(network, images):
    before = copy.deepcopy(network.state_dict())
    unfolded = parse_scheme("bare/w4a4", {"bare": Placement(fold_bn=False)})
    assert torch.equal(prepare(network, unfolded, SIZE)(images), network(images))
    torch.testing.assert_close(prepare(network, parse_scheme("hw/w4a4"), SIZE)(images), network(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_float_scheme_copies_the_network(network, images):
    student = prepare(network, FLOAT, SIZE)
    assert isinstance(student, fx.GraphModule)
    assert student.training is network.training is False
    finalize(student)
    assert torch.equal(student(images), network(images))
    assert effective_map(student) == []
    next(student.parameters()).data.zero_()
    assert next(network.parameters()).any()


def test_the_float_scheme_asks_for_no_network_that_can_be_traced():
    network = from_forward(lambda _, x: x * 2 if x.sum() > 0 else x)
    student, images = prepare(network, FLOAT, SIZE), torch.ones(1, *SIZE)
    assert torch.equal(student(images), images * 2)
    assert torch.equal(copy.deepcopy(student)(-images), -images)


def test_thirty_two_bits_put_no_quantizer(network):
    student = prepare(network, parse_scheme("hw/w32a8"), SIZE)
    assert not weight_quantizers(student)
    student = prepare(network, parse_scheme("hw/w8a32"), SIZE)
    assert not activation_quantizers(student)
    assert {entry.bits for entry in effective_map(student) if entry.kind == "activation"} == {32}


def test_first_and_last_weights_have_roles_of_their_own(network):
    placement = Placement(first_weight=8, last_weight=6, logits="float")
    student = prepare(network, parse_scheme("own/w3a4", {"own": placement}), SIZE)
    quantizers = weight_quantizers(student)
    assert [quantizer.bits for _, quantizer in quantizers] == [8, *[3] * 6, 6]
    assert [quantizer.role for _, quantizer in quantizers] == ["first_weight", *["weight"] * 6, "last_weight"]
    assert "linear" not in dict(activation_quantizers(student))


def test_quantizers_know_name_role_bits_and_axis_in_execution_order(network):
    student = prepare(network, parse_scheme("hw/w4a5"), SIZE)
    name, quantizer = activation_quantizers(student)[1]
    assert (name, quantizer.role, quantizer.bits, quantizer.axis) == ("layer1.0.relu1", "relu", 5, None)
    name, quantizer = weight_quantizers(student)[-1]
    assert (name, quantizer.role, quantizer.bits, quantizer.axis) == ("linear", "last_weight", 4, 0)
    assert quantizer.scale.shape == (10, 1)


def test_layers_of_every_geometry_work(images):
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, dilation=1, groups=3, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(6, 4, (1, 3), padding="same", bias=False),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    student = prepare(network, parse_scheme("hw/w4a4"), SIZE)
    with torch.no_grad():
        torch.testing.assert_close(student(images), network(images))
    assert [type(layer).__name__ for _, layer in quantized_layers(student)] == [
        "QuantizedConv2d", "QuantizedConv2d", "QuantizedLinear"
    ]  # fmt: skip


def test_a_module_called_twice_has_a_quantizer_for_each_call(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.conv(self.relu(self.conv(x))).relu()

    student = prepare(Twice(), parse_scheme("hw/w4a4"), SIZE)
    assert [name for name, _ in activation_quantizers(student)] == ["relu", "relu_1"]
    assert [name for name, _ in weight_quantizers(student)] == ["conv"]


def test_a_printed_student_shows_what_each_quantizer_does(network):
    student = prepare(network, parse_scheme("hw/w4a5"), SIZE)
    assert "ActivationQuantizer(logits, bits=5, grid=affine, axis=None)" in repr(student)


def test_autocast_does_not_coarsen_the_grid():
    quantizer = ActivationQuantizer("x", "activation", 8, axis=None, shape=())
    quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
    assert quantizer(torch.rand(9, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_pattern_of_tensor_names_gives_bits_of_its_own(network, images):
    tensors = {"layer2.*": 8, "layer2.0.conv1": {"weight": "float"}, "linear": {"weight": 6, "activation": 16}}
    scheme = parse_scheme("own/w3a4", {"own": Placement(addend="float", tensors=tensors)})
    student = prepare(network, scheme, SIZE)
    bits = {(tensor.kind, tensor.name): tensor.bits for tensor in effective_map(student)}
    assert {place: width for place, width in bits.items() if "layer2" in place[1] or "linear" in place[1]} == {
        ("weight", "layer2.0.conv1"): 32,
        ("weight", "layer2.0.conv2"): 8,
        ("weight", "linear"): 6,
        ("activation", "layer2.0.relu1"): 8,
        ("activation", "layer2.0.conv2"): 8,  # which the placement leaves in float
        ("activation", "layer2.0.relu2"): 8,
        ("activation", "linear"): 16,
    }
    others = [width for (kind, name), width in bits.items() if kind == "weight" and "layer2" not in name]
    assert others == [3] * 5 + [6]
    torch.testing.assert_close(student(images), network(images))


@pytest.mark.parametrize("name", ["conv1", "layer1.0.bn1"])
def test_what_is_fused_is_no_tensor_that_a_pattern_may_name(network, name):
    scheme = parse_scheme("own/w4a4", {"own": Placement(tensors={name: {"activation": 8}})})
    with pytest.raises(ZSQBenchError, match=f"scheme own/w4a4: the pattern '{name}' matches no activation of the net"):
        prepare(network, scheme, SIZE)


def test_a_pattern_is_refused_that_matches_nothing_in_the_network(network):
    scheme = parse_scheme("own/w4a4", {"own": Placement(tensors={"layer1.*": 8, "layer9.*": 8})})
    with pytest.raises(ZSQBenchError, match=r"'layer9\.\*' matches no weight and no activation .* did you mean 'layer"):
        prepare(network, scheme, SIZE)


def test_a_pattern_alone_may_quantize(network):
    scheme = parse_scheme("own/w32a32", {"own": Placement(tensors={"linear": {"weight": 8}})})
    assert [name for name, _ in weight_quantizers(prepare(network, scheme, SIZE))] == ["linear"]


def test_a_pattern_is_about_all_calls_of_a_shared_head(images):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return [self.out(self.conv(each)) for each in (x, x[:, :, ::2, ::2])]

    scheme = parse_scheme("own/w4a4", {"own": Placement(tensors={"conv": {"activation": 9}})})
    student = prepare(Head(), scheme, SIZE)
    calls = [node for node in student.graph.nodes if str(node.target) == "activation_quantizers.conv"]
    assert (len(calls), dict(activation_quantizers(student))["conv"].bits) == (2, 9)
    assert len(student(images)) == 2


def gated():
    """A network with a fused ReLU, and with activation functions that nothing fuses behind a layer and an addition."""

    def forward(net, x):
        y = net.swish(net.norm(net.stem(x)))
        y = net.relu(net.inner(y))
        y = torch.nn.functional.gelu(net.branch(y) + y)
        return net.head(net.leaky(net.last(y)).mean((2, 3)))

    torch.manual_seed(0)
    one = {name: nn.Conv2d(3, 3, 1) for name in ("stem", "inner", "branch", "last")}
    more = {"norm": nn.BatchNorm2d(3), "swish": nn.Hardswish(), "relu": nn.ReLU6(), "leaky": nn.LeakyReLU()}
    return from_forward(forward, **one, **more, head=nn.Linear(3, 4))


def test_what_activation_functions_read_that_are_not_fused_is_quantized_where_a_scheme_says_so(images):
    network = gated()
    strict, found = (prepare(network, parse_scheme(f"{name}/w8a8"), SIZE) for name in ("hw_strict", "qdq"))
    names = [{name: each.role for name, each in activation_quantizers(student)} for student in (strict, found)]
    read = dict.fromkeys(["stem", "add", "last"], "preactivation")
    assert names[1] == names[0] | read
    order = [name for name, _ in activation_quantizers(found)]
    assert order.index("stem") == order.index("swish") - 1  # in the order of execution
    torch.testing.assert_close(found(images), network(images))
    for _, quantizer in activation_quantizers(found):
        quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    assert not torch.equal(found(images), network(images))


@pytest.mark.parametrize("width", ["float", 5])
def test_a_preactivation_may_have_a_width_of_its_own(width):
    scheme = parse_scheme("own/w8a8", {"own": Placement(preactivation=width)})
    tensors = {each.name: each.bits for each in effective_map(prepare(gated(), scheme, SIZE)) if each.kind != "weight"}
    assert tensors["stem"] == tensors["add"] == {"float": 32}.get(width, width)
    assert tensors["swish"] == 8


def test_a_pattern_gives_bits_to_a_preactivation_only_where_the_scheme_has_it():
    placements = {
        "with": Placement(preactivation="float", tensors={"add": {"activation": 8}}),
        "without": Placement(tensors={"add": {"activation": 8}}),
    }
    student = prepare(gated(), parse_scheme("with/w4a4", placements), SIZE)
    assert [(name, each.bits) for name, each in activation_quantizers(student) if each.role == "preactivation"] == [
        ("add", 8)
    ]
    with pytest.raises(ZSQBenchError, match="'add' matches no activation"):
        prepare(gated(), parse_scheme("without/w4a4", placements), SIZE)


def image_quantizer(student):
    (found,) = (each for _, each in activation_quantizers(student) if each.role == "input")
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_an_image_that_is_held_keeps_its_grid_whatever_is_set_and_rounds_from_then_on(network, images, bits):
    student = prepare(network, parse_scheme(f"qdq/w8a{bits}"), SIZE)
    hold_image(student, torch.tensor([-1.0, -2.0]), torch.tensor([1.5, 2.0]))
    held = image_quantizer(student)
    expected = (pytest.approx(4 / (2**bits - 2)), 2 ** (bits - 1))  # zero is halfway: a step wider
    assert (held.scale.item(), held.zero_point.item(), held.enabled) == (*expected, False)
    assert torch.equal(held(images), images)
    held.set_range(torch.tensor(0.0), torch.tensor(9.0))
    assert (held.scale.item(), held.zero_point.item(), held.enabled) == (*expected, True)
    held.set_threshold(torch.tensor(5.0), signed=False)
    held.set_parameters(torch.tensor(1.0), torch.tensor(0.0))
    assert (held.scale.item(), held.zero_point.item()) == expected


def test_an_image_whose_range_no_method_sets_rounds_when_the_student_is_finished(network, images):
    student, again = (prepare(network, parse_scheme("qdq/w8a8"), SIZE) for _ in range(2))
    for each in (student, again):
        hold_image(each, torch.tensor(-1.0), torch.tensor(1.0))
    calibrate_weights(student, "minmax")
    for _, quantizer in activation_quantizers(student):
        if quantizer.role != "input":
            quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    finalize(student)
    assert image_quantizer(student).enabled
    restore(again, student.state_dict())
    assert torch.equal(again(images), student(images))


def test_the_image_has_an_affine_grid_at_qdq_whatever_the_other_activations_have(network):
    student = prepare(network, parse_scheme("qdq/w8a8"), SIZE, Grids("symmetric", "power_of_two"))
    grids = {each.role: each.grid for _, each in activation_quantizers(student)}
    assert (grids.pop("input"), set(grids.values())) == ("affine", {"power_of_two"})
    student = prepare(network, parse_scheme("hw_strict/w8a8"), SIZE, Grids("symmetric", "power_of_two"))
    assert {each.grid for _, each in activation_quantizers(student)} == {"power_of_two"}
