import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.quant.graph.bn_folding import fold_bn, folded
from zsqbench.quant.graph.tracing import capture
from zsqbench.zoo.resnet import CifarResNet


def randomise(module):
    """Give batch normalisations statistics that training could have left."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if hasattr(norm, "running_var") and norm.running_var is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 2, generator=generator)
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, -1, 2, generator=generator)
                nn.init.normal_(norm.bias, generator=generator)
    return module.eval().requires_grad_(False)


def fold(module, size):
    captured = capture(module, size)
    fold_bn(captured)
    return captured


def norms(module):
    return [part for part in module.modules() if "BatchNorm" in type(part).__name__]


def deviation(module, folded_module, size):
    x = torch.randn(3, *size, generator=torch.Generator().manual_seed(1), dtype=next(module.parameters()).dtype)
    with torch.no_grad():
        expected, result = module(x), folded_module(x)
    return ((expected - result).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("pair", ["plain", "bias", "depthwise"])
def test_single_pairs_are_folded_as_brecq_folds_them(golden, pair):
    vectors = golden("bnfold_a")
    tensor = {name: torch.from_numpy(vectors[f"{pair}_{name}"]) for name in ("w", "gamma", "beta", "mean", "var")}
    groups = int(vectors[f"{pair}_groups"])
    out, ins, *kernel = tensor["w"].shape
    has_bias = pair == "bias"
    conv = nn.Conv2d(ins * groups, out, kernel, padding=int(vectors[f"{pair}_padding"]), groups=groups, bias=has_bias)
    norm = nn.BatchNorm2d(out, eps=float(vectors["bn_eps"])).eval()
    with torch.no_grad():
        conv.weight.copy_(tensor["w"])
        if has_bias:
            conv.bias.copy_(torch.from_numpy(vectors["bias_b"]))
        for name, target in [("gamma", norm.weight), ("beta", norm.bias)]:
            target.copy_(tensor[name])
        norm.running_mean.copy_(tensor["mean"])
        norm.running_var.copy_(tensor["var"])
    weight, bias = folded(conv, norm)
    torch.testing.assert_close(weight, torch.from_numpy(vectors[f"{pair}_folded_w"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, torch.from_numpy(vectors[f"{pair}_folded_b"]), rtol=1e-5, atol=1e-6)
    network, x = nn.Sequential(conv, norm).requires_grad_(False), torch.from_numpy(vectors[f"{pair}_x"])
    for module, when in ((network, "before"), (fold(network, x.shape[1:]), "after")):
        torch.testing.assert_close(module(x), torch.from_numpy(vectors[f"{pair}_y_{when}"]), rtol=1e-5, atol=1e-5)


def test_resnet_20_is_folded_as_brecq_folds_it(golden):
    vectors, weights = golden("bnfold_a"), golden("resnet20_weights")
    network = CifarResNet(20).eval()
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
    captured = fold(network, (3, 32, 32))
    assert not norms(captured)
    images = torch.from_numpy(vectors["images"])
    with torch.no_grad():
        before, after = network(images), captured(images)
    torch.testing.assert_close(before, torch.from_numpy(vectors["logits_before"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, torch.from_numpy(vectors["logits_after"]), rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    for layer, name in [("conv1", "resnet20_conv1"), ("layer2.0.conv2", "resnet20_layer2_0_conv2")]:
        module = captured.get_submodule(layer)
        torch.testing.assert_close(module.weight.detach(), torch.from_numpy(vectors[f"{name}_w"]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.bias.detach(), torch.from_numpy(vectors[f"{name}_b"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_folding_keeps_the_output(norm, dtype, tolerance):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        norm(8, eps=1e-3),
        nn.ReLU6(),
        nn.Conv2d(8, 6, 1, groups=2),
        norm(6),
    ).to(dtype)
    randomise(network)
    captured = fold(network, (3, 9, 9))
    assert not norms(captured)
    assert deviation(network, captured, (3, 9, 9)) <= tolerance


def test_linear_layers_and_norms_without_affine_parameters_are_folded():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 2))
    captured = fold(randomise(network), (3, 2, 2))
    assert not norms(captured)
    assert deviation(network, captured, (3, 2, 2)) <= 1e-5


class Shared(nn.Module):
    """A layer whose output is read by its norm and by something else, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.called_twice, self.norm2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm_first = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm_first(x)
        y = self.read_twice(x)
        y = y + self.norm(y)
        y = self.called_twice(y)
        return self.norm2(self.called_twice(y))


def test_a_norm_stays_where_folding_would_change_another_reader():
    network = randomise(Shared())
    captured = fold(network, (3, 4, 4))
    assert len(norms(captured)) == 3
    assert deviation(network, captured, (3, 4, 4)) <= 1e-6


def test_a_norm_without_running_statistics_stays():
    captured = fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), (3, 4, 4))
    assert len(norms(captured)) == 1
    with pytest.raises(ValueError, match="running statistics"):
        folded(captured.get_submodule("0"), captured.get_submodule("1"))


def test_the_order_of_the_graph_counts_and_not_that_of_registration():
    class Unordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
            self.conv1, self.norm1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))

    network = randomise(Unordered())
    captured = fold(network, (3, 4, 4))
    assert not norms(captured)
    assert deviation(network, captured, (3, 4, 4)) <= 1e-5
