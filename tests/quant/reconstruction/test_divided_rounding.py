import numpy as np
import pytest
import torch

from zsqbench.quant import WeightQuantizer, lp_search, quantize
from zsqbench.quant.reconstruction import DividedRounding, Division

CASES = ["flexround_conv_a", "flexround_linear_a"]


@pytest.fixture
def stored(shared):
    """The vectors of a case, computed from the formulas in double precision; no release exists."""

    def stored(case):
        arrays = np.load(shared / "golden" / "2025" / f"{case}.npz")
        return {name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].dtype.kind in "fi"}

    return stored


def rounding_of(vectors):
    weight, bits = vectors["weight"], int(vectors["n_bits"])
    quantizer = WeightQuantizer("w", "weight", bits, axis=0, shape=tuple(vectors["s1"].shape))
    quantizer.set_parameters(vectors["s1"], vectors["zero_point"])
    rounding = DividedRounding(quantizer, weight)
    rounding.scale = vectors["s1"].clone().requires_grad_()  # quantizers have theirs in float32
    return rounding


@pytest.mark.parametrize("case", CASES)
def test_codes_and_gradients_are_those_of_the_formulas(stored, case):
    vectors = stored(case)
    rounding, weight = rounding_of(vectors), vectors["weight"]
    assert torch.equal(rounding.codes(weight).int(), vectors["codes_initial"])
    learned = {"S2": rounding.elements, "s3": rounding.outputs, "s4": rounding.inputs}
    assert (learned["s4"] is None) == ("s4" not in vectors)
    with torch.no_grad():
        for name, parameter in learned.items():
            if parameter is not None:
                parameter.copy_(vectors[name])
    assert torch.equal(rounding.codes(weight).int(), vectors["codes"])
    values = rounding(weight)
    torch.testing.assert_close(values.detach(), vectors["weight_q"], rtol=1e-14, atol=1e-14)
    (values * vectors["V"]).sum().backward()
    for name, parameter in {**learned, "s1": rounding.scale}.items():
        if parameter is not None:
            torch.testing.assert_close(parameter.grad, vectors[f"grad_{name}"], rtol=1e-12, atol=1e-13)


def rounding(weight, bits=3, axis=0, settings=None):
    shape = () if axis is None else (len(weight), *[1] * (weight.dim() - 1))
    quantizer = WeightQuantizer("w", "weight", bits, axis=axis, shape=shape)
    quantizer.set_parameters(*lp_search(weight, bits, axis))
    return DividedRounding(quantizer, weight, settings)


@pytest.mark.parametrize("axis", [0, None])
def test_it_begins_with_rounding_to_nearest(axis):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = rounding(weight, axis=axis)
    codes = quantize(weight, found.scale.detach(), found.zero_point, 3)
    assert torch.equal(found.codes(weight), codes)
    assert torch.equal(found(weight).detach(), (codes - found.zero_point) * found.scale.detach())


def test_a_weight_of_zero_never_moves():
    weight = torch.tensor([[0.0, 0.7, -0.4]])
    found = rounding(weight)
    found(weight).sum().backward()
    assert found.elements.grad[0, 0] == 0
    assert (found.elements.grad[0, 1:] != 0).all()


def test_dividing_by_more_is_a_step_that_is_smaller_by_as_much():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) / 10
    found = rounding(weight, bits=8)
    before = found.codes(weight)
    with torch.no_grad():
        found.elements.mul_(2)
        found.scale.div_(2)
    assert torch.equal(found.codes(weight), before)


def test_a_large_weight_may_move_by_several_codes():
    weight = torch.tensor([[3.0, -3.4, 0.2]])
    found = rounding(weight, bits=4)
    nearest = found.codes(weight)
    with torch.no_grad():
        found.elements[0, 0] = 2
    assert (nearest - found.codes(weight))[0, 0] >= 3


def test_nothing_it_is_divided_by_leaves_positive_numbers():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = rounding(weight)
    with torch.no_grad():
        for tensor in (found.elements, found.outputs, found.inputs, found.scale):
            tensor.fill_(-1)
    found.constrain()
    assert all((tensor > 0).all() for tensor in (found.elements, found.outputs, found.inputs, found.scale))


def test_steps_stay_where_they_are_not_to_learn():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = rounding(weight, settings=Division(scale_lr=None))
    assert not found.scale.requires_grad
    assert [group.lr for group in found.parameter_groups()] == [1e-3]
    assert len(rounding(weight).parameter_groups()) == 2
