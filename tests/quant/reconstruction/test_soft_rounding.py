import math

import numpy as np
import pytest
import torch

from zsqbench.quant import Annealing, Rounding, affine_parameters, fake_quantize, mse80
from zsqbench.quant.grids.fake_quant import WeightQuantizer
from zsqbench.quant.reconstruction.losses import reconstruction_loss
from zsqbench.quant.reconstruction.soft_rounding import SoftRounding, rectified_sigmoid


def weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_rounding(values, bits=3, scale=None, zero_point=None, **options):
    shape = (len(values),) + (1,) * (values.dim() - 1)
    quantizer = WeightQuantizer("w", "weight", bits, axis=0, shape=shape)
    if scale is None:
        scale, zero_point = affine_parameters(*mse80(values, bits, 0, zero=True), bits)
    quantizer.set_parameters(scale, zero_point)
    return SoftRounding(quantizer, values, Rounding(**options))


def test_the_soft_weight_starts_as_the_weight_itself():
    values = weight(4, 3, 3, 3)
    low, high = values.flatten(1).aminmax(dim=1)
    rounding = soft_rounding(values, 4, *affine_parameters(low * 1.2, high * 1.2, 4))
    torch.testing.assert_close(rounding(values), values, rtol=0, atol=1e-5)


def test_hard_codes_are_floor_or_ceiling():
    values = weight(6, 5, 3, 3)
    rounding = soft_rounding(values)
    rounding.logits.data.normal_(generator=torch.Generator().manual_seed(1))
    floor = (values / rounding.scale).floor() + rounding.zero_point
    up = rounding.codes(values) - floor.clamp(0, 7)
    assert set(up.unique().tolist()) <= {0.0, 1.0}


def test_hard_codes_follow_the_sign_of_the_logits():
    values = torch.tensor([[0.3, 0.4], [1.3, -0.4]])
    rounding = soft_rounding(values, 3, torch.ones(2, 1), torch.full((2, 1), 4.0))
    rounding.logits.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert (rounding.codes(values) - 4).tolist() == [[1, 0], [1, 0]]


def test_what_lies_beyond_the_grid_is_not_learned():
    values = torch.tensor([[9.4, -9.4, 0.4]])
    rounding = soft_rounding(values, 3, torch.ones(1, 1), torch.full((1, 1), 4.0))
    rounding(values).sum().backward()
    assert rounding.logits.grad[0, :2].tolist() == [0, 0]
    assert rounding.codes(values)[0, :2].tolist() == [7, 0]


def test_the_gradient_is_that_of_the_formula():
    values = weight(5, 4, 3, 3)
    upstream = weight(5, 4, 3, 3, seed=1)
    rounding = soft_rounding(values)
    rounding.logits.data.normal_(generator=torch.Generator().manual_seed(2)).mul_(3)
    (rounding(values) * upstream).sum().backward()
    logits = rounding.logits.detach().clone().requires_grad_()
    floor = (values / rounding.scale).floor()
    codes = (floor + rectified_sigmoid(logits) + rounding.zero_point).clamp(0, 7)
    (((codes - rounding.zero_point) * rounding.scale) * upstream).sum().backward()
    torch.testing.assert_close(rounding.logits.grad, logits.grad)


def regularizer(logits, beta):
    return (1 - (2 * rectified_sigmoid(logits) - 1).abs().pow(beta)).sum()


@pytest.mark.parametrize("beta", [20.0, 7.5, 2.0])
def test_the_regularizers_gradient_is_that_of_its_value(beta):
    rounding = soft_rounding(weight(5, 4, 3, 3))
    rounding.logits.data.normal_(generator=torch.Generator().manual_seed(2)).mul_(2)
    logits = rounding.logits.detach().clone().requires_grad_()
    (0.01 * regularizer(logits, beta)).backward()
    rounding.add_regularizer_gradient(0.01, beta)
    torch.testing.assert_close(rounding.logits.grad, logits.grad, rtol=1e-4, atol=1e-7)


def test_the_regularizer_leaves_alone_what_is_decided():
    rounding = soft_rounding(weight(2, 2))
    rounding.logits.data = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    rounding.add_regularizer_gradient(1.0, 2.0)
    assert rounding.logits.grad.abs().max() == 0


def test_beta_is_absent_in_the_warm_up_then_falls_on_a_line():
    annealing = Annealing()
    assert [annealing(step, 1000) for step in (1, 199, 200, 600, 1000)] == [None, None, 20, 11, 2]


def test_beta_can_fall_by_a_cosine():
    annealing = Annealing(shape="cosine")
    assert annealing(400, 1000) == pytest.approx(2 + 9 * (1 + math.cos(math.pi / 4)))


def test_a_learned_scale_leaves_the_floor_as_it_was():
    values = weight(3, 4, 3, 3)
    rounding = soft_rounding(values, scale_lr=1e-4)
    before = rounding.codes(values)
    with torch.no_grad():
        rounding.scale.mul_(1.7)
    assert torch.equal(rounding.codes(values), before)
    rounding(values).sum().backward()
    assert rounding.scale.grad.shape == (3, 1, 1, 1)


@pytest.fixture
def brecq(golden):
    stored = golden("brecq_adaround_a")
    return lambda name: torch.from_numpy(np.asarray(stored[name]))


@pytest.mark.parametrize("bits", [3, 4])
def test_released_rounding_comes_out(brecq, bits):
    take = lambda name: brecq(f"b{bits}_{name}")  # noqa: E731
    values = brecq("w")
    rounding = soft_rounding(values, bits, *affine_parameters(*mse80(values, bits, 0), bits))
    torch.testing.assert_close(rounding.scale, take("delta"), rtol=1e-6, atol=0)
    assert torch.equal(rounding.zero_point, take("zero"))
    nearest = fake_quantize(values, rounding.scale, rounding.zero_point, bits)
    torch.testing.assert_close(nearest, take("nearest_w"), rtol=0, atol=1e-5)

    def check(suffix):
        torch.testing.assert_close(rectified_sigmoid(rounding.logits), take(f"h{suffix}"), rtol=0, atol=1e-5)
        torch.testing.assert_close(rounding(values), take(f"soft_w{suffix}"), rtol=0, atol=1e-5)
        hard = (rounding.codes(values) - rounding.zero_point) * rounding.scale
        torch.testing.assert_close(hard, take(f"hard_w{suffix}"), rtol=0, atol=1e-5)

    torch.testing.assert_close(rounding.logits.detach(), take("alpha_init"), rtol=1e-5, atol=1e-5)
    check("_init")
    rounding.logits.data = take("alpha").clone()
    check("")
    output = torch.conv2d(brecq("x"), rounding(values), brecq("bias"), padding=1)
    torch.testing.assert_close(output, take("soft_out"), rtol=1e-5, atol=1e-5)
    loss = reconstruction_loss(output, brecq("target"), 2.4)
    assert loss.item() == pytest.approx(take("lp24_rec").item(), rel=1e-5)
    for beta in (20, 10, 5, 2):
        assert regularizer(rounding.logits, beta).item() == pytest.approx(take(f"reg_beta{beta}").item(), rel=1e-5)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("mode", ["mse", "fisher_diag", "fisher_full"])
@pytest.mark.parametrize(("count", "warmup"), [(100, 0.2), (199, 0.2), (300, 0.2), (900, 0.2), (1, 0)])
def test_released_losses_and_their_gradients_come_out(brecq, bits, mode, count, warmup):
    values, key = brecq("w"), f"b{bits}_{mode}"
    rounding = soft_rounding(values, bits, brecq(f"b{bits}_delta"), brecq(f"b{bits}_zero"))
    rounding.logits.data = brecq(f"b{bits}_alpha").clone()
    output = torch.conv2d(brecq("x"), rounding(values), brecq("bias"), padding=1)
    fisher = mode.partition("_")[2] or None
    loss = reconstruction_loss(output, brecq("target"), 2.0, fisher, brecq("fisher_grad"))
    loss.backward()
    total = loss.item()
    assert total == pytest.approx(brecq(f"{key}_rec").item(), rel=1e-5)
    key += f"_cnt{count}_wu{warmup}"
    beta, weight = Annealing(warmup=warmup)(count, 1000), Rounding().regularizer
    assert (beta or 20.0) == pytest.approx(brecq(f"{key}_b").item(), abs=1e-12)
    assert weight == brecq("reg_weight").item()
    if beta is not None:
        rounding.add_regularizer_gradient(weight, beta)
        total += weight * regularizer(rounding.logits, beta).item()
    assert total == pytest.approx(brecq(f"{key}_total").item(), rel=1e-5)
    torch.testing.assert_close(rounding.logits.grad, brecq(f"{key}_grad_alpha"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_released_regularizer_of_genie_is_the_same(golden, bits):
    stored = golden("genie_quant_a")
    logits = torch.from_numpy(stored[f"wq{bits}_bit_logit"])
    for beta in (20, 2):
        expected = float(stored[f"wq{bits}_round_loss_beta{beta}"])
        assert regularizer(logits, beta).item() == pytest.approx(expected, rel=1e-6)


def test_the_released_temperature_comes_out(golden):
    stored, genie = golden("brecq_tempdecay_a"), golden("genie_quant_a")
    schedules = [
        (warmup, start, stored["t"], stored[f"b_tmax1000_{name}"])
        for name, warmup, start in (("start0.2_20_2", 0.2, 20), ("start0.2_10_2", 0.2, 10), ("start0_20_2", 0, 20))
    ]
    for warmup, start, steps, expected in (*schedules, (0.2, 20, genie["temp_t"], genie["temp_b"])):
        annealing = Annealing(start=start, warmup=warmup)
        for step, beta in zip(steps, expected, strict=True):
            assert (annealing(int(step), 1000) or start) == pytest.approx(beta, abs=1e-12)
