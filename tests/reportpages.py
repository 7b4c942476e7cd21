"""Rows of a small suite as a report takes them, and what its pages hold."""

import json
import re
from pathlib import Path

from rows import CITATION, method, seen

from zsqbench.reports.site.source import Origin, Source
from zsqbench.store import Store

NASTY = "</script><b>& \u2028 'quantize': out of memory"
KEYS = {"baseline": "a" * 64, "quantize": "b" * 64, "evaluate": "c" * 64}
DGH = {
    "quantizer": {**method("rtn", bits=4), "options": {"bits": 4, "grid": "affine"}},
    "generator": method("dgh"),
}


def rows_of_a_suite():
    """Two schemes, a control, two seeds, and cells that are not done."""
    found = []
    for scheme, lost in (("hw/w4a4", 0), ("hw/w8a8", 10)):
        for seed in (0, 1):
            found += [
                seen(range(90 + seed - lost), scheme=scheme, seed=seed, seconds={"quantize": 2.0}, methods=DGH),
                seen(range(60 + seed), scheme=scheme, seed=seed, generator="noise", seconds={"quantize": 1.0}),
                seen(range(40, 95 + seed), scheme=scheme, seed=seed, generator="zeroq", seconds={"quantize": 8.0}),
            ]
    first = found[0].model_copy(
        update={
            "keys": KEYS,
            "published": {"value": 77.0, "source": "Some, Table 1", "citation": CITATION},
            "tensors": {"size_mb": 0.01},
        }
    )
    why = {"status": "failed", "metrics": {}, "reason": NASTY, "traceback": "Traceback\n  boom"}
    failed = seen([], generator="broken", **why).model_copy(update={"correct": None})
    excluded = seen([], generator="left_out", status="excluded", metrics={}, reason="too slow").model_copy(
        update={"correct": None}
    )
    return [first, *found[1:], failed, excluded]


def source_of(rows, home, without=()):
    return Source("demo", rows, tuple(without), Store(home), Origin("demo.yaml", home, Path("results")))


def content(path):
    """The data of a page."""
    text = path.with_suffix(".js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r"window\.page = (.*);\n", text, re.DOTALL)[1])


def part(page, title):
    return next(part for part in page["parts"] if part["title"] == title)
