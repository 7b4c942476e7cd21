import random
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pytest

import zsqbench
from zsqbench.execution.plan import Plan, PlannedCell
from zsqbench.execution.shards import Shard, split
from zsqbench.methods import Settings
from zsqbench.steps import KINDS, Step, Work
from zsqbench.store import Store
from zsqbench.suite import Cell


def cell(generator, quantizer, seed=0):
    return Cell("t", "m", generator, quantizer, "hw/w4a4", seed, Settings())


CELL = cell("g", "q")


def step(kind, name, images, *needs, order_only=()):
    """A step in a network whose image costs about one operation for each of these."""
    work = None if images is None else Work(kind, "method", "network", images, 0.0)
    return Step(KINDS[kind], f"{kind} {name}", name, needs, CELL, order_only=order_only, work=work)


@dataclass
class Sample:
    """A plan of random cells: several of each calibration set, and some without a set."""

    seed: int
    cells: list[PlannedCell] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    """Images of each set with all that is made of it, without the baseline; by the set, or the cell that has none."""

    def __post_init__(self):
        draw = random.Random(self.seed)  # noqa: S311 - no secret
        baseline = step("baseline", "float", draw.randint(1, 50))
        for group in range(draw.randint(1, 30)):
            has_set = draw.random() < 0.7
            size = draw.choice([1, 10, 10, 300])
            made = step("generate", f"set {group}", size, order_only=(baseline,)) if has_set else None
            name = f"set {group}" if has_set else f"t:m:none:q{group}-0:hw/w4a4:0"
            self.costs[name] = size if has_set else 0
            for member in range(draw.randint(1, 6) if has_set else 1):
                images = draw.choice([2, 40])
                self.costs[name] += images + 5
                quantizer = f"q{group}-{member}"
                quantize = step("quantize", quantizer, images, *([made] if made else []), order_only=(baseline,))
                evaluate = step("evaluate", quantizer, 5, quantize)
                steps = {"baseline": baseline, "quantize": quantize, "evaluate": evaluate}
                if made:
                    steps["generate"] = made
                self.cells.append(PlannedCell(cell(f"set {group}" if has_set else None, quantizer), steps))
        self.baseline = baseline.work.images

    def plan(self, cells=None):
        return Plan(None, Store(Path("nowhere")), cells or self.cells, {}, set())


def names(parts):
    return [sorted(cell.name for cell in part.cells) for part in parts]


each_sample = pytest.mark.parametrize("sample", [Sample(seed) for seed in range(20)], ids=lambda sample: sample.seed)
each_count = pytest.mark.parametrize("count", [1, 2, 3, 8])


@each_sample
@each_count
def test_every_cell_is_in_exactly_one_shard(sample, count):
    found = [name for part in names(split(sample.plan(), count)) for name in part]
    assert sorted(found) == sorted(planned.cell.name for planned in sample.cells)


@each_sample
@each_count
def test_no_calibration_set_is_made_in_two_shards(sample, count):
    sets = [{cell.generator for cell in part.cells if cell.generator} for part in split(sample.plan(), count)]
    assert sum(map(len, sets)) == len(set().union(*sets))


@each_sample
@each_count
def test_the_order_of_the_cells_makes_no_difference(sample, count):
    shuffled = random.Random(1).sample(sample.cells, len(sample.cells))  # noqa: S311 - no secret
    assert names(split(sample.plan(), count)) == names(split(sample.plan(shuffled), count))


@each_sample
@each_count
def test_the_largest_shard_has_no_more_than_the_mean_and_the_largest_group(sample, count):
    parts = split(sample.plan(), count)
    loads = [
        sum({cell.generator or cell.name: sample.costs[cell.generator or cell.name] for cell in part.cells}.values())
        + sample.baseline
        for part in parts
    ]
    largest = max(sample.costs.values()) + sample.baseline
    assert max(loads) <= sum(loads) / len(loads) + largest
    unit = step("baseline", "one", 1).work.cost
    assert [part.work / unit for part in parts] == pytest.approx(loads)


def test_what_is_cached_makes_no_difference():
    sample = Sample(7)
    cached = sample.plan()
    cached.cached |= {step.key for planned in sample.cells[::2] for step in planned.steps.values()}
    assert names(split(cached, 3)) == names(split(sample.plan(), 3))


def planned(generator, quantizer, images, made=None):
    quantize = step("quantize", quantizer, images, *([made] if made else []))
    evaluate = step("evaluate", quantizer, 1, quantize)
    sets = {"generate": made} if made else {}
    return PlannedCell(cell(generator, quantizer), {**sets, "quantize": quantize, "evaluate": evaluate})


def shards(cells, count=2):
    plan = Plan(None, Store(Path("nowhere")), cells, {}, set())
    return [[each.quantizer for each in part.cells] for part in split(plan, count)]


def test_what_costs_most_goes_first_and_equal_cells_by_name():
    cells = [planned(None, name, images) for name, images in [("c", 10), ("d", 10), ("a", 10), ("b", 15)]]
    assert shards(cells) == [["d", "b"], ["c", "a"]]
    assert shards(cells[::-1]) == [["b", "d"], ["a", "c"]]


def test_iterations_count_and_not_cells():
    made = step("generate", "slow", 1000)
    cells = [planned("slow", "q", 1, made), *(planned(None, f"q{number}", 100) for number in range(8))]
    assert shards(cells) == [["q"], [f"q{number}" for number in range(8)]]


def test_a_step_that_a_shard_has_already_costs_nothing_there():
    start = step("quantize", "start", 100)
    cells = [planned(None, f"fine{number}", 10) for number in range(3)]
    for each in cells:
        each.steps["quantize"].needs = (start,)
    assert shards([*cells, planned(None, "other", 150)]) == [["other"], ["fine0", "fine1", "fine2"]]


def test_a_step_of_unknown_work_counts_as_the_median_of_its_kind():
    cells = [planned(None, name, images) for name, images in [("a", 90), ("b", 100), ("c", 110), ("d", None)]]
    assert sorted(map(sorted, shards(cells))) == [["a", "c"], ["b", "d"]]


def test_a_plan_of_which_no_work_is_known_is_parted_by_steps():
    assert [len(part) for part in shards([planned(None, f"q{number}", None) for number in range(6)], 3)] == [2, 2, 2]


def test_steps_of_exported_files_do_not_count():
    """They are in the plans of those machines alone that have the packages of the extra."""
    cells = [planned(None, name, images) for name, images in [("a", 30), ("b", 20), ("c", 15)]]
    without = shards(cells)
    quantize = cells[2].steps["quantize"]
    export = step("export", "c", 1, quantize)
    cells[2].steps.update(export=export, onnxruntime=step("onnxruntime", "c", 5000, export))
    assert shards(cells) == without


def test_a_cell_that_cannot_run_is_in_one_shard():
    cells = [planned(None, "a", 30), PlannedCell(cell("g", "no"), status="impossible", reason="no")]
    assert shards(cells) == [["a"], ["no"]]


def test_there_are_no_more_parts_than_groups_of_cells():
    assert shards([planned(None, "a", 30)], 10**9) == [["a"]]


@pytest.mark.parametrize("text", ["x", "", "3", "1/2/3", "-1/2", "1.0/2", "1 / 2", "٣/٨", f"1/{10**9}"])
def test_a_text_that_names_no_shard_is_refused_in_one_line(bench, text):
    assert (
        bench.error("--shard", text)
        == f"cannot read --shard {text!r}; expected for example 3/8, the third of eight parts"
    )


@pytest.mark.parametrize("text", ["9/8", "0/8"])
def test_a_shard_that_there_is_not_is_refused_in_one_line(bench, text):
    assert bench.error("--shard", text) == f"there is no --shard {text}: there are 1/8 to 8/8"


def test_no_parts_are_refused_in_one_line(bench):
    assert bench.error("--shard", "1/0") == "there is no --shard 1/0: give at least one part, as 1/1"


def test_a_shard_is_called_as_it_was_given():
    assert str(Shard.parse("3/8")) == "3/8"


# --- commands -------------------------------------------------------------------------------------------------------


def cells_of(bench, *arguments):
    return [cell["cell"] for cell in bench.plan("--workers", 0, *arguments)["cells"]]


def plan_shard(bench, shard, *arguments):
    """`zsqbench plan` of a shard, which loads networks in this process."""
    command = ["plan", bench.file, "--workers", 0, "--no-plugin", "mlflow", "--shard", shard, *bench.places()]
    return bench.zsqbench(*command, *arguments)


def test_the_shards_of_a_plan_are_all_of_it(bench):
    bench.matrix("seed: [0, 1, 2], quantizer: [toyq, datafree]")
    parts = [cells_of(bench, "--shard", f"{number}/3") for number in (1, 2, 3)]
    assert (sorted(chain(*parts)), all(parts)) == (sorted(cells_of(bench)), True)


def test_shards_are_those_of_what_is_selected(bench):
    bench.matrix("seed: [0, 1, 2, 3]")
    parts = [cells_of(bench, "-k", "4:1 or 4:2", "--shard", f"{number}/2") for number in (1, 2)]
    assert parts == [["toytask:a:toy:toyq:hw/w4a4:1"], ["toytask:a:toy:toyq:hw/w4a4:2"]]


def test_a_plan_says_what_part_of_the_work_a_shard_has(bench):
    bench.matrix("seed: [0, 1, 2]")
    said = plan_shard(bench, "1/3")
    part = "33% of the counted work, and the largest shard has 33%"
    assert said.out.splitlines()[0] == f"toysuite: 1 of 3 cells, with {part}"


def test_the_cells_of_a_shard_that_fit_into_a_budget_are_selected_from_all(bench):
    bench.matrix("seed: [0, 1]")
    bench.run()
    said = plan_shard(bench, "1/2", "--budget", "1h", "--results", bench.folder / "none")
    assert said.out.splitlines()[-1].endswith(f'to run these alone: zsqbench run {bench.file} -k "0"'), said


def test_a_shard_with_no_cells_is_nothing_selected(bench):
    said = bench.run("--shard", "3/3")
    why = (
        "toysuite can only be split into fewer than 3 parts, because cells with the same set stay together; "
        "give fewer shards"
    )
    assert (said.code, said.err.splitlines()[-1]) == (5, f"error: --shard 3/3 has no cells: {why}")


def test_a_network_that_cannot_be_loaded_here_leaves_no_shards_that_other_machines_would_find(bench):
    bench.add_plugin("""
        class Picky(ToyTask):
            name = "picky"

            def load(self, model, ctx):
                if model.base == "b":
                    raise zsqbench.ZSQBenchError("no weights")
                return super().load(model, ctx)
    """)
    bench.matrix("task: picky, model: [a, b]")
    line = (
        "cannot split toysuite into shards, because b could not be loaded here: no weights; correct this, or leave the "
        "model out on every machine with -k 'not :b:'"
    )
    for said in (plan_shard(bench, "1/2"), bench.run("--shard", "1/2")):
        assert (said.code, said.err.splitlines()[-1]) == (2, f"error: {line}")


def test_a_run_of_a_shard_leaves_rows_of_its_cells_alone_and_keeps_those_of_others(bench):
    bench.matrix("seed: [0, 1, 2, 3]")
    first = bench.run("--shard", "1/2")
    there = set(bench.rows())
    bench.run("--shard", "2/2")
    assert (len(there), len(bench.rows())) == (2, 4)
    assert "shard 1/2: 2 of 4 cells; `zsqbench merge` joins what the shards have made" in first.err.splitlines()
    assert bench.calls().count("generate 0") == 1


def test_a_signal_before_networks_are_loaded_ends_the_run_of_a_shard(bench, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zsqbench.execution.loop.Loop._wait", interrupted)
    said = bench.run("--shard", "1/2")
    assert (said.code, said.err.splitlines()[-1], bench.results.exists()) == (130, "interrupted", False)


def test_python_takes_what_the_command_takes(bench):
    bench.matrix("seed: [0, 1]")
    places = {"home": bench.home, "results": bench.results, "shard": "2/2"}
    done = zsqbench.run(bench.file, **places, workers=0, without=["mlflow", "progress"])
    assert [result.cell for result in done.results] == ["toytask:a:toy:toyq:hw/w4a4:1"]
    planned = zsqbench.plan(bench.file, **places).cells
    assert [each.cell.name for each in planned] == ["toytask:a:toy:toyq:hw/w4a4:1"]


def test_a_shard_is_probed_alone(bench):
    bench.matrix("seed: [0, 1]")
    said = plan_shard(bench, "1/2", "--probe")
    assert (said.code, "probed 5 kinds of steps in " in said.err) == (0, True), said
