import torch

from zsqbench.testing import context
from zsqbench.testing.checkpoints import through_file


def test_a_state_comes_back_from_a_file_as_a_run_would_find_it():
    ctx = context()
    ctx.rand(1)
    expected = ctx.rng.get_state()
    ctx.checkpoint({"x": torch.ones(2, requires_grad=True).mul(2), "done": (1, 2)})
    (state,) = ctx.reporter.states
    found = through_file(state)
    assert torch.equal(found.pop("rng"), expected)
    assert torch.equal(found.pop("x"), torch.full((2,), 2.0))
    assert found == {"done": [1, 2]}
