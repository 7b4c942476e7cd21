"""Whoever makes much that stays keeps Python from looking for garbage, and nobody else."""

import gc

import pytest

from zsqbench.garbage import uncollected


def test_nothing_is_collected_meanwhile_and_afterwards_all_is_as_before():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_leaves_it_as_it_was():
    with pytest.raises(ValueError, match="bad"), uncollected():
        raise ValueError("bad")
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
