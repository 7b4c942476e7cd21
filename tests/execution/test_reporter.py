import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults import bad_generator

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import reporter as reporting


def test_a_curve_keeps_the_values_that_a_tensor_had(bench):
    bench.add_plugin("""
class Counts(Toy):
    name = "counts"

    def generate(self, teacher, ctx):
        import torch
        value = torch.zeros(())
        for step in range(3):
            value.add_(1)
            ctx.log("value", value, step)
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: counts")
    bench.run()
    assert bench.artifact("generate").curves["value"] == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_curves_are_kept_with_the_artifact(bench):
    bench.matrix("")
    bench.run()
    assert bench.artifact("generate").curves == {"loss": [(0, 0.5)]}


def test_notes_are_kept_with_the_artifact_each_line_once(bench):
    bad_generator(bench, "for line in ('two units', 'undone in 4', 'two units'): ctx.note(line)")
    bench.matrix("generator: bad")
    bench.run()
    assert bench.artifact("generate").notes == ["two units", "undone in 4"]


def test_footnotes_are_notes_too_each_line_once_and_an_older_artifact_has_none(bench):
    bad_generator(bench, "ctx.note('one'); ctx.footnote('two'); ctx.footnote('two')")
    bench.matrix("generator: bad")
    bench.run()
    kept = bench.artifact("generate")
    assert (kept.notes, kept.footnotes) == (["one", "two"], ["two"])
    older = {name: value for name, value in kept.manifest.items() if name != "footnotes"}
    assert replace(kept, manifest=older).footnotes == []


def test_curves_and_notes_of_a_step_take_no_file_of_their_own(bench):
    bad_generator(bench, "ctx.log('loss', 1, 0); ctx.note('a line')")
    bench.matrix("generator: bad")
    bench.run()
    (folder,) = bench.artifacts("generate")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "calibration.safetensors"}


def test_a_finished_step_leaves_nothing_partial(bench):
    bad_generator(bench, "ctx.reporter.keep({'x': x, 'i': 3}); ctx.progress(1, 2)")
    bench.matrix("generator: bad")
    bench.run()
    assert (bench.row()["status"], list((bench.home / "partial").iterdir())) == ("done", [])


def test_a_step_resumes_from_its_checkpoint_with_its_random_numbers(bench, monkeypatch):
    monkeypatch.setattr(reporting, "CHECKPOINT_SECONDS", 0.0)
    body = """state = ctx.resume() or {"i": 0, "x": x * 0}
        for i in range(state["i"], 4):
            if i == 2 and not (HERE / "again").exists():
                (HERE / "again").touch()
                raise KeyboardInterrupt
            state["x"] = state["x"] + ctx.randn(*x.shape)
            ctx.log("i", i, i)
            ctx.note(f"half {i // 2}")
            ctx.footnote(f"i {i}")
            ctx.checkpoint({"i": i + 1, "x": state["x"]})
        x = state["x"]"""
    bad_generator(bench, body)
    bench.matrix("generator: bad")
    assert bench.run().code == 130
    bench.run()
    resumed = bench.artifact("generate")
    bench.run_anew("whole")
    whole = bench.artifact("generate")
    assert resumed.notes == ["half 0", "i 0", "i 1", "half 1", "i 2", "i 3"]
    assert resumed.footnotes == ["i 0", "i 1", "i 2", "i 3"]
    assert list(resumed.curves["i"]) == [(i, i) for i in range(4)]
    assert [getattr(whole, what) for what in ("content", "curves", "notes")] == [
        getattr(resumed, what) for what in ("content", "curves", "notes")
    ]
    assert whole.manifest["files"] == resumed.manifest["files"]


def test_a_checkpoint_that_is_damaged_is_no_checkpoint(bench):
    bad_generator(bench, "assert ctx.resume() is None")
    bench.matrix("generator: bad")
    bench.run()
    partial = bench.home / "partial" / bench.artifact("generate").key
    for content in (b"", b"rubbish"):
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "checkpoint.safetensors").write_bytes(content)
        for folder in bench.artifacts("generate") + bench.artifacts("quantize") + bench.artifacts("evaluate"):
            shutil.rmtree(folder)
        bench.results.joinpath("toysuite.jsonl").unlink()
        bench.run()
        assert bench.row()["status"] == "done", bench.row().get("traceback")


@pytest.mark.parametrize("flipped", [b'"rng"', b'"notes"', b'"curves"', b'"state"', b"{}", b"[]"])
def test_a_checkpoint_with_a_damaged_note_is_no_checkpoint(tmp_path, flipped):
    reporter = reporting.Reporter(tmp_path, torch.Generator().manual_seed(0))
    reporter.keep({"step": 1})
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes().replace(flipped, b"x" * len(flipped)))
    assert reporter.resume() is None
    (note,) = reporter.notes
    assert note.startswith("the step started again: its checkpoint is damaged (")


def test_a_folder_beside_a_checkpoint_stays(tmp_path):
    reporter = reporting.Reporter(tmp_path, torch.Generator())
    reporter.keep({})
    (tmp_path / "folder").mkdir()
    reporter.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_checkpoint_of_another_kind_of_device_is_no_checkpoint(tmp_path):
    """A generator on a GPU has a state of 16 bytes."""

    class Elsewhere:
        def get_state(self):
            return torch.zeros(16, dtype=torch.uint8)

    reporting.Reporter(tmp_path, Elsewhere()).keep({"i": 1})
    reporter = reporting.Reporter(tmp_path, torch.Generator().manual_seed(0))
    expected = reporter.rng.get_state()
    assert reporter.resume() is None
    assert torch.equal(reporter.rng.get_state(), expected)
    assert reporter.notes == ["the step started again: its checkpoint has random numbers of another kind of device"]


def test_a_checkpoint_that_takes_long_is_kept_seldom(tmp_path, monkeypatch):
    now, kept = [0.0], []

    def keep(self, state):
        kept.append(state["step"])
        now[0] += 2.0

    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(reporting.Reporter, "keep", keep)
    reporter = reporting.Reporter(tmp_path, torch.Generator())
    for step in range(100):
        now[0] += 1.0
        reporter.checkpoint({"step": step})
    assert kept == [4, 44, 84]  # the first after five seconds, then each after twenty times what the last took


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"net": {"0.weight": torch.zeros(1)}}, "state['net']['0.weight'], a tensor"),
        (
            {"optimizer": {"state": {0: {"step": torch.zeros(1)}}}},
            "state['optimizer']['state'][0]['step'], a tensor",
        ),
        ({"milestones": {3: 0.1}}, "state['milestones'] with the key 3"),
        ({"pixels": [torch.zeros(1)]}, "state['pixels'][0], a tensor"),
        ({"best": np.float32(1)}, "state['best'], of type float32"),
        ({0: torch.zeros(1)}, "state with the key 0"),
    ],
)
def test_a_state_that_is_not_flat_is_refused_at_once_with_its_place_and_the_rule(tmp_path, state, problem):
    reporter = reporting.Reporter(tmp_path, torch.Generator())
    with pytest.raises(ZSQBenchError, match=f"^a checkpoint cannot keep {re.escape(f'{problem}: {reporting.FLAT}')}$"):
        reporter.checkpoint(state)


def test_a_flat_state_is_given_back(tmp_path):
    reporter = reporting.Reporter(tmp_path, torch.Generator())
    reporter.keep({"x": torch.ones(2), "done": 3, "best": None, "names": ("a", "b"), "by_name": {"a": [1, 2.5]}})
    found = reporter.resume()
    assert found.pop("x").tolist() == [1, 1]
    assert found == {"done": 3, "best": None, "names": ["a", "b"], "by_name": {"a": [1, 2.5]}}


def test_a_state_with_random_numbers_of_its_own_is_refused(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"no entry named 'rng': the state of ctx\.rng is kept under it"):
        reporting.Reporter(tmp_path, torch.Generator()).checkpoint({"rng": torch.ones(1)})
