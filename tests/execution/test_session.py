import contextlib
import json
import re
import subprocess
from collections import Counter

import pytest
from faults import no_space

from zsqbench.execution import reporter as reporting
from zsqbench.methods import Pretrained
from zsqbench.store import Store

DIVERGES = """
class Diverges(ToyQuantizer):
    name = "diverges"

    def quantize(self, student, teacher, data, ctx):
        import torch
        from zsqbench.errors import DivergedError
        assert ctx.resume() is None
        ctx.checkpoint({"updates": 6})
        if not (HERE / "ready").exists():
            raise DivergedError("the loss is nan at update 7", STATE)
        super().quantize(student, teacher, data, ctx)
"""


def diverges(bench, monkeypatch, state):
    monkeypatch.setattr(reporting, "CHECKPOINT_SECONDS", 0.0)
    bench.add_plugin(DIVERGES.replace("STATE", state))
    bench.matrix("quantizer: diverges")
    bench.run()
    return bench.row()


def test_the_last_good_state_of_training_that_diverges_is_kept_to_be_looked_at(bench, monkeypatch):
    from safetensors.torch import load_file

    row = diverges(bench, monkeypatch, "{'weight': torch.arange(6.0).view(2, 3).T, 'updates': 6}")
    (path,) = (bench.home / "partial").glob("*/*")
    place = f"partial/{row['keys']['quantize']}/last-good.safetensors"
    expected = f"quantize: the loss is nan at update 7; it is in {place} of the home folder"
    assert (row["status"], row["reason"], row.get("traceback")) == ("failed", expected, None)
    assert path == bench.home / place
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {"weight": [[0, 3], [1, 4], [2, 5]]}


def test_the_curves_of_a_step_that_failed_are_kept_until_it_is_tried_again(bench, monkeypatch):
    row = diverges(bench, monkeypatch, "ctx.log('loss', 2.5, 6)")  # which gives no state
    place = f"partial/{row['keys']['quantize']}/curves.json"
    assert row["reason"] == f"quantize: the loss is nan at update 7; its curves are in {place} of the home folder"
    assert json.loads((bench.home / place).read_text()) == {"loss": [[6, 2.5]]}
    bench.write("ready", "")
    bench.run()
    assert list((bench.home / "partial").iterdir()) == []


def test_a_network_that_is_kept_is_not_hashed_for_each_step(bench, monkeypatch):
    hashed, digest = [], Pretrained.digest
    monkeypatch.setattr(Pretrained, "digest", lambda self: (hashed.append(self.module), digest(self))[1])
    bench.run()
    times = Counter(map(id, hashed))
    assert len(times) > 5  # the others are copies of it, after each call of a method
    assert max(times.values()) <= 3  # when it was resolved, when it was loaded, and before the first call


def test_nothing_goes_on_from_training_that_diverged(bench, monkeypatch):
    diverges(bench, monkeypatch, "{'weight': torch.ones(1)}")
    bench.write("ready", "")
    bench.run()
    assert (bench.row()["status"], list((bench.home / "partial").iterdir())) == ("done", [])


@pytest.mark.parametrize("state", ["None", "{}", "{'updates': 6}"])
def test_training_that_diverges_without_a_good_state_leaves_nothing(bench, monkeypatch, state):
    row = diverges(bench, monkeypatch, state)
    assert (row["reason"], list((bench.home / "partial").iterdir())) == ("quantize: the loss is nan at update 7", [])


def test_a_last_good_state_that_cannot_be_written_is_no_other_error(bench, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "_write", no_space)
        row = diverges(bench, monkeypatch, "{'weight': torch.ones(1)}")
    assert row["reason"] == "quantize: the loss is nan at update 7"


def test_a_store_on_a_full_disk_fails_its_cells_in_one_line(bench, monkeypatch):
    bench.matrix("")
    bench.run()
    bench.matrix("seed: [0, 1]")
    monkeypatch.setattr(Store, "write", no_space)
    said = bench.run()
    row = bench.rows()["toytask:a:toy:toyq:hw/w4a4:1"]
    expected = f"generate: cannot write to the store {bench.home}: No space left on device"
    assert (1, expected, False) == (said.code, row["reason"], "traceback" in row)


def test_a_full_disk_keeps_what_is_done(bench, monkeypatch):
    write = Store.write

    def first_only(self, kind, key, info, fill):
        if list((self.home / "store").glob("evaluate/*")):
            no_space()
        write(self, kind, key, info, fill)

    monkeypatch.setattr(Store, "write", first_only)
    bench.run()
    assert list(bench.statuses().values()) == ["done", "failed"]


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tiny disk here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - the same


def test_a_store_on_a_tiny_disk_keeps_what_fits_and_says_what_did_not(bench, tiny_disk):
    bench.matrix("generator: [toy, many]", head="generators: {many: {method: toy, images: 400}}")
    said = bench.run("--home", tiny_disk)
    few, many = bench.rows().values()
    assert (said.code, few["status"], many["status"]) == (1, "done", "failed"), said.err
    assert many["reason"].startswith(f"generate: cannot write to the store {tiny_disk}: ")


def test_a_home_on_a_disk_that_is_full_from_the_start_is_refused_in_one_line(bench, tiny_disk):
    with contextlib.suppress(OSError):
        (tiny_disk / "filler").write_bytes(bytes(256 * 1024))
    said = bench.run("--home", tiny_disk / "home")
    assert (said.code, len(said.err.splitlines()), "No space left on device" in said.err) == (2, 1, True), said.err


FULL = """
class Full(Toy):
    name = "full"
    memory_options = ("images", "chunk")
    execution_options = frozenset({"chunk"})
    chunk: int = Field(8, ge=0)
    needs: int = Field(0)
    def generate(self, teacher, ctx):
        note(f"chunk {self.chunk}")
        if self.chunk > self.needs:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return super().generate(teacher, ctx)
"""


def test_a_step_that_runs_out_of_memory_is_tried_once_with_half_of_what_changes_no_number(bench):
    bench.add_plugin("from pydantic import Field\n" + FULL)
    bench.matrix("generator: full", head="generators: {full: {method: full, needs: 4}}")
    assert bench.run().code == 0
    assert [call for call in bench.calls() if call.startswith("chunk")] == ["chunk 8", "chunk 4"]
    assert bench.artifact("generate").notes == [
        "memory was full; done with chunk 4 instead of 8, which changes no number"
    ]


def test_a_step_that_runs_out_of_memory_twice_fails_with_the_options_to_lower(bench):
    bench.add_plugin("from pydantic import Field\n" + FULL)
    bench.matrix("generator: full")
    assert bench.run().code == 1
    assert [call for call in bench.calls() if call.startswith("chunk")] == ["chunk 8", "chunk 4"]
    assert re.fullmatch(
        r"generate: cpu ran out of memory \(\d+\.\d GiB taken\): lower one of the options images \(4\), chunk \(4\)",
        bench.row()["reason"],
    )


def test_a_step_that_runs_out_of_memory_without_such_options_is_tried_once(bench):
    bench.add_plugin(
        "class Plain(Toy):\n    name = 'plain'\n    def generate(self, *_): note('plain'); raise MemoryError\n"
    )
    bench.matrix("generator: plain")
    bench.run("--memory", 4, workers=1)
    assert bench.calls().count("plain") == 1
    assert re.fullmatch(
        r"generate: cpu ran out of memory \(\d+\.\d GiB taken, and --memory allows 4\)", bench.row()["reason"]
    )
