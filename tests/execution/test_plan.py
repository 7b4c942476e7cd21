import json
import shutil

import pytest

from zsqbench.execution.plan import Data, ModelFacts, Outcome, job, make_plan
from zsqbench.execution.timings import Timings
from zsqbench.methods import DataFiles
from zsqbench.store import FileDigests, Store
from zsqbench.suite import load_suite

IDENTITY_SUITE = """
name: toysuite
plugins: [toy.py, other.py]
models:
  mine: {base: a, weights: weights.txt}
generators:
  g: {method: toy}
quantizers:
  q: {method: toyq}
tasks:
  t: {method: toytask}
matrix:
  - {task: t, model: mine, generator: [g, toyreal], quantizer: q, scheme: hw/w4a4, seed: 1}
"""

OTHER_PLUGIN = """
import zsqbench

class Other(zsqbench.Generator):
    name = "other"

    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(ctx.randn(4, *teacher.input_size))

@zsqbench.hookimpl
def register_generators():
    return [Other]
"""


def replace(old, new):
    def change(bench):
        text = bench.file.read_text()
        assert old in text
        bench.file.write_text(text.replace(old, new))

    return change


def write(name, text):
    return lambda bench: bench.write(name, text)


def everything_moves(bench):
    moved = bench.folder / "moved"
    moved.mkdir()
    for name in ("toy.py", "other.py", "data", "weights.txt", "toy.yaml"):
        shutil.move(bench.folder / name, moved / name)
    bench.folder, bench.home = moved, bench.folder / "home"


ALL = {"baseline", "generate", "quantize", "evaluate"}
SAMPLES = {"baseline", "evaluate"}
FROM_GENERATE = {"generate", "quantize", "evaluate"}
FROM_QUANTIZE = {"quantize", "evaluate"}

CHANGES = {
    # What changes, and whose keys must change: of the cell with noise, of the cell with real images.
    "weights": (write("weights.txt", "5"), ALL, ALL),
    "preprocessing": (replace("base: a", "base: a, mean: [0.5, 0.5, 0.5]"), ALL, ALL),
    "evaluation data": (write("data/eval.txt", "9"), SAMPLES, SAMPLES),
    "calibration data": (write("data/train.txt", "9"), set(), FROM_GENERATE),
    "task option": (replace("method: toytask", "method: toytask, samples: 10"), SAMPLES, SAMPLES | FROM_GENERATE),
    "execution option": (replace("method: toytask", "method: toytask, batch_size: 3"), set(), set()),
    "task version": (write("task.version", "2"), SAMPLES, SAMPLES | FROM_GENERATE),
    "generator option": (replace("method: toy}", "method: toy, images: 5}"), FROM_GENERATE, set()),
    "generator version": (write("generator.version", "2"), FROM_GENERATE, set()),
    "quantizer option": (replace("method: toyq", "method: toyq, shift: 1.0"), FROM_QUANTIZE, FROM_QUANTIZE),
    "quantizer version": (write("quantizer.version", "2"), FROM_QUANTIZE, FROM_QUANTIZE),
    "scheme": (replace("hw/w4a4", "hw/w4a8"), FROM_QUANTIZE, FROM_QUANTIZE),
    "precision": (replace("matrix:", "settings: {precision: bf16}\nmatrix:"), FROM_GENERATE, FROM_GENERATE),
    "layout": (replace("matrix:", "settings: {layout: channels_last}\nmatrix:"), FROM_GENERATE, FROM_GENERATE),
    "block settings": (replace("seed: 1}", "seed: 1, settings: {compile: true}}"), FROM_GENERATE, FROM_GENERATE),
    "seed": (replace("seed: 1", "seed: 2"), FROM_GENERATE, FROM_GENERATE),
    "source of the plugin": (lambda bench: bench.write("toy.py", bench_source(bench) + "\n# changed\n"), ALL, ALL),
    "source of another plugin": (write("other.py", OTHER_PLUGIN + "# changed\n"), set(), set()),
    "description": (replace("name: toysuite", "name: toysuite\ndescription: changed"), set(), set()),
    "place": (everything_moves, set(), set()),
}


def bench_source(bench):
    return (bench.folder / "toy.py").read_text()


def keys_of(bench, *arguments):
    bench.zsqbench("run", bench.file, "--workers", 0, "--no-plugin", "mlflow", *bench.places(), *arguments)
    noise, real = [row for _, row in sorted(bench.rows().items(), key=lambda item: "toyreal" in item[0])][-2:]
    assert (noise["status"], real["status"]) == ("done", "done"), (noise, real)
    return noise["keys"], real["keys"]


@pytest.fixture
def identity(bench):
    bench.suite(IDENTITY_SUITE)
    bench.write("other.py", OTHER_PLUGIN)
    bench.write("weights.txt", "4")
    return bench


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_changes_the_keys_of_what_reads_it_and_no_other(identity, what):
    change, noise_changes, real_changes = CHANGES[what]
    before = keys_of(identity)
    change(identity)
    after = keys_of(identity)
    changed = [{kind for kind in ALL if old[kind] != new[kind]} for old, new in zip(before, after, strict=True)]
    assert [noise_changes, real_changes] == changed


def test_what_a_float_network_should_reach_is_in_the_key_of_its_baseline_alone(bench):
    keys = []
    for said in ("", ", float_accuracy: 55", ", float_accuracy: 55.05"):
        bench.matrix("model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        bench.run()
        keys.append(next(iter(bench.rows().values()))["keys"])
    assert {kind for kind in ALL if len({key[kind] for key in keys}) > 1} == {"baseline"}


def test_a_placement_is_known_by_what_it_says_and_not_by_its_name(bench):
    head = "schemes: {same: {base: hw}, other: {base: hw, logits: float}}"
    bench.matrix("scheme: [hw/w4a4, same/w4a4, other/w4a4], seed: 0", head=head)
    bench.run()
    shipped, same, other = [row["keys"]["quantize"] for row in bench.rows().values()]
    assert (shipped == same, shipped == other) == (True, False)


def test_the_device_and_the_number_of_workers_are_in_no_key(identity):
    assert keys_of(identity, "--device", "cpu") == keys_of(identity, "--device", "auto")


def test_a_name_that_the_suite_gives_is_in_no_key(identity):
    before = keys_of(identity)
    replace("g: {method: toy}", "gg: {method: toy}")(identity)
    replace("[g, toyreal]", "[gg, toyreal]")(identity)
    assert before == keys_of(identity)


def test_two_tasks_with_other_evaluation_data_share_one_quantized_model(bench):
    bench.matrix("task: [few, many]", head="tasks: {few: {method: toytask, samples: 5}, many: {method: toytask}}")
    bench.run()
    few, many = [row["keys"] for row in bench.rows().values()]
    assert {"baseline", "evaluate"} == {kind for kind in few if few[kind] != many[kind]}


def test_an_unseeded_quantizer_drops_the_seed_but_a_seeded_generator_before_it_does_not(bench):
    bench.matrix(
        "generator: toy, quantizer: unseeded, seed: [0, 1]", "generator: none, quantizer: datafree, seed: [0, 1]"
    )
    assert [cell["cell"] for cell in bench.plan()["cells"]] == [
        "toytask:a:toy:unseeded:hw/w4a4:0",
        "toytask:a:toy:unseeded:hw/w4a4:1",
        "toytask:a:none:datafree:hw/w4a4:-",
    ]


def test_a_seeded_quantizer_shares_the_images_of_an_unseeded_generator(bench):
    bench.add_plugin("class Still(Toy):\n    name = 'still'\n    seeded = False\n")
    bench.matrix("generator: still, seed: [0, 1]")
    bench.run()
    first, second = [row["keys"] for row in bench.rows().values()]
    assert {"quantize", "evaluate"} == {kind for kind in first if first[kind] != second[kind]}


def test_what_has_no_seed_in_its_key_is_given_no_cells_seed(bench):
    bench.matrix("quantizer: toyq, seed: 7")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    plan = make_plan(suite, suite.cells, data, {("toytask", "a"): ModelFacts("digest")}, Store(bench.home))
    seeds = {step.kind: job(suite, step, data)["seed"] for step in plan.steps.values()}
    assert seeds == {"baseline": 0, "generate": 7, "quantize": 7, "evaluate": 0, "diagnose": 0}


def test_a_step_comes_after_what_it_needs(bench):
    bench.matrix("model: [a, b], quantizer: [toyq, unseeded], seed: [0, 1]")
    seen = set()
    for step in bench.plan()["steps"]:
        assert seen >= set(step["needs"]), step["label"]
        seen.add(step["key"])


def test_a_method_that_needs_batch_normalisation_cannot_go_with_a_network_without(bench):
    bench.add_plugin("class NeedsBN(Toy):\n    name = 'needs_bn'\n    needs_bn = True\n")
    bench.matrix("model: [a, without_bn], generator: needs_bn")
    said = bench.run()
    row = bench.rows()["toytask:without_bn:needs_bn:toyq:hw/w4a4:0"]
    expected = (1, "impossible", "needs_bn needs batch normalisation, and without_bn has none")
    assert expected == (said.code, row["status"], row["reason"])


def test_a_method_that_needs_classes_cannot_go_with_a_network_that_is_no_classifier(bench):
    bench.add_plugin("""
        class NeedsClasses(Toy):
            name = "needs_classes"
            needs_classes = True

        class Detection(ToyTask):
            name = "detection"

            def load(self, model, ctx):
                import dataclasses
                return dataclasses.replace(super().load(model, ctx), classes=None)
    """)
    bench.matrix("task: detection, generator: needs_classes")
    bench.run()
    (row,) = bench.rows().values()
    assert row["reason"] == "needs_classes needs a classifier, and a is none"


def test_a_generator_of_real_images_cannot_go_with_a_task_that_has_none(bench):
    (bench.folder / "data" / "train.txt").unlink()
    bench.matrix("generator: [toyreal, toy]")
    bench.run()
    rows = bench.rows()
    assert [row["status"] for row in rows.values()] == ["impossible", "done"]
    assert "real images" in rows["toytask:a:toyreal:toyq:hw/w4a4:0"]["reason"]


# --- diagnostics of calibration sets --------------------------------------------------------------------------------


def diagnose_steps(bench):
    return {step["label"]: step for step in bench.plan()["steps"] if step["kind"] == "diagnose"}


DIAGNOSE_CHANGES = {
    # What changes, and whether it changes the diagnostics of noise.
    "weights": (write("weights.txt", "5"), True),
    "generator option": (replace("method: toy}", "method: toy, images: 5}"), True),
    "calibration data": (write("data/train.txt", "9"), True),
    "task version": (write("task.version", "2"), True),
    "evaluation data": (write("data/eval.txt", "9"), False),
    "quantizer option": (replace("method: toyq", "method: toyq, shift: 1.0"), False),
    "scheme": (replace("hw/w4a4", "hw/w4a8"), False),
}


@pytest.mark.parametrize("what", DIAGNOSE_CHANGES)
def test_diagnostics_are_known_by_their_set_and_the_real_images(identity, what):
    change, changes = DIAGNOSE_CHANGES[what]
    keys = []
    for _ in range(2):
        keys_of(identity)
        keys.append({label: step["key"] for label, step in diagnose_steps(identity).items()})
        if len(keys) == 1:
            change(identity)
    assert (keys[0]["diagnose mine g seed 1"] != keys[1]["diagnose mine g seed 1"]) == changes


def test_a_set_is_diagnosed_once_however_many_cells_use_it(bench):
    bench.matrix("quantizer: [toyq, unseeded], scheme: [hw/w4a4, hw/w8a8]")
    assert list(diagnose_steps(bench)) == ["diagnose a toy seed 0"]


def test_a_cell_without_a_set_has_no_diagnostics(bench):
    bench.matrix("generator: none, quantizer: datafree")
    assert diagnose_steps(bench) == {}


def test_no_set_is_made_for_its_diagnostics_alone(bench):
    bench.run()
    for kind in ("generate", "diagnose"):
        shutil.rmtree(bench.artifacts(kind)[0])
    states = {step["state"] for step in diagnose_steps(bench).values()}
    assert len(bench.artifacts("generate")) == 1
    assert states <= {"cached", "not needed", "to do"}
    assert bench.run().code == 0
    assert len(bench.artifacts("generate")) == 1


def test_what_only_diagnostics_are_missing_of_is_diagnosed_by_the_next_run(bench):
    bench.run()
    shutil.rmtree(bench.home / "store" / "diagnose")
    bench.calls()
    bench.run()
    assert (len(bench.artifacts("diagnose")), bench.calls()) == (2, ["load a"])


def test_diagnostics_come_last(bench):
    bench.matrix("quantizer: [toyq, unseeded], seed: [0, 1]")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    plan = make_plan(suite, suite.cells, data, {("toytask", "a"): ModelFacts("digest")}, Store(bench.home))
    assert [step.kind == "diagnose" for step in plan.to_do().values()] == [False] * 11 + [True] * 2


# --- what is there ----------------------------------------------------------------------------------------------------


def test_a_plan_before_the_first_run_says_which_model_is_pending(bench):
    assert bench.plan()["pending"] == ["a"]


def test_a_plan_after_a_run_finds_everything_done(bench):
    bench.run()
    plan = bench.plan()
    assert ({"done"}, []) == ({cell["state"] for cell in plan["cells"]}, plan["pending"])


def test_a_plan_of_one_more_seed_estimates_the_time_from_the_others(bench):
    bench.run()
    bench.matrix("seed: [0, 1, 2]")
    to_do = [step for step in bench.plan()["steps"] if step["state"] == "to do"]
    assert {step["kind"]: step["seconds"] is not None for step in to_do} == {
        "generate": True,
        "quantize": True,
        "evaluate": True,
        "diagnose": True,
    }


def test_a_plan_of_another_option_does_not_know_the_time(bench):
    bench.run()
    bench.matrix("generator: more", head="generators: {more: {method: toy, images: 5}}")
    to_do = [step["seconds"] for step in bench.plan()["steps"] if step["state"] == "to do"]
    assert to_do == [None] * 4


def test_the_estimate_is_the_median_of_the_kin(bench, tmp_path):
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    plan = make_plan(suite, suite.cells, data, {("toytask", "a"): ModelFacts("digest")}, Store(tmp_path))
    first, second = [step for step in plan.steps.values() if step.kind == "generate"]
    for seconds in (1.0, 2.0, 9.0):
        Timings(plan.store).add(first, seconds)
    assert Timings(plan.store).estimate(second) == 2.0


@pytest.mark.parametrize("damage", ['["kin", 1.', "5", "null", "[]"])
def test_a_damaged_line_of_the_timings_is_left_out(tmp_path, bench, damage):
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    plan = make_plan(suite, suite.cells, data, {("toytask", "a"): ModelFacts("digest")}, Store(tmp_path))
    step = next(iter(plan.steps.values()))
    (tmp_path / "timings.jsonl").write_text(damage + "\n")
    Timings(plan.store).add(step, 3.0)
    assert Timings(plan.store).estimate(step) == 3.0


def test_a_model_that_could_not_be_loaded_fails_its_cells_only(bench):
    bench.matrix("model: [a, b]")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    facts = {("toytask", "a"): ModelFacts("digest"), ("toytask", "b"): Outcome("failed", error="no weights")}
    plan = make_plan(suite, suite.cells, data, facts, Store(bench.home))
    assert [(len(planned.steps), planned.reason) for planned in plan.cells] == [(4, None), (0, "no weights")]


def test_the_digests_of_data_do_not_depend_on_where_it_is(tmp_path):
    digests = FileDigests(Store(tmp_path / "home"))
    found = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("same")
        found.append(Data.of(DataFiles({"x": tmp_path / folder / "x"}, {}), digests).evaluation)
    assert found[0] == found[1]


def test_the_digest_of_data_holds_the_names_of_its_files(tmp_path):
    digests = FileDigests(Store(tmp_path / "home"))
    (tmp_path / "x").write_text("same")
    named = [Data.of(DataFiles({name: tmp_path / "x"}, {}), digests).evaluation for name in ("cat/1", "dog/1")]
    assert named[0] != named[1]


def test_ten_thousand_cells_are_planned_within_seconds(bench):
    seeds = list(range(2500))
    bench.matrix(f"model: [a, b], scheme: [hw/w4a4, hw/w8a8], seed: {json.dumps(seeds)}")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    facts = {("toytask", model): ModelFacts(f"digest of {model}") for model in ("a", "b")}
    plan = make_plan(suite, suite.cells, data, facts, Store(bench.home))
    assert (len(plan.cells), len(plan.steps)) == (10_000, 2 + 2 * 5_000 + 10_000 + 10_000)


# --- a quantizer that goes on from the result of another --------------------------------------------------------------


STARTS = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None
"""


def steps_of(bench, kind):
    return {step["label"]: step for step in bench.plan()["steps"] if step["kind"] == kind}


def started(bench, options, block="quantizer: fine"):
    bench.add_plugin(STARTS)
    bench.matrix(f"{block}, seed: 0", head=f"quantizers: {{{options}}}")


def test_a_quantizer_needs_the_result_that_it_starts_from(bench):
    started(bench, "fine: {method: starts, start: first}, first: {method: toyq, shift: 1.0}")
    steps = steps_of(bench, "quantize")
    assert list(steps) == ["quantize a toy first hw/w4a4 seed 0", "quantize a toy fine hw/w4a4 seed 0"]
    first, fine = steps.values()
    (images,) = steps_of(bench, "generate").values()
    assert (first["needs"], fine["needs"]) == ([images["key"]], [images["key"], first["key"]])


def test_what_a_quantizer_starts_from_is_the_same_step_as_that_of_its_own_cell(bench):
    started(bench, "fine: {method: starts, start: toyq}", "quantizer: [fine, toyq]")
    cells = bench.plan()["cells"]
    assert cells[0]["steps"]["start"] == cells[1]["steps"]["quantize"]
    assert len(steps_of(bench, "quantize")) == 2


def test_a_start_that_reads_no_images_needs_none(bench):
    started(bench, "fine: {method: starts, start: datafree}")
    steps = steps_of(bench, "quantize")
    assert [len(step["needs"]) for step in steps.values()] == [0, 2]
    assert next(iter(steps)) == "quantize a none datafree hw/w4a4 seed 0"


def test_starts_may_follow_each_other(bench):
    started(bench, "fine: {method: starts, start: middle}, middle: {method: starts, start: toyq}")
    (cell,) = bench.plan()["cells"]
    keys = [step["key"] for step in steps_of(bench, "quantize").values()]
    assert [cell["steps"][name] for name in ("start.start", "start", "quantize")] == keys


START_CHANGES = {
    # What changes, and whether the result that starts from it must be made again.
    "its option": ("shift: 1.0", "shift: 2.0", True),
    "its name": ("first", "other", False),
    "its method": ("toyq, shift: 1.0", "unseeded, shift: 1.0", True),
}


@pytest.mark.parametrize("what", START_CHANGES)
def test_a_result_is_known_by_what_it_starts_from_and_not_by_its_name(bench, what):
    old, new, changes = START_CHANGES[what]
    options = "fine: {method: starts, start: first}, first: {method: toyq, shift: 1.0}"
    keys = []
    for text in (options, options.replace(old, new)):
        started(bench, text)
        (cell,) = bench.plan()["cells"]
        keys.append(cell["steps"]["quantize"])
    assert (keys[0] != keys[1]) == changes


def test_a_start_is_in_the_definition_of_a_cell_as_what_it_is(bench):
    definitions = []
    for first in ("first: {method: toyq}", "first: {method: toyq, shift: 1.0}"):
        started(bench, f"fine: {{method: starts, start: first}}, {first}")
        suite = load_suite(bench.file)
        definitions.append(suite.definition(suite.cells[0]))
    assert definitions[0] != definitions[1]


def test_a_start_that_needs_batch_normalisation_cannot_go_with_a_network_without(bench):
    bench.add_plugin(f"{STARTS}\nclass NeedsBN(ToyQuantizer):\n    name = 'needs_bn'\n    needs_bn = True\n")
    bench.matrix("model: without_bn, quantizer: fine", head="quantizers: {fine: {method: starts, start: needs_bn}}")
    bench.run()
    (row,) = bench.rows().values()
    assert row["reason"] == "needs_bn needs batch normalisation, and without_bn has none"


# --- the oracle -------------------------------------------------------------------------------------------------------


KEEPS = """
class Keeps(ToyQuantizer):
    name = "keeps"
    keep_every: int = 0

    @property
    def keeps_epochs(self):
        return self.keep_every > 0
"""


def test_only_a_cell_whose_quantizer_keeps_epochs_has_an_oracle(bench):
    bench.add_plugin(KEEPS)
    bench.matrix(
        "quantizer: [keeps, honest], seed: 0", head="quantizers: {keeps: {keep_every: 1}, honest: {method: keeps}}"
    )
    (oracle,) = steps_of(bench, "oracle").values()
    asked, other = bench.plan()["cells"]
    assert oracle["needs"] == [asked["steps"]["quantize"]]
    assert (asked["steps"]["oracle"], "oracle" in other["steps"]) == (oracle["key"], False)


def test_an_oracle_is_known_by_what_an_evaluation_is_known_by(identity):
    identity.add_plugin(KEEPS)
    text = identity.file.read_text().replace("other.py]", "other.py, extra.py]").replace("toyq", "keeps, keep_every: 1")
    changes = {"data/eval.txt": "9", "data/train.txt": "9", "task.version": "2", "quantizer.version": "2"}
    identity.suite(text)
    before, seen = keys_of_oracles(identity), {}
    for name, content in changes.items():
        identity.write(name, content)
        after = keys_of_oracles(identity)
        seen[name], before = before != after, after
    assert seen == {"data/eval.txt": True, "data/train.txt": False, "task.version": True, "quantizer.version": True}


def keys_of_oracles(bench):
    return {step["key"] for step in bench.plan("-k", "mine:g")["steps"] if step["kind"] == "oracle"}


def test_another_version_of_what_is_kept_of_an_evaluation_makes_no_image_and_no_network_again(bench, monkeypatch):
    bench.run()
    before = bench.plan()["cells"][0]["steps"]
    monkeypatch.setattr("zsqbench.execution.plan.EVALUATION_VERSION", "another")
    after = bench.plan()["cells"][0]["steps"]
    assert {kind for kind in ALL if before[kind] != after[kind]} == SAMPLES
