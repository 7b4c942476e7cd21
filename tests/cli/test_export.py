"""`zsqbench export`: what it writes and says, and where it ends."""

import shutil

import onnx_ir as ir
import pytest
import torch

from zsqbench import api
from zsqbench.export import runtime
from zsqbench.opening import open_session, open_student

CELL = "toytask:a:toy:rtn:qdq/w8a8:0"


@pytest.fixture
def ran(bench):
    bench.matrix("quantizer: rtn, scheme: qdq/w8a8")
    said = bench.run()
    assert said.code == 0, said.out + said.err
    return bench


def export(bench, *arguments, cell="rtn"):
    return bench.zsqbench("export", bench.file, cell, *arguments, *bench.places())


def complaint(bench, *arguments, cell="rtn"):
    said = export(bench, *arguments, cell=cell)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), said
    return said.err.removeprefix("error: ").rstrip("\n").replace(f"{bench.folder}/", "")


def test_a_cell_that_is_done_becomes_a_file_that_was_compared_and_a_script(ran):
    file = ran.folder / "net.onnx"
    said = export(ran, "-o", file, "--check", "8", "--input", "uint8")
    assert (said.code, said.err) == (0, ""), said.out
    lines = said.out.splitlines()
    assert lines[:2] == [
        f"{file}: {file.stat().st_size / 1e6:.2f} MB",
        f"{file.with_suffix('.py')}: runs it on an image",
    ]
    assert "- output is logits" in lines
    assert "- 2 of 2 layers run with integers" in lines
    assert any(
        line.startswith("- without optimisation: 4 of 4 decisions are those") for line in lines
    )  # of four images
    assert CELL in ir.load(file).metadata_props["zsqbench.origin"]
    row = api.find_row(api.rows_of(ran.file, ran.results), "rtn")
    student = open_student(row, open_session(ran.file, ran.home, None, []), ran.home).student
    given = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    decisions = runtime.run(runtime.open_session(file), given)[0].argmax(1)
    with torch.no_grad():
        assert (decisions == student(given / 255).argmax(1).numpy()).sum() >= 15


def test_what_is_missing_is_one_line_before_anything_is_loaded(ran, monkeypatch):
    ran.calls()
    assert (
        complaint(ran, "-o", ran.folder / "net.txt")
        == "net.txt does not end in .onnx; expected a file such as model.onnx"
    )
    text = complaint(ran, "-o", ran.folder / "none" / "net.onnx")
    assert text == "there is no folder none to write net.onnx to"
    ran.write("net.py", "mine")
    assert complaint(ran, "-o", ran.folder / "net.onnx").startswith("the script beside net.onnx would replace net.py; ")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert complaint(ran, "-o", ran.folder / "other.onnx") == "onnx is not installed: pip install 'zsqbench[onnx]'"
    assert ran.calls() == []


def test_a_cell_that_is_not_there_or_whose_network_is_not_is_one_line(ran):
    file = ran.folder / "net.onnx"
    assert complaint(ran, "-o", file, cell="rnt").startswith("unknown cell 'rnt'")
    shutil.rmtree(ran.home / "store" / "quantize")
    text = complaint(ran, "-o", file)
    assert text.startswith(f"the quantized network of {CELL} is not in ")
    assert text.endswith("run the suite with an empty home to make it again")


def test_a_cell_that_failed_is_one_line_with_its_reason(bench):
    bench.add_plugin(
        """
class Broken(ToyQuantizer):
    name = "broken"
    def quantize(self, student, teacher, data, ctx):
        raise zsqbench.ZSQBenchError("no luck")
"""
    )
    bench.matrix("quantizer: broken")
    assert bench.run().code == 1
    text = complaint(bench, "-o", bench.folder / "net.onnx", cell="broken")
    assert text == "cell toytask:a:toy:broken:hw/w4a4:0 is failed: quantize: no luck"


def test_a_student_of_another_library_is_one_line(bench):
    bench.matrix("")
    assert bench.run().code == 0
    text = complaint(bench, "-o", bench.folder / "net.onnx", cell="toyq")
    assert text.startswith("the quantized network is a Sequential, not one that zsqbench.quant.prepare made")


def test_an_old_artifact_whose_zero_points_are_no_codes_is_one_line(bench):
    bench.add_plugin(
        """
class Outside(zsqbench.GridQuantizer):
    name = "outside"
    def quantize(self, student, teacher, data, ctx):
        from zsqbench.quant import calibrate_activations_by, calibrate_weights, quantized_layers
        calibrate_weights(student, "minmax")
        calibrate_activations_by("minmax", student, data.images, 64)
        _, layer = quantized_layers(student)[0]
        layer.weight_quantizer.zero_point -= 300  # as SQuant's release had them for weights of one sign
        ctx.images_read(len(data.images))
"""
    )
    bench.matrix("quantizer: outside, scheme: hw_strict/w8a8")
    said = bench.run()
    assert said.code == 0, said.out
    text = complaint(bench, "-o", bench.folder / "net.onnx", cell="outside")
    assert text.startswith("the grid of weight '0' does not hold zero: its zero point ")
    assert text.endswith("quantize again at a scheme with weight_grid: symmetric, such as qdq/w8a8")


def test_a_provider_that_is_not_there_is_one_line(ran):
    text = complaint(ran, "-o", ran.folder / "net.onnx", "--provider", "NoExecutionProvider")
    assert text.startswith("ONNX Runtime has no execution provider NoExecutionProvider here; it has ")
    assert not (ran.folder / "net.onnx").exists()


def test_an_opset_that_nothing_is_written_in_is_refused(ran):
    said = export(ran, "-o", ran.folder / "net.onnx", "--opset", "20")
    assert said.code == 2
    assert "20 is not in the range 21<=x<=25" in said.err


@pytest.mark.slow("it runs a cell and writes a file")
def test_a_file_that_is_not_what_was_measured_ends_with_one(ran, monkeypatch):
    monkeypatch.setattr("zsqbench.export.comparison.Check.problems", ["it departs"])
    said = export(ran, "-o", ran.folder / "net.onnx", "--check", "2")
    assert said.code == 1
    assert "- problem: it departs" in said.out
