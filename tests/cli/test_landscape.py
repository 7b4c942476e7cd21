"""`zsqbench landscape`: what it draws, and the lines that it answers other cells with."""

import importlib.util

import pytest

import zsqbench


@pytest.fixture
def ran(bench, monkeypatch):
    """Cells with and without labels, and others that have no landscape."""
    monkeypatch.setattr("zsqbench.quant.landscape.STEPS", 4)
    bench.add_plugin("""
        class Labelled(Toy):
            name = "labelled"
            def generate(self, teacher, ctx):
                import torch
                images = super().generate(teacher, ctx).images
                return zsqbench.CalibrationSet(images, torch.zeros(len(images), dtype=torch.int64))
        class Boxes(ToyTask):
            name = "boxes"
            def load(self, model, ctx):
                import dataclasses
                from torch import nn
                network = super().load(model, ctx)
                return dataclasses.replace(network, module=nn.Sequential(*network.module, nn.Unflatten(1, (5, 2))))
            def evaluate(self, module, pretrained, ctx):
                return zsqbench.Evaluation({"top1": 50.0}, [True])
    """)
    bench.matrix(
        "generator: [toy, labelled], quantizer: rtn",
        "generator: none, quantizer: squant, scheme: hw/w4a32",
        "quantizer: toyq",
        "task: boxes, model: b, quantizer: rtn",
        "generator: none, quantizer: fp32, scheme: float",
        "quantizer: toyq, scheme: hw/w32a8",
    )
    said = bench.run()
    assert said.code == 0, said.err
    bench.calls()
    return bench


def complaint(ran, *arguments):
    said = ran.zsqbench("landscape", ran.file, "-o", ran.folder / "l.svg", *arguments, *ran.places())
    assert (said.code, said.out) == (2, "")
    return said.err


@pytest.mark.slow("it runs cells, and measures a surface")
def test_cells_are_drawn_and_nothing_is_evaluated(ran):
    arguments = ("-k", "rtn and toytask:a", "-o", ran.folder / "l.svg", *ran.places())
    said = ran.zsqbench("landscape", ran.file, *arguments)
    assert (said.code, said.out.strip()) == (0, str(ran.folder / "l.svg")), said.err
    drawn = (ran.folder / "l.svg").read_text()
    assert "toytask a: cosines of gradients of loss terms, and eigenvalues of their Hessians" in drawn
    assert "decisions (toy); no FA: the network has no layers to align" in drawn
    assert ">labelled<" in drawn
    (ran.folder / "data" / "eval.txt").write_text("no number, so that reading it fails")
    again = zsqbench.landscape(
        ran.file, ran.folder / "m.svg", select="rtn and toytask:a", home=ran.home, results=ran.results
    )
    assert again.read_text() == drawn
    assert not [call for call in ran.calls() if not call.startswith("load")]


def test_cells_that_have_no_landscape_are_one_line(ran):
    toyq = "no weight of toytask:a:toy:toyq:hw/"
    lines = {
        "rtn": "expected cells of one network, got cells of several (boxes b, toytask a); select some with -k",
        "squant": "cell toytask:a:none:squant:hw/w4a32:- has no calibration images",
        "fp32": "cell toytask:a:none:fp32:float:- has no calibration images",
        "w32": f"{toyq}w32a8:0 is quantized: its scheme is hw/w32a8; select others with -k",
        "toyq and w4": f"{toyq}w4a4:0 is quantized, or its quantizer left no map of it; select others with -k",
        "boxes": "the loss terms need a classifier, and the network of boxes:b:toy:rtn:hw/w4a4:0 is not one: labels "
        "ask for logits, one row of classes for each of 1 images, and the network returns Tensor",
    }
    assert {select: complaint(ran, "-k", select) for select in lines} == {
        select: f"error: {line}\n" for select, line in lines.items()
    }


def test_other_files_and_an_absent_package_are_one_line(bench, monkeypatch):
    assert complaint(bench, "-o", "l.jpg") == "error: l.jpg does not end in .svg, .pdf or .png\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert complaint(bench) == "error: curvlinops is not installed: pip install 'zsqbench[landscape]'\n"
