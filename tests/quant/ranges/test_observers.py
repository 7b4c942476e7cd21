import numpy as np
import pytest
import torch
from brief import parametrize_briefly

from zsqbench.quant.grids.affine import Affine, affine_parameters, along, fake_quantize
from zsqbench.quant.ranges import observers
from zsqbench.quant.ranges.observers import (
    MovingMinMax,
    RunningMinMax,
    absmax,
    include_zero,
    lp_search,
    minmax,
    mse80,
    percentile,
    range_search,
    shrink_search,
    threshold_search,
)


@pytest.fixture
def brecq(golden):
    return golden("brecq_uaq_a")


def lp_error(x, low, high, bits, axis=None):
    scale, zero_point = (along(value, axis, x.dim()) for value in affine_parameters(low, high, bits))
    return (x - fake_quantize(x, scale, zero_point, bits)).abs().pow(2.4).mean()


def test_minmax_is_the_range_of_the_tensor_or_of_each_channel():
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert [value.item() for value in minmax(x)] == [-2, 4]
    assert [value.tolist() for value in minmax(x, axis=0)] == [[-2, 3], [1, 4]]
    assert [value.tolist() for value in minmax(x, axis=1)] == [[1, -2], [3, 4]]


def test_minmax_never_clips():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    low, high = include_zero(*minmax(x, axis=0))
    scale, zero_point = (along(value, 0, 2) for value in affine_parameters(low, high, 4))
    # half a step for the value, half a step for the rounding of the zero point
    assert ((x - fake_quantize(x, scale, zero_point, 4)).abs() <= scale * (1 + 1e-5)).all()


def test_the_running_range_holds_all_batches_and_zero():
    running = RunningMinMax()
    assert [value.item() for value in running.update(torch.tensor([1.0, 2.0]))] == [0, 2]
    assert [value.item() for value in running.update(torch.tensor([-1.0, 1.0]))] == [-1, 2]
    assert [value.item() for value in running.update(torch.tensor([3.0]))] == [-1, 3]


BRECQ_TENSORS = pytest.mark.parametrize(
    ("tensor", "name", "axis"),
    [
        ("conv_w", "conv_pc", 0),
        ("conv_w", "conv_pt", None),
        ("linear_w", "linear_pc", 0),
        ("act", "act_pt", None),
        ("act_signed", "act_signed_pt", None),
    ],
)


def check_brecq(take, x, grid, key, fork=""):
    """Compare a grid, and the tensor on it, with those of BRECQ, or of DGH's fork of it."""
    torch.testing.assert_close(grid.scale, take(f"{key}_delta{fork}"), rtol=1e-6, atol=0)
    assert torch.equal(grid.zero_point, take(f"{key}_zero{fork}"))
    values = fake_quantize(x, *grid, int(key.split("_")[-1]))
    torch.testing.assert_close(values, take(f"{key}_deq{fork}"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@BRECQ_TENSORS
def test_the_search_picks_the_candidates_that_brecq_picks(brecq, tensor, name, axis, bits):
    take = lambda name: torch.from_numpy(np.asarray(brecq[name]))  # noqa: E731
    x, key = take(tensor), f"{name}_mse_{bits}"
    low, high = mse80(x, bits, axis)
    grid = Affine(*(along(value, axis, x.dim()) for value in affine_parameters(low, high, bits)))
    check_brecq(take, x, grid, key)
    check_brecq(take, x, grid, key, "_dghfork")  # it adds 1e-8 to the divisor, which no code here depends on
    assert lp_error(x, low, high, bits, axis).item() == pytest.approx(take(f"{key}_lp24_error").item(), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@BRECQ_TENSORS
def test_minmax_with_zero_is_the_max_range_of_brecq(brecq, tensor, name, axis, bits):
    take = lambda name: torch.from_numpy(np.asarray(brecq[name]))  # noqa: E731
    x = take(tensor)
    grid = affine_parameters(*include_zero(*minmax(x, axis)), bits)
    check_brecq(take, x, Affine(*(along(value, axis, x.dim()) for value in grid)), f"{name}_max_{bits}")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@BRECQ_TENSORS
def test_grids_of_brecqs_other_ranges_are_those_of_brecq(brecq, tensor, name, axis, bits):
    """No method here has these ranges. BRECQ computes them in double precision, where -m / scale is near a tie."""
    take = lambda name: torch.from_numpy(np.asarray(brecq[name]))  # noqa: E731
    x = take(tensor)
    low, high = (end.double() for end in include_zero(*minmax(x, axis)))
    for scaled, factor in (("", 1), ("_scale", (bits + 2) / 8)):
        whole = torch.maximum(-low, high) * factor
        for kind, ends in (("", (low * factor, high * factor)), ("_sym", (torch.where(low < 0, -whole, 0), whole))):
            if scaled or kind:
                grid = affine_parameters(*ends, bits)
                grid = Affine(*(along(value.float(), axis, x.dim()) for value in grid))
                check_brecq(take, x, grid, f"{name}_max{scaled}{kind}_{bits}")


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("tensor", "axis"), [("w", 0), ("act", None), ("act_signed", None)])
def test_searched_and_whole_ranges_are_those_of_qdrop(golden, tensor, axis, bits):
    stored = golden("qdrop_a")
    x, key = torch.from_numpy(stored[tensor]), f"{tensor}_sym0_{bits}_"

    def check(found, name):
        expected = torch.from_numpy(np.asarray(stored[name])).view_as(found)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    scale, zero_point = range_search(x, bits, axis)
    for found, what in ((scale, "scale"), (-zero_point * scale, "min"), ((2**bits - 1 - zero_point) * scale, "max")):
        check(found, f"mseobs_{key}{what}")
    whole = affine_parameters(*include_zero(*minmax(x, axis)), bits)
    check(whole.scale, f"minmax_{key}scale")
    for zero, name in ((zero_point, "mseobs"), (whole.zero_point, "minmax")):
        assert torch.equal(zero, torch.from_numpy(np.asarray(stored[f"{name}_{key}zero"])).view_as(zero))
    symmetric, middle = absmax(x, bits, axis)  # its codes are counted from -2^(b-1) there
    check(symmetric, f"minmax_{tensor}_sym1_{bits}_scale")
    expected = torch.from_numpy(np.asarray(stored[f"minmax_{tensor}_sym1_{bits}_zero"])) + 2 ** (bits - 1)
    assert torch.equal(middle, expected.view_as(middle))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("tensor", "name", "axis", "kinds"),
    [
        ("conv_w", "conv_pc", 0, [(False, True), (True, True)]),
        ("linear_w", "linear_pc", 0, [(False, True), (True, True)]),
        ("act", "act_pt", None, [(False, True), (True, True), (True, False)]),
        ("act_signed", "act_signed_pt", None, [(False, True), (True, True)]),
    ],
)
def test_shrunk_ranges_are_those_of_genie(golden, tensor, name, axis, kinds, bits):
    stored = golden("genie_quant_a")
    for symmetric, signed in kinds:
        found = shrink_search(torch.from_numpy(stored[tensor]), bits, axis, symmetric=symmetric, signed=signed)
        key = f"{name}_sym{int(symmetric)}_signed{int(signed)}_{bits}_"
        scale, zero = (torch.from_numpy(stored[f"{key}{what}"]).view_as(found.scale) for what in ("scale", "zero"))
        torch.testing.assert_close(found.scale, scale, rtol=1e-6, atol=0)
        assert torch.equal(found.zero_point, zero)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_search_errs_at_most_as_much_as_minmax(bits):
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(1)) ** 3
    for axis in (None, 0):
        searched, whole = (lp_error(x, *range_, bits, axis) for range_ in (mse80(x, bits, axis), minmax(x, axis)))
        assert searched <= whole


@pytest.mark.parametrize("block", [50, 64, 1000])
def test_the_search_does_not_depend_on_how_it_is_chunked(monkeypatch, block):
    x = torch.randn(7, 101, generator=torch.Generator().manual_seed(2))
    for axis in (None, 0):
        whole = torch.stack(mse80(x, 4, axis))
        with monkeypatch.context() as patched:
            patched.setattr(observers, "_CPU_BLOCK", block)
            assert torch.equal(torch.stack(mse80(x, 4, axis)), whole)


def test_the_search_widens_a_one_sided_range_to_zero_only_when_asked():
    x = torch.tensor([2.0, 2.5, 3.0])
    assert mse80(x, 8)[0] > 0
    assert mse80(x, 8, zero=True)[0] == 0


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_constant_tensors_are_safe(value):
    x = torch.full((3, 5), value)
    for axis in (None, 0):
        for low, high in (mse80(x, 4, axis), mse80(x, 4, axis, zero=True), minmax(x, axis)):
            assert low.isfinite().all()
            assert high.isfinite().all()
    low, high = mse80(x, 4, zero=True)
    assert torch.allclose(fake_quantize(x, *affine_parameters(low, high, 4), 4), x)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_the_search_on_powers_of_two_is_the_best_of_all_that_it_may_choose(bits, signed):
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [[10.0**i] for i in range(-3, 3)]
    )
    x = x if signed else x.abs()
    scale, zero_point = lp_search(x, bits, 0, grid="power_of_two", signed=signed)
    assert (torch.frexp(scale).mantissa == 0.5).all()
    assert zero_point.tolist() == [2.0 ** (bits - 1) if signed else 0.0] * 6
    for row, found in zip(x, scale, strict=True):
        tried = [2.0**exponent for exponent in range(-30, 10)]
        errors = [
            (row - fake_quantize(row, torch.tensor(step), zero_point[0], bits)).abs().double().pow(2.4).sum()
            for step in tried
        ]
        assert tried[int(torch.stack(errors).argmin())] == found


def test_the_symmetric_search_errs_at_most_as_much_as_the_threshold_that_covers():
    x = torch.randn(4, 400, generator=torch.Generator().manual_seed(4)) ** 3
    covering = x.abs().amax(1, keepdim=True)
    for bits in (2, 4):
        scale, zero_point = lp_search(x, bits, 0, grid="symmetric")
        searched = fake_quantize(x, scale[:, None], zero_point[:, None], bits)
        whole = fake_quantize(x, covering * 1.2 / 2 ** (bits - 1), zero_point[:, None], bits)
        assert ((searched - x).abs().pow(2.4).mean(1) <= (whole - x).abs().pow(2.4).mean(1)).all()


def test_percentiles_are_values_of_the_tensor():
    x = torch.arange(1000.0).flip(0)
    assert [value.item() for value in percentile(x, 99.9)] == [1, 998]
    assert [value.item() for value in percentile(x, 100)] == [0, 999]
    rows = torch.stack([x, -x])
    assert [value.tolist() for value in percentile(rows, 99, axis=0)] == [[10, -989], [989, -10]]
    with pytest.raises(ValueError, match="percent is 40"):
        percentile(x, 40)


def test_no_power_of_two_is_below_the_smallest_threshold():
    x = 1e-7 * torch.rand(1000, generator=torch.Generator().manual_seed(5))
    assert lp_search(x, 8, grid="power_of_two", signed=False).scale == 2.0**-16 / 256


def normal(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(6))


# 5000 elements each, none zero but where it says so
LONG_ROWS = {
    "relu": normal(5000).clamp(min=0),
    "signed": normal(5000),
    "heavy tails": normal(5000) ** 5,
    "one outlier": torch.cat([normal(4999), torch.tensor([1e3])]),
    "relu6": (4 * normal(5000)).clamp(0, 6),
    "few values": normal(5000).round(),
    "two values": torch.where(normal(5000) > 0, 0.3, 0.7),
    "on a grid": (4 * normal(5000)).round() / 8,
    "offset": 100 + normal(5000),
    "constant": torch.full((5000,), 0.7),
    "zeros": torch.zeros(5000),
    "tiny": 1e-12 * normal(5000),
    "small": 2e-6 * normal(5000),
    "large": 1e5 * normal(5000),
    "too large": 1e12 * normal(5000),
    "NaN": torch.cat([normal(4999), torch.tensor([float("nan")])]),
    "infinite": torch.cat([normal(4999), torch.tensor([float("inf")])]),
}


@pytest.fixture
def short_blocks(monkeypatch):
    """Makes 5000 elements many."""
    monkeypatch.setattr(observers, "_CPU_BLOCK", 2000)


@pytest.fixture
def exhaustive(monkeypatch):
    """Calls a search that evaluates every candidate on every element, and returns what it gives."""

    def call(search):
        with monkeypatch.context() as patched:
            patched.setattr(observers, "_contenders", lambda _, candidates, __: torch.arange(len(candidates.scale)))
            return torch.stack(search())

    return call


@pytest.mark.usefixtures("short_blocks")
@parametrize_briefly("grid", ["affine", "symmetric", "power_of_two"], 6)
@pytest.mark.parametrize("name", LONG_ROWS)
def test_dropping_candidates_by_a_histogram_changes_no_choice(exhaustive, name, grid):
    x = LONG_ROWS[name]
    for bits in (2, 4, 8):

        def search(bits=bits):
            return lp_search(x, bits, grid=grid, signed=bool((x < 0).any()))

        torch.testing.assert_close(torch.stack(search()), exhaustive(search), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("short_blocks")
@parametrize_briefly("name", LONG_ROWS, 6)
def test_dropping_candidates_changes_no_choice_where_ranges_need_not_hold_zero(exhaustive, name):
    for bits in (2, 4, 8):

        def search(bits=bits):
            return mse80(LONG_ROWS[name], bits)

        torch.testing.assert_close(torch.stack(search()), exhaustive(search), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_histogram_drops_most_candidates(bits):
    x = LONG_ROWS["signed"]
    ratios = torch.arange(80, 0, -1)[:, None] / 80
    candidates = affine_parameters(ratios * x.min(), ratios * x.max(), bits)
    assert len(observers._contenders(x, candidates, bits)) <= 8


def test_a_large_tensor_is_searched_as_every_candidate_on_every_element_would(exhaustive):
    x = normal(2**18).clamp(min=0)
    searched = torch.stack(lp_search(x, 4))
    assert torch.equal(searched, exhaustive(lambda: lp_search(x, 4)))


def test_a_moving_range_follows_the_released_one_where_it_compounds(golden):
    stored = golden("quant_asym_a")
    moving = MovingMinMax(float(stored["quantact_beta"]), compounding=True)
    trace, outputs = stored["quantact_trace_min_max_betat"], stored["quantact_outputs"]
    for values, (low, high, _), output in zip(stored["quantact_inputs"], trace, outputs, strict=True):
        x = torch.from_numpy(values)
        found = torch.stack(moving.update(x))
        rounded = fake_quantize(x, *affine_parameters(*found, 4), 4)
        torch.testing.assert_close(rounded, torch.from_numpy(output), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, torch.tensor([low, high], dtype=found.dtype), rtol=1e-4, atol=1e-4)
    frozen = fake_quantize(torch.from_numpy(stored["quantact_inputs"][0]), *affine_parameters(*found, 4), 4)
    torch.testing.assert_close(frozen, torch.from_numpy(stored["quantact_frozen_out0"]), rtol=1e-4, atol=1e-4)


def test_a_compounding_range_of_a_constant_overshoots_and_settles():
    moving = MovingMinMax(compounding=True)
    highs = [float(moving.update(torch.tensor([0.0, 1.0]))[1]) for _ in range(200)]
    assert highs[:3] == pytest.approx([1, 5.263, 17.848], abs=1e-3)
    assert max(highs) == highs[20] == pytest.approx(3945, rel=0.01)
    assert highs[-1] == pytest.approx(1, abs=1e-3)


def test_a_compounding_range_of_a_constant_follows_the_released_one(golden):
    moving, constant = MovingMinMax(compounding=True), torch.tensor([-1.0, 2.0])
    for expected in golden("quant_asym_a")["quantact_const_trace"]:
        found = torch.stack(moving.update(constant))
        torch.testing.assert_close(found, torch.from_numpy(expected).to(found), rtol=1e-4, atol=1e-4)


def test_an_unbiased_moving_range_is_right_from_the_first_batch():
    moving = MovingMinMax(0.5)
    assert [float(end) for end in moving.update(torch.tensor([-1.0, 2.0]))] == [-1, 2]
    low, high = moving.update(torch.tensor([0.0, 5.0]))
    assert float(low) == pytest.approx((0.25 * -1) / 0.75)
    assert float(high) == pytest.approx((0.25 * 2 + 0.5 * 5) / 0.75)


@pytest.mark.parametrize("compounding", [False, True])
def test_a_moving_range_goes_on_from_its_state_as_if_undisturbed(compounding):
    batches = normal(64).split(16)
    whole, first = (MovingMinMax(0.9, compounding=compounding) for _ in range(2))
    expected = [torch.stack(whole.update(batch)) for batch in batches]
    for batch in batches[:2]:
        first.update(batch)
    second = MovingMinMax(0.9, compounding=compounding)
    assert torch.equal(torch.stack(second.load(first.state())), expected[1])
    assert torch.equal(torch.stack(second.update(batches[2])), expected[2])
    assert torch.equal(torch.stack(second.update(batches[3])), expected[3])


def test_a_search_over_symmetric_thresholds_keeps_the_zero_point_in_the_middle_and_errs_least():
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(0)).pow(3)
    found = threshold_search(x, 4, 0)
    assert found.zero_point.tolist() == [8.0] * 6
    for channel, scale in zip(x, found.scale, strict=True):
        covering = torch.maximum(-channel.min(), channel.max() * 8 / 7) / 8
        tried = [covering * part / 100 for part in range(100, 0, -1)]
        errors = [
            (channel - fake_quantize(channel, step, torch.tensor(8.0), 4)).abs().pow(2.4).mean() for step in tried
        ]
        best = int(torch.stack(errors).argmin())
        assert scale.item() == pytest.approx(tried[best].item(), rel=1e-5)
        assert 0 < best < 99
    assert threshold_search(x, 4).scale.shape == ()
