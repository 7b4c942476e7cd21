from pathlib import Path

import pytest

from zsqbench.reports.site import writing

ROWS = Path(__file__).resolve().parent.parent.parent / "results"


@pytest.fixture(autouse=True)
def without_libraries(monkeypatch):
    """Libraries that take no time to make."""
    monkeypatch.setattr(writing, "_charts", lambda: "charts")
    monkeypatch.setattr(writing, "_tables", lambda: ("tables", "style"))


@pytest.fixture
def ran(bench):
    """Two generators."""
    bench.matrix("generator: [toy, toyreal]")
    assert bench.run().code == 0
    return bench


def report(bench, *arguments):
    return bench.zsqbench("report", bench.file, *bench.places(), *arguments)


def figure(bench, *arguments):
    return bench.zsqbench("figure", bench.file, *arguments, *bench.places())


def error(said):
    """The one line of what is refused."""
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    return line


def test_a_report_stands_beside_the_rows_unless_a_folder_is_named(ran):
    start = ran.results / "toysuite.report" / "index.html"
    said = report(ran)
    assert (said.code, said.out, said.err) == (0, f"{start}\n", "")
    named = ran.folder / "pages"
    assert report(ran, "-o", named).out == f"{named / 'index.html'}\n"
    text = next((named / "cells").glob("*toyreal*.js")).read_text(encoding="utf-8")
    for found in (
        "toyreal.images",
        f"zsqbench run {ran.file} -k toytask:a:toyreal",
        "Calibration set",
        "not data-free",
    ):
        assert found.replace("toyreal.images", "generator.images") in text
    assert list((named / "pictures").glob("*images.png"))


def test_a_selection_has_its_cells_alone(ran):
    report(ran, "-k", "toyreal")
    assert len(list((ran.results / "toysuite.report" / "cells").glob("*.html"))) == 1


def test_without_results_the_command_that_makes_them_is_told(bench):
    bench.matrix("")
    assert error(report(bench)).endswith(f"`zsqbench run {bench.file}` makes them")


def test_a_folder_with_something_else_is_refused(ran):
    (ran.folder / "thesis").mkdir()
    (ran.folder / "thesis" / "thesis.tex").touch()
    assert "thesis is not empty and not a report of zsqbench" in error(report(ran, "-o", ran.folder / "thesis"))


def test_committed_rows_have_a_report_without_their_store(bench):
    places = ("--results", ROWS, "--home", bench.home, "-o", bench.folder / "report")
    said = bench.zsqbench("report", "hw_friendly", "-k", "mobilenetv2 and hptq and hw/w4a4", *places)
    assert said.code == 0
    pages = list((bench.folder / "report" / "cells").glob("*.js"))
    assert len(pages) == 8
    assert all("is not in" in page.read_text(encoding="utf-8") for page in pages)


def test_a_run_says_which_command_makes_the_report(bench):
    bench.matrix("")
    *_, last = bench.run().err.splitlines()
    assert last.startswith(f"pages for a browser: zsqbench report {bench.file} ")
    assert bench.zsqbench(*last.partition("zsqbench ")[2].split()).code == 0


def test_a_run_ends_with_the_report_that_was_asked_for(bench):
    bench.matrix("")
    *_, last = bench.run("--report").err.splitlines()
    start = bench.results / "toysuite.report" / "index.html"
    assert last == f"report: {start}"
    assert start.is_file()


def test_a_run_refuses_a_folder_before_it_begins(bench):
    bench.matrix("")
    (bench.results / "toysuite.report").mkdir(parents=True)
    (bench.results / "toysuite.report" / "mine").touch()
    assert "is not empty" in error(bench.run("--report"))
    assert bench.calls() == []


def test_a_report_that_cannot_be_written_costs_no_row(bench, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write_page", full)
    bench.matrix("")
    said = bench.run("--report")
    assert (said.code, list(bench.statuses().values())) == (2, ["done"])
    assert "No space left on device" in said.err.splitlines()[-1]


def test_a_quiet_run_says_nothing_of_it(bench):
    bench.matrix("")
    assert "zsqbench report" not in bench.run("--quiet").err


def test_figures_are_listed_and_drawn_by_their_names(ran, monkeypatch):
    names = figure(ran).out.splitlines()
    assert names[0] == "heatmap toytask a"
    monkeypatch.chdir(ran.folder)
    said = figure(ran, *names[0].split())
    assert (said.code, said.out) == (0, "heatmap-toytask-a.svg\n")
    assert (ran.folder / "heatmap-toytask-a.svg").read_text(encoding="utf-8").startswith("<svg")
    assert figure(ran, names[0], "-o", "f.pdf").out == "f.pdf\n"


def test_another_figure_is_refused_with_a_suggestion(ran):
    assert "unknown figure 'heatmap toytask'; did you mean 'heatmap toytask a'?" in error(
        figure(ran, "heatmap", "toytask")
    )


def test_a_figure_that_there_cannot_be_is_refused_with_the_reason(ran):
    why = "no option is swept: no two results of one scheme differ in one option alone"
    assert error(figure(ran, "sweep", "toytask", "a")) == f"error: there is no figure 'sweep toytask a': {why}"


def test_another_ending_is_refused_before_rows_are_read(bench):
    assert error(figure(bench, "heatmap", "-o", "f.jpg")) == "error: f.jpg does not end in .svg, .pdf or .png"
