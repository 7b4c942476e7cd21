from dataclasses import replace

import pytest

from zsqbench.execution.estimates import Estimate, Estimates, Total, fit
from zsqbench.execution.timings import Timing, Timings
from zsqbench.methods import Settings
from zsqbench.steps import KINDS, Step, Work
from zsqbench.steps.step import BESIDE
from zsqbench.store import Store
from zsqbench.suite import Cell

CELL = Cell("t", "m", "g", "q", "hw/w4a4", 0, Settings())


def work(images, network="n", method="dgh", kind="generate", cost=2 * BESIDE):
    return Work(kind, method, network, images, cost - BESIDE)


@pytest.fixture
def timings(tmp_path):
    """Times to which each test adds its own."""
    return Timings(Store(tmp_path))


def estimate(timings, asked, key="unknown"):
    step = Step(KINDS[asked.kind], "key", "label", (), CELL, key, work=asked)
    return Estimates(Timings(timings.store)).of(step)


def add(timings, seconds, of, key="key"):
    timings.add(Step(KINDS[of.kind], "key", "label", (), CELL, key, work=of), seconds)


def test_a_step_that_ran_before_takes_what_it_took(timings):
    for seconds in (3.0, 2.0, 9.0):
        add(timings, seconds, work(100.0))
    assert estimate(timings, work(100.0), "key") == Estimate(3.0, "measured")


def test_a_step_with_twice_the_work_is_scaled(timings):
    add(timings, 3.0, work(100.0))
    assert estimate(timings, work(200.0)) == Estimate(6.0, "scaled")


def test_two_amounts_of_work_tell_what_is_fixed(timings):
    add(timings, 3.0, work(100.0))
    add(timings, 5.0, work(200.0), "other")
    assert estimate(timings, work(1000.0)) == Estimate(21.0, "scaled")


def test_probes_of_the_network_are_told_apart_from_runs(timings):
    timings.add_probe(work(2.0), 1.2)
    timings.add_probe(work(10.0), 2.0)
    found = estimate(timings, work(100.0))
    assert (found.basis, found.seconds) == ("probed", pytest.approx(11.0))


def test_another_network_is_scaled_by_its_cost(timings):
    add(timings, 3.0, work(100.0, "small"))
    add(timings, 5.0, work(200.0, "small"), "other")
    assert estimate(timings, work(1000.0, "large", cost=4 * BESIDE)) == Estimate(42.0, "scaled")


def test_one_amount_of_work_has_the_slope_of_other_networks(timings):
    add(timings, 3.0, work(100.0, "small"))
    add(timings, 5.0, work(200.0, "small"), "other")
    add(timings, 50.0, work(1000.0, "large", cost=4 * BESIDE), "third")
    assert estimate(timings, work(2000.0, "large", cost=4 * BESIDE)) == Estimate(90.0, "scaled")


def test_other_methods_of_the_kind_are_a_rough_guide(timings):
    add(timings, 3.0, work(100.0, method="zeroq"))
    assert estimate(timings, work(200.0)) == Estimate(6.0, "rough")


def test_of_other_methods_those_count_of_which_two_amounts_are_known(timings):
    add(timings, 100.0, work(100.0, method="noise"))
    add(timings, 3.0, work(100.0, method="zeroq"))
    add(timings, 5.0, work(200.0, method="zeroq"), "other")
    assert estimate(timings, work(1000.0)) == Estimate(21.0, "rough")


def test_where_others_have_one_amount_an_image_takes_what_it_takes_in_any_step(timings):
    add(timings, 3.0, work(10.0, kind="quantize", method="rtn"))
    add(timings, 3.0, work(100.0))
    add(timings, 5.0, work(200.0), "other")
    asked = work(1000.0, kind="quantize", method="brecq")
    assert estimate(timings, asked) == Estimate(pytest.approx(3.0 + 990 * 0.02), "rough")


def test_other_kinds_alone_tell_nothing(timings):
    add(timings, 3.0, work(100.0, kind="quantize"))
    assert estimate(timings, work(100.0)) is None


def test_a_step_whose_work_is_unknown_is_not_scaled(timings):
    add(timings, 3.0, work(100.0))
    step = Step(KINDS["generate"], "key", "label", (), CELL, "unknown")
    assert Estimates(timings).of(step) is None


@pytest.mark.parametrize("points", [[(10, 2.0), (100, 1.0)], [(10, 1.0), (100, 1.0)]])
def test_a_line_never_falls(points):
    assert fit(points).slope == 0.0


def test_a_line_begins_at_no_less_than_nothing():
    line = fit([(10, 1.0), (100, 30.0)])
    assert (line.fixed >= 0, line.at(100)) == (True, pytest.approx(30, rel=0.2))


def test_lines_of_older_versions_still_count(timings):
    path = timings.store.home / "timings.jsonl"
    path.write_text('["key", 2]\n' + Timing("key", 4.0, work(5.0)).line() + "\n")
    assert [(each.seconds, each.work) for each in timings.all] == [(2.0, None), (4.0, work(5.0))]


def test_a_total_says_what_it_is_known_from():
    total = Total.of([Estimate(1.0, "measured"), Estimate(20.0, "probed"), Estimate(30.0, "probed"), None])
    said = "about 51 s on one worker for 3 steps: 1 s measured on equal steps (1), 50 s from probes (2)"
    assert str(total) == f"{said}; unknown for 1 more"


def test_a_total_of_measured_steps_is_short():
    assert str(Total.of([Estimate(1.0, "measured")])) == "about 1 s on one worker for 1 steps"


def compiled(images, network="n"):
    return replace(work(images, network), compiled=True)


def test_compiled_steps_are_told_apart_from_others(timings):
    add(timings, 3.0, work(100.0))
    add(timings, 31.0, compiled(100.0), "compiled")
    add(timings, 32.0, compiled(200.0), "compiled too")
    assert estimate(timings, work(200.0)) == Estimate(6.0, "scaled")
    assert estimate(timings, compiled(1000.0)) == Estimate(40.0, "scaled")
    assert Estimates(Timings(timings.store)).compiled(work(1000.0)) == 40.0


def test_a_method_that_was_not_compiled_yet_is_taken_to_be_as_fast_as_it_was(timings):
    add(timings, 3.0, work(100.0))
    assert estimate(timings, compiled(200.0)) == Estimate(6.0, "scaled")
    assert Estimates(Timings(timings.store)).compiled(work(200.0)) is None


def test_the_network_counts_for_more_than_whether_a_step_was_compiled(timings):
    add(timings, 3.0, work(100.0))
    add(timings, 50.0, compiled(100.0, "large"), "other")
    assert estimate(timings, compiled(200.0)) == Estimate(6.0, "scaled")
