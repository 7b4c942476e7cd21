import pytest
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.bitwidths import (
    TensorMap,
    difference,
    packed_bytes,
    render,
    render_difference,
    render_measured,
    render_reconstruction,
    tensor_map,
)
from zsqbench.scheme import PLACEMENTS, MeasuredTensor, Placement, PlannedTensor, parse_scheme

SIZE = (3, 8, 8)


@pytest.fixture
def network():
    """A stem, a layer that is normalised behind its activation function, and a classifier."""
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def make(network):
    """The map of that network at a scheme."""
    placements = {**PLACEMENTS, "mine": Placement(relu=6, features=3)}
    return lambda scheme: tensor_map("net", network, parse_scheme(scheme, placements), SIZE)


def lines(text):
    return text.splitlines()


def test_a_map_has_every_tensor_with_its_role_and_bits(make):
    made = make("academic/w4a5")
    assert [(tensor.kind, tensor.name, tensor.role, tensor.bits) for tensor in made.tensors] == [
        ("weight", "0", "first_weight", 8),
        ("weight", "3", "weight", 4),
        ("weight", "8", "last_weight", 8),
        ("activation", "input", "input", 32),
        ("activation", "2", "stem", 8),
        ("activation", "4", "relu", 5),
        ("activation", "5", "other", 5),  # the normalisation that no layer can take in
        ("activation", "6", "pooled", 32),
        ("activation", "8", "logits", 32),
    ]
    assert (made.model, made.scheme, made.fold_bn, made.kept_norms, made.grid) == (
        "net", "academic/w4a5", True, 1, None
    )  # fmt: skip


def test_the_map_of_float_has_every_tensor_in_float(make):
    made = make("float")
    assert [tensor.name for tensor in made.tensors] == [tensor.name for tensor in make("hw/w4a4").tensors]
    assert {tensor.bits for tensor in made.tensors} == {32}
    assert (made.scheme, made.fold_bn, made.kept_norms) == ("float", False, 2)


def test_a_scheme_of_ones_own_is_mapped(make):
    assert {tensor.bits for tensor in make("mine/w2a4").tensors if tensor.role == "relu"} == {6}


def test_a_network_that_cannot_be_traced_is_an_error():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ZSQBenchError, match="Branching cannot be traced at "):
        tensor_map("net", Branching(), parse_scheme("hw/w4a4"), SIZE)


def test_a_map_is_printed_as_a_table_with_a_summary(make):
    assert lines(render(make("hw/w4a5"))) == [
        "hw/w4a5 on net",
        "",
        "kind        tensor  role          bits",
        "weight      0       first_weight  4",
        "weight      3       weight        4",
        "weight      8       last_weight   4",
        "activation  input   input         float",
        "activation  2       relu          5",
        "activation  4       relu          5",
        "activation  5       other         5",
        "activation  6       pooled        float",
        "activation  8       logits        5",
        "",
        "weights: 3 at 4 bits (1 first_weight, 1 weight, 1 last_weight)",
        "activations: 4 at 5 bits (2 relu, 1 other, 1 logits); 2 in float (1 input, 1 pooled)",
        "batch normalisation: folded, except 1 that cannot be folded",
        "grid: the quantizer's choice",
    ]


def test_the_summary_tells_a_demanded_grid_and_norms_that_are_not_folded(make):
    assert lines(render(make("pot/w8a8")))[-1] == "grid: power_of_two"
    assert lines(render(make("hast/w8a8")))[-2] == "batch normalisation: not folded (2)"


def test_a_network_without_weights_is_printed():
    made = tensor_map("net", nn.Sequential(nn.ReLU()), parse_scheme("hw/w4a4"), SIZE)
    assert lines(render(made))[-4:-2] == ["weights: none", "activations: 1 at 4 bits (1 logits); 1 in float (1 input)"]


def test_a_difference_is_what_has_other_bits(make):
    found = difference(make("hw/w4a4"), make("academic/w4a4"))
    assert [(a.kind, a.name, a.bits, b.bits) for a, b in found.tensors] == [
        ("weight", "0", 4, 8), ("weight", "8", 4, 8), ("activation", "2", 4, 8), ("activation", "8", 4, 32)
    ]  # fmt: skip


def test_another_role_with_the_same_bits_is_no_difference(make):
    found = difference(make("hw/w8a8"), make("academic/w8a8"))  # whose stem is a role of its own
    assert [(a.name, a.bits, b.bits) for a, b in found.tensors] == [("8", 8, 32)]


def test_a_difference_is_printed_as_a_table_with_a_summary_by_role(make):
    assert lines(render_difference(difference(make("academic/w4a4"), make("hast/w4a4")))) == [
        "academic/w4a4 and hast/w4a4 on net",
        "",
        "kind        tensor  role          academic/w4a4  hast/w4a4",
        "weight      0       first_weight  8              4",
        "weight      8       last_weight   8              4",
        "activation  2       stem/relu     8              4",
        "activation  5       other         4              float",
        "",
        "different bits: 2 of 3 weights and 2 of 6 activations",
        "  1 first_weight: 8 and 4",
        "  1 last_weight: 8 and 4",
        "  1 stem/relu: 8 and 4",
        "  1 other: 4 and float",
        "batch normalisation: folded, except 1 that cannot be folded; not folded (2)",
        "grid: the quantizer's choice",
    ]


def test_schemes_may_differ_in_the_grid_alone(make):
    assert lines(render_difference(difference(make("hw_strict/w8a8"), make("pot/w8a8")))) == [
        "hw_strict/w8a8 and pot/w8a8 on net",
        "",
        "different bits: 0 of 3 weights and 0 of 6 activations",
        "batch normalisation: folded, except 1 that cannot be folded",
        "grid: the quantizer's choice; power_of_two",
    ]


@pytest.fixture
def swish():
    """A layer whose activation function no runtime fuses, at two schemes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(256, 2)).eval()
    return lambda scheme: tensor_map("net", network, parse_scheme(scheme), SIZE)


def test_a_tensor_that_one_scheme_alone_has_is_a_difference(swish):
    expected = [
        "",
        "kind        tensor  role           hw_strict/w8a8  qdq/w8a8",
        "activation  0       preactivation  fused           8",
        "",
        "different bits: 0 of 2 weights and 1 of 4 activations",
        "  1 preactivation: fused and 8",
        "batch normalisation: folded",
        "grid: the quantizer's choice; symmetric for weights, affine for activations",
        "range of the image: the quantizer's choice; that of valid pixels",
    ]
    found = difference(swish("hw_strict/w8a8"), swish("qdq/w8a8"))
    assert lines(render_difference(found))[1:] == expected
    data = found.as_data()
    (tensor,) = data.pop("tensors")
    assert tensor == {
        "kind": "activation", "name": "0", "roles": [None, "preactivation"], "patterns": [None, None], "bits": [None, 8]
    }  # fmt: skip
    assert (data["compared"], data["weight_grid"], data["input_range"]) == (
        6, [None, "symmetric"], ["calibrated", "valid"]
    )  # fmt: skip
    assert lines(render_difference(difference(swish("qdq/w8a8"), swish("hw/w8a8"))))[3:6] == [
        "activation  input   input          8         float",
        "activation  0       preactivation  8         fused",
        "",
    ]


def test_grids_of_weights_and_activations_and_the_range_of_the_image_are_told(swish):
    assert lines(render(swish("qdq/w4a8")))[-4:] == [
        "activations: 4 at 8 bits (1 input, 1 preactivation, 1 activation, 1 logits)",
        "batch normalisation: folded",
        "grid: symmetric for weights, affine for activations",
        "range of the image: that of valid pixels",
    ]


def test_maps_and_differences_are_plain_data(make):
    data = make("hw/w4a4").as_data()
    assert data["tensors"][0] == {"kind": "weight", "name": "0", "role": "first_weight", "bits": 4, "pattern": None}
    data = difference(make("hw/w4a4"), make("academic/w4a4")).as_data()
    roles, patterns = ["relu", "stem"], [None, None]
    assert data["tensors"][2] == {
        "kind": "activation", "name": "2", "roles": roles, "patterns": patterns, "bits": [4, 8]
    }  # fmt: skip
    assert {key: value for key, value in data.items() if key != "tensors"} == {
        "model": "net",
        "schemes": ["hw/w4a4", "academic/w4a4"],
        "fold_bn": [True, True],
        "grid": [None, None],
        "weight_grid": [None, None],
        "activation_grid": [None, None],
        "input_range": ["calibrated", "calibrated"],
        "compared": 9,
    }


def entry(kind="weight", bits=4, **more):
    given = {"kind": kind, "name": "conv", "role": kind, "bits": bits, "axis": 0, "grid": "affine"}
    return MeasuredTensor(**given | {"low": -0.51234567, "high": 0.25, "elements": 27, "groups": 3} | more)


def test_what_was_quantized_is_printed_with_ranges_and_sizes():
    entries = [
        entry(),
        entry(bits=32, axis=None, grid="float", low=None, high=None, elements=10, groups=None, name="fc"),
        entry("activation", 8, axis=None, grid="symmetric", low=-1e-5, high=123456.0, elements=None, groups=1),
        entry("activation", 32, axis=None, grid="float", low=None, high=None, elements=None, groups=None),
    ]
    # 27 weights and 3 zero points of 4 bits are 15 bytes, 3 scales 12; 10 weights in float are 40
    assert lines(render_measured(entries)) == [
        "kind        tensor  role        bits   grid       per      range",
        "weight      conv    weight      4      affine     channel  -0.5123 .. 0.25",
        "weight      fc      weight      float",
        "activation  conv    activation  8      symmetric  tensor   -1e-05 .. 1.235e+05",
        "activation  conv    activation  float",
        "",
        "weights: 67 bytes, 148 in float32 (2.2 times as many)",
        "counted: weights packed at their bits, 4 bytes for each scale and, on an affine grid, a zero",
        "point of the weight's bits for each scale; not counted: biases and normalisation",
    ]


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"bits": 4}, 15 + 12),  # 30 numbers of 4 bits
        ({"bits": 4, "grid": "power_of_two"}, 14 + 12),  # 27, rounded up to bytes
        ({"bits": 8, "groups": 1}, 28 + 4),
        ({"bits": 9, "groups": 1}, 32 + 4),  # 252 bits
        ({"bits": 32, "grid": "float", "groups": None}, 108),
    ],
)
def test_sizes_are_those_of_packed_bits(given, size):
    assert packed_bytes([entry(**given)]) == size


def test_losses_of_reconstruction_are_printed_in_the_order_of_the_file():
    curves = {
        "reconstruction/weights/layer1.0": [[0, 0.5], [100, 0.0625]],
        "loss": [[0, 1.0]],
        "reconstruction/weights/conv1": [[0, 123456.0], [100, 123456.0]],
        "reconstruction/activations/a/b": [[0, 0.0], [50, 0.0]],
    }
    assert lines(render_reconstruction(curves)) == [
        "stage        unit      loss before  after      ratio",
        "weights      layer1.0  0.5          0.0625     0.125",
        "weights      conv1     1.235e+05    1.235e+05  1",
        "activations  a/b       0            0",
    ]


def test_a_step_that_reconstructs_nothing_prints_nothing_of_it():
    assert render_reconstruction({"loss": [[0, 1.0]]}) == ""


def test_comparing_and_printing_need_no_torch(python):
    made = TensorMap("net", "hw/w4a4", True, 0, None, (), (PlannedTensor("weight", "conv", "weight", 4),))
    done = python(
        f"""
        import sys
        from zsqbench.reports.bitwidths import *
        made = {made!r}
        render(made), render_difference(difference(made, made)), render_measured([]), render_reconstruction({{}})
        print("torch" in sys.modules)
        """
    )
    assert done.stdout == "False\n", done.stderr
