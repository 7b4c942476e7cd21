import json
from dataclasses import replace

import pytest

from zsqbench.quant import Examination, Output
from zsqbench.reports.doctor import Accuracy, Checkup, render
from zsqbench.scheme import Inspection

FOUND = Examination(
    blocker=None,
    layers={"Conv2d": 2},
    norms={},
    bounded={"relu6": 1},
    unbounded={},
    channels={"a": 8, "b": 4},
    dead={},
    spread={"a": 100.0, "b": 2.0},
    still={},
    weights=1001,
    others=10,
    outputs=(Output((4, 10), -1.25, 3.0),),
)
BYTES = (
    "bytes: 4,044 in float32, 1,041 with weights at 8 bits, 541 with weights at 4 bits "
    "(all else in float32, scales not counted)"
)
STUDENTS = {"hw/w4a4": Inspection(None, 2, 3, ("a",), {})}


def checkup(found=FOUND, students=STUDENTS, **more):
    return Checkup(
        "net",
        (3, 8, 8),
        1011,
        random_weights=False,
        examination=found,
        students=students,
        **({"generators": {"noise": None}, "quantizers": {"hw/w4a4": {"rtn": None}}} | more),
    )


def test_a_plain_network_is_shown_without_warning_and_blocker():
    assert render(checkup()).splitlines() == [
        "net: 1,011 parameters, images 3 x 8 x 8",
        "layers: 2 Conv2d",
        "normalisations: none",
        "activation functions: 1 relu6",
        "output on seeded normal noise: [4, 10], -1.25 .. 3",
        BYTES,
        "",
        "scheme   weights  activations  folded  not folded  equals the network",
        "hw/w4a4  2        3            1       0           yes",
        "",
        "generators: noise",
        "quantizers at hw/w4a4: rtn",
        "",
        "no blocker",
    ]


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({"dead": {"b": 1}}, "dead channels, 1 in all: b (1 of 4)"),
        ({"still": {"n": 2, "m": 1}}, "variance at most eps in 3 channels of batch normalisations: n (2), m (1)"),
        (
            {"spread": {"a": 100.1, "b": 2e4}},
            "weight ranges of channels that differ by more than 100 x: b (2e+04 x), a (100 x)",
        ),
        ({"unbounded": {"relu": 3}}, "activation functions without bound: 3 relu"),
    ],
)
def test_each_finding_is_one_warning(changed, warning):
    made = checkup(replace(FOUND, **changed))
    assert (checkup().warnings, made.warnings, made.blockers) == ([], [warning], [])
    assert f"warning: {warning}" in render(made).splitlines()


def test_a_warning_names_a_few_layers():
    assert checkup(replace(FOUND, still=dict.fromkeys("abcdef", 1))).warnings == [
        "variance at most eps in 6 channels of batch normalisations: a (1), b (1), c (1), d (1) and 2 more"
    ]


def test_a_network_without_graph_has_one_blocker_at_all_schemes():
    students = dict.fromkeys(("hw/w4a4", "pot/w8a8"), Inspection(blocker="net cannot be traced"))
    made = checkup(replace(FOUND, blocker="net cannot be traced"), students)
    assert made.blockers == ["net cannot be traced"]
    lines = render(made).splitlines()
    assert not any(line.startswith("activation functions") for line in lines)
    assert "hw/w4a4                                             no" in lines
    assert lines[-1] == "blocker: net cannot be traced"


def test_a_blocker_names_the_schemes_that_it_is_of():
    departs = Inspection(blocker="'a' departs first")
    made = checkup(students={"x/w4a4": departs, "hw/w4a4": STUDENTS["hw/w4a4"], "y/w4a4": departs})
    assert made.blockers == ["at x/w4a4, y/w4a4: 'a' departs first"]


def test_outputs_that_are_not_finite_are_a_blocker():
    made = checkup(replace(FOUND, outputs=(Output((4, 10), None, None),)))
    assert made.blockers == ["outputs on seeded normal noise are NaN or infinite, so that they have no range"]
    assert "output on seeded normal noise: [4, 10], NaN or infinite" in render(made).splitlines()


def test_reasons_stand_once_for_the_names_that_they_hold_for():
    students = {
        name: Inspection(None, 2, 3, (), {"n": "it reads cat", "m": "it reads cat", "k": "it is called twice"})
        for name in ("hw/w4a4", "hw/w8a8")
    }
    quantizers = {name: {"rtn": None, "ste": "it is Monday", "ait": "it is Monday"} for name in students}
    lines = render(checkup(students=students, quantizers=quantizers, generators={})).splitlines()
    assert "not folded at hw/w4a4, hw/w8a8: n, m (it reads cat)" in lines
    assert "not folded at hw/w4a4, hw/w8a8: k (it is called twice)" in lines
    assert lines[-4:-1] == ["quantizers at hw/w4a4, hw/w8a8: rtn", "  not ste, ait: it is Monday", ""]


@pytest.mark.parametrize(
    ("accuracy", "line"),
    [
        (Accuracy("digits", "top1", 98.667), "float accuracy on digits: 98.67 top1"),
        (Accuracy("digits", "top1", None, "no data"), "float accuracy on digits: not measured, no data"),
    ],
)
def test_the_float_accuracy_is_shown_or_why_it_is_not_known(accuracy, line):
    made = checkup(accuracy=accuracy)
    assert (line in render(made).splitlines(), made.blockers) == (True, [])


def test_a_network_that_cannot_be_measured_is_blocked():
    made = checkup(accuracy=Accuracy("digits", "top1", None, blocker="10 classes are not 9"))
    assert made.blockers == ["10 classes are not 9"]
    assert "float accuracy on digits: not measured, see the blocker" in render(made).splitlines()


def test_notes_and_random_weights_are_told():
    text = render(replace(checkup(notes=["taken from ema"]), random_weights=True))
    assert "net: 1,011 parameters, random weights, images 3 x 8 x 8" in text
    assert "note: taken from ema" in text


def test_a_checkup_is_plain_data():
    found = json.loads(json.dumps(checkup(replace(FOUND, dead={"b": 1})).as_data()))
    assert found["size"] == {"32": 4044, "8": 1041, "4": 541}
    assert (found["blockers"], found["warnings"]) == ([], ["dead channels, 1 in all: b (1 of 4)"])
    assert found["students"]["hw/w4a4"]["weights"] == 2
    assert found["examination"]["outputs"] == [{"shape": [4, 10], "low": -1.25, "high": 3.0}]
