from dataclasses import dataclass, replace

import pytest

from zsqbench.execution.compiling import PACES, Saving, saving
from zsqbench.execution.estimates import Estimates
from zsqbench.execution.timings import Timings
from zsqbench.methods import Settings
from zsqbench.steps import KINDS, Step, Work
from zsqbench.store import Store
from zsqbench.suite import Cell

LONG = 1e6
"""Seconds of a step beside which compiling takes no time."""


@dataclass(frozen=True)
class FakeMethod:
    compiles: str | None = "pixels"


@dataclass(frozen=True)
class FakeVariant:
    method: FakeMethod

    @property
    def at_work(self):
        return self


def step(images=100.0, compiles="pixels", kind="generate", key="key", network="n", **settings):
    settings = Settings(**settings)
    work = Work(kind, compiles or "none", network, images, 1e6, settings.compile)
    cell = Cell("t", "m", "g", "q", "hw/w4a4", 0, settings)
    return Step(KINDS[kind], key, "label", (), cell, key, variant=FakeVariant(FakeMethod(compiles)), work=work)


@pytest.fixture
def said(tmp_path):
    """What compiling steps would save where these seconds are known of others."""

    def of(steps, known, on_cpu=True):
        timings = Timings(Store(tmp_path))
        for number, (other, seconds) in enumerate(known):
            timings.add(replace_key(other, f"known {number}"), seconds)
        return saving(steps, Estimates(Timings(Store(tmp_path))), on_cpu=on_cpu)

    return of


def replace_key(of, key):
    return replace(of, key=key, timing_key=key)


def test_without_times_of_compiled_steps_the_measured_pace_counts(said):
    steps = [step(key="a"), step(key="b")]
    pace = PACES["pixels"]
    found = said(steps, [(step(), LONG)])
    assert (found.steps, found.of, found.measured) == (2, 2 * LONG, 0)
    # the network is compiled once, and found again by the second
    assert found.seconds == pytest.approx(2 * LONG * (1 - 1 / pace.contiguous) - pace.first - pace.again)


def test_a_layout_that_is_there_already_gains_less(said):
    found = said([step(layout="channels_last")], [(step(), LONG)])
    assert found.seconds == pytest.approx(LONG * (1 - 1 / PACES["pixels"].channels_last) - PACES["pixels"].first)


def test_short_steps_would_take_longer(said):
    assert said([step()], [(step(), 10.0)]).seconds < 0


def test_times_of_this_home_count_for_more(said):
    known = [(step(), 100.0), (step(compile=True), 60.0)]
    found = said([step()], known, on_cpu=False)
    assert found == Saving(40.0, 100.0, 1, 1)
    assert str(found).endswith("would save about 40 s of 100 s in 1 steps, by times of this home")


def test_both_sources_are_named(said):
    known = [(step(), LONG), (step(compile=True), 1.0), (step(kind="quantize", compiles="updates"), LONG)]
    found = said([step(), step(kind="quantize", compiles="updates", key="other")], known)
    assert (found.steps, found.measured) == (2, 1)
    assert "by times of this home (1) and times measured elsewhere" in str(found)


@pytest.mark.parametrize(
    "other",
    [
        step(compile=True),
        step(compiles=None),
        step(kind="evaluate"),
        step(precision="bf16"),
        step(kind="quantize", compiles="updates", network="of which nothing is known"),
    ],
)
def test_what_cannot_be_compiled_or_is_not_known_is_not_counted(said, other):
    assert said([other], [(step(), LONG)]) is None


def test_nothing_is_known_of_gpus(said):
    assert said([step()], [(step(), LONG)], on_cpu=False) is None
