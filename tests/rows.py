"""Result rows, and what tables made of them hold, for tests of several files."""

import base64
import json
import math
from functools import cache

from zsqbench.reports.results import Result
from zsqbench.reports.tables.leaderboard import leaderboard

BELOW_CONTROL = "below the negative control"
NAN_IMAGES = {"status": "failed", "metrics": {}, "reason": "generate: images are NaN"}


def method(name, control=None, **changed):
    """The fields of a row about a method."""
    return {"method": name, "changed": changed, "control": control}


NOISE = method("noise", "negative")


IMAGES = 1000


@cache
def right(value, images=IMAGES):
    """Bits of a row for a share in percent: the first images are right, so that rows differ in as few as they can."""
    count, size = round(value * images / 100), math.ceil(images / 8)
    return base64.b64encode(((1 << count) - 1 << 8 * size - count).to_bytes(size)).decode()


def row(value=91.0, **changes):
    """A result of digits with this value; images that are called noise are a negative control."""
    generator = changes.get("generator", "zeroq")
    is_done = changes.get("status", "done") == "done"
    fields = {
        "suite": "demo",
        "cell": "some cell",
        "definition": "some hash",
        "task": "digits",
        "model": "resnet20",
        "generator": generator,
        "quantizer": "rtn",
        "scheme": "hw/w4a4",
        "seed": 0,
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": value},
        "float_metrics": {"top1": 98.0},
        "methods": {"quantizer": method("rtn")}
        | ({"generator": NOISE if generator == "noise" else method(generator)} if generator else {}),
        "data": {"evaluated": IMAGES, "calibrated": 1024},
        "correct": right(value, changes.get("data", {}).get("evaluated") or IMAGES) if is_done else None,
    }
    return Result(**fields | changes)


def result(cell="cell", **changes):
    """A row of a cell that is called like this, done and without methods."""
    values = {
        "suite": "s",
        "cell": cell,
        "definition": "d",
        "task": "t",
        "model": "m",
        "generator": None,
        "quantizer": "q",
        "scheme": "hw/w4a4",
        "seed": None,
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": 50.0},
        "float_metrics": {"top1": 60.0},
    }
    return Result(**values | changes)


def markdown_cells(results):
    """The table as lists of texts: heads, then rows."""
    lines = [line for line in leaderboard(results, "md").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def records(results):
    return json.loads(leaderboard(results, "json"))["records"]


def below_control(results):
    return [record["below_control"] for record in records(results)]


def with_quantizer(name, **changed):
    """The method descriptions of a row whose images are noise."""
    return {"generator": NOISE, "quantizer": method(name, **changed)}


CITATION = "Someone: Something, CVPR 2020"


def oracle(value, epoch=8):
    return {"epoch": epoch, "metrics": {"top1": value}, "of": 3}


def published(value, **changes):
    return {"value": value, "source": "Some, Table 1", "citation": CITATION, **changes}


def seen(right, images=100, **changes):
    """A row of a cell that is called as its fields say, of which these images are right."""
    fields = {"generator": "dgh", "seed": 0, "scheme": "hw/w4a4", "model": "resnet20", "quantizer": "rtn"} | changes
    axes = [fields["model"], fields["generator"] or "none", fields["quantizer"], fields["scheme"]]
    seed = "-" if fields["seed"] is None else fields["seed"]
    packed = sum(1 << images - 1 - image for image in right) << -images % 8
    given = {
        "cell": ":".join(["digits", *axes, str(seed)]),
        "correct": base64.b64encode(packed.to_bytes(-(-images // 8))).decode(),
        "data": {"evaluated": images, "digest": "photos"},
    }
    return row(100 * len(right) / images, **given | fields)
