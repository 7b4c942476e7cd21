import json

import pytest
import torch
from faults import rewrite_manifest

from zsqbench.errors import OutdatedError
from zsqbench.execution import worker
from zsqbench.execution.session import Session, WorkerConfig
from zsqbench.methods import Pretrained
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.resolve import count_operations


def test_a_network_that_changes_after_it_was_resolved_is_refused_and_taken_anew_by_the_next_run(bench):
    bench.add_plugin("""
class Drifts(ToyTask):
    name = "drifts"

    def load(self, model, ctx):
        pretrained = super().load(model, ctx)
        if (HERE / "now").exists():
            pretrained.module[0].weight.data.mul_(2)
        return pretrained
""")
    bench.matrix("task: drifts, scheme: hw/w4a4")
    bench.run()
    bench.write("now", "")
    bench.matrix("task: drifts, scheme: hw/w8a8")
    worker._session.cache_clear()  # a new process
    bench.run()
    refused = bench.row()
    bench.run()
    assert ("changed after it was resolved" in refused["reason"], bench.row()["status"]) == (True, "done")


WRONG = [
    ("bn", "many"),
    ("bn", None),
    ("digest", 5),
    ("modules", [1]),
    ("modules", 5),
    ("notes", "x"),
    ("input_size", {}),
]


def test_facts_of_another_type_are_made_again(bench):
    bench.matrix("")
    bench.run()
    found = bench.artifact("resolve")
    for name, value in WRONG:
        rewrite_manifest(found.folder, content=found.content | {name: value})
        bench.calls()
        assert bench.plan()["pending"] == ["a"], name
        assert (bench.run().code, bench.calls()) == (0, ["load a"]), name
        assert bench.artifact("resolve").content == found.content, name


@pytest.mark.parametrize("missing", [False, True])
def test_facts_that_another_version_wrote_are_made_again(bench, missing):
    bench.matrix("")
    bench.run()
    resolved = bench.artifact("resolve")
    other = {name: value for name, value in resolved.content.items() if name != "bn"} if missing else resolved.content
    rewrite_manifest(resolved.folder, content=other | ({} if missing else {"flops": 3}))
    bench.calls()
    assert (bench.run().code, bench.artifact("resolve").content, bench.calls()) == (0, resolved.content, ["load a"])


def test_the_operations_of_a_network_are_counted(bench):
    bench.matrix("")
    bench.run()
    convolution, linear = 3 * 9 * 4 * 36, 4 * 36 * 10
    assert bench.artifact("resolve").content["operations"] == 2 * (convolution + linear)


def test_a_network_whose_operations_cannot_be_counted_has_none():
    from torch import nn

    class Fails(nn.Module):
        def forward(self, images):
            raise RuntimeError("not on black")

    assert count_operations(Pretrained(Fails(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)) == 0


def test_what_a_network_is_stands_in_the_manifest_alone(bench):
    bench.matrix("")
    bench.run()
    resolved = bench.artifact("resolve")
    facts = {name: resolved.content[name] for name in ("bn", "classes", "parameters", "random_weights", "input_size")}
    parameters = 4 * 27 + 4 + 2 * 4 + 10 * 144 + 10
    expected = {"bn": 1, "classes": 10, "parameters": parameters, "random_weights": False, "input_size": [3, 8, 8]}
    assert (facts, resolved.manifest["files"]) == (expected, {})


def test_what_a_task_notes_of_a_network_is_kept_and_stands_below_every_table(bench):
    bench.add_plugin("""
class Tells(ToyTask):
    name = "tells"

    def load(self, model, ctx):
        ctx.note("half of it was taken")
        return super().load(model, ctx)
""")
    bench.matrix("task: tells")
    said = [bench.run().out, bench.run().out]
    assert ["- a: half of it was taken\n" in text for text in said] == [True, True]
    assert bench.artifact("resolve").content["notes"] == ["half of it was taken"]
    assert bench.row()["model_facts"]["notes"] == ["half of it was taken"]


def test_which_weights_of_a_file_are_meant_is_part_of_what_is_resolved(bench):
    bench.write("w.pth", "1")
    both = [f"{name}: {{base: a, weights: w.pth, checkpoint: {name}}}" for name in ("model", "ema")]
    bench.matrix("model: [model, ema]", head=f"models: {{{', '.join(both)}}}")
    bench.run()
    assert (len(bench.artifacts("resolve")), bench.calls().count("load a")) == (2, 2)


def test_a_model_that_cannot_be_loaded_fails_its_cells_only(bench):
    bench.add_plugin("""
class Breaks(ToyTask):
    name = "breaks"
    def load(self, model, ctx):
        if model.base == "b":
            raise OSError("truncated weights")
        return super().load(model, ctx)
""")
    bench.matrix("task: breaks, model: [b, a]")
    said = bench.run()
    row = bench.rows()["breaks:b:toy:toyq:hw/w4a4:0"]
    assert (
        said.code,
        sorted(bench.statuses().values()),
        "OSError: truncated weights" in row["reason"],
    ) == (1, ["done", "failed"], True)


BUILT = """
name: built
tasks: {digits: {method: classification, data: digits}}
models:
  net: {file: net.py, weights: built, input_size: [1, 8, 8], mean: [0.3], std: [0.3]}
matrix: [{task: digits, model: net, generator: none, quantizer: fp32, scheme: float}]
"""

NET = """
import torch
from pathlib import Path
from torch import nn

def build():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    %s
    return net
"""

LOADS = "net[1].weight.data.copy_(torch.load(Path(__file__).parent / 'own.pt'))"


def run_built(bench):
    said = bench.zsqbench(
        "run", bench.folder / "built.yaml", *bench.places(), "--workers", "0", "--no-plugin", "mlflow"
    )
    (row,) = (json.loads(line) for line in (bench.results / "built.jsonl").read_text().splitlines())
    return said, row


def test_a_network_may_load_its_weights_itself_and_is_known_by_what_they_are(bench):
    bench.write("built.yaml", BUILT)
    bench.write("net.py", NET % LOADS)
    torch.save(torch.eye(10, 64), bench.folder / "own.pt")
    said, first = run_built(bench)
    assert said.code == 0, said.err
    assert (first["status"], first["model_facts"].get("random_weights")) == ("done", False)
    assert "random" not in said.out
    assert run_built(bench)[1] == first
    job = Baseline.model_validate(bench.artifact("baseline").manifest["job"])
    with pytest.raises(
        OutdatedError, match=r"network net changed .*: build\(\) of net.py gave other weights; run again"
    ):
        Session(WorkerConfig(bench.home)).teacher(job.model_copy(update={"network": "another"}))
    torch.save(2 * torch.eye(10, 64), bench.folder / "own.pt")  # which no run can see but by loading the network
    assert run_built(bench)[1]["keys"] != first["keys"]


def test_a_network_that_draws_weights_at_random_is_not_built_with_its_weights(bench):
    bench.write("built.yaml", BUILT)
    bench.write("net.py", NET % "")
    said, row = run_built(bench)
    assert (said.code, row["status"]) == (1, "failed")
    assert "gives different weights at each call: let it load all of them, or take 'weights: none'" in row["reason"]
