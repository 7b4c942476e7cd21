import math

import pytest
import torch
import torchvision
from brief import parametrize_briefly
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench import ZSQBenchError
from zsqbench.quant import Moments, activation_quantizers, input_moments, norm_moments, prepare, quantized_layers
from zsqbench.scheme import parse_scheme

SIZE = (3, 8, 8)
IMAGES = Moments.uniform(-torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
DRAWS = 200_000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normal(channels, seed=0):
    """A layer and the mean and deviation [C] that its outputs are said to have."""
    torch.manual_seed(seed)
    return nn.Conv2d(3, channels, 1), (noise(channels, seed=seed + 10), noise(channels, seed=seed + 20).abs() + 0.1)


def propagated(network, norms):
    """The moments that reach each layer, by path, and each quantizer, by the name of the tensor."""
    student = prepare(network, parse_scheme("hw_strict/w8a8"), SIZE)
    found = input_moments(student, IMAGES, norms, 6.0)
    layers = {path: found[layer][0] for path, layer in quantized_layers(student)}
    return layers, {name: found[quantizer][0] for name, quantizer in activation_quantizers(student)}


def through(function, mean, deviation):
    """Moments of a function of normal values, that one layer makes and another reads."""
    channels = len(mean)
    layers = {"first": nn.Conv2d(3, channels, 1), "last": nn.Conv2d(channels, 2, 1)}
    if isinstance(function, nn.Module):
        layers["function"] = function
    network = from_forward(lambda net, x: net.last(getattr(net, "function", function)(net.first(x))), **layers)
    found, _ = propagated(network, {"first": (mean, deviation)})
    return found["last"].each(lambda values: values[0, :, 0, 0])


def phi(z):
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


MEANS = torch.tensor([-7.0, -3.0, -1.0, 0.0, 0.03, 0.5, 2.0, 5.0, 6.0, 9.0]).repeat_interleave(4)
DEVIATIONS = torch.tensor([0.0, 0.1, 1.0, 3.0]).repeat(10)


def test_relu_of_normal_values_has_the_mean_and_variance_of_the_closed_form():
    found = through(functional.relu, MEANS, DEVIATIONS)
    m, s = MEANS.double(), DEVIATIONS.double().clamp(min=1e-30)
    z = m / s
    mean = m * torch.special.ndtr(z) + s * phi(z)
    square = (m**2 + s**2) * torch.special.ndtr(z) + m * s * phi(z)
    assert ((found.mean - mean).abs() <= 2e-4 * DEVIATIONS + 1e-6).all()
    assert ((found.variance - (square - mean**2)).abs() <= 1e-3 * DEVIATIONS**2 + 1e-6).all()
    assert found.low.equal((MEANS - 6 * DEVIATIONS).relu())
    torch.testing.assert_close(found.high, (MEANS + 6 * DEVIATIONS).relu())


def test_relu6_of_normal_values_has_the_mean_of_the_closed_form():
    found = through(functional.relu6, MEANS, DEVIATIONS)
    m, s = MEANS.double(), DEVIATIONS.double().clamp(min=1e-30)
    low, high = -m / s, (6 - m) / s
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    mean = m * inside + s * (phi(low) - phi(high)) + 6 * (1 - torch.special.ndtr(high))
    assert ((found.mean - mean).abs() <= 2e-4 * DEVIATIONS + 1e-6).all()
    assert found.high.max() == 6
    assert found.low.min() == 0


@parametrize_briefly(
    "function",
    [functional.hardswish, functional.silu, functional.gelu, torch.sigmoid, functional.hardsigmoid, torch.tanh,
     functional.elu, lambda x: functional.leaky_relu(x, 0.2), lambda x: torch.clamp(x, -1, 2), lambda x: x * x,
     lambda x: 3 - functional.silu(x) / 2], 5,
)  # fmt: skip
def test_functions_of_normal_values_have_the_moments_of_draws(function):
    mean, deviation = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([1.0, 0.5, 2.0])
    found = through(function, mean, deviation)
    values = function(mean + deviation * noise(DRAWS, 3))
    torch.testing.assert_close(found.mean, values.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.variance, values.var(0), rtol=0.03, atol=0.01)
    assert (found.low <= values.amin(0) + 1e-3).all()
    assert (found.high >= values.amax(0) - 1e-3).all()


def test_the_lowest_point_of_a_function_that_turns_is_found():
    found = through(functional.silu, torch.zeros(1), torch.ones(1))
    assert abs(found.low.item() - -0.27846) < 1e-4


def test_a_function_may_work_in_place_and_have_a_parameter_for_each_channel():
    prelu = nn.PReLU(4)
    prelu.weight.data = torch.tensor([0.0, 0.5, 1.0, 2.0])
    mean, deviation = torch.full((4,), -3.0), torch.full((4,), 0.1)
    assert through(prelu, mean, deviation).mean.tolist() == pytest.approx([0, -1.5, -3, -6], abs=1e-4)
    assert through(nn.ReLU(inplace=True), mean, deviation).mean.tolist() == [0] * 4
    assert mean.tolist() == [-3.0] * 4


def test_sums_layers_and_pooling_have_the_moments_of_draws():
    (first, a), (second, b) = normal(4), normal(4, seed=1)
    third, last = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(net, x):
        x = net.third(functional.relu(net.first(x)) + net.second(x))
        return net.last(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    network = from_forward(forward, first=first, second=second, third=third, last=last)
    layers, tensors = propagated(network, {"first": a, "second": b})
    x, y = (
        mean.view(-1, 1, 1) + deviation.view(-1, 1, 1) * noise(4000, 4, 8, 8, seed=seed)
        for seed, (mean, deviation) in enumerate((a, b))
    )
    sums = x.relu() + y
    close = {"atol": 0.01, "rtol": 0.02}
    torch.testing.assert_close(layers["third"].mean[0].mean((1, 2)), sums.mean((0, 2, 3)), **close)
    torch.testing.assert_close(layers["third"].variance[0].mean((1, 2)), sums.var((0, 2, 3)), **close)
    outputs = third(sums)
    torch.testing.assert_close(tensors["third"].mean[0], outputs.mean(0), atol=0.1, rtol=0)  # along borders, too
    torch.testing.assert_close(tensors["third"].variance[0], outputs.var(0), atol=0.1, rtol=0.1)
    pooled = outputs.mean((2, 3))
    torch.testing.assert_close(layers["last"].mean[0], pooled.mean(0), **close)
    assert (layers["last"].variance[0] > pooled.var(0)).all()
    torch.testing.assert_close(tensors["last"].mean[0], last(pooled).mean(0), **close)


def test_zeros_that_a_layer_pads_with_are_counted():
    first, last = nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.Conv2d(1, 2, 1)
    first.weight.data.fill_(1.0)
    network = from_forward(lambda net, x: net.last(net.first(x)), first=first, last=last)
    found = propagated(network, {})[0]["last"]
    mean, variance = IMAGES.mean.sum().item(), IMAGES.variance.sum().item()
    assert found.mean[0, 0, 0, :2].tolist() == pytest.approx([4 * mean, 6 * mean])
    assert found.variance[0, 0, 4, 4].item() == pytest.approx(9 * variance)


def test_images_are_uniform_and_end_where_pixels_do():
    network = from_forward(lambda net, x: net.first(x), first=nn.Conv2d(3, 2, 1))
    found = propagated(network, {})[1]["input"]
    assert found.mean[0, :, 3, 3].tolist() == [0.0, 0.5, 1.0]
    assert found.variance[0, :, 3, 3].tolist() == pytest.approx([4 / 12, 9 / 12, 16 / 12])
    assert found.low.min() == -1
    assert found.high[0, :, 0, 0].tolist() == [1, 2, 3]


def shuffled(net, x):
    x = net.first(x)
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
    left, right = x.chunk(2, dim=1)
    return net.last(torch.cat([right, functional.max_pool2d(left, 3, 1, 1), net.extra.expand(batch, 1, 8, 8)], 1))


def test_what_moves_values_moves_their_moments():
    first, (mean, deviation) = normal(4)
    network = from_forward(
        shuffled, first=first, last=nn.Conv2d(5, 2, 1), extra=nn.Parameter(torch.full((1, 1, 1, 1), 7.0))
    )
    found = propagated(network, {"first": (mean, deviation)})[0]["last"]
    order = torch.tensor([1, 3, 0, 2])
    torch.testing.assert_close(found.mean[1, :, 5, 5], torch.cat([mean[order], torch.tensor([7.0])]))
    torch.testing.assert_close(found.variance[1, :, 5, 5], torch.cat([deviation[order] ** 2, torch.zeros(1)]))


def test_a_gate_keeps_what_it_multiplies_within_its_range():
    first, (mean, deviation) = normal(4)

    def gated(net, x):
        x = net.first(x)
        return net.last(x * torch.sigmoid(net.gate(functional.adaptive_avg_pool2d(x, 1))))

    network = from_forward(gated, first=first, gate=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 2, 1))
    layers, tensors = propagated(network, {"first": (mean, deviation)})
    assert (layers["last"].high <= (mean + 6 * deviation).clamp(min=0).view(1, 4, 1, 1) + 1e-5).all()
    assert (layers["last"].low >= (mean - 6 * deviation).clamp(max=0).view(1, 4, 1, 1) - 1e-5).all()
    torch.testing.assert_close(layers["last"].mean, tensors["first"].mean * tensors["sigmoid"].mean)


def test_differences_turn_the_range_of_what_is_taken_away():
    (first, a), (second, _) = normal(2), normal(2, seed=1)
    network = from_forward(
        lambda net, x: net.last(torch.sub(net.first(x), functional.relu(net.second(x)))),
        first=first, second=second, last=nn.Conv2d(2, 2, 1),
    )  # fmt: skip
    b = torch.tensor([5.0, -50.0]), torch.tensor([0.01, 0.01])
    found = propagated(network, {"first": a, "second": b})[0]["last"]
    torch.testing.assert_close(found.mean[0, :, 0, 0], a[0] - torch.tensor([5.0, 0.0]), atol=1e-4, rtol=0)
    assert (found.low < found.mean).all()


def test_a_norm_that_was_not_folded_gives_its_own_moments():
    norm = nn.BatchNorm2d(3, eps=0.5)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.0, 1.0, 2.0])
    norm.running_var.fill_(0.5)
    network = from_forward(lambda net, x: net.last(net.norm(x)), norm=norm, last=nn.Conv2d(3, 2, 1))
    found = propagated(network, {})[0]["last"]
    assert found.mean[0, :, 0, 0].tolist() == [0, 1, 2]
    assert found.variance[0, :, 0, 0].tolist() == pytest.approx([0.5, 2.0, 0.0])
    assert found.low[0, 1, 0, 0].item() == pytest.approx(1 - 6 * 2**0.5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, affine=False), torchvision.ops.FrozenBatchNorm2d(2)])
def test_norms_without_parameters_of_their_own_are_standard_normal(norm):
    mean, deviation = norm_moments(norm)
    assert mean.tolist() == [0, 0]
    torch.testing.assert_close(deviation, torch.ones(2), rtol=1e-4, atol=0)


def test_a_dead_channel_of_a_norm_hardly_deviates():
    norm = nn.BatchNorm2d(2, eps=1e-3)
    norm.running_var = torch.tensor([1e-13, 1.0])
    assert norm_moments(norm)[1].tolist() == pytest.approx([1e-5, 0.9995], rel=1e-4)


def test_a_layer_that_is_called_twice_is_given_two_inputs():
    conv = nn.Conv2d(3, 3, 1)
    network = from_forward(lambda net, x: net.conv(functional.relu(net.conv(x))), conv=conv)
    student = prepare(network, parse_scheme("hw/w8a8"), SIZE)
    found = input_moments(student, IMAGES, {}, 6.0)
    assert len(found[student.get_submodule("conv")]) == 2


def test_what_a_parameter_alone_makes_is_a_constant():
    network = from_forward(
        lambda net, x: net.last(x + torch.exp(net.shift)), last=nn.Conv2d(3, 2, 1), shift=nn.Parameter(torch.zeros(1))
    )
    layers, _ = propagated(network, {})
    torch.testing.assert_close(layers["last"].mean[0, :, 0, 0], IMAGES.mean.flatten() + 1)


def test_softmax_is_between_zero_and_one():
    network = from_forward(
        lambda net, x: net.last(functional.softmax(net.first(x), 1)), first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1)
    )
    found = propagated(network, {})[1]["softmax"]
    assert (found.low.min(), found.high.max()) == (0, 1)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(2, 8, 8))


@pytest.mark.parametrize(("function", "name"), [(torch.exp, "exp"), (lambda x: x / x.mean(1, keepdim=True), "truediv")])
def test_an_operator_without_a_rule_is_named_in_one_line(function, name):
    network = from_forward(lambda net, x: net.last(function(x)), last=nn.Conv2d(3, 2, 1))
    with pytest.raises(
        ZSQBenchError, match=f"the moments of tensor '{name}' cannot be .* such as rtn or hptq$"
    ) as error:
        propagated(network, {})
    assert "\n" not in str(error.value)


def test_a_function_is_taken_of_no_values_beyond_what_a_tensor_lies_between():
    layer, norm = normal(4)
    network = from_forward(
        lambda net, x: net.last(net.first(x).relu().mean((2, 3)).sqrt()), first=layer, last=nn.Linear(4, 2)
    )
    layers, _ = propagated(network, {"first": norm})
    of_root = layers["last"].each(lambda values: values[0])
    top = norm[0] + 6 * norm[1]
    torch.testing.assert_close(of_root.low, torch.zeros(4))
    torch.testing.assert_close(of_root.high, top.clamp(min=0).sqrt())
    assert of_root.mean.isfinite().all()
    assert (of_root.low <= of_root.mean).all()
