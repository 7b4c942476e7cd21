from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis import GENIE, HAST, ZEROQ, BNLoss, BNStatistics, batch_norms, frozen

ZEROQ_ON_INPUTS = BNStatistics(scope="image", unbiased=True, eps_images=1e-6, eps_bn=1e-6, input_term="image")


def one_norm(mean, variance, norm=nn.BatchNorm2d):
    """A norm right at the input."""
    module = nn.Sequential(norm(len(mean))).eval()
    module[0].running_mean.copy_(torch.tensor(mean))
    module[0].running_var.copy_(torch.tensor(variance))
    return module


def measure(module, images, statistics):
    with BNLoss(module, statistics) as loss:
        return loss(images)


def relative(result, expected):
    return (np.linalg.norm(result.detach().numpy() - expected) / np.linalg.norm(expected)).item()


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float64, "_f64", 1e-6), (torch.float32, "", 1e-5)])
@pytest.mark.parametrize(("name", "statistics"), [("bns_zeroq_a", ZEROQ), ("bns_genie_a", GENIE)])
def test_the_losses_of_zeroq_and_genie_are_those_of_their_code(
    golden, resnet20, name, statistics, dtype, suffix, tolerance
):
    vectors = golden(name)
    images = torch.from_numpy(vectors["images"]).to(dtype).requires_grad_()
    gap = measure(resnet20.to(dtype), images, statistics)
    gap.total.backward()
    shift = 1 if name == "bns_genie_a" else 0  # its vectors name the input term first
    assert relative(gap.means.roll(shift), vectors[f"mean_terms{suffix}"]) <= tolerance
    assert relative(gap.moments.roll(shift), vectors[f"std_terms{suffix}"]) <= tolerance
    for found, loss in ((gap.means.sum(), "mean"), (gap.moments.sum(), "std"), (gap.total, "total")):
        assert found.item() == pytest.approx(float(vectors[f"{loss}_loss{suffix}"]), rel=tolerance)
    assert relative(images.grad, vectors["grad_images_f64"]) <= tolerance


def test_the_loss_of_intraq_and_hast_is_that_of_their_code(golden, resnet20):
    vectors = golden("bns_hast_intraq_a")
    gap = measure(resnet20, torch.from_numpy(vectors["images"]), HAST)
    assert relative(gap.means, vectors["mean_terms"]) <= 1e-5
    assert relative(gap.moments, vectors["var_terms"]) <= 1e-5
    assert gap.total.item() == pytest.approx(vectors["mean_loss"].item() + vectors["var_loss"].item(), rel=1e-5)


def test_gaps_by_hand():
    # two images of one channel, 1 x 2 pixels: means 1 and 4, biased variances 1 and 4
    images = torch.tensor([[[[0.0, 2.0]]], [[[2.0, 6.0]]]])
    module = one_norm([1.0], [4.0])
    gap = measure(module, images, BNStatistics(scope="image"))
    assert gap.means.tolist() == [(0 + 9) / 2]
    assert gap.moments.tolist() == [(1 + 0) / 2]
    gap = measure(module, images, BNStatistics(scope="image", moment="var", moment_weight=10))
    assert gap.moments.tolist() == [(9 + 0) / 2]
    assert gap.total == 4.5 + 45
    gap = measure(module, images, BNStatistics(scope="batch", moment="var"))  # mean 2.5, variance 4.75
    assert gap.means.tolist() == [2.25]
    assert gap.moments.tolist() == pytest.approx([0.5625], rel=1e-5)
    gap = measure(module, images, BNStatistics(scope="batch", moment="var", unbiased=True))
    assert gap.moments.item() == pytest.approx((4.75 * 4 / 3 - 4) ** 2)


def test_the_input_term_counts_as_a_layer():
    images = torch.tensor([[[[0.0, 2.0]]], [[[2.0, 6.0]]]])
    gap = measure(one_norm([1.0], [4.0]), images, BNStatistics(scope="batch", moment="var", input_term="image"))
    assert gap.means.tolist() == [2.25, (1 + 16) / 2]
    assert gap.moments.tolist() == pytest.approx([0.5625, (0 + 9) / 2], rel=1e-5)
    assert gap.total.item() == pytest.approx((2.25 + 8.5 + 0.5625 + 4.5) / 2, rel=1e-5)
    gap = measure(one_norm([1.0], [4.0]), images, BNStatistics(moment="var", input_term="scope"))
    assert gap.means.tolist() == [2.25, 6.25]


def test_images_with_the_stored_statistics_have_no_loss_and_no_gradient():
    images = torch.tensor([[[[-1.0, 1.0]], [[1.0, 5.0]]]], requires_grad=True)
    gap = measure(one_norm([0.0, 3.0], [1.0, 4.0]), images, BNStatistics(scope="image"))
    gap.total.backward()
    assert gap.total < 1e-12
    assert images.grad.abs().max() < 1e-6


def test_of_one_image_batch_and_image_statistics_are_the_same():
    images = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    module = one_norm([0.3, 0.1], [1.0, 2.0])
    gaps = [measure(module, images, BNStatistics(scope=scope, unbiased=True)) for scope in ("image", "batch")]
    torch.testing.assert_close(gaps[0].total, gaps[1].total)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d])
def test_every_kind_of_norm_is_found_and_watched(norm):
    images = torch.tensor([[[[0.0, 2.0]]]])
    assert measure(one_norm([0.0], [1.0], norm), images, BNStatistics()).means.tolist() == [1]


def test_a_norm_that_is_called_several_times_sees_one_sample():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(x[..., :1]) + self.norm(x[..., 1:]).sum()

    images = torch.tensor([[[[0.0, 2.0, 4.0]]]])
    gap = measure(Twice().eval(), images, BNStatistics(moment="var"))
    assert gap.means.tolist() == [4]
    assert gap.moments.item() == pytest.approx((8 / 3 - 1) ** 2)


def test_convolutions_are_paired_in_the_order_of_registration_where_asked():
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)).eval()
    nn.init.constant_(module[0].weight, -1)
    nn.init.constant_(module[0].bias, 0)
    images = torch.tensor([[[[1.0, 3.0]]]])
    assert measure(module, images, BNStatistics(hook_point="bn_input")).means.tolist() == [0]
    assert measure(module, images, BNStatistics(hook_point="conv_output")).means.tolist() == [4]


def test_pairs_that_do_not_fit_are_an_error_that_says_what_to_do():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    with pytest.raises(ZSQBenchError, match=r"batch normalisation '2' has 3 channels.*gives 2.*bn_input"):
        measure(module, torch.zeros(1, 1, 2, 2), BNStatistics(hook_point="conv_output"))
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    with pytest.raises(ZSQBenchError, match="2 batch normalisations but 1 convolutions"):
        measure(module, torch.zeros(1, 1, 2, 2), BNStatistics(hook_point="conv_output"))


def test_a_network_without_batch_normalisation_is_an_error():
    for module in (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3, track_running_stats=False)):
        assert batch_norms(module) == {}
        with pytest.raises(ZSQBenchError, match="has no batch normalisation"):
            BNLoss(module, ZEROQ)


def test_a_norm_that_the_forward_pass_does_not_reach_is_an_error():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return x

    with pytest.raises(ZSQBenchError, match=r"does not reach .* 'norm'"):
        measure(Unused(), torch.zeros(1, 3, 2, 2), BNStatistics())


def test_a_map_of_one_pixel_has_no_spread_instead_of_nan():
    images = torch.tensor([[[[2.0]]], [[[4.0]]]], requires_grad=True)
    gap = measure(one_norm([1.0], [4.0]), images, ZEROQ_ON_INPUTS)
    gap.total.backward()
    assert gap.moments.tolist() == [0, 0]
    assert images.grad.isfinite().all()


def test_statistics_are_taken_in_float32():
    images = (20 + 0.5 * torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    gap = measure(one_norm([20.0], [0.25]).bfloat16(), images, BNStatistics(moment="var"))
    assert gap.total.dtype == torch.float32
    assert gap.moments < 1e-3


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout()).train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with BNLoss(network, ZEROQ) as loss:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        loss(torch.randn(2, 3, 4, 4, requires_grad=True)).total.backward()
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, False, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_hooks_are_removed_when_the_block_fails():
    network = one_norm([0.0], [1.0])
    with pytest.raises(RuntimeError), BNLoss(network, ZEROQ_ON_INPUTS):
        raise RuntimeError
    assert not network[0]._forward_hooks
    assert "forward" not in vars(network[0])
    with pytest.raises(RuntimeError), frozen(network):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("scope", [1, 2, 3, 4, "all"])
def test_groups_of_images_have_the_statistics_of_their_values(scope):
    images = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = measure(one_norm([0.3, 0.1], [1.0, 2.0]).double(), images, BNStatistics(scope=scope, unbiased=True))
    groups = images.split(4 if scope == "all" else scope)
    moments = [torch.var_mean(group, (0, 2, 3), correction=1) for group in groups]
    means = [(mean - torch.tensor([0.3, 0.1])).square().mean() for _, mean in moments]
    deviations = [(variance.sqrt() - torch.tensor([1.0, 2.0]).sqrt()).square().mean() for variance, _ in moments]
    assert gap.means.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-6)
    assert gap.moments.item() == pytest.approx(torch.stack(deviations).mean().item(), rel=1e-6)


def test_groups_of_one_image_are_the_scope_image_and_of_all_the_scope_batch():
    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    module = one_norm([0.3, 0.1], [1.0, 2.0])
    for number, name in ((1, "image"), (3, "batch"), (5, "batch")):
        gaps = [measure(module, images, BNStatistics(scope=scope, input_term="scope")) for scope in (number, name)]
        torch.testing.assert_close(gaps[0].total, gaps[1].total)


@pytest.mark.parametrize(("scope", "seen"), [("all", slice(0, 7)), (4, slice(4, 7)), (2, slice(4, 6))])
def test_with_a_store_batches_that_were_seen_before_count_as_well(scope, seen):
    images = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = one_norm([0.3, 0.1], [1.0, 2.0]).double()
    sizes = [2, 2, 2, 1]
    statistics = BNStatistics(scope=scope, unbiased=True, input_term="scope")
    with BNLoss(module, statistics) as loss:
        store = loss.store(sizes, 2)
        for batch, part in enumerate(images.split(sizes)):
            store.put(batch, loss(part).batch)
        current = images[4:6].clone().requires_grad_()
        found = loss(current, store, 2)
        whole = images.clone().requires_grad_()
        expected = measure(module, whole[seen], replace(statistics, scope="batch"))
    torch.testing.assert_close(found.total, expected.total)
    (gradient,) = torch.autograd.grad(found.total, current)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.total, whole)[0][4:6])


def test_of_a_map_of_one_pixel_no_scope_gives_nan():
    images = torch.tensor([[[[2.0]]]], requires_grad=True)
    for scope in ("image", "batch", "all", 3):
        gap = measure(one_norm([1.0], [4.0]), images, BNStatistics(scope=scope, unbiased=True, input_term="scope"))
        (gradient,) = torch.autograd.grad(gap.total, images)
        assert gap.moments.tolist() == [0, 0]
        assert gradient.isfinite().all()


def test_a_constant_channel_has_a_finite_gradient():
    images = torch.full((2, 1, 2, 2), 3.0, requires_grad=True)
    gap = measure(one_norm([1.0], [4.0]), images, BNStatistics())
    gap.total.backward()
    assert gap.moments.item() == pytest.approx(4)
    assert images.grad.isfinite().all()


def test_margins_are_quantiles_of_the_gaps_of_each_layer():
    module = one_norm([0.0, 0.0], [1.0, 1.0])
    images = torch.tensor([[[[1.0, 3.0]], [[-4.0, -4.0]]], [[[0.0, 0.0]], [[2.0, 2.0]]]])  # means 2, -4, 0, 2
    with BNLoss(module, BNStatistics(scope="image", moment="var")) as loss:
        assert loss.gap_quantiles([images[:1], images[1:]], 1.0).tolist() == [[4], [1]]
        assert loss.gap_quantiles([images], 0.5).tolist() == [[2], [1]]
        loss.allow(torch.tensor([[3.0], [0.5]]))
        gap = loss(images)
    assert gap.means.tolist() == [1 / 4]  # only the mean -4 is beyond, by 1
    # variances 1, 0, 0, 0: three are off by 1, half of which is free; mean over images and channels
    assert gap.moments.tolist() == [3 * 0.25 / 4]


def test_an_emphasised_gap_counts_four_times():
    module = one_norm([0.0], [1.0])
    images = torch.tensor([[[[1.0, 1.0]]], [[[2.0, 2.0]]]])
    with BNLoss(module, BNStatistics(scope="image", moment="var")) as loss:
        assert loss(images).means.tolist() == [2.5]
        assert loss(images, emphasis=torch.tensor([[2.0], [1.0]])).means.tolist() == [4.0]
        assert loss(images, emphasis=torch.tensor([[1.0], [2.0]])).means.tolist() == [8.5]
