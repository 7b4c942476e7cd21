import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from zsqbench.reports.tensorerrors import Analysis, render_layers, render_summary
from zsqbench.reports.tensorplot import layers_figure
from zsqbench.scheme import TensorError

INFINITE = "infinite: there is no error"

WEIGHT = TensorError("weight", "conv", "first_weight", 4, sqnr=20.0, own=20.0, clipped=0.0, codes=1.0, alone=0.02)
RELU = TensorError("activation", "relu", "relu", 4, 12.0, 6.0, 20.0, 10.0, 0.001, 0.05, codes=0.5)
EXACT = TensorError(
    "activation", "sum", "addend", 8, absent=dict.fromkeys(("sqnr", "sqnr_real", "own", "own_real"), INFINITE)
)


def analysis(*tensors, **changes):
    """An analysis of these tensors on 64 calibration images and 32 real ones."""
    fields = {"images": 64, "real": 32, "ranked": 16, "outputs": 11.0, "outputs_real": 5.5}
    fields |= {"rescaled": (), "absent": {}, "picture": Path("layers.png")}
    return Analysis(tensors, **fields | changes)


def lines_of(*tensors, **changes):
    return render_layers(analysis(*tensors, **changes)).splitlines()


def test_all_tensors_stand_in_a_table():
    head, _, titles, *rows = lines_of(WEIGHT, RELU, EXACT)[:6]
    assert head == "error by tensor, on 64 calibration images and 32 real ones that are not evaluated"
    assert titles.split("  ")[0] == "tensor"
    assert [row.split() for row in rows] == [
        ["conv", "weight", "first_weight", "4", "20.0", "0", "%", "100", "%", "0.02"],
        ["relu", "activation", "relu", "4", "12.0", "6.0", "20.0", "10.0", "0.1", "%", "5", "%", "50", "%"],
        ["sum", "activation", "addend", "8", "inf", "inf", "inf", "inf", "-", "-", "-"],
    ]


def test_the_worst_tensors_are_named_in_words():
    lines = lines_of(WEIGHT, RELU, EXACT)
    start = lines.index("the 2 worst by their own rounding:")
    assert lines[start + 1 : start + 3] == [
        (
            " 1. activation relu (relu, 4 bits) loses 10 % of its squares (10.0 dB) by its own rounding on real "
            "images; with all before it 6.0 dB; 5 % of its values lie beyond the grid; on the calibration images 20.0 "
            "dB; with all before it 12.0 dB; of 16 codes 8 are used"
        ),
        (
            " 2. weight conv (first_weight, 4 bits) differs from the float weight by 1 % of its squares (20.0 dB); "
            "alone it changes the outputs by 2 % of their squares (place 1 of 1)"
        ),
    ]
    assert lines[-1] == "layers.png"


def test_ten_are_named_the_worst_first():
    tensors = [replace(RELU, own=99.0, name=f"t{place}", own_real=float(place)) for place in range(12)]
    assert [tensor.name for tensor in analysis(*reversed(tensors)).worst] == [f"t{place}" for place in range(10)]


def test_a_summary_tells_outputs_and_the_worst():
    said = render_summary(analysis(WEIGHT, RELU)).splitlines()
    assert said[0] == "error by tensor: 2 quantized; outputs: 11.0 dB on the calibration images, 5.5 dB on real ones"
    assert said[1].startswith("worst by its own rounding: activation relu ")
    assert said[2].endswith("layers.png")


def test_what_is_not_there_is_said():
    why = "the cell has no calibration images"
    relu = replace(RELU, sqnr=None)
    text = render_layers(analysis(relu, images=None, ranked=None, outputs=None, absent={"images": why}))
    assert f"\nnot there: {why}\n" in text
    assert "\noutputs: 5.5 dB on real ones\n" in text
    assert "sensitivity" not in text
    assert "no images to measure them on" in render_layers(analysis(WEIGHT, images=None, real=None))


def test_outputs_without_an_error_are_infinitely_good():
    text = render_layers(analysis(EXACT, outputs=None, absent={"outputs": INFINITE}))
    assert "\noutputs: inf dB on the calibration images, " in text
    assert ("\nno tensor has an error of its own\n" in text, "not there" in text) == (True, False)


def test_a_sensitivity_without_end_is_shown():
    weight = replace(WEIGHT, alone=None, absent={"alone": "infinite: the outputs are not finite"})
    assert lines_of(weight)[3].endswith(" inf")


def test_rescaled_channels_are_told():
    assert any(line.startswith("rescaled: 1 pairs of layers ") for line in lines_of(WEIGHT, rescaled=("a to b",)))


def test_a_network_without_a_map_is_said_to_have_none():
    expected = "error by tensor: nothing was quantized, or the quantizer left no map of it"
    assert render_layers(analysis()) == render_summary(analysis()) == expected


def test_numbers_are_those_that_there_are():
    numbers = analysis(WEIGHT, RELU, replace(RELU, own_real=20.0), outputs=None).numbers()
    assert numbers == {
        "outputs_real": 5.5,
        "worst_weight": 20.0,
        "mean_weight": 20.0,
        "worst_activation": 10.0,
        "mean_activation": 15.0,
    }


def test_an_analysis_comes_back_from_plain_data():
    made = analysis(WEIGHT, EXACT)
    content = json.loads(json.dumps({**asdict(made), "picture": ""}))
    assert Analysis.of(content, made.picture) == made
    with pytest.raises(LookupError):
        Analysis.of({}, made.picture)


def test_the_picture_has_a_curve_for_each_set_and_a_gap_for_what_is_not_there():
    above, below = layers_figure([WEIGHT, RELU, EXACT], "title").axes
    assert [line.get_label() for line in above.lines] == [
        "own rounding",
        "own rounding, real images",
        "calibration images",
        "real images",
    ]
    assert [line.get_ydata()[0] for line in above.lines] == [20.0, 10.0, 12.0, 6.0]
    assert list(below.lines[0].get_ydata()) == [20.0]
    assert [label.get_text() for label in above.get_xticklabels()] == ["relu", "sum"]


def test_a_set_without_images_has_no_curve():
    above, _ = layers_figure([replace(RELU, sqnr=None, own=None)], "title").axes
    assert [line.get_label() for line in above.lines] == ["own rounding, real images", "real images"]
