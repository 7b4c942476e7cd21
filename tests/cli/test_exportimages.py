"""`zsqbench export-images`: what it says and where it ends."""

import pytest
from safetensors.torch import load_file

import zsqbench

CELL = "toytask:a:toy:toyq:hw/w4a4:1"


@pytest.fixture
def ran(bench):
    assert bench.run("-k", "w4a4:1").code == 0
    return bench


def test_the_images_of_a_cell_are_written_and_the_rounding_is_told(ran):
    said = ran.zsqbench("export-images", ran.file, "w4a4:1", ran.folder / "made", *ran.places())
    assert (said.code, said.err) == (0, "")
    images, pngs = said.out.splitlines()
    assert images == f"4 images are in {ran.folder / 'made'}, and README.md there says how to use them"
    assert pngs.startswith("PNGs: rounding to 8 bits moves no value by more than 0.00")
    found = load_file(ran.folder / "made" / "calibration.safetensors")["images"]
    assert (found == zsqbench.load_images(ran.file, CELL, home=ran.home, results=ran.results)).all()
    assert f"# Calibration images of cell {CELL} of toysuite" in (ran.folder / "made" / "README.md").read_text()


def test_a_folder_that_is_not_empty_is_one_line_before_the_network_is_loaded(ran):
    ran.calls()
    said = ran.zsqbench("export-images", ran.file, "w4a4:1", ran.home, *ran.places())
    assert (said.code, said.out) == (2, "")
    assert said.err == f"error: {ran.home} is not empty, and is left as it is; name a folder that is new or empty\n"
    assert ran.calls() == []


def test_a_cell_without_images_is_one_line(bench):
    bench.matrix("generator: none, quantizer: datafree")
    bench.run()
    said = bench.zsqbench("export-images", bench.file, "datafree", bench.folder / "made", *bench.places())
    line = "error: cell toytask:a:none:datafree:hw/w4a4:- has no calibration images\n"
    assert (said.code, said.err, (bench.folder / "made").exists()) == (2, line, False)
