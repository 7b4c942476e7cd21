"""Homes of several machines are joined: what is taken, what is refused, and what is shown."""

import json
import shutil

import pytest
from faults import rewrite_manifest

import zsqbench
from zsqbench.execution import merging
from zsqbench.leases import Leases
from zsqbench.reports.resultfile import ResultFile
from zsqbench.store import Store

MEASURED_ANEW = {"seconds", "peak_memory", "environment", "finished"}
"""The fields of a row that differ between two runs."""


class Machines:
    """A bench on which runs have homes of their own."""

    def __init__(self, bench):
        self.bench = bench

    def run(self, name, *arguments):
        """Run the suite in the folder of a machine, which is what `merge` takes."""
        folder = self.bench.folder / name
        self.bench.home, self.bench.results = folder / "home", folder / "results"
        said = self.bench.run(*arguments)
        assert said.code in (0, 1), said
        return folder

    def merge(self, *folders, into="merged"):
        """`zsqbench merge`; the bench then has the merged home."""
        target = self.bench.folder / into
        self.bench.home, self.bench.results = target / "home", target / "results"
        return self.bench.zsqbench("merge", *folders, *self.bench.places())

    def refused(self, *folders, into="merged"):
        """The one line with which a merge is refused, without the folder; no row was written."""
        target = self.bench.folder / into / "results"
        before = {file: file.read_bytes() for file in target.glob("*")}
        said = self.merge(*folders, into=into)
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert (said.code, len(errors), said.out) == (2, 1, ""), said
        assert {file: file.read_bytes() for file in target.glob("*")} == before
        return errors[0].removeprefix("error: ").replace(f"{self.bench.folder}/", "")


@pytest.fixture
def machines(bench):
    return Machines(bench)


def stable(rows):
    return {cell: {k: v for k, v in row.items() if k not in MEASURED_ANEW} for cell, row in rows.items()}


def edit_row(folder, **changes):
    """Change the only row of a machine."""
    file = folder / "results" / "toysuite.jsonl"
    row = json.loads(file.read_text())
    for name, value in changes.items():
        row[name] = row[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(row) + "\n")


def only(folder, kind):
    """The folder of a machine's only artifact of a kind."""
    (artifact,) = (folder / "home" / "store" / kind).iterdir()
    return artifact


# --- what is taken --------------------------------------------------------------------------------------------------


def test_shards_of_two_homes_are_merged_to_what_one_run_makes(bench, machines):
    bench.matrix(
        "model: [a, b], quantizer: [toyq, unseeded]",
        "quantizer: datafree, generator: none",
        "scheme: float",  # impossible
    )
    machines.run("whole")
    whole = stable(bench.rows())
    parts = [machines.run(name, "--shard", f"{number}/2") for number, name in enumerate("AB", 1)]
    said = machines.merge(*parts)
    merged = stable(bench.rows())
    bench.calls()
    again = bench.run()
    assert (said.code, merged, again.code, bench.calls()) == (0, whole, 0, [])
    assert stable(bench.rows()) == whole
    assert (bench.results / "toysuite.md").read_text() == (bench.folder / "whole/results/toysuite.md").read_text()


def test_a_merge_says_what_is_new_and_a_second_one_finds_nothing(bench, machines):
    parts = [machines.run(name, "--shard", f"{number}/2") for number, name in enumerate("AB", 1)]
    first, rows = machines.merge(*parts).out, bench.rows()
    assert first.splitlines() == [
        f"merged {parts[0]}: 7 artifacts and 1 rows are new",
        f"merged {parts[1]}: 4 artifacts and 1 rows are new",
    ]
    second = machines.merge(*parts)
    assert (second.code, second.out.count(" 0 artifacts and 0 rows "), bench.rows()) == (0, 2, rows)


def test_the_folders_of_the_defaults_are_merged(bench, machines, monkeypatch):
    for number, name in enumerate("AB", 1):
        (bench.folder / name).mkdir()
        monkeypatch.chdir(bench.folder / name)
        assert (
            bench.zsqbench("run", bench.file, "--workers", 0, "--no-plugin", "mlflow", "--shard", f"{number}/2").code
            == 0
        )
    monkeypatch.chdir(bench.folder)
    assert bench.zsqbench("merge", "A", "B").code == 0
    assert len(ResultFile(bench.folder / "results" / "toysuite.jsonl").read()) == 2
    assert len(Store(bench.folder / ".zsqbench").keys("evaluate")) == 2


def test_a_home_is_merged_by_its_own_path_with_the_rows_beside_it(bench, machines):
    folder = machines.run("A")
    assert machines.merge(folder / "home").code == 0
    assert len(bench.rows()) == 2


def test_a_shard_that_another_machine_does_again_completes_the_merged_home(bench, machines):
    machines.merge(machines.run("A", "--shard", "1/2"))
    assert len(bench.rows()) == 1
    lost = machines.run("C", "--shard", "2/2")
    assert machines.merge(lost).code == 0
    bench.calls()
    assert (bench.run().code, bench.calls(), len(bench.rows())) == (0, [], 2)


def test_an_interrupted_merge_is_run_again(bench, machines, monkeypatch):
    parts = [machines.run(name, "--shard", f"{number}/2") for number, name in enumerate("AB", 1)]
    copy, copied = Store.take_from, []

    def interrupted(self, other, kind, key):
        if len(copied) == 8:
            raise KeyboardInterrupt
        copied.append(key)
        return copy(self, other, kind, key)

    with monkeypatch.context() as context:
        context.setattr(Store, "take_from", interrupted)
        said = machines.merge(*parts)
    assert (said.code, bench.results.exists(), len(copied)) == (130, False, 8)
    assert (machines.merge(*parts).code, len(bench.rows())) == (0, 2)
    bench.calls()
    assert (bench.run().code, bench.calls()) == (0, [])


def test_a_cell_that_is_done_somewhere_is_done(bench, machines):
    bench.add_plugin("""
        class Fragile(Toy):
            name = "fragile"
            def generate(self, teacher, ctx):
                if (HERE / "full").exists():
                    raise ValueError("the disk is full")
                return super().generate(teacher, ctx)
    """)
    bench.matrix("generator: fragile")
    done = machines.run("done")
    bench.write("full", "")
    failed = machines.run("failed")
    machines.merge(failed, done, into="one")
    machines.merge(done, failed, into="other")
    for place in ("one", "other"):
        rows = ResultFile(bench.folder / place / "results" / "toysuite.jsonl").read().values()
        assert [row.status for row in rows] == ["done"]


def test_rows_without_measurements_are_left_out_and_named(bench, machines, caplog):
    folder = machines.run("A")
    row = bench.rows()["toytask:a:toy:toyq:hw/w4a4:1"]
    shutil.rmtree(folder / "home" / "store" / "evaluate" / row["keys"]["evaluate"])
    said = machines.merge(folder)
    assert (said.code, list(bench.rows())) == (0, ["toytask:a:toy:toyq:hw/w4a4:0"])
    left_out = "left out 1 row of a cell whose measurements are not in its home: toytask:a:toy:toyq:hw/w4a4:1"
    assert left_out in caplog.text


def test_a_committed_row_gives_way_to_one_that_was_measured(bench, machines):
    """Rows that were measured elsewhere lie in the folder of results, as in a checkout."""
    bench.matrix("")
    folder = machines.run("A")
    committed = bench.folder / "merged" / "results" / "toysuite.jsonl"
    committed.parent.mkdir(parents=True)
    row = json.loads((folder / "results" / "toysuite.jsonl").read_text())
    committed.write_text(json.dumps(row | {"metrics": {"top1": 1.0}, "environment": {"torch": "1.0"}}))
    assert machines.merge(folder).code == 0
    assert bench.row()["metrics"] == row["metrics"]


def test_rows_of_other_suites_stay_where_they_are(bench, machines):
    folder = machines.run("A")
    other = bench.folder / "merged" / "results" / "other.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("not rows of ours\n")
    machines.merge(folder)
    assert (other.read_text(), len(bench.rows())) == ("not rows of ours\n", 2)


def test_python_is_told_what_was_merged(bench, machines):
    folder = machines.run("A")
    target = {"home": bench.folder / "home", "results": str(bench.folder / "results")}
    (merged,) = zsqbench.merge([str(folder)], **target).merged
    assert (merged.folder, merged.artifacts, merged.rows) == (folder, 11, 2)


# --- numbers that differ --------------------------------------------------------------------------------------------


def twice(bench, machines):
    """Two machines that measured the same cell."""
    bench.matrix("")
    return machines.run("A"), machines.run("B")


def change_top1(folder, kind, value, row):
    """Let a machine have measured another number, which its row says, too."""
    content = json.loads((only(folder, kind) / "manifest.json").read_text())["content"]
    rewrite_manifest(only(folder, kind), content=content | {"metrics": {"top1": value}})
    edit_row(folder, **row)


def test_equal_keys_with_other_numbers_are_shown_and_the_first_stays(bench, machines):
    first, second = twice(bench, machines)
    before = bench.row()["metrics"]["top1"]
    change_top1(second, "evaluate", 12.5, {"metrics": {"top1": 12.5}})
    for _ in range(2):  # what differs does so as often as one looks
        said = machines.merge(first, second)
        *_, head, line = said.out.splitlines()
        assert (said.code, head.split()) == (1, ["cell", "metric", "here", "there", "folder"])
        assert line.split() == ["toytask:a:toy:toyq:hw/w4a4:0", "top1", str(before), "12.5", str(second)]
        assert bench.row()["metrics"]["top1"] == before
    assert (bench.run().code, bench.row()["metrics"]["top1"]) == (0, before)


def test_a_float_network_that_was_measured_otherwise_is_shown_for_each_of_its_cells(bench, machines):
    first, second = machines.run("A", "--shard", "1/2"), machines.run("B", "--shard", "2/2")
    change_top1(second, "baseline", 1.5, {"float_metrics": {"top1": 1.5}})
    said = machines.merge(first, second)
    assert (said.code, said.out.splitlines()[-1].split()[:3]) == (1, ["toytask:a:toy:toyq:hw/w4a4:1", "float", "top1"])
    bench.calls()
    rows = bench.run() and bench.rows()
    assert (len({row["float_metrics"]["top1"] for row in rows.values()}), bench.calls()) == (1, [])


def test_other_images_that_are_right_are_a_difference(bench, machines):
    first, second = twice(bench, machines)
    edit_row(second, correct="AAAA")
    said = machines.merge(first, second)
    assert (said.code, said.out.splitlines()[-1].split()[1], "AAAA" in said.out) == (1, "correct", True)


def test_measured_times_are_no_difference(bench, machines, monkeypatch):
    """Two machines never take as long."""
    first, second = twice(bench, machines)
    edit_row(second, metrics={"p50_ms": 3.5})
    timing = type("Timing", (merging.KINDS["baseline"],), {"exclusive": True})
    monkeypatch.setattr(timing, "row", classmethod(lambda *_: {"metrics": {"p50_ms": 4.5}}))
    monkeypatch.setitem(merging.KINDS, "baseline", timing)
    assert machines.merge(first, second).code == 0


# --- what is refused ------------------------------------------------------------------------------------------------


def test_rows_of_another_schema_are_refused(bench, machines):
    first, second = twice(bench, machines)
    edit_row(second, schema=1)
    assert machines.refused(first, second) == (
        "cannot merge B: B/results/toysuite.jsonl has rows of schema 1, and this zsqbench reads 2; run that part again"
    )


def test_rows_of_another_schema_in_the_target_are_refused_where_they_are_of_the_same_suite(bench, machines):
    first, second = twice(bench, machines)
    edit_row(second, schema=1)
    (second / "results" / "toysuite.jsonl").rename(second / "results" / "other.jsonl")
    assert machines.merge(first, into="B").code == 0
    (second / "results" / "other.jsonl").rename(second / "results" / "toysuite.jsonl")
    assert "B/results/toysuite.jsonl has rows of schema 1" in machines.refused(first, into="B")


def test_artifacts_of_another_schema_are_refused(bench, machines):
    first, second = twice(bench, machines)
    rewrite_manifest(only(second, "evaluate"), schema=1)
    line = machines.refused(first, second)
    assert line.startswith("cannot merge B: evaluate artifact ")
    assert "(its schema is 1, and this zsqbench reads 2 and 3)" in line


def test_other_weights_of_a_network_are_refused(bench, machines):
    bench.write("weights.txt", "1")
    bench.matrix("model: net, seed: [0, 1]", head="models: {net: {base: a, weights: weights.txt}}")
    first = machines.run("A", "--shard", "1/2")
    bench.write("weights.txt", "2")
    second = machines.run("B", "--shard", "2/2")
    line = machines.refused(first, second)
    what = "network net of task toytask of toysuite (its weights and preprocessing, by their digest) is "
    assert line.startswith(f"cannot merge B: {what}")
    assert line.endswith(
        " here, so their numbers do not compare; run that part again with the same as here, or merge into another home"
    )


def test_other_evaluation_data_are_refused(bench, machines):
    first = machines.run("A", "--shard", "1/2")
    bench.write("data/eval.txt", "9")
    second = machines.run("B", "--shard", "2/2")
    assert "the evaluation data of task toytask of toysuite (by their digest) is " in machines.refused(first, second)


@pytest.mark.parametrize("package", ["torch", "zsqbench", "numpy"])
def test_rows_of_another_version_of_a_library_are_refused(bench, machines, package):
    first, second = twice(bench, machines)
    edit_row(second, environment={package: "0.0.1"})
    assert f"the version of {package} is 0.0.1 there (toytask:a:toy:toyq:hw/w4a4:0), but " in machines.refused(
        first, second
    )
    machines.merge(first)
    machines.refused(second)  # what was merged before is compared, too


def test_another_build_of_a_version_and_another_python_are_another_machine(bench, machines):
    first, second = twice(bench, machines)
    version = bench.row()["environment"]["torch"].partition("+")[0]
    edit_row(second, environment={"torch": f"{version}+other", "python": "3.99"})
    assert machines.merge(first, second).code == 0


def test_another_version_of_a_method_is_refused(bench, machines):
    first = machines.run("A", "--shard", "1/2")
    bench.write("quantizer.version", "2")
    second = machines.run("B", "--shard", "2/2")
    assert "the version of quantizer toyq is 2 there" in machines.refused(first, second)


def test_other_versions_by_hand_are_refused(bench, machines, monkeypatch):
    """No row tells of QUANT_VERSION; a cell that the suite defines alike has another key."""
    bench.matrix("")
    first = machines.run("A")
    monkeypatch.setattr("zsqbench.steps.quantize.QUANT_VERSION", "0")
    second = machines.run("B")
    assert machines.refused(first, second).startswith(
        "cannot merge B: the quantize step of toytask:a:toy:toyq:hw/w4a4:0 has another key there, although the suite"
    )


def test_a_home_is_not_merged_with_itself(bench, machines):
    folder = machines.run("A")
    assert machines.refused(folder, into="A") == ("cannot merge A with itself: its home is the target A/home (--home)")


def test_one_home_twice_is_refused(bench, machines):
    folder = machines.run("A")
    assert machines.refused(folder, folder / "home") == "A/home and A are one home; give it once"


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_home_that_was_copied_by_half_is_refused_with_the_artifact(bench, machines, damage):
    first, second = twice(bench, machines)
    (folder,) = (second / "home" / "store" / "generate").iterdir()
    file = folder / "calibration.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.unlink()
    why = (
        "the content of calibration.safetensors has changed"
        if damage == "cut"
        else ("calibration.safetensors: No such file or directory")
    )
    assert machines.refused(second, first) == (
        f"cannot merge B: generate artifact {folder.name[:12]} in B/home is damaged ({why}); copy that home again, "
        "or put the artifact aside with `zsqbench cache verify --home B/home`"
    )
    assert not list((bench.home / "store" / "generate").iterdir())


@pytest.mark.parametrize("name", ["empty", "absent", "rows", "two"])
def test_a_folder_that_is_no_home_is_refused(bench, machines, name):
    (bench.folder / "empty").mkdir()
    bench.write("rows/results/toysuite.jsonl", "")
    (bench.folder / "two" / "home" / "store").mkdir(parents=True)
    (bench.folder / "two" / ".zsqbench" / "store").mkdir(parents=True)
    expected = (
        "expected a folder with the home of a run as .zsqbench or home (--home) and its rows in results (--results)"
    )
    nothing = f"there is nothing to merge in {name}: {expected}"
    said = {
        "absent": "there is no folder absent to merge",
        "two": "cannot merge two: there are homes at two/.zsqbench and two/home; give one of them",
    }
    assert machines.refused(bench.folder / name) == said.get(name, nothing)


def test_a_home_without_artifacts_and_rows_is_refused(bench, machines):
    (bench.folder / "A" / "home" / "store").mkdir(parents=True)
    assert machines.refused(bench.folder / "A").startswith("there is nothing to merge in A: ")


@pytest.mark.parametrize("at", ["A", "merged"])
def test_nothing_is_merged_while_a_run_is_at_work(bench, machines, at):
    folder = machines.run("A")
    with Leases(bench.folder / at / "home").hold("run-1234"):
        assert machines.refused(folder).startswith(f"a run is at work in {at}/home (run-1234); merge when it has ended")


def test_a_merge_is_a_run_at_work_for_others(bench, machines, monkeypatch):
    seen = []
    copy = Store.take_from

    def look(self, *arguments):
        seen.append(Leases(self.home).alive())
        return copy(self, *arguments)

    monkeypatch.setattr(Store, "take_from", look)
    machines.merge(machines.run("A"))
    assert {name.startswith("run-merge-") for alive in seen for name in alive} == {True}
    assert Leases(bench.home).alive() == []


def test_artifacts_without_rows_are_merged_with_a_warning(bench, machines, caplog):
    folder = machines.run("A")
    shutil.rmtree(folder / "results")
    said = machines.merge(folder)
    assert (said.code, "there are no rows for" in caplog.text, bench.results.exists()) == (0, True, False)
    bench.calls()
    assert (bench.run().code, bench.calls()) == (0, [])


def test_a_full_disk_is_said_in_one_line(bench, machines, monkeypatch):
    folder = machines.run("A")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zsqbench.store.shutil.copyfile", full)
    line = machines.refused(folder)
    assert line.startswith("cannot copy baseline artifact ")
    assert line.endswith(": No space left on device; copied artifacts stay; a repeated merge continues")
