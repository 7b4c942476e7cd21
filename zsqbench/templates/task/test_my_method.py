"""Tests of my_method: it keeps the contract, and its network is better than chance."""

import my_method
from zsqbench.methods import ModelSpec
from zsqbench.testing import check_task

EDGES = ModelSpec(name="edges", base="edges")


def test_it_keeps_the_contract():
    check_task(my_method.MyMethod(samples=20), EDGES)


def test_the_float_network_is_better_than_chance():
    assert check_task(my_method.MyMethod(), EDGES).metrics["top1"] > 75
