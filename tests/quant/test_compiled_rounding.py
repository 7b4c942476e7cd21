"""What rounding computes while it is compiled is what it computes otherwise."""

import pytest
import torch

from zsqbench.quant.grids.affine import _CompiledStraightThrough, _StraightThrough, within

X = torch.linspace(-3, 3, 241)


@pytest.mark.parametrize("clips_first", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_a_compiled_rounding_gives_the_same_values_and_gradients(monkeypatch, clips_first, learns, shape):
    x = torch.stack([X, X * 2, X / 3])
    found = []
    for function in (_StraightThrough, _CompiledStraightThrough):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda function=function: function is not _StraightThrough)
        values, scale = x.clone().requires_grad_(), torch.full(shape, 0.4).requires_grad_(learns)
        rounded = function.apply(values, scale, torch.tensor(3.0), 3, clips_first)
        (rounded * torch.arange(723.0).view(3, 241)).sum().backward()
        found.append((rounded.detach(), values.grad, scale.grad))
    for eager, compiled in zip(*found, strict=True):
        assert (eager is None) == (compiled is None)
        assert eager is None or torch.allclose(eager, compiled, rtol=1e-4)


@pytest.mark.parametrize("compiles", [False, True])
def test_both_bounds_are_within(monkeypatch, compiles):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiles)
    assert within(torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5]), 0, 1).tolist() == [0, 1, 1, 1, 0]


def test_what_is_beyond_the_grid_even_infinitely_leaves_the_gradient_of_the_scale_finite():
    x, scale = torch.tensor([torch.inf, -torch.inf, 0.5]).requires_grad_(), torch.tensor(0.4).requires_grad_()
    values = _StraightThrough.apply(x, scale, torch.tensor(3.0), 3, False)
    values.sum().backward()
    torch.testing.assert_close(values.detach(), torch.tensor([1.6, -1.2, 0.4]))
    assert x.grad.tolist() == [0, 0, 1]
    torch.testing.assert_close(scale.grad, torch.tensor(4.0 - 3.0 + (1.0 - 1.25)))
