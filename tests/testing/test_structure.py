import operator

import pytest
from torch import fx, nn, relu

from zsqbench.testing.structure import changed_part


def network(*more):
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), *more)


def hooked():
    found = network()
    found[1].register_forward_hook(lambda *_: None)
    return found


class Combines(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.combine = combine

    def forward(self, x):
        return self.combine(relu(x), x)


@pytest.mark.parametrize(
    ("quantized", "prepared", "expected"),
    [
        (network(), network(), None),
        (network(nn.Tanh()), network(), "module '2' is Tanh, and was not there"),
        (network(), network(nn.Tanh()), "module '2' is gone, and was Tanh"),
        (network(nn.Tanh()), network(nn.ReLU()), "module '2' is Tanh, and was ReLU"),
        (hooked(), network(), "module '1' is ReLU with forward_hooks, and was ReLU"),
        (nn.Linear(2, 3), nn.Linear(2, 4), "tensor 'weight' is of shape (3, 2), and was of shape (4, 2)"),
        (
            fx.symbolic_trace(Combines(operator.mul)),
            fx.symbolic_trace(Combines(operator.add)),
            "node 'add' is gone, and was call_function of add",
        ),
    ],
)
def test_the_first_difference_in_structure_is_told(quantized, prepared, expected):
    assert changed_part(quantized, prepared) == expected
