import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rows import method, seen

from zsqbench.reports.comparison.comparison import compare_selected
from zsqbench.reports.comparison.differences import ClassLoss, OptionDifference
from zsqbench.reports.comparison.page import gate_line, left_out_lines, render
from zsqbench.reports.comparison.selected import Selected
from zsqbench.store import Store


def described(name, **options):
    return {"generator": {**method(name, **options), "options": options}, "quantizer": method("rtn")}


def make(margin=None, more=(), **changes):
    rows = [
        seen(range(60 + seed), seed=seed, methods=described("dgh", images=64), seconds={"generate": 1.26})
        for seed in (0, 1)
    ]
    rows += [
        seen(range(10, 90), generator="real", seed=seed, methods=described("real", images=32), **changes)
        for seed in (0, 1)
    ]
    store = Store(Path("nowhere"))
    sides = (
        Selected.of(name, text, Path("results"), [*rows, *more], (), store)
        for name, text in (("A", "dgh"), ("B", "real"))
    )
    return compare_selected("demo", *sides, store, margin)


def with_classes(comparison, *classes, why=None):
    (pair,) = comparison.pairs
    return replace(comparison, pairs=(replace(pair, classes=classes, no_classes=why),))


TEXT = """\
digits resnet20 hw/w4a4
B is better, for these seeds.

           A                B
---------  ---------------  ----------------
generator  dgh (64 images)  real (32 images)
quantizer  rtn              rtn
top1       60.50 ± 0.71     80.00 ± 0.00
seconds    1.3
size (MB)                   0.250

differs           A    B
----------------  ---  ----
generator         dgh  real
generator.images  64   32

B - A: +19.50 points, 95 % interval +7.63 to +31.37, p = 0.0015, for these seeds (100 images, seeds 0, 1)
from A to B: 20 right to wrong, 59 wrong to right, summed over 2 seeds
classes that lose most: 3 by 12.50 points of 1,000 images, 4 by 1.00 points of 1 image"""


def test_a_comparison_as_text():
    found = with_classes(make(tensors={"size_mb": 0.25}), ClassLoss(3, 1000, -12.5), ClassLoss(4, 1, -1.0))
    assert render(found, "text") == TEXT


def lines(comparison):
    return render(comparison, "text").splitlines()


def test_classes_that_are_not_known_or_do_not_lose_are_said_to_be():
    assert lines(with_classes(make(), why="they are secret"))[-1] == "classes that lose are not known: they are secret"
    assert lines(with_classes(make()))[-1] == "no class loses"


def test_a_gate_is_told_with_what_decides():
    assert lines(make(margin=1))[-1] == "gate, margin 1: holds (90 % interval +9.56 to +29.44)"
    (pair,) = make().pairs
    failing = replace(pair, margin=0.5, difference=replace(pair.difference, narrow=(-1.234, 2.0)))
    assert gate_line(failing) == (
        "the gate fails at digits resnet20 hw/w4a4: B may be worse than A by 1.23 points (lower end of the 90 % "
        "interval), and the margin is 0.5"
    )


def test_columns_that_are_not_compared_are_told():
    found = make(more=[seen([1], scheme="hw/w8a8")])
    line = "not compared: digits resnet20 hw/w8a8: only A selects it"
    assert left_out_lines(found) == lines(found)[-1:] == [line]
    assert f"<li>{line}</li>" in render(found, "html")


def test_several_columns_are_said_to_be_tested_alone():
    more = [seen(range(9), scheme="hw/w8a8", generator=name) for name in ("dgh", "real")]
    line = "each of 2 columns is tested alone: of 20 without a difference, about 1 has p below 5 % by chance"
    assert lines(make(more=more))[-1] == line
    assert f"<li>{line}</li>" in render(make(more=more), "html")
    assert "tested alone" not in render(make(), "text")


def test_a_comparison_as_json_is_plain_data():
    (record,) = json.loads(render(make(margin=2), "json"))
    (pair,) = make().pairs
    found = pair.difference
    same = {name: getattr(found, name) for name in ("points", "low", "high", "p", "scope", "images", "mid_p")}
    assert {name: record[name] for name in same} == same
    assert record["narrow"] == list(found.narrow)
    assert (record["seeds"], record["margin"], record["passes"]) == ([0, 1], 2, True)
    assert record["verdict"] == "B is better, for these seeds"
    assert (record["right_to_wrong"], record["wrong_to_right"]) == (20, 59)
    assert record["flips"][0] == {"seed": 0, "right_to_wrong": 10, "wrong_to_right": 30}
    assert record["options"][1] == {"name": "generator.images", "a": 64, "b": 32}
    assert record["a"] == {
        "task": "digits",
        "model": "resnet20",
        "scheme": "hw/w4a4",
        "generator": "dgh (64 images)",
        "quantizer": "rtn",
        "settings": "",
        "cells": ["digits:resnet20:dgh:rtn:hw/w4a4:0", "digits:resnet20:dgh:rtn:hw/w4a4:1"],
        "mean": 60.5,
        "deviation": pytest.approx(0.7071, abs=1e-4),
        "seconds": 1.26,
        "size_mb": None,
    }


class Cells(HTMLParser):
    """The texts of tables by row, and all tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if data.strip() and self.lasttag in ("th", "td"):
            self.rows[-1].append(data.strip())


def test_a_comparison_as_html_says_what_the_text_says():
    text = render(make(), "html")
    found = Cells(text)
    assert ["top1", "60.50 ± 0.71", "80.00 ± 0.00"] in found.rows
    assert ["generator.images", "64", "32"] in found.rows
    assert "<strong>B is better, for these seeds.</strong>" in text
    assert "<title>demo: dgh (A), real (B)</title>" in text
    assert not {"script", "link", "img"} & found.tags
    assert all(f"<li>{line}</li>" in text for line in lines(make())[-3:])


def test_texts_of_rows_are_escaped_and_long_ones_cut():
    (pair,) = make().pairs
    options = (OptionDifference("<i>", "x" * 50, None), OptionDifference("list", [1, 2], {"a": True}))
    found = replace(make(), pairs=(replace(pair, options=options),))
    assert "&lt;i&gt;" in render(found, "html")
    assert "<i>" not in render(found, "html")
    assert [line.split() for line in lines(found) if line.startswith("<i>")] == [["<i>", "x" * 37 + "...", "-"]]
    assert json.loads(render(found, "json"))[0]["options"][0] == {"name": "<i>", "a": "x" * 50, "b": None}
