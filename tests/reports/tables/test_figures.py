import csv
import io
import json

import pytest
from rows import markdown_cells, records, row

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.tables.figures import find_figures
from zsqbench.reports.tables.leaderboard import leaderboard
from zsqbench.reports.tables.tabulation import Layout

FORMS = ["md", "csv", "html", "latex", "json"]
NOT_RUN = "not run: pip install 'zsqbench[onnx]'"


def costly(value=91.0, **changes):
    """A row with other metrics, costs and sizes."""
    return row(
        value,
        **{
            "metrics": {"top1": value, "agreement": value - 1, "onnxruntime/p50_ms": 5.6},
            "float_metrics": {"top1": 98.0, "onnxruntime/p50_ms": 10.5},
            "seconds": {"baseline": 50.0, "generate": 2.0, "start": 1.0, "quantize": 0.5, "evaluate": 70.0},
            "peak_memory": {"baseline": 2**40, "generate": 300 * 2**20, "start": 1, "quantize": 400 * 2**20},
            "tensors": {"hash": "h", "bits": "b", "size_mb": 2.5},
            "model_facts": {"parameters": 5_000_000},
        }
        | changes,
    )


def cells(results, *columns):
    """The cells of figures of a table with one column of results: heads, float network, methods."""
    lines = [line for line in leaderboard(results, "md", Layout(columns)).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in lines[place].strip("|").split("|")][3:] for place in (0, *range(2, len(lines)))]


def test_a_figure_stands_after_each_column_of_results_with_its_unit_and_the_float_network():
    names = ("agreement", "onnxruntime/p50_ms", "seconds", "memory", "size")
    heads, floats, method = cells([costly()], *names)
    of = "resnet20 hw/w4a4"
    units = ("agreement (%)", "onnxruntime/p50_ms", "seconds (s)", "memory (MiB)", "size (MB)")
    assert heads == [f"{of} {name}" for name in units]
    assert floats == ["", "10.50", "", "", "20.00"]
    assert method == ["90.00", "5.60", "3.50", "400", "2.50"]


def test_each_column_of_results_has_its_own():
    heads, *_ = cells([costly(), costly(scheme="hw/w8a8")], "agreement")
    assert heads == [
        "resnet20 hw/w4a4 agreement (%)",
        "resnet20 hw/w8a8",
        "resnet20 hw/w8a8 agreement (%)",
    ]


def test_seeds_are_mean_and_deviation():
    assert cells([costly(90.0, seed=0), costly(92.0, seed=1)], "agreement")[2] == ["90.00 ± 1.41"]


def test_a_single_step_can_be_asked_for():
    assert cells([costly()], "seconds/evaluate", "memory/generate")[2] == ["70.00", "300"]


def test_a_name_that_no_row_has_is_one_line_that_lists_what_there_is():
    with pytest.raises(ZSQBenchError) as error:
        leaderboard([costly()], "md", Layout(["agrement"]))
    assert str(error.value) == (
        "unknown column 'agrement' in --columns; did you mean 'agreement'? known: agreement, memory, memory/baseline, "
        "memory/evaluate, memory/generate, memory/quantize, memory/start, onnxruntime/p50_ms, recovered, "
        "seconds, seconds/baseline, seconds/evaluate, seconds/generate, seconds/quantize, seconds/start, size, top1"
    )


def test_where_no_row_is_done_no_name_is_unknown():
    failed = row(status="failed", reason="no", metrics={})
    assert cells([failed], "agreement")[2] == [""]


def test_what_a_row_lacks_is_empty_and_a_failed_one_shows_no_figure():
    results = [costly(), row(generator="dgh"), costly(generator="genie", status="failed", reason="no")]
    assert [line[0] for line in cells(results, "agreement")[2:]] == ["90.00", "", ""]


def test_what_was_not_run_says_so_with_the_reason_as_a_footnote():
    results = [row(not_run={"onnxruntime": NOT_RUN}), row(generator="dgh", not_run={"onnxruntime": NOT_RUN})]
    text = leaderboard(results, "md", Layout(["onnxruntime/top1"]))
    assert [line[0] for line in cells(results, "onnxruntime/top1")[2:]] == ["not run [1]", "not run [1]"]
    assert text.count(f"- [1] {NOT_RUN}") == 1
    assert f"- onnxruntime/...: {NOT_RUN}" in leaderboard(results, "md")


def test_a_result_is_bold_whatever_its_figures_are():
    results = [costly(not_run={"onnxruntime": NOT_RUN}), costly(80.0, generator="dgh")]
    assert markdown_cells(results)[2][2].startswith("**91.00")
    lines = leaderboard(results, "md", Layout(["onnxruntime/top1", "seconds"])).splitlines()
    assert ["**91.00" in line for line in lines if line.startswith("| zeroq")] == [True]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_has_figures(form):
    text = leaderboard([costly(91.0), costly(77.0, generator="dgh")], form, Layout(["agreement", "seconds"]))
    assert all(number in text for number in ("90.0", "76.0", "3.5"))
    assert "agreement" in text


def test_records_have_figures_by_name_and_the_reason_where_there_is_none():
    results = [costly(not_run={"onnxruntime": NOT_RUN})]
    columns = ["agreement", "onnxruntime/top1", "size"]
    (record,) = json.loads(leaderboard(results, "json", Layout(columns)))["records"]
    assert [record[name] for name in columns] == [90.0, None, 2.5]
    assert (record["size_float"], record["agreement_std"]) == (20.0, None)
    assert record["onnxruntime/top1_reason"] == NOT_RUN
    (line,) = csv.DictReader(io.StringIO(leaderboard(results, "csv", Layout(columns))))
    assert (line["agreement"], line["onnxruntime/top1"], line["onnxruntime/top1_reason"]) == ("90.0", "", NOT_RUN)
    assert "agreement" not in records(results)[0]


def test_units_are_known_by_the_last_part_of_a_name_and_a_name_counts_once():
    results = [costly(metrics={"top1": 1.0, "onnxruntime/top1": 1.0, "mAP50": 1.0, "samples": 9.0})]
    names = ["onnxruntime/top1", "mAP50", "samples", "mAP50"]
    assert [figure.head for figure in find_figures(names, results)] == ["onnxruntime/top1 (%)", "mAP50 (%)", "samples"]


def test_costs_and_sizes_are_explained_below():
    text = leaderboard([costly()], "md", Layout(["seconds", "agreement"]))
    assert "- seconds: of all steps that lead to the quantized network" in text
    assert "- size:" not in text


def test_a_number_just_below_zero_is_zero():
    (recovered,) = find_figures(["recovered"], [costly()])
    assert [recovered.text(number) for number in (-1e-14, 0.0, -0.06)] == ["0.0", "0.0", "-0.1"]
