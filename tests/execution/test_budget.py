import pytest

from zsqbench.execution.budget import Schedule, cell_times
from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.methods import Settings
from zsqbench.steps import KINDS, Step
from zsqbench.store import Store
from zsqbench.suite import Cell


def step(kind, name, *needs):
    return Step(KINDS[kind], name, name, needs, CELL)


def cell(seed):
    return Cell("t", "m", "g", "q", "hw/w4a4", seed, Settings())


CELL = cell(0)
BASELINE = step("baseline", "baseline")
IMAGES = step("generate", "images", BASELINE)


def planned(seed, *, images=IMAGES):
    quantize = step("quantize", f"quantize {seed}", images)
    evaluate = step("evaluate", f"evaluate {seed}", quantize)
    return PlannedCell(
        cell(seed), {"baseline": BASELINE, "generate": images, "quantize": quantize, "evaluate": evaluate}
    )


SECONDS = {"baseline": 1.0, "images": 10.0, "quantize 0": 5.0, "quantize 1": 50.0, "quantize 2": 5.0}


def seconds(step):
    return SECONDS.get(step.label, 2.0)


@pytest.fixture
def plan(tmp_path):
    """Three cells of one set of images."""
    return Plan(None, Store(tmp_path), [planned(seed) for seed in range(3)], {}, set())


def test_shared_steps_are_paid_once(plan):
    assert [time.seconds for time in cell_times(plan, seconds)] == [18.0, 52.0, 7.0]
    assert {time.fits for time in cell_times(plan, seconds)} == {None}


def test_a_cell_that_does_not_fit_leaves_room_for_later_ones(plan):
    times = cell_times(plan, seconds, 1, 30.0)
    assert [(time.fits, time.done) for time in times] == [(True, 18.0), (False, 70.0), (True, 25.0)]


def test_a_cell_pays_for_the_shared_steps_of_one_that_did_not_fit(plan):
    plan.cells.reverse()
    plan.cells[0], plan.cells[1] = plan.cells[1], plan.cells[0]  # 1, 2, 0
    times = cell_times(plan, seconds, 1, 26.0)
    assert [(time.seconds, time.fits) for time in times] == [(63.0, False), (18.0, True), (7.0, True)]


def test_two_workers_share_what_can_be_shared(plan):
    assert cell_times(plan, seconds, 2, 1000.0)[1].done == 63.0  # its quantize step began with that of the first


def test_a_cell_with_an_unknown_step_does_not_fit_and_says_which(plan):
    times = cell_times(plan, lambda step: None if step.label == "quantize 1" else seconds(step), 1, 1000.0)
    assert [(time.seconds, time.unknown, time.fits) for time in times] == [
        (18.0, [], True),
        (None, ["quantize 1"], False),
        (7.0, [], True),
    ]


def test_what_is_there_costs_nothing(plan):
    plan.cached |= {"baseline", "images"}
    assert [time.seconds for time in cell_times(plan, seconds)] == [7.0, 52.0, 7.0]


def test_a_cell_that_cannot_run_costs_nothing_and_neither_fits_nor_not(plan):
    plan.cells.append(PlannedCell(cell(9), status="impossible", reason="no"))
    last = cell_times(plan, seconds, 1, 1000.0)[-1]
    assert (last.seconds, last.fits) == (0.0, None)


def test_background_steps_are_counted(plan):
    plan.cells[0].background["diagnose"] = step("diagnose", "diagnose", IMAGES)
    assert cell_times(plan, seconds)[0].seconds == 20.0


def test_an_exclusive_step_waits_for_all_workers():
    schedule = Schedule(2)
    schedule.add(IMAGES, 10.0)
    latency = step("latency", "latency")
    assert (schedule.add(latency, 1.0), schedule.add(step("export", "export"), 1.0)) == (11.0, 12.0)
