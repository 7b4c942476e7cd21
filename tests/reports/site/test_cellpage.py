from dataclasses import replace

import pytest
from PIL import Image
from reportpages import NASTY, rows_of_a_suite, source_of
from rows import NOISE, method, seen

from zsqbench.methods import Evaluation
from zsqbench.reports.evidence import ReadOnce
from zsqbench.reports.site.cellpage import cell_page
from zsqbench.reports.site.curves import MOST_CURVES
from zsqbench.reports.site.recipe import Recipes
from zsqbench.reports.site.source import Viewer
from zsqbench.steps import evaluations
from zsqbench.store import Store

GENERATE = "d" * 64


def page_of(row, home, viewer="the data is not here"):
    source = replace(source_of([row], home), viewer=lambda _: viewer)
    return cell_page(row, source, Recipes(source.origin, [row.cell]), ReadOnce(home))


def part(page, title):
    return next(part for part in page.parts if part.title == title)


def test_the_page_has_all_that_the_row_says(tmp_path):
    row = rows_of_a_suite()[0]
    page = page_of(row, tmp_path)
    assert page.lead == ["top1 90.00, 8.00 less than the float network (98.00)"]
    assert part(page, "Result").grid.rows == [["top1", "90", "98"]]
    assert "published: 77 (Some, Table 1; Someone: Something, CVPR 2020)" in part(page, "Result").notes
    assert ["quantizer.bits", "4", "set"] in part(page, "Options that held").grid.rows
    assert ["quantizer.grid", "affine", ""] in part(page, "Options that held").grid.rows
    assert part(page, "Make it again").text.startswith("zsqbench run demo.yaml -k digits:resnet20:dgh:rtn:hw/w4a4:0 ")
    assert part(page, "Time and memory").grid.rows == [["quantize", "2.000", ""]]
    assert ["data.evaluated", "100"] in part(page, "Environment").grid.rows


def test_artifacts_that_are_not_here_are_said_not_to_be(tmp_path):
    page = page_of(rows_of_a_suite()[0], tmp_path)
    assert [row[2] for row in part(page, "Artifacts").grid.rows] == ["not here"] * 3
    assert part(page, "Quantized").text.startswith(f"the quantized network is not in {tmp_path}")
    (said,) = part(page, "Samples that flip").lines
    assert said == f"not known: the measurement of the float network is not in {tmp_path}"


def test_a_cell_that_failed_says_why_with_its_traceback(tmp_path):
    page = page_of(rows_of_a_suite()[-2], tmp_path)
    reason = " ".join(NASTY.split())
    assert page.lead == [f"failed: {reason}"]
    assert part(page, "Result").text == "Traceback\n  boom"
    assert "Samples that flip" not in [each.title for each in page.parts]


def test_an_excluded_cell_says_why(tmp_path):
    assert page_of(rows_of_a_suite()[-1], tmp_path).lead == ["excluded: too slow"]


@pytest.fixture
def generated(tmp_path):
    """A calibration set with curves and diagnostics."""
    store = Store(tmp_path)
    points = {"loss": [(at, 1.0 / (at + 1)) for at in range(1000)], "lr": [(0, 0.1)]}
    losses = {"reconstruction/weights/conv1": [(0, 2.0), (100, 0.5)]}
    store.write("generate", GENERATE, {"content": {"images": 4}, "curves": points | losses, "notes": []})
    return tmp_path


def test_curves_are_thinned_and_units_have_their_losses(generated):
    row = seen([1], keys={"generate": GENERATE})
    page = page_of(row, generated)
    found = page.data["curves generate"].records()
    loss = [record for record in found if record["curve"] == "loss"]
    assert (len(loss), loss[0]["step"], loss[-1]["step"]) == (300, 0, 999)
    assert [record["loss"] for record in page.data["units generate"].records()] == [2.0, 0.5]
    titles = [chart.title for chart in part(page, "Curves").charts]
    assert titles == ["generate, weights: loss of each unit before and after it was reconstructed", "generate: curves"]


def test_a_damaged_artifact_costs_no_page(generated):
    (generated / "store" / "generate" / GENERATE / "manifest.json").write_text("{}")
    page = page_of(seen([1], keys={"generate": GENERATE}), generated)
    assert "is damaged" in part(page, "Curves").notes[0]


def test_pictures_of_artifacts_are_shown_and_their_places_are_not(tmp_path):
    store = Store(tmp_path)
    manifest = {"content": {}, "curves": {}, "notes": []}
    store.write("evaluate", "c" * 64, manifest, lambda folder: (folder / "picture.png").write_bytes(b"png"))
    page = page_of(seen([1], keys={"evaluate": "c" * 64}), tmp_path)
    (picture,) = part(page, "Picture").pictures
    assert (picture.file, part(page, "Picture").text) == (f"pictures/{'c' * 24}-picture.png", "")


def test_a_group_that_was_not_measured_says_why(tmp_path):
    row = seen(
        [1], not_run={"onnxruntime": "it cannot be exported"}, methods={"generator": NOISE, "quantizer": method("rtn")}
    )
    assert "onnxruntime was not measured: it cannot be exported" in part(page_of(row, tmp_path), "Result").lines


def test_a_number_with_real_images_or_random_weights_says_so(tmp_path):
    notes = part(page_of(seen([1], data_free=False, model_facts={"random_weights": True}), tmp_path), "Result").notes
    assert notes[:2] == [
        "not data-free: its generator was given real images",
        "random weights: the network was never trained",
    ]
    assert not any(
        "data-free" in note or "random" in note for note in part(page_of(seen([1]), tmp_path), "Result").notes
    )


def flipping(tmp_path):
    """A row of 300 samples, in which the float network has all right but the last."""
    keys = {"baseline": "a" * 64}
    found = Evaluation({}, [at != 299 for at in range(300)], [5] * 300, list(range(300)))
    manifest = {"content": {}, "curves": {}, "notes": []}
    Store(tmp_path).write(
        "baseline", keys["baseline"], manifest, lambda at: evaluations.write_samples(at, found, of_float=True)
    )
    return seen([299], images=300, keys=keys)


def test_samples_that_flip_are_listed_with_their_change(tmp_path):
    page = page_of(flipping(tmp_path), tmp_path)
    flips = part(page, "Samples that flip")
    assert flips.lines == [
        "from the float network to this one, of 300 samples: 299 right to wrong, 1 wrong to right",
    ]
    assert flips.grid.heads == [["change", "sample", "label", "float predicts", "quantized predicts"]]
    assert flips.grid.rows[1] == ["right to wrong", 1, 1, 5, "not known"]
    assert flips.grid.rows[-1] == ["wrong to right", 299, 299, 5, "not known"]
    assert (len(flips.grid.rows), flips.notes[0]) == (101, "the first 100 of each kind are listed")
    assert part(page, "Artifacts").grid.rows == [["baseline", "a" * 64, "here"]]
    assert (flips.pictures, flips.notes[2]) == ([], "samples have no pictures here: the data is not here")


def test_samples_that_flip_have_pictures_where_their_data_is(tmp_path):
    viewer = Viewer(lambda place: Image.new("L", (8, 4), place), [f"class {at}" for at in range(300)], "d" * 64)
    flips = part(page_of(flipping(tmp_path), tmp_path, viewer), "Samples that flip")
    assert [picture.name for picture in flips.pictures[:2]] == ["0: class 0", "1: class 1"]  # no prediction is kept
    assert flips.pictures[-1].name == "299: class 299, no longer class 5"
    assert (len(flips.pictures), flips.notes[2]) == (13, "the first 12 of each kind have pictures")


def test_memory_is_in_mebibytes(tmp_path):
    row = seen([1], seconds={"quantize": 2.0}, peak_memory={"quantize": 3 * 2**20})
    assert part(page_of(row, tmp_path), "Time and memory").grid.rows == [["quantize", "2.000", "3"]]


def test_a_step_with_many_curves_shows_the_first(tmp_path):
    curves = {f"loss {at}": [(0, 1.0)] for at in range(MOST_CURVES + 1)}
    Store(tmp_path).write("generate", GENERATE, {"content": {}, "curves": curves, "notes": []})
    page = page_of(seen([1], keys={"generate": GENERATE}), tmp_path)
    shown = [record["curve"] for record in page.data["curves generate"].records()]
    assert shown == [f"loss {at}" for at in range(MOST_CURVES)]
    assert part(page, "Curves").notes == [f"generate: 24 of 25 curves are drawn; its artifact {GENERATE[:12]} has all"]
