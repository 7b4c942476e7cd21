from datetime import UTC, datetime

from tests.rows import row
from zsqbench.reports.cellpage import render


def lines_of(**changes):
    return render(row(**changes)).splitlines()


def test_a_result_stands_first_with_its_drop():
    lines = lines_of(
        cell="t:m:g:q:s:0",
        metrics={"top1": 91.25, "agreement": 92.0},
        finished=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        published={"value": 90.5, "citation": "A paper"},
        clipped={"logits": 0.012},
    )
    assert lines[:6] == [
        "t:m:g:q:s:0",
        "done, 2026-01-02 03:04 UTC (suite demo)",
        "top1 91.25; float 98, drop 6.75",
        "agreement 92",
        "published: 90.50 (A paper)",
        "clipped: 1.2 % of output logits",
    ]


def test_a_failed_cell_tells_its_reason_and_where_the_traceback_is():
    lines = lines_of(status="failed", reason="quantize: oh", traceback="Traceback ...", metrics={})
    place = lines.index("why")
    assert lines[place + 1] == "  quantize: oh"
    assert lines[place + 2].startswith("  the traceback is at the end; `--format json` has it")
    assert "Traceback ..." not in lines


def test_a_failed_cell_without_a_traceback_says_so():
    lines = lines_of(status="failed", reason="no such file", metrics={})
    assert "  there is no traceback: the reason says what to correct" in lines
    assert "  no traceback" not in " ".join(lines_of(status="impossible", reason="no batch normalisation"))


def test_options_that_the_suite_set_are_marked_also_of_what_a_quantizer_goes_on_from():
    start = {"method": "rtn", "version": 1, "options": {"bits": None, "on": True}, "changed": {"on": True}}
    quantizer = {"method": "ste", "options": {"lr": 0.1, "steps": [1, 2]}, "changed": {"lr": 0.1}, "start": start}
    text = render(row(methods={"quantizer": quantizer}, settings={"threads": 1}))
    assert (
        """methods (* set by the suite)
  quantizer ste
    * lr: 0.1
      steps: 1, 2
    starts from rtn (version 1)
        bits: none
      * on: true
  settings: threads 1"""
        in text
    )


def test_data_network_and_tensors_are_told_in_numbers():
    lines = lines_of(
        data={"evaluated": 900, "digest": "d" * 64, "images": 64, "calibrated": 32},
        model_facts={"parameters": 17254, "classes": 10, "input_size": [1, 16, 16], "random_weights": True},
        tensors={"quantized_weights": 3, "quantized_activations": 4, "mean_weight_bits": 4.5, "size_mb": 0.01},
        data_free=False,
    )
    assert "  900 evaluated samples (data dddddddddddd)" in lines
    assert "  64 calibration images, 32 of them read" in lines
    assert "  the generator was given real images, so the result is not data-free" in lines
    assert "  resnet20: 17,254 parameters, 10 classes, images 1 x 16 x 16" in lines
    assert "  its weights are random" in lines
    weights = "weights have 4.5 bits on average, 0.01 MB in all"
    assert f"  3 weights and 4 activations quantized; {weights}" in lines


def test_steps_have_seconds_memory_and_a_short_key():
    lines = lines_of(
        keys={"quantize": "a" * 64},
        seconds={"quantize": 1.5},
        peak_memory={"quantize": 5 * 10**8},
        environment={"device": "cpu", "torch": "2"},
    )
    place = lines.index("steps")
    assert [line.split() for line in lines[place + 2 : place + 4]] == [
        ["quantize", "1.50", "s", "500", "MB", "a" * 12],
        ["on", "cpu,", "with", "torch", "2"],
    ]


def test_notes_and_what_was_not_run_are_told():
    lines = lines_of(notes=["a note"], footnotes=["a footnote"], not_run={"onnxruntime": "no package"})
    assert lines[-8:] == [
        "not run",
        "  onnxruntime: no package",
        "",
        "footnotes",
        "  a footnote",
        "",
        "notes",
        "  a note",
    ]


def test_what_is_not_known_has_no_heading():
    assert "notes" not in lines_of(data={}, methods={})
    assert "measured on" not in lines_of(data={}, methods={})
