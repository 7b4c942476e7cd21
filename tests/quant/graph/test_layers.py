import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.bn_folding import FOLDED, fold_bn
from zsqbench.quant.graph.layers import MADE
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.outputs import output_layers
from zsqbench.quant.graph.tensor_roles import roles, weight_roles
from zsqbench.quant.graph.tracing import capture


class Masked(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding, groups=self.groups)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(weight, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Same(nn.Conv2d):
    """A convolution that pads by the size of its image, as TensorFlow does."""

    def forward(self, x):
        missing = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[-2:], self.stride, self.kernel_size)]  # noqa: B905
        x = functional.pad(
            x, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
        )
        return functional.conv2d(x, self.weight, self.bias, self.stride)


class StaticSame(nn.Conv2d):
    """The same with a module that pads, which stays."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return functional.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, bias=self.bias)


class Transposed(nn.Linear):
    def forward(self, x):
        return torch.matmul(x, self.weight.transpose(0, 1)) + self.bias


class Functional(nn.BatchNorm2d):
    def forward(self, x):
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Activated(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        x = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return self.act(x)


class BySuper(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2.0


class Frozen(nn.BatchNorm2d):
    def forward(self, x):
        gain = (self.weight * (self.running_var + self.eps).rsqrt()).reshape(1, -1, 1, 1)
        return x * gain + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * gain)


def network(conv=nn.Conv2d, norm=nn.BatchNorm2d, linear=nn.Linear, between=()):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.conv, net.between, net.norm, net.relu = conv(3, 6, 3), nn.Sequential(*between), norm(6), nn.ReLU()
    net.flatten, net.head = nn.Flatten(), linear(216, 10)
    net.conv.mask = (torch.rand(6, 3, 3, 3) > 0.5).float()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(net.norm.weight, 0.5, 2)
    nn.init.normal_(net.norm.bias)
    return net.eval()


def folded(net):
    captured = capture(net, (3, 8, 8))
    fold_bn(captured)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images), rtol=1e-4, atol=1e-5)
    return captured


def found(captured):
    return weight_roles(captured), {tensor_name(node): role for node, role in roles(captured).items()}


FORMS = {
    "masked": {"conv": Masked},
    "standardized": {"conv": Standardized},
    "weight_norm": {"conv": lambda *a: nn.utils.parametrizations.weight_norm(nn.Conv2d(*a))},
    "spectral_norm": {"conv": lambda *a: nn.utils.parametrizations.spectral_norm(nn.Conv2d(*a))},
    "own_linear": {"linear": OwnLinear},
    "functional_norm": {"norm": Functional},
    "norm_by_super": {"norm": BySuper},
    "frozen_norm": {"norm": Frozen},
    "identity": {"between": [nn.Identity()]},
    "dropout": {"between": [nn.Dropout2d(0.1), nn.Identity()]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_has_the_same_tensors_however_its_layers_are_written(form):
    assert found(folded(network(**FORMS[form]))) == found(folded(network()))


@pytest.mark.parametrize(("kind", "name"), [(Same, "0"), (StaticSame, "0.conv2d")])
def test_a_convolution_that_pads_first_is_a_convolution(kind, name):
    net = nn.Sequential(kind(3, 6, 3, stride=2), nn.ReLU())
    captured, images = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    assert found(captured) == ({name: "last_weight"}, {"input": "input", "1": "logits"})


def test_a_product_with_a_constant_matrix_and_an_offset_is_a_linear_layer():
    weights, tensors = found(folded(network(linear=Transposed)))
    assert weights == {"conv": "first_weight", "head.matmul": "last_weight"}
    assert list(tensors.values()) == ["input", "relu", "logits"]


def test_a_norm_that_also_activates_is_folded_and_its_own_path_stays():
    captured = folded(network(norm=Activated))
    assert [type(norm).__name__ for norm in captured.meta[FOLDED].values()] == ["BatchNorm2d"]
    assert weight_roles(captured) == {"conv": "first_weight", "head": "last_weight"}


def test_what_was_folded_tells_its_moments_even_if_it_was_scaled():
    plain, doubled = (folded(network(norm=norm)).meta[FOLDED]["conv"] for norm in (nn.BatchNorm2d, BySuper))
    torch.testing.assert_close(doubled.weight, plain.weight * 2)
    torch.testing.assert_close(doubled.bias, plain.bias * 2)
    assert FOLDED not in folded(network(norm=Frozen)).meta


def test_a_function_called_twice_with_the_same_weight_is_one_layer():
    net = from_forward(lambda net, x: net.layer(x).mean(1) + net.layer(x * 2).mean(1), layer=OwnLinear(8, 8)).eval()
    captured = capture(net, (3, 8, 8))
    calls = [node for node in captured.graph.nodes if node.op == "call_module"]
    assert [(node.target, node.meta[MADE]) for node in calls] == [("layer", False)] * 2
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))


def test_one_module_with_two_functions_has_a_layer_for_each():
    def forward(net, x):
        return functional.conv2d(functional.conv2d(x, net.one), net.two)

    net = from_forward(forward, one=nn.Parameter(torch.randn(4, 3, 1, 1)), two=nn.Parameter(torch.randn(2, 4, 3, 3)))
    captured = capture(net, (3, 8, 8))
    assert list(weight_roles(captured)) == ["conv2d", "conv2d_1"]
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))


def test_a_head_that_is_no_module_gives_no_outputs_to_hook():
    net = from_forward(lambda net, x: functional.linear(x.flatten(1), net.head), head=nn.Parameter(torch.randn(5, 192)))
    with pytest.raises(
        ZSQBenchError, match=r"the output 'linear' .* comes from no convolution or linear layer that is"
    ):
        output_layers(capture(net, (3, 8, 8)))


def test_a_weight_that_images_decide_stays_a_tensor():
    def forward(net, x):
        weight = net.experts * x.mean()
        return functional.conv2d(net.stem(x), weight)

    captured = capture(
        from_forward(forward, stem=nn.Conv2d(3, 3, 1), experts=nn.Parameter(torch.randn(4, 3, 1, 1))), (3, 8, 8)
    )
    assert list(weight_roles(captured)) == ["stem"]


@pytest.mark.parametrize("function", ["conv1d", "conv2d", "conv_transpose2d"])
def test_convolutions_of_every_kind_become_modules_with_their_geometry(function):
    flat = function == "conv1d"
    weight = torch.randn(4, 3, *([3] if flat else [3, 3]))
    weight = weight.transpose(0, 1).contiguous() if "transpose" in function else weight

    def forward(net, x):
        x = x.flatten(2) if flat else x
        return getattr(functional, function)(x, net.weight, net.bias, 2, 1)

    net = from_forward(forward, weight=nn.Parameter(weight), bias=nn.Parameter(torch.randn(4)))
    captured, images = capture(net, (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), net(images))
    assert list(weight_roles(captured)) == [function.replace("_", "")]
