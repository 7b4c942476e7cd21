"""Tests of my_method: it keeps the contract, and its formula gives a value worked out by hand."""

import my_method
import pytest
import torch
from zsqbench.testing import check_quantizer


@pytest.mark.parametrize("scheme", ["hw/w4a4", "academic/w4a4"])
def test_it_keeps_the_contract(scheme):
    check_quantizer(my_method.MyMethod(), scheme)


def test_a_range_ends_some_deviations_from_the_mean():
    class Seen:
        def set_range(self, low, high):
            self.range = (low.item(), high.item())

    quantizer = Seen()
    my_method.MyMethod(deviations=1).observer(quantizer)(torch.tensor([0.0, 0.0, 0.0, 4.0]))
    assert quantizer.range == pytest.approx((0, 1 + 3**0.5))
