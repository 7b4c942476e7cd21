"""`zsqbench embedding`: what it draws, and what it never reads."""

import pytest

import zsqbench


@pytest.fixture
def ran(bench):
    bench.matrix("generator: [toy, toyreal], seed: [0, 1]", "generator: none, quantizer: datafree")
    bench.run()
    bench.calls()
    return bench


@pytest.mark.slow("it imports a library of embeddings, and runs cells")
def test_sets_and_real_images_are_drawn_and_nothing_is_evaluated(ran):
    said = ran.zsqbench("embedding", ran.file, "-o", ran.folder / "e.svg", "--images", 4, *ran.places())
    assert (said.code, said.out.strip()) == (0, str(ran.folder / "e.svg"))
    drawn = (ran.folder / "e.svg").read_text()
    assert "toytask a: features by t-SNE" in drawn
    assert drawn.count("symbol") > 8
    (ran.folder / "data" / "eval.txt").write_text("no number, so that reading it fails")
    assert zsqbench.embedding(ran.file, ran.folder / "f.svg", home=ran.home, results=ran.results).is_file()
    assert not [call for call in ran.calls() if not call.startswith("load")]


def test_without_images_to_calibrate_on_the_title_says_so(ran):
    (ran.folder / "data" / "train.txt").unlink()
    ran.zsqbench("embedding", ran.file, "-k", ":toy:", "-o", ran.folder / "e.svg", *ran.places())
    assert "no real images: task toytask has no images that it does not evaluate" in (ran.folder / "e.svg").read_text()


def test_cells_without_images_and_other_files_are_one_line(ran):
    said = ran.zsqbench("embedding", ran.file, "-k", "datafree", *ran.places())
    expected = "error: expected cells of one network, got no cell with calibration images; select some with -k\n"
    assert (said.code, said.err) == (2, expected)
    said = ran.zsqbench("embedding", ran.file, "-o", "e.jpg", *ran.places())
    assert said.err == "error: e.jpg does not end in .svg, .pdf or .png\n"
