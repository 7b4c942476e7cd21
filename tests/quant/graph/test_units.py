import functools

import pytest
import torch
from brief import parametrize_briefly
from networks import called_twice, detector, from_forward
from torch import nn
from torchvision import models
from transformernets import built

from zsqbench.quant import activation_quantizers, describe_units, find_units, prepare, quantized_layers
from zsqbench.quant.graph.units import MAX_LAYERS
from zsqbench.scheme import parse_scheme

SIZE = (3, 32, 32)
ARCHITECTURES = ["resnet18", "mobilenet_v3_large", "densenet121", "googlenet"]


def students(module, scheme="hw/w4a4", size=SIZE):
    return prepare(module.eval().requires_grad_(False), parse_scheme(scheme), size)


@functools.cache
def torchvision_student(name, scheme="hw_strict/w4a4"):
    options = {"init_weights": False} if name == "googlenet" else {}
    return students(models.get_model(name, weights=None, **options), scheme)


def kinds(units):
    return [(unit.kind, len(unit.layers)) for unit in units if unit.kind != "passage"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [("layer", 1), *[("block", n) for n in (2, 2, 3, 2, 3, 2, 3, 2)], ("layer", 1)]),
        ("mobilenet_v2", [("layer", 1), ("block", 2), *[("block", 3)] * 16, ("layer", 1), ("layer", 1)]),
    ],
)
def test_units_are_the_published_ones(name, expected):
    assert kinds(find_units(torchvision_student(name))) == expected


@pytest.mark.slow("resnet18 shows the same")
def test_resnet50_has_its_eighteen_units():
    found = kinds(find_units(torchvision_student("resnet50")))
    assert [kind for kind, _ in found] == ["layer", *["block"] * 16, "layer"]


@parametrize_briefly("grain", ["block", "layer"], 2)
@parametrize_briefly(
    "name, scheme",
    [
        ("resnet18", "hast/w4a4"),
        ("mobilenet_v3_large", "qdq/w4a4"),
        *((name, "hw_strict/w4a4") for name in ARCHITECTURES),
    ],
    2,
)
def test_running_the_units_in_order_is_running_the_network(name, scheme, grain):
    student = torchvision_student(name, scheme)
    images = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    units = find_units(student, grain)
    values = {units[0].inputs[0]: images}
    with torch.no_grad():
        for unit in units:
            values |= unit.run(*(values[name] for name in unit.inputs))
        assert torch.equal(values[units[-1].targets[0]], student(images))


@pytest.mark.parametrize("grain", ["block", "layer"])
@parametrize_briefly("name", ARCHITECTURES, 2)
def test_every_layer_and_quantizer_is_in_one_unit(name, grain):
    student = torchvision_student(name)
    units = find_units(student, grain)
    layers = [path for unit in units for path, _ in unit.layers]
    quantizers = [quantizer.name for unit in units for quantizer in unit.quantizers]
    assert sorted(layers) == sorted(path for path, _ in quantized_layers(student))
    assert sorted(quantizers) == sorted(name for name, _ in activation_quantizers(student))


def test_grain_layer_makes_a_unit_of_each_layer():
    found = find_units(torchvision_student("resnet18"), "layer")
    assert [count for _, count in kinds(found)] == [1] * 21


@pytest.mark.parametrize("grain", ["block", "layer"])
def test_a_quantizer_between_a_layer_and_its_activation_function_parts_no_unit(grain):
    fused, parted = (
        find_units(torchvision_student("mobilenet_v3_large", scheme), grain)
        for scheme in ("hw_strict/w4a4", "qdq/w4a4")
    )
    assert [(unit.name, unit.kind) for unit in parted] == [(unit.name, unit.kind) for unit in fused]
    added = [quantizer.role for unit in parted for quantizer in unit.quantizers]
    assert added.count("preactivation") == len(added) - sum(len(unit.quantizers) for unit in fused) > 20


@parametrize_briefly("name", ARCHITECTURES, 2)
def test_no_unit_is_larger_than_the_limit(name):
    assert max(len(unit.layers) for unit in find_units(torchvision_student(name))) <= MAX_LAYERS


def test_a_dense_block_is_cut_into_its_layers():
    student = students(models.DenseNet(growth_rate=8, block_config=(6, 2), num_init_features=16), "hw_strict/w4a4")
    names = [unit.name for unit in find_units(student)]
    assert "features.denseblock1.denselayer3" in names


def test_squeeze_excite_without_a_shortcut_stays_in_its_inverted_residual():
    found = {unit.name: len(unit.layers) for unit in find_units(torchvision_student("mobilenet_v3_large"))}
    assert found["features.4.block"] == 5  # expansion, depthwise, two of squeeze-excite, projection; stride 2


def test_pooling_between_units_is_a_passage():
    found = [unit.kind for unit in find_units(torchvision_student("resnet18", "hw/w4a4"))]
    assert found[:2] == ["layer", "passage"]
    assert found[-2:] == ["passage", "layer"]


def test_a_quantizer_that_no_layer_precedes_belongs_to_the_unit_behind_it():
    units = find_units(torchvision_student("resnet18"))
    assert units[0].quantizers[0].role == "input"
    assert [quantizer.role for quantizer in units[-1].quantizers] == ["pooled", "logits"]


def test_sizes_and_masks_are_computed_where_they_are_read():
    layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in ("first", "second", "third")}

    def forward(net, x):
        size, mask = x.shape[-2:], x > 0
        x = net.third(net.second(net.first(x)) * mask)
        return nn.functional.interpolate(x, size=(size[0] * 2, size[1]))

    network = from_forward(forward, **layers)
    student, images = students(network), torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    units = find_units(student)
    values = {units[0].inputs[0]: images}
    for unit in units:
        values |= unit.run(*(values[name] for name in unit.inputs))
    assert [len(unit.layers) for unit in units if unit.layers] == [1, 1, 1]
    assert torch.equal(values[units[-1].targets[0]], student(images))
    assert torch.equal(values[units[-1].targets[0]], network(images))


def test_what_passes_as_a_tuple_keeps_its_makers_and_readers_together():
    def forward(net, x):
        a, b = net.first(x).chunk(2, 1)
        return net.second(a) + b

    network = from_forward(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(2, 2, 1))
    units = find_units(students(network), "layer")
    assert [len(unit.layers) for unit in units] == [1, 0, 1]
    assert [node.name for node in units[1].module.graph.nodes][1:-1] == ["chunk", "getitem", "getitem_1"]


def test_outputs_that_others_are_computed_from_are_no_targets():
    def forward(net, x):
        x = net.trunk(x).relu()
        return net.a(x), net.b(net.c(x).relu())

    layers = {name: nn.Conv2d(3, 3, 1) for name in "abc"}
    units = find_units(students(from_forward(forward, trunk=nn.Conv2d(3, 3, 1), **layers)))
    assert [len(unit.targets) for unit in units] == [1, 2]


def test_a_layer_that_is_called_twice_is_in_both_units():
    units = find_units(students(called_twice()))
    assert [unit.name for unit in units] == ["conv", "conv (2)"]


def test_the_description_names_blocks_with_their_layers():
    text = describe_units(find_units(torchvision_student("resnet18")))

    assert text.startswith("10 units; 8 blocks (layers in each): layer1.0 (2), ")
    assert text.endswith("; 2 layers: conv1, fc")


@pytest.mark.parametrize("grain", ["block", "layer"])
def test_a_head_that_levels_share_is_reconstructed_on_all_of_them_and_before_it_is_decoded(grain):
    student = students(detector(), size=(3, 8, 8))
    units = find_units(student, grain)
    held = [path for unit in units for path, _ in unit.layers]
    assert sorted(held) == ["box", "down", "score", "stem", "tower"]
    of_scores = next(unit for unit in units if "score" in dict(unit.layers))
    assert len([name for name in of_scores.targets if "score" in name]) == 2
    images = torch.randn(2, 3, 8, 8)
    values = {units[0].inputs[0]: images}
    with torch.no_grad():
        for unit in units:
            values |= unit.run(*(values[name] for name in unit.inputs))
        expected = student(images)
    assert all(any(torch.equal(value, output) for value in values.values()) for output in expected.values())


def test_calls_beside_each_other_are_one_unit_whatever_was_joined_to_them():
    def forward(net, x):
        a = net.mid(x)
        b = net.up(x) + a
        return net.head(a.relu()), net.head(b.relu())

    modules = {name: nn.Conv2d(3, 3, 1) for name in ("mid", "up", "head")}
    units = find_units(students(from_forward(forward, **modules), size=(3, 8, 8)), "layer")
    assert sorted(path for unit in units for path, _ in unit.layers) == ["head", "mid", "up"]
    assert all(len(set(unit.quantizers)) == len(unit.quantizers) for unit in units)


def test_a_unit_ends_before_what_decodes_it_also_where_the_output_is_float():
    net = from_forward(lambda net, x: net.b(net.a(x).relu()).sigmoid(), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1))
    units = find_units(students(net, "hast/w4a4", size=(3, 8, 8)))
    assert [unit.targets for unit in units if "b" in dict(unit.layers)] == [("b",)]
    computed = [node.name for unit in units for node in unit.module.graph.nodes if node.op != "placeholder"]
    assert computed.count("sigmoid") == 1


HALVES = {
    "vit": [f"encoder.layers.encoder_layer_{n}.{half}" for n in (0, 1) for half in ("self_attention", "mlp")],
    "encoder": ["encoder.self_attn", "encoder"],
    "encoder_norm_first": ["encoder.self_attn", "encoder"],
    "swin": [f"features.{stage}.{n}.{half}" for stage in (1, 3) for n in (0, 1) for half in ("attn", "mlp")],
    "swin_v2": [f"features.{stage}.{n}.{half}" for stage in (1, 3) for n in (0, 1) for half in ("attn", "mlp")],
    "timm_vit": [f"blocks.{n}.{half}" for n in (0, 1) for half in ("attn", "mlp")],
    "timm_vit_pooled": [f"blocks.{n}.{half}" for n in (0, 1) for half in ("attn", "mlp")],
    "timm_swin": [f"layers.{s}.blocks.{n}.{half}" for s in (0, 1) for n in (0, 1) for half in ("attn", "mlp")],
    "timm_swin_fused": [f"layers.{s}.blocks.{n}.{half}" for s in (0, 1) for n in (0, 1) for half in ("attn", "mlp")],
}
"""The blocks of transformers: the attention and the MLP of each."""


@parametrize_briefly("scheme", ["qdq/w8a8", "hw/w4a4", "hw_strict/w4a8"], 1)
@parametrize_briefly("name", HALVES, 4)
def test_each_half_of_a_transformers_block_is_a_unit(name, scheme):
    net, size = built(name)
    student = students(net, scheme, size)
    units = [unit for unit in find_units(student) if unit.kind == "block"]
    assert [(unit.name, len(unit.layers)) for unit in units] == [(half, 2) for half in HALVES[name]]
    softmaxes = ["softmax" in str(unit.module.graph) for unit in units]
    assert softmaxes == [True, False] * (len(units) // 2)
