from faults import no_space

from zsqbench.execution import reporter as reporting

KEEPS = """
class Keeps(ToyQuantizer):
    name = "keeps"
    keep_every: int = 1
    asked: int = 1

    @property
    def keeps_epochs(self):
        return self.keep_every > 0

    def quantize(self, student, teacher, data, ctx):
        state = ctx.resume() or {"epoch": 0, "bias": student[-1].bias}
        student[-1].bias.copy_(state["bias"])
        for epoch in range(state["epoch"] + 1, 13):
            note(f"epoch {epoch}")
            student[-1].bias[{11: 0, 12: 1}.get(epoch, 3)] += 10.0**epoch
            if self.keep_every and epoch % self.keep_every == 0:
                ctx.keep_epoch(epoch, student)
            ctx.checkpoint({"epoch": epoch, "bias": student[-1].bias})
            if epoch == 11 and (HERE / "interrupt").exists():
                (HERE / "interrupt").unlink()
                raise KeyboardInterrupt
"""
"""In which epoch 11 makes every sample right, for all are said to be of class 0, and the last makes every one wrong."""


def keeps(bench, options="", **changes):
    bench.add_plugin(KEEPS)
    bench.matrix("quantizer: keeps", head=f"quantizers: {{keeps: {{{options}}}}}")
    return bench.run(**changes)


def of_oracle(bench):
    return bench.artifact("oracle").content


def test_the_oracle_measures_every_kept_epoch_and_names_the_best(bench):
    said = keeps(bench)
    found, row = of_oracle(bench), bench.row()
    assert said.code == 0, said.err
    assert [one["epoch"] for one in found["epochs"]] == list(range(1, 13))
    assert [one["metrics"]["top1"] for one in found["epochs"]][-2:] == [100.0, 0.0]
    assert found["best"] == found["epochs"][10]
    assert row["oracle"] == {"epoch": 11, "metrics": {"top1": 100.0}, "of": 12}
    assert row["metrics"]["top1"] == 0.0


def test_what_is_kept_lies_beside_the_result_in_flat_files(bench):
    keeps(bench, "keep_every: 6")
    (folder,) = bench.artifacts("quantize")
    kept = [path.name for path in sorted(folder.glob("epoch-*"))]
    assert kept == ["epoch-0006.safetensors", "epoch-0012.safetensors"]
    assert (folder / kept[1]).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not list((bench.home / "partial").iterdir())


def test_the_first_of_equal_epochs_is_the_best(bench):
    keeps(bench, "keep_every: 5")
    assert [one["metrics"]["top1"] for one in of_oracle(bench)["epochs"]] == [0.0, 0.0]
    assert bench.row()["oracle"]["epoch"] == 5


def test_a_quantizer_that_was_not_asked_keeps_nothing_and_has_no_oracle(bench):
    keeps(bench, "keep_every: 0")
    assert (bench.home / "store" / "oracle").exists() is False
    assert "oracle" not in bench.row()
    assert not list(bench.artifacts("quantize")[0].glob("epoch-*"))


def test_a_quantizer_that_says_it_keeps_epochs_and_keeps_none_fails_its_cell(bench):
    said = keeps(bench, "keep_every: 50")
    reason = (
        "oracle: quantizer keeps says that it keeps epochs, and kept none; it must call ctx.keep_epoch, or its options "
        "must leave an epoch to keep"
    )
    row = bench.row()
    assert (said.code, row["status"], row["reason"], row.get("traceback")) == (1, "failed", reason, None)


def test_an_interrupted_and_resumed_run_has_all_epochs(bench, monkeypatch):
    monkeypatch.setattr(reporting, "CHECKPOINT_SECONDS", 0.0)
    bench.write("interrupt", "")
    assert keeps(bench).code == 130
    bench.calls()
    bench.run()
    calls = bench.calls()
    resumed = {path.name: path.read_bytes() for path in bench.artifacts("quantize")[0].glob("*.safetensors")}
    bench.run_anew("whole")
    whole = {path.name: path.read_bytes() for path in bench.artifacts("quantize")[0].glob("*.safetensors")}
    assert [call for call in calls if call.startswith("epoch")] == ["epoch 12"]
    assert (len(whole), whole == resumed) == (13, True)


def test_an_oracle_that_was_interrupted_goes_on_with_the_next_epoch(bench, monkeypatch):
    monkeypatch.setattr(reporting, "CHECKPOINT_SECONDS", 0.0)
    bench.add_plugin(
        KEEPS
        + """
class Stops(ToyTask):
    name = "stops"

    def evaluate(self, module, pretrained, ctx):
        calls = (HERE / "calls.txt").read_text().count("evaluate")
        if calls == 5 and not (HERE / "was").exists():
            (HERE / "was").touch()
            raise KeyboardInterrupt
        return super().evaluate(module, pretrained, ctx)
"""
    )
    bench.matrix("task: stops, quantizer: keeps")
    assert bench.run().code == 130
    bench.calls()
    bench.run()
    assert (bench.calls().count("evaluate"), len(of_oracle(bench)["epochs"])) == (12 - 3, 12)


def test_a_disk_that_is_full_keeps_the_epochs_that_were_kept(bench, monkeypatch):
    monkeypatch.setattr(reporting, "CHECKPOINT_SECONDS", 0.0)
    write = reporting.Reporter._write

    def full(self, name, content):
        return no_space() if name == "epoch-0003.safetensors" else write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "_write", full)
        keeps(bench)
    reason = bench.row()["reason"]
    bench.calls()
    bench.run()
    assert "cannot keep epoch 3 in " in reason
    assert next(call for call in bench.calls() if call.startswith("epoch")) == "epoch 3"
    assert len(of_oracle(bench)["epochs"]) == 12


def test_only_a_cell_whose_quantizer_keeps_epochs_has_an_oracle(bench):
    bench.add_plugin(KEEPS)
    bench.matrix(
        "quantizer: [keeps, honest], seed: 0", head="quantizers: {keeps: {}, honest: {method: keeps, keep_every: 0}}"
    )
    (oracle,) = bench.planned("oracle").values()
    asked, other = bench.plan()["cells"]
    assert oracle["needs"] == [asked["steps"]["quantize"]]
    assert (asked["steps"]["oracle"], "oracle" in other["steps"]) == (oracle["key"], False)
