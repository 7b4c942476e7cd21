"""Each kind of layer whose weight can be quantized: in a student, folded, in an artifact and in a tensor map."""

import copy

import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench import ZSQBenchError
from zsqbench.quant import (
    activation_quantizers,
    calibrate_weights,
    effective_map,
    finalize,
    measured_map,
    prepare,
    quantized_layers,
    restore,
    take_over,
)
from zsqbench.scheme import parse_scheme

SIZE = (3, 6, 9)

# What reads the image, of three channels or of three lines of 54, and the norm that fits.
LAYERS = {
    "line": (nn.Conv1d(3, 8, 3, 2, padding=1), nn.BatchNorm1d),
    "circular line": (nn.Conv1d(3, 8, 3, padding=2, dilation=2, padding_mode="circular", bias=False), nn.BatchNorm1d),
    "depthwise line": (nn.Conv1d(3, 6, 3, groups=3, padding="same"), nn.BatchNorm1d),
    "reflected": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d),
    "transposed": (nn.ConvTranspose2d(3, 8, 3, 2, padding=1, output_padding=1, bias=False), nn.BatchNorm2d),
    "transposed in groups": (nn.ConvTranspose2d(3, 6, 2, 2, groups=3, dilation=2), nn.BatchNorm2d),
    "linear": (nn.Linear(54, 8), nn.BatchNorm1d),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def network(name):
    layer, norm = copy.deepcopy(LAYERS[name])
    torch.manual_seed(0)
    layer.reset_parameters()
    channels = len(layer.weight) if name == "linear" else layer.out_channels
    norm = norm(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)

    def forward(net, x):
        if name == "linear":
            x = x[:, 0].flatten(1)
        elif name.endswith("line"):
            x = x.flatten(2)
        y = net.norm(net.layer(x)).relu()
        return net.head(y if name == "linear" else y.flatten(2).amax(2))

    return from_forward(forward, layer=layer, norm=norm, head=nn.Linear(channels, 4))


def prepared(name, scheme):
    net = network(name)
    return net, prepare(net, parse_scheme(scheme), SIZE)


def images():
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))


@each_layer
@pytest.mark.parametrize("scheme", ["hw_strict/w4a4", "hw/w32a8", "hast/w4a4"])
def test_the_student_computes_what_the_network_does_while_quantizers_are_off(name, scheme):
    net, student = prepared(name, scheme)
    with torch.no_grad():
        expected, result = net(images()), student(images())
    assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert any("BatchNorm" in type(part).__name__ for part in student.modules()) == scheme.startswith("hast")


@each_layer
def test_weights_have_a_grid_for_each_output_channel_and_the_map_names_the_axis_of_torch(name):
    net, student = prepared(name, "hw_strict/w4a4")
    (_, layer), _ = quantized_layers(student)
    channels = len(net.norm.weight)
    calibrate_weights(student, "minmax")
    assert layer.weight_quantizer.scale.numel() == channels
    output_axis = 1 if isinstance(net.layer, nn.ConvTranspose2d) else 0
    entry = effective_map(student)[0]
    assert (entry.kind, entry.name, entry.role, entry.bits) == ("weight", "layer", "first_weight", 4)
    assert entry.axis == output_axis
    assert measured_map(student)[0].groups == channels
    assert measured_map(student)[0].elements == net.layer.weight.numel()
    roles = {entry.name: entry.role for entry in effective_map(student) if entry.kind == "activation"}
    assert roles == {"input": "input", "relu": "relu", "head": "logits"}


@each_layer
def test_the_artifact_computes_what_the_student_does(name):
    _, student = prepared(name, "hw_strict/w4a4")
    calibrate_weights(student, "minmax")
    for _, quantizer in activation_quantizers(student):
        quantizer.set_range(torch.tensor(-2.0), torch.tensor(3.0))
    with torch.no_grad():
        before = student(images())
        finalize(student)
        _, fresh = prepared(name, "hw_strict/w4a4")
        restore(fresh, student.state_dict())
        _, follower = prepared(name, "hw_strict/w4a4")
        take_over(follower, student)
        assert torch.equal(fresh(images()), before)
        assert torch.equal(student(images()), before)
        torch.testing.assert_close(follower(images()), before)
    assert effective_map(fresh) == effective_map(student)


@pytest.mark.parametrize("layer", [nn.Conv3d(1, 3, 1), nn.ConvTranspose1d(3, 3, 1)])
def test_layers_that_are_not_covered_are_refused_with_those_that_are(layer):
    def forward(net, x):
        return net.layer(x[:, None] if isinstance(net.layer, nn.Conv3d) else x.flatten(2))

    with pytest.raises(ZSQBenchError, match=r"only those of nn\.Conv1d, nn\.Conv2d, nn\.ConvTranspose2d and "):
        prepare(from_forward(forward, layer=layer), parse_scheme("hw/w8a8"), SIZE)


def test_a_norm_over_lines_that_a_linear_layer_makes_stays():
    net = from_forward(lambda net, x: net.norm(net.layer(x.flatten(2))), layer=nn.Linear(54, 3), norm=nn.BatchNorm1d(3))
    student = prepare(net, parse_scheme("hw/w8a8"), SIZE)
    assert any(isinstance(part, nn.BatchNorm1d) for part in student.modules())


def test_averages_over_a_line_are_pooled():
    def forward(net, x):
        line = net.layer(x.flatten(2)).relu()
        return net.head(torch.cat([line.mean(2), line.mean(dim=-1), net.pool(line).flatten(1), line.mean(1)], 1))

    layers = {"layer": nn.Conv1d(3, 4, 1), "pool": nn.AdaptiveAvgPool1d(1), "head": nn.Linear(66, 2)}
    student = prepare(from_forward(forward, **layers), parse_scheme("hw_strict/w8a8"), SIZE)
    roles = {entry.name: entry.role for entry in effective_map(student) if entry.kind == "activation"}
    assert [roles[name] for name in ("mean", "mean_1", "pool", "mean_2")] == ["pooled", "pooled", "pooled", "other"]
