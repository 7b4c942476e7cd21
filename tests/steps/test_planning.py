import shutil

import pytest
from brief import parametrize_briefly

import zsqbench
from zsqbench.methods import DataFiles
from zsqbench.steps import Data
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
    return keys_in(bench)


def keys_in(bench):
    """The keys of both rows, the newest ones where there are older ones."""
    noise, real = [row for _, row in sorted(bench.rows().items(), key=lambda item: "toyreal" in item[0])][-2:]
    assert (noise["status"], real["status"]) == ("done", "done"), (noise, real)
    return noise["keys"], real["keys"]


@pytest.fixture
def identity(bench):
    bench.suite(IDENTITY_SUITE)
    bench.write("other.py", OTHER_PLUGIN)
    bench.write("weights.txt", "4")
    return bench


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder for what the first run of the suite makes."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def ran(identity, finished):
    """The suite after a run, which the first test makes and the others copy; and the keys of its rows."""
    places, made = ("home", "results"), (finished / "home").is_dir()
    for name in places if made else ():
        shutil.copytree(finished / name, identity.folder / name)
    keys = keys_in(identity) if made else keys_of(identity)
    for name in () if made else places:
        shutil.copytree(identity.folder / name, finished / name)
    return identity, keys


def planned_keys(bench):
    """The keys of both cells as a plan has them; where a network is not known yet, as a run has them."""
    plan = bench.plan()
    if plan["pending"]:
        return keys_of(bench)
    return [{kind: cell["steps"][kind] for kind in ALL} for cell in plan["cells"]]


@parametrize_briefly("what", CHANGES, 12)
def test_a_change_changes_the_keys_of_what_reads_it_and_no_other(ran, what):
    bench, before = ran
    change, noise_changes, real_changes = CHANGES[what]
    change(bench)
    after = planned_keys(bench)
    changed = [{kind for kind in ALL if old[kind] != new[kind]} for old, new in zip(before, after, strict=True)]
    assert [noise_changes, real_changes] == changed


def test_a_placement_is_known_by_what_it_says_and_not_by_its_name(bench):
    head = "schemes: {same: {base: hw}, other: {base: hw, logits: float}}"
    bench.matrix("scheme: [hw/w4a4, same/w4a4, other/w4a4], seed: 0", head=head)
    bench.run()
    shipped, same, other = [row["keys"]["quantize"] for row in bench.rows().values()]
    assert (shipped == same, shipped == other) == (True, False)


def test_patterns_of_tensor_names_are_in_the_keys_and_so_is_their_order(bench):
    patterns = {"one": '"*": 8, "0": 4', "same": '"*": 8, "0": 4', "turned": '"0": 4, "*": 8', "none": ""}
    head = "\n".join(["schemes:", *(f"  {name}: {{base: hw, tensors: {{{text}}}}}" for name, text in patterns.items())])
    bench.matrix(f"scheme: [hw/w4a4, {', '.join(f'{name}/w4a4' for name in patterns)}], seed: 0", head=head)
    bench.run()
    shipped, one, same, turned, none = [row["keys"]["quantize"] for row in bench.rows().values()]
    assert (one == same, shipped == none, len({shipped, one, turned})) == (True, True, 3)
    definitions = {row["scheme"]: row["definition"] for row in bench.rows().values()}
    assert definitions["one/w4a4"] != definitions["turned/w4a4"]


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
    plan = zsqbench.plan(bench.file, home=bench.home, results=bench.results)
    seeds = {step.kind: step.type.of(step, plan.suite, None, "", "").seed for step in plan.steps.values()}
    assert seeds == {"baseline": 0, "generate": 7, "quantize": 7, "evaluate": 0, "diagnose": 0}


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


@parametrize_briefly("what", DIAGNOSE_CHANGES, 4)
def test_diagnostics_are_known_by_their_set_and_the_real_images(ran, what):
    bench, _ = ran
    change, changes = DIAGNOSE_CHANGES[what]
    before = diagnose_key(bench)
    change(bench)
    planned_keys(bench)  # which runs the suite where the network is another
    assert (before != diagnose_key(bench)) == changes


def diagnose_key(bench):
    return bench.planned("diagnose")["diagnose mine g seed 1"]["key"]


KEEPS = """
class Keeps(ToyQuantizer):
    name = "keeps"
    keep_every: int = 0

    @property
    def keeps_epochs(self):
        return self.keep_every > 0
"""


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
    return {step["key"] for step in bench.planned("oracle", "-k", "mine:g").values()}


def test_another_version_of_what_is_kept_of_an_evaluation_makes_no_image_and_no_network_again(bench, monkeypatch):
    bench.run()
    before = bench.plan()["cells"][0]["steps"]
    monkeypatch.setattr("zsqbench.steps.evaluations.EVALUATION_VERSION", "another")
    after = bench.plan()["cells"][0]["steps"]
    assert {kind for kind in ALL if before[kind] != after[kind]} == SAMPLES


STARTS = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None
"""


def started(bench, options, block="quantizer: fine"):
    bench.add_plugin(STARTS)
    bench.matrix(f"{block}, seed: 0", head=f"quantizers: {{{options}}}")


def test_a_quantizer_needs_the_result_that_it_starts_from(bench):
    started(bench, "fine: {method: starts, start: first}, first: {method: toyq, shift: 1.0}")
    steps = bench.planned("quantize")
    assert list(steps) == ["quantize a toy first hw/w4a4 seed 0", "quantize a toy fine hw/w4a4 seed 0"]
    first, fine = steps.values()
    (images,) = bench.planned("generate").values()
    assert (first["needs"], fine["needs"]) == ([images["key"]], [images["key"], first["key"]])


def test_what_a_quantizer_starts_from_is_the_same_step_as_that_of_its_own_cell(bench):
    started(bench, "fine: {method: starts, start: toyq}", "quantizer: [fine, toyq]")
    cells = bench.plan()["cells"]
    assert cells[0]["steps"]["start"] == cells[1]["steps"]["quantize"]
    assert len(bench.planned("quantize")) == 2


def test_a_start_that_reads_no_images_needs_none(bench):
    started(bench, "fine: {method: starts, start: datafree}")
    steps = bench.planned("quantize")
    assert [len(step["needs"]) for step in steps.values()] == [0, 2]
    assert next(iter(steps)) == "quantize a none datafree hw/w4a4 seed 0"


def test_starts_may_follow_each_other(bench):
    started(bench, "fine: {method: starts, start: middle}, middle: {method: starts, start: toyq}")
    (cell,) = bench.plan()["cells"]
    keys = [step["key"] for step in bench.planned("quantize").values()]
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


@pytest.mark.parametrize(("said", "told"), [("-1", "-1.0"), ("float('nan')", "nan"), ("0", "0.0")])
def test_a_method_whose_work_is_no_number_above_zero_is_told(bench, said, told):
    bench.add_plugin(f"""
class Mine(Toy):
    name = "mine"

    def work(self, images):
        return {said}
""")
    bench.matrix("generator: mine")
    expected = f"error: generator 'mine' says that its work is {told}; expected a number above 0"
    assert bench.run().err.splitlines()[-1] == expected


def test_steps_say_how_much_they_have_to_do(bench, tmp_path):
    bench.matrix("seed: 0")
    bench.run()
    plan = zsqbench.plan(bench.file, home=bench.home, results=bench.results)
    images = {step.kind: step.work.images for step in plan.steps.values()}
    # the task does not say how many images it evaluates: its one file is taken for one
    assert images == {"baseline": 1, "generate": 5, "diagnose": 4, "quantize": 5, "evaluate": 2}
