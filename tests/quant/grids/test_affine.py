import numpy as np
import pytest
import torch

from zsqbench.quant.grids.affine import (
    affine_parameters,
    along,
    covering_threshold,
    dequantize,
    fake_quantize,
    fake_quantize_identity,
    grid_parameters,
    pixel_parameters,
    power_of_two,
    quantize,
    symmetric_parameters,
)

GOLDEN_TENSORS = {"conv": "conv_w", "linear": "linear_w", "act": "act", "act_signed": "act_signed"}


def test_a_range_gives_scale_and_zero_point_by_hand():
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    assert scale == 1
    assert zero_point == 1
    assert quantize(torch.tensor([-5.0, -0.4, 0.5, 1.5, 9.0]), scale, zero_point, 2).tolist() == [0, 1, 1, 3, 3]


def test_codes_stand_for_values_of_the_grid_whatever_their_dtype():
    scale, zero_point = torch.tensor(0.5), torch.tensor(3.0)
    assert dequantize(torch.tensor([0, 3, 5], dtype=torch.uint8), scale, zero_point).tolist() == [-1.5, 0, 1]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_every_channel_holds_at_most_two_to_the_b_values_of_its_grid(bits):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    low, high = torch.aminmax(x, dim=1)
    scale, zero_point = (along(value, 0, 2) for value in affine_parameters(low, high, bits))
    codes = quantize(x, scale, zero_point, bits)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(codes, codes.round())
    assert torch.equal(fake_quantize(x, scale, zero_point, bits), (codes - zero_point) * scale)


def test_quantizing_twice_changes_nothing():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    scale, zero_point = affine_parameters(x.min(), x.max(), 4)
    once = fake_quantize(x, scale, zero_point, 4)
    assert torch.equal(fake_quantize(once, scale, zero_point, 4), once)


def test_the_error_is_at_most_half_a_step_inside_the_range_and_order_is_kept():
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(2.0), 4)
    low, high = ((code - zero_point) * scale for code in (0, 15))
    x = torch.linspace(float(low), float(high), 2001)
    rounded = fake_quantize(x, scale, zero_point, 4)
    assert (x - rounded).abs().max() <= scale / 2 * (1 + 1e-5)
    assert (rounded.diff() >= 0).all()


def test_zero_stays_zero_where_the_range_holds_it():
    for low, high in [(-1.0, 2.0), (0.0, 3.0), (-2.0, 0.0), (-0.013, 7.7)]:
        scale, zero_point = affine_parameters(torch.tensor(low), torch.tensor(high), 3)
        assert fake_quantize(torch.tensor(0.0), scale, zero_point, 3) == 0


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, 1e-42, 1e30])
def test_a_range_of_one_value_is_safe(value):
    x = torch.full((4,), value)
    scale, zero_point = affine_parameters(x.min(), x.max(), 4)
    result = fake_quantize(x, scale, zero_point, 4)
    assert scale.isfinite()
    assert scale > 0
    assert torch.allclose(result, x, rtol=1e-6, atol=1e-38)


def test_numbers_that_are_not_finite_are_not_hidden():
    assert affine_parameters(torch.tensor(float("nan")), torch.tensor(1.0), 4).scale.isnan()
    assert affine_parameters(torch.tensor(0.0), torch.tensor(float("inf")), 4).scale.isinf()


def test_the_gradient_passes_rounding_and_stops_where_values_are_clamped():
    x = torch.tensor([-9.0, -0.3, 0.4, 9.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), torch.tensor(1.0), 2).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_the_scale_gets_the_gradient_of_straight_through_rounding():
    # inside the range (round(x / s) - x / s), at its ends the end's own code: (3 - 1) for x = 9
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize(torch.tensor([0.4, 9.0]), scale, torch.tensor(1.0), 2).sum().backward()
    assert scale.grad.item() == pytest.approx((1 - 0.8) + 2)


def test_the_result_is_the_same_with_and_without_gradients():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scale, zero_point = affine_parameters(x.detach().min(), x.detach().max(), 4)
    with_gradient = fake_quantize(x, scale, zero_point, 4)
    with torch.no_grad():
        assert torch.equal(fake_quantize(x, scale, zero_point, 4), with_gradient)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", ["conv", "linear"])
def test_the_signed_quantizer_of_intraq_and_hast_is_this_one_shifted(golden, name, bits):
    # quantizers.md 0.1: s = 1 / S, z = 2^(b-1) - z', and codes are 2^(b-1) larger
    vectors = golden("quant_asym_a")
    weight = torch.from_numpy(vectors[f"{name}_w"])
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    scale, zero_point = affine_parameters(low, high, bits)
    half = 2 ** (bits - 1)
    used = torch.from_numpy(vectors[f"{name}_scale_{bits}"]) < 1e8  # not the channel that is all zero
    torch.testing.assert_close(1 / scale[used], torch.from_numpy(vectors[f"{name}_scale_{bits}"])[used])
    assert torch.equal(half - zero_point, torch.from_numpy(vectors[f"{name}_zero_{bits}"]))
    grid = [along(value, 0, weight.dim()) for value in (scale, zero_point)]
    expected = torch.from_numpy(vectors[f"{name}_codes_{bits}"])
    differs = quantize(weight, *grid, bits) - half != expected
    assert differs.float().mean() <= 1e-3
    deq = torch.from_numpy(vectors[f"{name}_deq_{bits}"])
    rounded = fake_quantize(weight, *grid, bits)
    torch.testing.assert_close(rounded[~differs], deq[~differs], rtol=1e-5, atol=1e-6)
    assert not differs.any()  # so that a layer's output can be compared
    if name == "conv":
        output = torch.conv2d(torch.from_numpy(vectors["conv_x"]), rounded)
    else:
        x, bias = (torch.from_numpy(vectors[f"linear_{what}"]) for what in "xb")
        output = torch.nn.functional.linear(x, rounded, bias)
    torch.testing.assert_close(output, torch.from_numpy(vectors[f"{name}_out_{bits}"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("name", "tensor"), [("act", "act"), ("act_signed", "act_signed"), ("act_posmin", "act")])
def test_the_activation_quantizer_of_intraq_and_hast_is_this_one_shifted(golden, name, tensor, bits):
    vectors = golden("quant_asym_a")
    x, (low, high) = torch.from_numpy(vectors[tensor]), torch.from_numpy(vectors[f"{name}_range"])
    scale, zero_point = affine_parameters(low, high, bits)
    torch.testing.assert_close(1 / scale[None], torch.from_numpy(vectors[f"{name}_scale_{bits}"]), rtol=1e-6, atol=0)
    assert torch.equal(2 ** (bits - 1) - zero_point[None], torch.from_numpy(vectors[f"{name}_zero_{bits}"]))
    result = fake_quantize(x, scale, zero_point, bits)
    torch.testing.assert_close(result, torch.from_numpy(vectors[f"{name}_deq_{bits}"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
def test_the_gradients_are_those_of_brecqs_step_size_learning(golden, bits):
    vectors = golden("brecq_actdelta_grad_a")
    x = torch.from_numpy(vectors["x"]).requires_grad_()
    scale, zero_point = (torch.from_numpy(np.asarray(vectors[f"{name}_{bits}"])) for name in ("delta", "zero"))
    result = fake_quantize(x, scale.requires_grad_(), zero_point, bits)
    torch.testing.assert_close(result.detach(), torch.from_numpy(vectors[f"deq_{bits}"]), rtol=1e-4, atol=1e-6)
    (result * torch.from_numpy(vectors["upstream"])).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(vectors[f"grad_x_{bits}"]), rtol=1e-4, atol=1e-6)
    assert scale.grad.item() == pytest.approx(float(vectors[f"grad_delta_{bits}"]), rel=1e-4)


def test_the_identity_gradient_passes_the_clamp_and_spares_the_grid():
    x = torch.tensor([-9.0, 0.4, 9.0], requires_grad=True)
    scale, zero_point = torch.tensor(0.5, requires_grad=True), torch.tensor(1.0)
    result = fake_quantize_identity(x, scale, zero_point, 2)
    assert torch.equal(result, fake_quantize(x.detach(), scale.detach(), zero_point, 2))
    result.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert scale.grad is None


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_grid_has_its_threshold_and_its_sign(bits):
    codes = torch.arange(2**bits)
    signed = dequantize(codes, *symmetric_parameters(torch.tensor(4.0), bits, True))
    unsigned = dequantize(codes, *symmetric_parameters(torch.tensor(4.0), bits, False))
    assert (signed[0], signed[-1]) == (-4, 4 - 4 / 2 ** (bits - 1))
    assert (unsigned[0], unsigned[-1]) == (0, 4 - 4 / 2**bits)


@pytest.mark.parametrize("grid", ["affine", "symmetric", "power_of_two"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 1.0), (0.0, 2.7), (-5e-9, 1e-9), (0.0, 0.0)])
def test_every_grid_spans_the_range_that_it_is_given(grid, low, high):
    low, high = torch.tensor(low), torch.tensor(high)
    scale, zero_point = grid_parameters(low, high, 8, grid, bool(low < 0))
    assert scale > 0
    for end in (low, high):
        # the zero point of an affine grid is rounded
        assert (fake_quantize(end, scale, zero_point, 8) - end).abs() <= scale * (1 + 1e-5)
    assert fake_quantize(torch.tensor(0.0), scale, zero_point, 8) == 0


def test_powers_of_two_are_exact_and_never_too_small():
    values = torch.tensor([0.0, 2.0**-20, 0.5, 0.5000001, 0.75, 1.0, 4.0, 4.0000005, 100.0])
    assert power_of_two(values).tolist() == [2.0**-16, 2.0**-16, 0.5, 1, 1, 1, 4, 8, 128]


def test_the_covering_threshold_lets_the_top_level_hold_the_maximum():
    # 8 bit, signed: t - t / 128 = 1; unsigned: t - t / 256 = 1
    low, high = torch.tensor(-0.5), torch.tensor(1.0)
    assert covering_threshold(low, high, 8, True).item() == pytest.approx(128 / 127)
    assert covering_threshold(torch.tensor(0.0), high, 8, False).item() == pytest.approx(256 / 255)
    assert covering_threshold(torch.tensor(-2.0), high, 8, True) == 2


PIXELS = torch.arange(256.0)


def pixel_codes(mean, std, white, bits=8):
    """Grid and codes of the pixels 0 .. 255 where white is this number before mean and deviation are applied."""
    ends = [torch.tensor((end - mean) / std) for end in (0.0, white)]
    grid = pixel_parameters(*ends, bits)
    pixels = PIXELS if white == 255 else PIXELS / 255
    return grid, quantize((pixels - mean) / std, *grid, bits)


@pytest.mark.parametrize(
    ("mean", "std", "white", "scale", "zero_point"),
    [
        (127.0, 128.0, 255.0, 1 / 128, 127),
        (0.0, 1.0, 255.0, 1.0, 0),
        (255.0, 0.5, 255.0, 2.0, 255),
        (0.449, 0.226, 1.0, 1 / (255 * 0.226), 114),
        (0.1307, 0.3081, 1.0, 1 / (255 * 0.3081), 33),
        (0.0, 1.0, 1.0, 1 / 255, 0),
    ],
)
def test_the_codes_of_an_image_of_one_mean_are_its_pixels(mean, std, white, scale, zero_point):
    grid, codes = pixel_codes(mean, std, white)
    assert (grid.scale.item(), grid.zero_point.item()) == (pytest.approx(scale, rel=1e-6), zero_point)
    assert torch.equal(codes, PIXELS)


@pytest.mark.parametrize(("mean", "std", "white"), [(0.5, 0.5, 1.0), (0.5, 0.25, 1.0), (127.5, 127.5, 255.0)])
def test_where_zero_lies_halfway_between_two_pixels_only_these_share_a_code(mean, std, white):
    grid, codes = pixel_codes(mean, std, white)
    assert grid.zero_point == 128
    assert grid.scale.item() == pytest.approx(white / std / 254)
    assert torch.equal(codes, torch.where(PIXELS < 128, PIXELS + 1, PIXELS))
    lost = quantize((PIXELS / 255 - 0.5) / 0.5, *affine_parameters(torch.tensor(-1.0), torch.tensor(1.0), 8), 8)
    assert len(lost.unique()) < 240  # what the grid between both ends makes of ties, as float32 happens to round them


def test_channels_of_several_means_share_a_grid_that_holds_all_of_them_and_zero():
    grid = pixel_parameters(torch.tensor(-2.1), torch.tensor(2.6), 8)
    ends = grid.scale * (0 - grid.zero_point), grid.scale * (255 - grid.zero_point)
    assert (ends[0].item(), ends[1].item()) == pytest.approx((-2.1, 2.6), abs=grid.scale.item() / 2)
    above = pixel_parameters(torch.tensor(1.0), torch.tensor(2.0), 8)
    assert (above.scale.item(), above.zero_point.item()) == (pytest.approx(2 / 255), 0)


@pytest.mark.parametrize("grid", ["symmetric", "power_of_two"])
def test_pixels_lie_on_a_symmetric_grid_where_that_is_demanded(grid):
    low, high = torch.tensor(-2.1), torch.tensor(2.6)
    expected = grid_parameters(low, high, 8, grid, signed=True)
    found = pixel_parameters(low, high, 8, grid)
    assert (found.scale.item(), found.zero_point.item()) == (pytest.approx(expected.scale.item()), 128)
    assert pixel_parameters(torch.tensor(0.0), high, 8, grid).zero_point == 0


@pytest.mark.parametrize("signed", [True, False])
def test_a_sign_may_be_a_truth_value_or_a_tensor(signed):
    low, high = -torch.rand(5), torch.rand(5)
    thresholds = [covering_threshold(low, high, 4, each) for each in (signed, torch.tensor(signed))]
    assert torch.equal(*thresholds)
    for ours, theirs in zip(
        *(symmetric_parameters(thresholds[0], 4, s) for s in (signed, torch.tensor(signed))), strict=True
    ):
        assert torch.equal(ours, theirs)
