import functools

import pytest
import torch
from networks import called_twice
from torch import nn
from torchvision import models

from zsqbench.quant import activation_quantizers, describe_units, find_units, prepare, quantized_layers
from zsqbench.quant.units import MAX_LAYERS
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


def test_resnet50_has_its_eighteen_units():
    found = kinds(find_units(torchvision_student("resnet50")))
    assert [kind for kind, _ in found] == ["layer", *["block"] * 16, "layer"]


@pytest.mark.parametrize("grain", ["block", "layer"])
@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "hw_strict/w4a4") for name in ARCHITECTURES), ("resnet18", "hast/w4a4")]
)
def test_running_the_units_in_order_is_running_the_network(name, scheme, grain):
    student = torchvision_student(name, scheme)
    images = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    units = find_units(student, grain)
    values = {units[0].inputs[0]: images}
    with torch.no_grad():
        for unit in units:
            values |= unit.run(*(values[name] for name in unit.inputs))
        assert torch.equal(values[units[-1].target], student(images))


@pytest.mark.parametrize("grain", ["block", "layer"])
@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_unit_is_larger_than_the_limit(name):
    assert max(len(unit.layers) for unit in find_units(torchvision_student(name))) <= MAX_LAYERS


def test_a_dense_block_is_cut_into_its_layers():
    names = [unit.name for unit in find_units(torchvision_student("densenet121"))]
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


def test_a_size_that_is_read_later_keeps_its_readers_together():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4 * 28 * 28, 2)

        def forward(self, x):
            count = x.size(0)
            return self.head(self.second(self.first(x)).view(count, -1))

    first = find_units(students(Sized()))[0]
    assert [path for path, _ in first.layers] == ["first", "second"]


def test_a_layer_that_is_called_twice_is_in_both_units():
    units = find_units(students(called_twice()))
    assert [unit.name for unit in units] == ["conv", "conv (2)"]


def test_the_description_names_blocks_with_their_layers():
    text = describe_units(find_units(torchvision_student("resnet18")))

    assert text.startswith("10 units; 8 blocks (layers in each): layer1.0 (2), ")
    assert text.endswith("; 2 layers: conv1, fc")
