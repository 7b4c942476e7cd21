import re
import shutil

import pytest
from reportpages import NASTY, content, part, rows_of_a_suite, source_of
from rows import seen

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.site import writing
from zsqbench.reports.site.startpage import REASON
from zsqbench.reports.site.writing import MARKER, check_folder, write_report


@pytest.fixture
def without_libraries(monkeypatch):
    """Libraries that take no time to make."""
    monkeypatch.setattr(writing, "_charts", lambda: "charts")
    monkeypatch.setattr(writing, "_tables", lambda: ("tables", "style"))


def test_a_report_has_a_start_page_and_a_page_for_each_cell(written):
    pages = sorted(path.name for path in (written / "cells").glob("*.html"))
    assert len(pages) == len(rows_of_a_suite())
    start = content(written / "index.html")
    assert (start["title"], start["lead"][0]) == ("demo", "14 cells: 12 done, 1 failed, 1 excluded")
    assert start["lead"][1] == (
        "1 cell of the suite without a row yet, as no run has come to an end there: digits:resnet20:dgh:rtn:hw/w4a4:7"
    )
    assert [each["title"] for each in start["parts"]] == ["In words", "digits resnet20", "All cells"]


def test_every_chart_of_a_page_has_its_data(written):
    for path in (written / "index.html", *(written / "cells").glob("*.html")):
        page = content(path)
        assert {chart["data"] for each in page["parts"] for chart in each.get("charts", ())} <= set(page["data"])


def test_the_table_leads_to_pages_that_there_are(written):
    start = content(written / "index.html")
    listing = part(start, "All cells")["listing"]
    for place in part(start, "digits resnet20")["grid"]["links"].values():
        name = listing["pages"].get(str(place)) or re.sub(r"[^A-Za-z0-9._-]+", "-", listing["rows"][place][0])
        assert (written / "cells" / f"{name}.html").is_file()


def test_the_table_of_cells_has_numbers_and_no_column_that_says_the_same_of_all(written):
    listing = part(content(written / "index.html"), "All cells")["listing"]
    assert listing["heads"][:3] == ["cell", "generator", "scheme"]
    assert {"value", "drop", "seconds (s)", "reason"} <= set(listing["heads"])
    decimals = {listing["heads"][int(place)]: digits for place, digits in listing["numbers"].items()}
    assert decimals == {"value": 2, "drop": 2, "seconds (s)": 2, "size (MB)": 4}
    assert [listing["heads"][place] for place in listing["choices"]] == ["generator", "scheme", "seed", "status"]
    assert listing["rows"][0][5:9] == [90.0, 8.0, 2.0, 0.01]


@pytest.mark.usefixtures("without_libraries")
def test_long_reasons_and_names_are_cut_and_random_weights_are_said_to_be(tmp_path):
    why = {"status": "failed", "metrics": {}, "reason": "long " * 90, "model_facts": {"random_weights": True}}
    rows = [seen([1]), seen([1], model="m" * 200, **why)]
    start = content(write_report(source_of(rows, tmp_path), tmp_path / "report"))
    listing = part(start, "All cells")["listing"]
    assert [len(row[-1]) for row in listing["rows"]] == [0, REASON]
    assert (tmp_path / "report" / "cells" / f"{listing['pages']['1']}.html").is_file()
    assert start["lead"][-1] == f"random weights: {'m' * 200} was never trained, so its numbers rank nothing"


def test_pages_say_the_most_without_scripts(written):
    html = (written / "index.html").read_text(encoding="utf-8")
    assert "dgh with rtn (90.50) is best alone" in html
    assert "<noscript>" in html


def test_texts_of_rows_are_no_html(written):
    (path,) = (written / "cells").glob("*broken*.html")
    assert "<b>" not in path.read_text(encoding="utf-8")
    assert content(path)["parts"][0]["lines"][0] == f"failed: {' '.join(NASTY.split())}"


def test_nothing_is_fetched(written):
    ours = [*written.glob("*.*"), *(written / "cells").iterdir(), *(written / "lib").glob("page.*")]
    assert not [path for path in ours if "http" in path.read_text(encoding="utf-8")]


def test_a_report_is_replaced_and_its_libraries_are_kept(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "report")
    monkeypatch.setattr(writing, "_charts", lambda: pytest.fail("they are there"))
    start = write_report(source_of([seen([1])], tmp_path), tmp_path / "report")
    assert start == tmp_path / "report" / "index.html"
    assert len(list((tmp_path / "report" / "cells").glob("*.html"))) == 1
    assert (tmp_path / "report" / "lib" / "charts.js").stat().st_size > 500_000
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_libraries_of_another_version_are_made_again(tmp_path, without_libraries):
    source, library = source_of([seen([1])], tmp_path), tmp_path / "report" / "lib"
    write_report(source, tmp_path / "report")
    (library / "charts.js").write_text("old")
    write_report(source, tmp_path / "report")
    assert (library / "charts.js").read_text() == "old"
    (library / "versions.json").write_text('{"vl-convert-python": "0"}')
    write_report(source, tmp_path / "report")
    assert (library / "charts.js").read_text() == "charts"


@pytest.mark.usefixtures("without_libraries")
def test_a_picture_that_cells_share_is_there_once(tmp_path):
    source = source_of(
        [seen([1], keys={"evaluate": "c" * 64}), seen([2], seed=1, keys={"evaluate": "c" * 64})], tmp_path
    )
    manifest = {"content": {}, "curves": {}, "notes": []}
    source.store.write("evaluate", "c" * 64, manifest, lambda folder: (folder / "picture.png").write_bytes(b"png"))
    write_report(source, tmp_path / "report")
    assert [path.read_bytes() for path in (tmp_path / "report" / "pictures").iterdir()] == [b"png"]


@pytest.mark.usefixtures("without_libraries")
def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "report").mkdir()
    assert write_report(source_of([seen([1])], tmp_path), tmp_path / "report").is_file()


@pytest.mark.parametrize("marker", [None, "not JSON", '{"made_by": "another"}'])
def test_a_folder_with_something_else_is_not_touched(tmp_path, marker):
    (tmp_path / "thesis.tex").write_text("mine")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    with pytest.raises(ZSQBenchError, match="is not empty and not a report of zsqbench"):
        write_report(source_of([seen([1])], tmp_path), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ZSQBenchError, match="is not a folder"):
        check_folder(tmp_path / "report")


@pytest.mark.usefixtures("without_libraries")
def test_what_cannot_be_written_is_one_line_and_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(source_of([seen([1])], tmp_path), tmp_path / "report")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write_page", full)
    with pytest.raises(ZSQBenchError, match=r"cannot write the report to .*: No space left on device"):
        write_report(source_of([seen([1])], tmp_path), tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.usefixtures("without_libraries")
def test_the_start_page_grows_by_less_than_half_a_kilobyte_for_a_cell(tmp_path):
    """10,000 cells have to stay under 5 MB; letters and pairs of methods grow less than cells do."""
    sizes = []
    for methods in (20, 120):
        rows = [
            seen(range(40 + at // 4), seed=seed, generator=f"generator{at}", quantizer=f"quantizer{at % 10}")
            for at in range(methods)
            for seed in (0, 1)
        ]
        write_report(source_of(rows, tmp_path), tmp_path / f"report{methods}")
        sizes.append((tmp_path / f"report{methods}" / "index.js").stat().st_size)
    assert (sizes[1] - sizes[0]) / 200 < 500
