"""Every shipped scheme on the networks that the field uses: what is quantized, and that nothing else changes."""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from zsqbench.quant import (
    activation_quantizers,
    calibrate_weights,
    capture,
    effective_map,
    fold_bn,
    prepare,
    quantized_layers,
    roles,
    weight_quantizers,
)
from zsqbench.scheme import PLACEMENTS, parse_scheme
from zsqbench.zoo.resnet import CifarResNet
from zsqbench.zoo.userfile import load_user_model

MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "schemes.md"
SIZE = (3, 64, 64)

# Tensors by role. In each, every layer makes one tensor: with its activation function if it has one, else a linear
# bottleneck or an addend.
ROLES = {
    # stem and 2 x 8 in basic blocks; second convolutions and the 3 downsamplings (not in stage 1) are addends
    "resnet18": {"relu": 1 + 16, "addend": 8 + 3},
    # stem and 3 x 16 in bottlenecks; third convolutions and 4 downsamplings
    "resnet50": {"relu": 1 + 48, "addend": 16 + 4},
    "cifar_resnet20": {"relu": 1 + 18, "addend": 9},
    # stem and 13 pairs of depthwise and pointwise
    "mobilenetv1": {"relu": 1 + 26},
    # stem, head, and in 17 blocks two each but one in the first (it does not expand); 10 blocks are residual
    "mobilenet_v2": {"relu": 2 + 33, "addend": 10, "sum": 10, "linear": 7},
    # 15 blocks, 10 of them residual; 8 have squeeze-excite, whose first layer has a ReLU. Hard-swish in stem, last
    # convolution, hidden linear layer and 9 blocks (two each); ReLU in 6 blocks, two each but one in the first
    "mobilenet_v3_large": {
        "relu": 11 + 8, "activation": 3 + 18, "gate": 8, "product": 8, "addend": 10, "sum": 10, "linear": 5,
        "pooled": 8 + 1,
    },
    # 11 blocks, 6 residual, 9 with squeeze-excite; 8 with hard-swish and 3 with ReLU, the first without expansion
    "mobilenet_v3_small": {
        "relu": 5 + 9, "activation": 3 + 16, "gate": 9, "product": 9, "addend": 6, "sum": 6, "linear": 5,
        "pooled": 9 + 1,
    },
    # 16 blocks with squeeze-excite, 9 residual; SiLU in stem, head, blocks (two each but one in the first) and SE
    "efficientnet_b0": {
        "activation": 2 + 31 + 16, "gate": 16, "product": 16, "addend": 9, "sum": 9, "linear": 7, "pooled": 16 + 1,
    },
    # 16 units, 3 of them of stride 2 with three ReLUs, else two; each depthwise convolution has none
    "shufflenet_v2_x1_0": {"relu": 2 + 3 * 3 + 13 * 2, "linear": 3 * 2 + 13, "concat": 16},
    # 16 blocks with four ReLUs (one in squeeze-excite, one behind the sum), 4 of them with a projection
    "regnet_y_400mf": {"relu": 1 + 64, "gate": 16, "product": 16, "addend": 16 + 4, "pooled": 16 + 1},
    # 58 dense layers and 3 transitions; a layer concatenates all before it, and each block ends with a concatenation;
    # the first of the 6 + 12 + 24 + 16 layers of a block has nothing to concatenate
    "densenet121": {"relu": 1 + 2 * 58 + 3 + 1, "linear": 58 + 3, "concat": 58 - 4 + 4, "pooled": 3 + 1},
    # 57 convolutions, each with a ReLU; nine inceptions
    "googlenet": {"relu": 57, "concat": 9},
}  # fmt: skip
WEIGHTS = {
    "resnet18": 21, "resnet50": 54, "cifar_resnet20": 20, "mobilenetv1": 28, "mobilenet_v2": 53,
    "mobilenet_v3_large": 64, "mobilenet_v3_small": 54, "efficientnet_b0": 82, "shufflenet_v2_x1_0": 57,
    "regnet_y_400mf": 86, "densenet121": 121, "googlenet": 58,
}  # fmt: skip

# Activations that are quantized. hw is hw_strict without image, addends and pooled; academic is hw without logits.
COUNTS = {
    "resnet18": {"hast": 17, "academic": 17, "hw": 18, "hw_strict": 31},
    "resnet50": {"hast": 49, "academic": 49, "hw": 50, "hw_strict": 72},
    "cifar_resnet20": {"hast": 19, "academic": 19, "hw": 20, "hw_strict": 31},
    "mobilenetv1": {"hast": 27, "academic": 27, "hw": 28, "hw_strict": 30},
    "mobilenet_v2": {"hast": 35, "academic": 52, "hw": 53, "hw_strict": 65},
    "mobilenet_v3_large": {"hast": 19, "academic": 71, "hw": 72, "hw_strict": 92},
    "mobilenet_v3_small": {"hast": 14, "academic": 62, "hw": 63, "hw_strict": 80},
    "efficientnet_b0": {"hast": 0, "academic": 97, "hw": 98, "hw_strict": 125},
    "shufflenet_v2_x1_0": {"hast": 37, "academic": 72, "hw": 73, "hw_strict": 75},
    "regnet_y_400mf": {"hast": 65, "academic": 97, "hw": 98, "hw_strict": 136},
    "densenet121": {"hast": 121, "academic": 240, "hw": 241, "hw_strict": 246},
    "googlenet": {"hast": 57, "academic": 66, "hw": 67, "hw_strict": 69},
}
for _name, _counts in COUNTS.items():
    # behind a layer or an addition each of these functions reads a tensor that is there at qdq alone
    read = sum(ROLES[_name].get(role, 0) for role in ("activation", "gate"))
    _counts |= {"academic_intended": _counts["academic"], "pot": _counts["hw_strict"]}
    _counts |= {"qdq": _counts["hw_strict"] + read, "psaq": _counts["hw_strict"]}

# Layers read as many tensors as there are layers, less those that read the tensor of another one. These are
# downsamplings and projections, three branches of ShuffleNet's, and two of the three layers of each of nine inceptions
# that read its input (the fourth reads it pooled, on a quantizer of its own).
_REPQ = {
    "resnet18": 21 - 3, "resnet50": 54 - 4, "regnet_y_400mf": 86 - 4, "shufflenet_v2_x1_0": 57 - 3,
    "googlenet": 58 - 2 * 9,
}  # fmt: skip
for _name, _counts in COUNTS.items():
    _counts |= {"repq": _REPQ.get(_name, WEIGHTS[_name])}

# Where the classifier reads a sum, academic leaves it at A bits; where it reads a concatenation, both do.
EIGHT_BITS = {name: {"academic": 2, "academic_intended": 2} for name in COUNTS}
for _name in ("resnet18", "resnet50", "cifar_resnet20", "regnet_y_400mf"):
    EIGHT_BITS[_name] = {"academic": 1, "academic_intended": 2}
for _name in ("densenet121", "googlenet"):
    EIGHT_BITS[_name] = {"academic": 1, "academic_intended": 1}

for _eight in EIGHT_BITS.values():
    _eight |= {"repq": 1}  # the image

SMALL = {"cifar_resnet20", "mobilenetv1"}
LIGHT = SMALL | {"resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"}
"""Networks of each family; the others run on request."""

HEAVY = pytest.mark.slow("all networks take half a minute")

each_network = pytest.mark.parametrize(
    "name", [name if name in LIGHT else pytest.param(name, marks=HEAVY) for name in COUNTS]
)


@lru_cache(maxsize=1)
def network(name):
    """A network with random weights and statistics of batch normalisation that folding has to respect."""
    torch.manual_seed(0)
    if name == "cifar_resnet20":
        module = CifarResNet(20)
    elif name == "mobilenetv1":
        file = MODELS / "mobilenetv1_025.py"
        if not file.is_file():
            pytest.skip(f"there is no {file}")
        module = load_user_model(file, "build", "none")
    else:
        options = {"init_weights": True} if name == "googlenet" else {}
        module = getattr(models, name)(weights=None, num_classes=10, **options)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(requires_grad=False)


@lru_cache(maxsize=1)
def outputs(name):
    return network(name)(images())


def images():
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))


class Operators(TorchDispatchMode):
    """Counts what torch really computes, whatever a graph says."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.rstrip("_")
        tensors = [value for value in args if isinstance(value, torch.Tensor) and value.dim()]
        if name == "cat":
            self.counts["concat"] += len(args[0]) > 1
        elif name not in ("add", "mul") or len(tensors) > 1:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@each_network
def test_tensors_have_the_roles_of_the_operators_that_run(name):
    captured = capture(network(name), SIZE)
    fold_bn(captured)
    found = Counter(roles(captured).values())
    assert found == {"input": 1, "pooled": 1, "logits": 1} | ROLES[name]
    with Operators() as ran, torch.no_grad():
        network(name)(images())
    assert found["relu"] == ran.counts["relu"] + ran.counts["hardtanh"]
    assert found["activation"] + found["gate"] == sum(
        ran.counts[kind] for kind in ("hardswish", "silu", "hardsigmoid", "sigmoid")
    )
    assert found["concat"] == ran.counts["concat"]
    assert found["product"] == ran.counts["mul"]
    assert found["pooled"] == ran.counts["mean"] + ran.counts["avg_pool2d"]
    assert WEIGHTS[name] == ran.counts["convolution"] + ran.counts["addmm"]


def test_the_table_in_the_documents_has_these_counts():
    counts = DOCUMENT.read_text(encoding="utf-8").split("## Counts")[1].split("Of transformers")[0]
    head, *rows = re.findall(r"^\| (.*) \|$", counts, re.MULTILINE)
    _, _, *schemes = (cell.strip("`") for cell in head.split(" | "))
    said = {name: list(map(int, counts)) for name, *counts in (row.split(" | ") for row in rows)}
    assert said == {name: [WEIGHTS[name], *(COUNTS[name][scheme] for scheme in schemes)] for name in COUNTS}


def _pairs():
    """Each light network with one or two of the schemes, and small networks with all; the rest on request."""
    schemes = list(PLACEMENTS)
    for index, name in enumerate(COUNTS):
        for scheme in schemes:
            brief = name in SMALL or (name in LIGHT and (schemes.index(scheme) - index) % 7 == 0)
            marks = () if brief else pytest.mark.slow("all schemes on all networks take half a minute")
            yield pytest.param(name, scheme, marks=marks, id=f"{name}-{scheme}")


@pytest.mark.parametrize(("name", "scheme"), list(_pairs()))
def test_a_scheme_quantizes_what_it_says_and_computes_what_the_network_does(name, scheme):
    student = prepare(network(name), parse_scheme(f"{scheme}/w4a5"), SIZE)
    bits = Counter(quantizer.bits for _, quantizer in activation_quantizers(student))
    assert bits.total() == COUNTS[name][scheme]
    assert bits[8] == EIGHT_BITS[name].get(scheme, 0)
    weights = [quantizer.bits for _, quantizer in weight_quantizers(student)]
    ends = 8 if scheme.startswith("academic") else 4
    assert weights == [ends, *[4] * (WEIGHTS[name] - 2), ends]
    with torch.no_grad():
        difference = (student(images()) - outputs(name)).abs().max()
    assert difference <= 1e-4 * outputs(name).abs().max()


@parametrize_briefly(
    "name,kept",
    [
        ("resnet18", 0),
        ("densenet121", 62),
        pytest.param("mobilenet_v3_large", 0, marks=HEAVY),
        pytest.param("googlenet", 0, marks=HEAVY),
    ],
    1,
)  # a DenseNet normalises what it has concatenated or pooled: 58 layers, 3 transitions, and the end
def test_what_is_folded_and_what_is_not(name, kept):
    def count(scheme):
        student = prepare(network(name), parse_scheme(f"{scheme}/w4a5"), SIZE)
        return sum(isinstance(module, nn.BatchNorm2d) for module in student.modules())

    called = sum(isinstance(module, nn.BatchNorm2d) for path, module in capture(network(name), SIZE).named_modules())
    assert (count("hast"), count("hw")) == (called, kept)


def test_quantizers_come_in_execution_order_though_a_tensor_may_have_the_name_of_its_layer():
    student = prepare(network("cifar_resnet20"), parse_scheme("hw_strict/w4a5"), SIZE)
    blocks = [f"layer{stage}.{block}.conv{index}" for stage in (1, 2, 3) for block in (0, 1, 2) for index in (1, 2)]
    assert [name for name, _ in quantized_layers(student)] == ["conv1", *blocks, "linear"]
    tensors = [name for name, _ in activation_quantizers(student)]
    assert tensors[:5] == ["input", "relu", "layer1.0.relu1", "layer1.0.conv2", "layer1.0.relu2"]


def test_folding_changes_no_name_of_a_tensor():
    folded, unfolded = (
        [(entry.kind, entry.name) for entry in effective_map(prepare(network("resnet18"), scheme, SIZE))]
        for scheme in map(parse_scheme, ("hw/w4a4", "hast/w4a4"))
    )
    assert folded == unfolded


@parametrize_briefly("scheme", ["hast/w2a2", "hw/w2a2"], 1)
def test_two_bits_do_on_depthwise_weights(scheme):
    student = prepare(network("mobilenet_v2"), parse_scheme(scheme), SIZE)
    calibrate_weights(student, "minmax")
    depthwise = [layer for _, layer in quantized_layers(student) if getattr(layer, "groups", 1) > 1]
    assert len(depthwise) == 17
    for layer in depthwise:
        assert layer.weight_quantizer.scale.shape == (layer.out_channels, 1, 1, 1)
        codes = layer.weight_quantizer.codes(layer.weight)
        assert set(codes.unique().tolist()) <= {0, 1, 2, 3}
    assert torch.isfinite(student(images())).all()


def test_a_layer_used_twice_has_one_weight_quantizer_and_a_quantizer_for_each_of_its_tensors():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.head = nn.Linear(192, 2)

        def forward(self, x):
            return self.head(self.norm(self.conv(self.norm(self.conv(x)))).flatten(1))

    twice, size = Twice().eval(), (3, 8, 8)
    student = prepare(twice, parse_scheme("hw/w4a4"), size)
    assert [name for name, _ in weight_quantizers(student)] == ["conv", "head"]
    assert [name for name, _ in activation_quantizers(student)] == ["conv", "conv_1", "head"]
    x = torch.randn(2, *size)
    with torch.no_grad():
        torch.testing.assert_close(student(x), twice(x))


def test_a_detector_of_a_user_can_be_prepared():
    file = MODELS / "fastestdet.py"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    module = load_user_model(file, "build", "none")
    student = prepare(module, parse_scheme("hw_strict/w4a4"), (3, 96, 96))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(student(x), module(x))
