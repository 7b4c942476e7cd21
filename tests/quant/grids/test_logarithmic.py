import numpy as np
import pytest
import torch

from zsqbench.quant import LogQuantizer, round_logarithmically
from zsqbench.quant.grids.fake_quant import plain
from zsqbench.scheme import PLACEMENTS, parse_scheme


@pytest.fixture
def golden(shared):
    return np.load(shared / "golden" / "vit" / "repq_logsqrt2_a.npz")


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_values_are_those_of_the_release(golden, bits):
    attention, ladder = (torch.from_numpy(golden[name]).double() for name in ("attention", "ladder"))
    top = torch.from_numpy(golden[f"delta_{bits}_f64"])
    found = round_logarithmically(attention, top, bits)
    torch.testing.assert_close(found, torch.from_numpy(golden[f"q_{bits}_f64"]), rtol=1e-12, atol=1e-12)
    expected = torch.from_numpy(golden[f"ladder_q_delta1_{bits}_f64"])
    torch.testing.assert_close(
        round_logarithmically(ladder, torch.ones(()).double(), bits), expected, rtol=1e-12, atol=0
    )
    assert len(found.unique()) == int(golden[f"n_distinct_{bits}_f64"])
    assert (found - attention).square().mean().item() == pytest.approx(float(golden[f"mse_{bits}_f64"]), rel=1e-12)
    single = round_logarithmically(attention.float(), torch.from_numpy(golden[f"delta_{bits}"]), bits)
    torch.testing.assert_close(single, torch.from_numpy(golden[f"q_{bits}"]), rtol=3e-6, atol=0)
    assert len(single.unique()) == int(golden[f"n_distinct_{bits}"])
    assert (single - attention).square().mean().item() == pytest.approx(float(golden[f"mse_{bits}"]), rel=1e-4)


def quantizer(top=1.0, bits=4):
    made = LogQuantizer("softmax", "softmax", bits, axis=None, shape=())
    made.set_top(torch.tensor(top))
    return made


def test_steps_are_powers_of_the_square_root_of_two_and_zero():
    x = torch.tensor([2.0, 1.0, 0.7, 0.5, 0.35, 2**-7.5, 2**-7.8, 0.0, -1.0])
    expected = torch.tensor([1.0, 1.0, 0.5**0.5, 0.5, 0.125**0.5, 2**-7.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(quantizer()(x), expected)


def test_a_grid_of_b_bits_has_a_zero_besides_its_codes_and_is_monotone():
    x = torch.linspace(0, 1.2, 10001)
    rounded = quantizer(bits=4)(x)
    assert len(rounded.unique()) == 17
    assert (rounded.diff() >= 0).all()


def test_gradients_pass_unchanged():
    x = torch.rand(8, requires_grad=True)
    quantizer(0.5)(x).mul(torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0))


def test_calibration_and_learning_leave_the_top_alone():
    made = quantizer(0.5)
    made.set_range(torch.tensor(0.0), torch.tensor(3.0))
    made.set_parameters(torch.tensor(2.0), torch.tensor(1.0))
    assert (made.is_held, made.scale.item(), [end.item() for end in made.range()]) == (True, 0.5, [0, 0.5])
    assert made.grid_name == "log_sqrt2"


def test_an_artifact_keeps_the_grid():
    kept = plain(quantizer(0.25))
    assert isinstance(kept, LogQuantizer)
    assert kept.enabled
    assert kept(torch.tensor([0.3])) == 0.25


def test_it_is_neutral_until_it_has_a_top_and_a_tensor_of_zeros_gets_one():
    made = LogQuantizer("softmax", "softmax", 4, axis=None, shape=())
    x = torch.rand(3)
    assert made(x) is x
    with pytest.raises(RuntimeError, match="'softmax' was not calibrated"):
        made.check()
    made.set_top(torch.zeros(()))
    made.check()
    assert made(torch.zeros(3)).tolist() == [0, 0, 0]


def test_half_precision_is_rounded_in_float32():
    assert quantizer()(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(("base", "demand"), [("qdq", "activation_grid affine"), ("pot", "grid power_of_two")])
def test_a_scheme_that_demands_another_grid_of_all_activations_refuses_it(base, demand):
    """So does one that integer runtimes run: no operator of ONNX expresses this grid."""
    with pytest.raises(ValueError, match=f"{demand} is for all activations, and softmax_grid is log_sqrt2: give one"):
        PLACEMENTS[base].model_validate({**dict(PLACEMENTS[base]), "softmax": "a", "softmax_grid": "log_sqrt2"})


def test_only_the_softmax_of_a_scheme_that_says_so_has_this_grid():
    assert parse_scheme("repq/w4a4").placement.softmax_grid == "log_sqrt2"
    with pytest.raises(ValueError, match="softmax_grid is log_sqrt2, and softmax has no width: give one, such as"):
        type(parse_scheme("hw/w4a4").placement)(softmax_grid="log_sqrt2")
