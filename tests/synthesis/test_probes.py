import copy

import pytest
import torch
from brief import parametrize_briefly
from torch import nn

from zsqbench.synthesis import Probes, follow_convolutions, image_moments


class Activated(nn.BatchNorm2d):
    """A norm that does more, as those of timm."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def network(norm=nn.BatchNorm2d):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), nn.ReLU(), nn.Conv2d(4, 5, 1), norm(5), nn.Flatten())
    for number, part in enumerate(layers):
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.running_mean, 0.1 * number)
            nn.init.constant_(part.weight, -0.5)
    return layers.eval().requires_grad_(False)


def images():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("hook_point", ["bn_input", "conv_output"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Activated])
def test_probes_change_neither_outputs_nor_their_gradients(norm, hook_point):
    module, x = network(norm), images()
    expected = module(x)
    with Probes(module, hook_point) as probes:
        seen = probes(x)
    torch.testing.assert_close(seen.outputs, expected)
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (seen.outputs, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hook_point", ["bn_input", "conv_output"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Activated])
@pytest.mark.parametrize("outputs", [True, False])
def test_each_layer_gets_the_moments_of_its_input_and_their_gradient(norm, hook_point, outputs):
    module, x = network(norm), images()
    inputs = [module[0](x), module[:4](x)]
    with Probes(module, hook_point) as probes:
        probes(x)
        seen = probes(x, outputs=outputs)
    assert (seen.outputs is None) != outputs
    assert seen.channels == [4, 5]
    for index, values in enumerate(inputs):
        mean, variance, count = seen.layer(index)
        torch.testing.assert_close((mean, variance), image_moments(values))
        assert count == 16
    expected = torch.cat([image_moments(values)[1] for values in inputs], 1)
    gradients = [torch.autograd.grad(each.sqrt().sum(), x)[0] for each in (seen.variance, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hook_point", ["bn_input", "conv_output"])
def test_without_outputs_the_pass_ends_at_the_last_norm(hook_point):
    class Head(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    head = Head()
    with Probes(nn.Sequential(network(), head).eval(), hook_point) as probes:
        for _ in range(3):
            probes(images(), outputs=False)
        assert head.calls == 1  # the first pass shows which norm is the last
        probes(images())
        assert head.calls == 2


def test_a_forward_that_a_user_put_on_a_norm_is_used_and_stays():
    module = network()
    own = torch.relu
    module[1].forward = own
    with Probes(module) as probes:
        seen = probes(images())
    assert module[1].forward is own
    torch.testing.assert_close(seen.outputs, module(images()))


def test_gradients_are_left_to_the_images():
    module = network().requires_grad_(True)
    with Probes(module) as probes:
        probes(images()).mean.sum().backward()
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("hook_point", ["bn_input", "conv_output"])
def test_a_network_that_is_used_while_it_is_probed_is_itself_and_keeps_no_memory(hook_point):
    module, x = network(), images()
    expected = module(x)
    with Probes(module, hook_point) as probes:
        probes(x)
        assert torch.equal(module(x), expected)
        with Probes(module, hook_point) as inner:
            torch.testing.assert_close(inner(x).mean, probes(x).mean)
        assert not probes._calls
        assert not probes._unmeasured


@parametrize_briefly("hook_point", ["bn_input", "conv_output"], 1)
def test_a_compiled_pass_is_the_same_for_another_copy_of_the_network(hook_point):
    graphs, x = [], images()

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    def measured(module):
        with Probes(module, hook_point) as probes:

            def measure(values):
                return probes(values, outputs=False).mean

            return torch.compile(measure, backend=counted, fullgraph=True)(x)

    original = network()
    expected = measured(original)
    assert torch.equal(measured(copy.deepcopy(original)), expected)
    assert len(graphs) == 1


def test_a_pass_that_takes_another_way_is_measured_to_its_end():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.again = True

        def forward(self, x):
            x = self.norm(x)
            return self.norm(x) if self.again else x

    module = Twice().eval()
    with Probes(module) as probes:
        probes(images())
        module.again = False
        seen = probes(images(), outputs=False)
    assert seen.counts == [16]
    torch.testing.assert_close(seen.mean, image_moments(images())[0])


def test_transposed_convolutions_count_among_those_that_norms_follow():
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 5, 2), nn.BatchNorm2d(5)]
    assert follow_convolutions(nn.Sequential(*layers, nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)))
    assert not follow_convolutions(nn.Sequential(*layers, nn.BatchNorm2d(5)))
