import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.quant import BoundedReLU, drop_bounds, free_bounds, layer_pairs, prepare, rescale, unpaired_layers
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)


def pairs(module, scheme="hw_strict/w8a8"):
    student = prepare(module.eval(), parse_scheme(scheme), SIZE)
    return [
        (pair.first, pair.operator, pair.quantizer.name if pair.quantizer else None, pair.second)
        for pair in layer_pairs(student)
    ]


def test_layers_with_an_activation_function_a_norm_padding_and_dropout_between_are_pairs():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, groups=4), nn.Dropout(),
        nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert pairs(network) == [
        ("0", "relu", "2", "4"),
        ("4", "identity", "4", "6"),
        ("6", "hardswish", "7", "8"),
    ]


def test_an_activation_that_stays_float_has_no_quantizer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert pairs(network, "hw/w8a32") == [("0", "relu", None, "2")]


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.second(y := net.first(x)) + y,  # read twice
        lambda net, x: net.second(net.second(net.first(x))),  # called twice
        lambda net, x: net.second(torch.sigmoid(functional.relu(net.first(x)))),  # two activation functions
        lambda net, x: net.second(functional.pad(net.first(x), (1, 1), value=1.0)),  # ones are not scaled
        lambda net, x: net.second(functional.channel_shuffle(net.first(x), 2)),  # channels move
        lambda net, x: net.second(torch.cat([net.first(x)[:, :2], net.first(x)[:, 2:]], 1)),
    ],
)
def test_what_shares_or_mixes_channels_is_no_pair(forward):
    assert pairs(from_forward(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 4, 1))) == []


def test_a_norm_that_was_not_folded_parts_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert pairs(network, "hast/w8a8") == []


def test_bounds_are_freed_where_a_pair_shares_them_and_nothing_else_changes():
    def forward(net, x):
        x = functional.relu6(net.first(x))
        x = net.act(net.second(x))
        return net.act(x + net.third(x))

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("first", "second", "third")}
    network = from_forward(forward, **layers, act=nn.ReLU6()).eval()
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    free_bounds(student)
    images = 20 * torch.randn(4, *SIZE)
    torch.testing.assert_close(student(images), network(images))
    bounded = {path: module for path, module in student.named_modules() if isinstance(module, BoundedReLU)}
    assert list(bounded) == ["bounds.relu6"]
    assert [pair.operator for pair in layer_pairs(student)] == ["relu6"]
    bounded["bounds.relu6"].bound.fill_(1.0)
    assert not torch.equal(student(images), network(images))


def relu6_network(*, linear):
    def forward(net, x):
        x = x.flatten(1) if linear else x
        return net.act(net.second(functional.relu6(net.first(x))))

    torch.manual_seed(0)
    kind, inputs = (nn.Linear, 192) if linear else (lambda *sizes: nn.Conv2d(*sizes, 1), 3)
    return from_forward(forward, first=kind(inputs, 4), second=kind(4, 5), act=nn.ReLU6()).eval()


@pytest.mark.parametrize("linear", [False, True])
def test_each_channel_may_have_a_bound_of_its_own(linear):
    network = relu6_network(linear=linear)
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    free_bounds(student, per_channel=True)
    images, factors = 20 * torch.randn(4, *SIZE), torch.tensor([0.5, 1.0, 3.0, 4.0])
    torch.testing.assert_close(student(images), network(images))
    (pair,) = layer_pairs(student)
    rescale(student, pair, factors)
    bound = student.get_submodule("bounds.relu6").bound
    bound.mul_(factors.view_as(bound))
    torch.testing.assert_close(student(images), network(images), rtol=1e-5, atol=1e-5)
    assert student.get_submodule("second").bias is not None


def test_bounds_are_dropped_where_a_pair_shares_them_and_only_there():
    network = relu6_network(linear=False)
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    assert drop_bounds(student) == ["first"]
    images = 20 * torch.randn(4, *SIZE)
    expected = functional.relu6(network.second(functional.relu(network.first(images))))
    torch.testing.assert_close(student(images), expected)
    assert [pair.operator for pair in layer_pairs(student)] == ["relu"]


def test_what_a_pair_shares_is_rescaled_and_tied_weights_elsewhere_are_not():
    first, second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
    third = nn.Conv2d(4, 4, 1)
    third.weight = second.weight
    network = from_forward(
        lambda net, x: net.third(torch.sigmoid(net.second(net.first(x)))), first=first, second=second, third=third
    )
    student = prepare(network.eval(), parse_scheme("hw/w32a8"), SIZE)
    images = torch.randn(4, *SIZE)
    rescale(student, layer_pairs(student)[0], torch.tensor([2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(student(images), network(images))
    assert student.get_submodule("first").bias is None


@pytest.mark.parametrize(
    ("between", "second", "padded"),
    [
        ([], nn.Conv2d(4, 2, 3, padding=1), True),
        ([], nn.Conv2d(4, 2, 3, padding="same"), True),
        ([nn.ZeroPad2d(1)], nn.Conv2d(4, 2, 3), True),
        ([], nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), False),
        ([], nn.Conv2d(4, 2, 3, padding="valid"), False),
        ([], nn.ConvTranspose2d(4, 2, 3), True),
        ([], nn.ConvTranspose2d(4, 2, 1, 2), False),
        ([nn.Dropout()], nn.Conv2d(4, 2, 3), False),
    ],
)
def test_a_pair_knows_whether_zeros_are_read_around_it(between, second, padded):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.ReLU(), second).eval()
    (pair,) = layer_pairs(prepare(network, parse_scheme("hw/w8a8"), SIZE))
    assert pair.padded == padded


def test_lines_that_zeros_surround_are_padded():
    layers = [nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1)]
    network = nn.Sequential(nn.Flatten(2), *layers).eval()
    found = layer_pairs(prepare(network, parse_scheme("hw/w8a8"), SIZE))
    assert [(pair.first, pair.second, pair.padded) for pair in found] == [("1", "3", False), ("3", "5", True)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scheme", ["hw/w8a8", "hw/w32a8"])
def test_channels_to_and_from_transposed_convolutions_are_rescaled(groups, scheme):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 8, 3, 2, groups=groups), nn.Conv2d(8, 2, 1)]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    student = prepare(network, parse_scheme(scheme), SIZE)
    into, out_of = layer_pairs(student)
    assert (into.first, into.second, into.uneven) == ("0", "2", True)
    assert (out_of.first, out_of.second, out_of.uneven) == ("2", "3", False)
    rescale(student, into, torch.tensor([0.5, 1.0, 3.0, 4.0]))
    rescale(student, out_of, torch.linspace(0.25, 4, 8))
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(student(images), network(images), rtol=1e-5, atol=1e-6)


def test_a_function_with_slopes_of_its_own_parts_no_layers():
    network = from_forward(
        lambda net, x: net.second(functional.prelu(net.first(x), net.slope)),
        first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 4, 1), slope=nn.Parameter(torch.ones(4)),
    )  # fmt: skip
    assert pairs(network) == [("first", "prelu", "prelu", "second")]


def test_a_layer_that_two_branches_call_is_in_no_pair_and_is_named():
    def forward(net, x):
        return net.c(net.shared(net.a(x).relu()).relu()) + net.c(net.shared(net.b(x).relu()).relu())

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("a", "b", "shared", "c")}
    student = prepare(from_forward(forward, **layers), parse_scheme("hw/w8a8"), SIZE)
    assert layer_pairs(student) == []
    assert unpaired_layers(student) == ["shared (called 2 times)", "c (called 2 times)"]


@pytest.mark.parametrize(
    ("kind", "inputs", "pads"),
    [
        ("conv", 7, lambda x: functional.pad(x, (0, 0, 0, 0, 1, 2))),
        ("conv", 4, lambda x: functional.pad(x, (1, 1, 1, 1, 1, -1))),  # as many channels, and other ones
        ("conv", 8, lambda x: functional.pad(input=x, pad=[0, 0, 0, 0, 0, 4], mode="constant", value=0.0)),
        ("linear", 6, lambda x: functional.pad(x, (1, 1))),
        ("linear", 8, nn.ZeroPad2d((2, 2, 0, 0))),
    ],
)
def test_layers_between_which_channels_are_padded_are_no_pair_and_are_named(kind, inputs, pads):
    layer = nn.Linear if kind == "linear" else lambda *sizes: nn.Conv2d(*sizes, 1)
    net = from_forward(
        lambda net, x: net.second(net.pads(net.first(x)).relu()), first=layer(3, 4), second=layer(inputs, 2)
    )
    net.pads = pads
    student = prepare(net, parse_scheme("hw/w8a8"), (8, 8, 3) if kind == "linear" else SIZE)
    assert layer_pairs(student) == []
    assert unpaired_layers(student) == ["first to second (channels are padded between them)"]


@pytest.mark.parametrize("amounts", [(0, 1, 2, 0), (1, 1), (0, 0, 0, 0, 0, 0, 1, 0)])
def test_padding_of_rows_columns_and_images_keeps_channels(amounts):
    network = from_forward(
        lambda net, x: net.second(functional.pad(net.first(x), amounts)),
        first=nn.Conv2d(3, 4, 1),
        second=nn.Conv2d(4, 2, 1),
    )
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    assert [pair.second for pair in layer_pairs(student)] == ["second"]
    assert unpaired_layers(student) == []
