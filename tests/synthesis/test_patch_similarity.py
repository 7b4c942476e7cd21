import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from zsqbench.synthesis import patch_entropy, patch_features, patch_similarity, patch_spread


def features(images=3, patches=12, width=6, spread=1.0, seed=0):
    """Random features around a common one, in float64."""
    rng = torch.Generator().manual_seed(seed)
    common, own = (
        torch.randn(shape, generator=rng).double() for shape in ((images, 1, width), (images, patches, width))
    )
    return common + spread * own


def by_definition(features, images, bandwidth=0.01, points=10):
    """The entropy as the method's formulas say it, differentiated by torch."""
    rows = functional.cosine_similarity(features[:, :, None], features[:, None], dim=3).reshape(images, -1)
    at = torch.linspace(rows.min().item(), rows.max().item(), points, dtype=rows.dtype)
    kernels = torch.exp(-((at[:, None, None] - rows) ** 2) / (2 * bandwidth**2)) / (bandwidth * math.sqrt(2 * math.pi))
    shifted = kernels.mean(2).T + 1e-4
    return torch.trapezoid(-shifted * shifted.log(), at, dim=1).mean()


def with_gradient(function, given, *options):
    given = given.detach().clone().requires_grad_()
    value = function(given, *options)
    value.backward()
    return value.detach(), given.grad


@pytest.fixture
def vectors(shared):
    return np.load(shared / "golden" / "vit" / "psaq_pse_a.npz")


def compare(vectors, prefix, layer, images, dtype):
    name = f"{prefix}features_{layer}"
    context = torch.from_numpy(vectors[name]).to(dtype).requires_grad_()
    entropy = patch_entropy(patch_features(context, images, drop_first=True), images)
    (-entropy).backward()
    expected = torch.from_numpy(vectors[f"{prefix}grad_features_{layer}_f64"])
    departure = (context.grad.double() - expected).norm() / expected.norm()
    return abs(entropy.item() - float(vectors[f"{prefix}entropy_{layer}_f64"])), departure.item()


OF_THE_RELEASE = pytest.mark.parametrize(("prefix", "layer", "images"), [("", 0, 3), ("", 1, 3), ("swin_", 0, 2)])


@OF_THE_RELEASE
def test_entropies_and_gradients_are_those_of_the_release(vectors, prefix, layer, images):
    assert max(compare(vectors, prefix, layer, images, torch.float64)) < 1e-10
    value, gradient = compare(vectors, prefix, layer, images, torch.float32)
    assert value < 1e-4
    assert gradient < 1e-4


@OF_THE_RELEASE
def test_similarities_and_densities_are_those_of_the_release(vectors, monkeypatch, prefix, layer, images):
    made = []

    class Noted(patch_similarity._Density):
        def __init__(self, rows, *others):
            super().__init__(rows, *others)
            made.append((rows.clone(), self))

    def stored(name):
        return torch.from_numpy(vectors[f"{prefix}{name}_{layer}_f64"])

    monkeypatch.setattr(patch_similarity, "_Density", Noted)
    given = patch_features(torch.from_numpy(vectors[f"{prefix}features_{layer}"]).double(), images, drop_first=True)
    if not prefix:
        torch.testing.assert_close(given, stored("attention_p"), rtol=1e-10, atol=1e-10)
    patch_entropy(given, images)
    ((rows, density),) = made
    similarity, grid = stored("similarity"), stored("grid")
    pairs = torch.triu_indices(*similarity.shape[1:])
    torch.testing.assert_close(rows, similarity[:, *pairs].view(images, -1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rows.min() + density.step * torch.arange(10), grid, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(density.values, stored("kde"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spread", [3.0, 0.5, 0.1, 0.003])
@pytest.mark.parametrize(("bandwidth", "points"), [(0.01, 10), (0.01, 41), (0.2, 5), (0.001, 10)])
def test_points_near_and_far_apart_give_what_the_formulas_say(spread, bandwidth, points):
    """So in both ways of adding up: those few points that count, and all."""
    given = features(spread=spread)
    value, gradient = with_gradient(patch_entropy, given, 3, bandwidth, points)
    expected, expected_gradient = with_gradient(by_definition, given, 3, bandwidth, points)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-9 * expected_gradient.abs().max())


def test_all_points_are_taken_unless_they_are_far_apart():
    far = patch_similarity._Density(torch.linspace(-0.8, 1, 50).view(1, -1), torch.ones(50), 0.01, 10)
    near = patch_similarity._Density(torch.linspace(0.99, 1, 50).view(1, -1), torch.ones(50), 0.01, 10)
    assert (far._are_far_apart(), near._are_far_apart()) == (True, False)


def test_equal_patches_have_a_spike_and_no_gradient():
    value, gradient = with_gradient(patch_entropy, torch.ones(2, 5, 3), 2)
    assert value == 0  # between a smallest and a largest similarity that are one
    assert (gradient == 0).all()


def test_order_and_length_of_features_do_not_matter_and_their_direction_does():
    given = features()
    entropy = patch_entropy(given, 3)
    rng = torch.Generator().manual_seed(1)
    for same in (given[:, torch.randperm(12, generator=rng)], given[[2, 0, 1]], 7 * given):
        torch.testing.assert_close(patch_entropy(same, 3), entropy)
    assert not torch.isclose(patch_entropy(given + 1, 3), entropy)


def test_pairs_that_are_near_no_point_have_no_gradient():
    """Ten points from 0 to 0.9; of the pairs between, one is on a point's slope and one half way between two."""
    rows = torch.tensor([[0.0, 0.2999, 0.55, 0.9]], dtype=torch.float64)
    gradient = patch_similarity._Density(rows, torch.ones(4).double(), 0.001, 10).gradient(torch.ones(1, 10).double())
    assert gradient[0, 1] > 1  # towards the point at 0.3
    assert gradient[0, 2].abs() < 1e-12


def test_windows_of_an_image_are_one_density_and_those_of_images_are_not():
    given = features(images=4)
    pooled, apart = patch_entropy(given, 2), patch_entropy(given, 4)
    swapped = given[[1, 0, 2, 3]]
    torch.testing.assert_close(patch_entropy(swapped, 2), pooled)
    across = given[[0, 2, 1, 3]]
    assert not torch.isclose(patch_entropy(across, 2), pooled)
    assert not torch.isclose(apart, pooled)


def test_heads_are_averaged_and_the_first_token_is_dropped_or_not():
    context = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(patch_features(context, 2, drop_first=True), context.mean(1)[:, 1:])
    assert torch.equal(patch_features(context, 2, drop_first=False), context.mean(1))
    assert torch.equal(patch_features(context.flatten(0, 1), 2, drop_first=False), context.mean(1))


def test_half_precision_is_computed_in_single():
    given = features().bfloat16()
    value, gradient = with_gradient(patch_entropy, given, 3)
    with torch.autocast("cpu", torch.bfloat16):
        under = patch_entropy(given, 3)
    assert value.dtype == under.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, patch_entropy(given.float(), 3))
    torch.testing.assert_close(under, value)


def test_the_spread_is_the_deviation_of_the_cosines_of_different_patches():
    # in the first image at 0, 90 and 180 degrees, in the second all alike
    apart = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
    expected = torch.tensor([0.0, -1.0, 0.0]).std(correction=0) / 2
    torch.testing.assert_close(patch_spread(torch.stack([apart, torch.ones(3, 2)]), 2), expected)


def test_the_spread_of_an_image_is_that_over_its_windows():
    given = features(images=4)
    assert torch.isclose(patch_spread(given[[1, 0, 2, 3]], 2), patch_spread(given, 2))
    across = given[[0, 2, 1, 3]]
    assert not torch.isclose(patch_spread(across, 2), patch_spread(given, 2))
    assert patch_spread(given[:, :1], 4).isnan()


def test_nothing_is_kept_without_gradients():
    given = features()
    assert not patch_entropy(given, 3).requires_grad
    torch.testing.assert_close(patch_entropy(given.requires_grad_(), 3).detach(), patch_entropy(given.detach(), 3))
