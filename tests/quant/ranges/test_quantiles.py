import numpy as np
import pytest
import torch

from zsqbench.quant import fake_quantize, quantile_search, top_search
from zsqbench.quant.ranges.quantiles import quantiles


@pytest.fixture
def golden(shared):
    return lambda name: np.load(shared / "golden" / "vit" / f"{name}.npz")


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    ("tensor", "axis", "kind"),
    [("act", 2, "channel"), ("act", None, "layer"), ("gelu", None, "layer"), ("weight2d", 0, "channel"),
     ("weight4d", 0, "channel")],
)  # fmt: skip
def test_grids_are_those_of_the_release(golden, tensor, axis, kind, bits):
    stored = golden("repq_uniform_a")
    x = torch.from_numpy(stored[tensor]).double()
    found = quantile_search(x, bits, axis)
    case = f"{tensor}_{kind}_{bits}"
    torch.testing.assert_close(found.scale, torch.from_numpy(stored[f"{case}_delta_f64"]), rtol=1e-12, atol=0)
    assert torch.equal(found.zero_point, torch.from_numpy(stored[f"{case}_zero_f64"]))
    scale, zero_point = (each.view(-1, *[1] * (x.dim() - 1)) if axis == 0 else each for each in found)
    values = fake_quantize(x, scale, zero_point, bits)
    assert (values - x).square().mean().item() == pytest.approx(float(stored[f"{case}_mse_f64"]), rel=1e-12)
    if bits == 4:
        expected = torch.from_numpy(stored[f"{case}_q_f64"]).double()
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    single = quantile_search(x.float(), bits, axis)
    torch.testing.assert_close(single.scale, torch.from_numpy(stored[f"{case}_delta"]), rtol=3e-5, atol=0)
    assert torch.equal(single.zero_point, torch.from_numpy(stored[f"{case}_zero"]))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_tops_are_those_of_the_release(golden, bits):
    stored = golden("repq_logsqrt2_a")
    found = top_search(torch.from_numpy(stored["attention"]).double(), bits)
    torch.testing.assert_close(found, torch.from_numpy(stored[f"delta_{bits}_f64"]), rtol=1e-12, atol=0)
    single = top_search(torch.from_numpy(stored["attention"]).float(), bits)
    torch.testing.assert_close(single, torch.from_numpy(stored[f"delta_{bits}"]), rtol=3e-6, atol=0)


def test_quantiles_lie_between_values_in_proportion():
    rows = torch.tensor([[3.0, 1.0, 2.0], [0.0, 10.0, 20.0]])
    assert [each.tolist() for each in quantiles(rows, [0.0, 0.75, 1.0])] == [[1, 0], [2.5, 15], [3, 20]]
    torch.testing.assert_close(quantiles(rows, [0.999])[0], rows.quantile(0.999, dim=1))


def test_an_outlier_is_cut_off_and_the_first_of_equals_counts():
    x = torch.linspace(-1, 1, 100_000)
    x[0] = -30
    assert quantile_search(x, 4).scale < 0.14
    assert quantile_search(torch.tensor([0.0, 1.0]), 4, shares=(0.9, 1.0)).scale == pytest.approx(1 / 15)
    assert quantile_search(torch.tensor([0.0, 1.0]), 4, shares=(1.0, 1.0)).scale == pytest.approx(1 / 15)


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_a_constant_channel_keeps_its_value(value):
    x = torch.stack([torch.full((8,), value), torch.linspace(-1, 1, 8)], 1)
    scale, zero_point = quantile_search(x, 4, 1)
    assert torch.equal(fake_quantize(x, scale, zero_point, 4)[:, 0], x[:, 0])
