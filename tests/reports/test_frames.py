import csv
import io
import json

import pandas as pd
import pytest

from zsqbench.reports.frames import FORMS, json_columns, render

ROWS = [
    {
        "cell": "a",
        "seed": 0,
        "kept": True,
        "grid": "affine",
        "scope": "all",
        "sizes": [1, 2],
        "by": {"x": 1.5},
        "no": None,
    },
    {"cell": "b", "seed": None, "kept": None, "grid": None, "scope": 4, "sizes": "ä, 1\n", "by": {}, "no": None},
    {"cell": "c", "seed": 2, "scope": False, "top1": 1 / 3, "finished": pd.Timestamp("2026-01-02T03:04:05Z")},
]


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS)


def same(a, b):
    """Equal in type and value; what is missing is missing in both."""
    return (a == b and type(a) is type(b)) or (not isinstance(a, list | dict) and pd.isna(a) and pd.isna(b))


def test_columns_of_several_types_are_named(frame):
    assert json_columns(frame) == ["scope", "sizes", "by"]


def test_what_parquet_hands_back_is_what_was_in_the_frame(frame):
    back = pd.read_parquet(io.BytesIO(render(frame, "parquet")))
    assert back.attrs["json_columns"] == ["scope", "sizes", "by"]
    for name in back.attrs["json_columns"]:
        back[name] = back[name].map(json.loads, na_action="ignore").astype(object)
    assert list(back.columns) == list(frame.columns)
    assert back["seed"].dtype == frame["seed"].dtype
    assert back["finished"].dtype.kind == "M"
    for name in frame.columns:
        for was, now in zip(frame[name], back[name], strict=True):
            assert same(was, now), (name, was, now)


def test_csv_has_every_digit_and_json_text_in_the_columns_of_several_types(frame):
    rows = list(csv.DictReader(io.StringIO(render(frame, "csv").decode(), newline="")))
    assert list(rows[0]) == list(frame.columns)
    assert [row["sizes"] for row in rows] == ["[1, 2]", '"ä, 1\\n"', ""]
    assert [row["scope"] for row in rows] == ['"all"', "4", "false"]
    assert [row["by"] for row in rows] == ['{"x": 1.5}', "{}", ""]
    assert [row["grid"] for row in rows] == ["affine", "", ""]
    assert [row["kept"] for row in rows] == ["True", "", ""]
    assert float(rows[2]["top1"]) == 1 / 3


def test_json_has_the_values_themselves_and_null_for_what_is_missing(frame):
    frame.loc[1, "top1"] = float("inf")
    rows = json.loads(render(frame, "json"))
    assert [row["sizes"] for row in rows] == [[1, 2], "ä, 1\n", None]
    assert [row["by"] for row in rows] == [{"x": 1.5}, {}, None]
    assert [row["scope"] for row in rows] == ["all", 4, False]
    assert [row["top1"] for row in rows] == [None, "Infinity", 1 / 3]
    assert [row["finished"] for row in rows] == [None, None, "2026-01-02T03:04:05Z"]


@pytest.mark.parametrize("form", FORMS)
def test_the_frame_is_left_as_it_is(frame, form):
    before = frame.copy(deep=True)
    render(frame, form)
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == {}
