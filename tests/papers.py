"""A paper with a table, the suite that asks for it, and rows of its cells, for tests of what is reproduced."""

import base64

from zsqbench.methods.base import NetworkTraits
from zsqbench.reports.published import DataSet, Source, Value
from zsqbench.reports.results import Result
from zsqbench.suite import load_suite

SUITE = """
name: paper
models:
  net: {base: resnet20}
tasks:
  digits: {method: classification, data: digits}
generators:
  zeroq: {images: 64, iterations: 100}
  real: {images: 64}
quantizers:
  ste: {epochs: 4}
matrix:
  - {task: digits, model: net, generator: [zeroq, real], quantizer: [rtn, ste], scheme: hw/w4a4, seed: [0, 1, 2]}
  - {task: digits, model: net, quantizer: squant, scheme: hw/w4a4}
"""

IMAGES = 1000
DATA = {"digits": DataSet(title="digits", images=IMAGES, source="here", at="anywhere")}
FLOAT = 95.0


def suite_of(folder, text=SUITE, overrides=()):
    """A suite file of this text, read."""
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path, overrides=overrides, find_files=False)


def value(number, generator="zeroq", quantizer="rtn", scheme="hw/w4a4", **changes):
    """A published value of the network."""
    fields = {"table": "1", "data": "digits", "model": "net", "metric": "top1", "std": None, "note": ""}
    axes = {"generator": generator, "quantizer": quantizer, "scheme": scheme, "value": number}
    return Value(**fields | axes | changes)


FLOAT_VALUE = value(FLOAT, "none", "fp32", "float")


def source(*values):
    return Source("Paper", "Someone: Something, 2020", values)


def cells_of(suite, generator="zeroq", quantizer="rtn"):
    return [cell for cell in suite.cells if (cell.generator or "none", cell.quantizer) == (generator, quantizer)]


def row_of(suite, cell, number, images=IMAGES, **changes):
    """The row of a cell of which this share of images, in percent, is right."""
    right = round(number * images / 100)
    bits = ((1 << right) - 1 << -images % 8).to_bytes(-(-images // 8))
    network = NetworkTraits((1, 16, 16), 10)
    resolved = {
        axis: variant.resolved(network, suite.schemes[cell.scheme] if axis == "quantizer" else None)
        for axis, variant in suite.methods(cell).items()
    }
    fields = {
        "suite": suite.name,
        "cell": cell.name,
        "definition": suite.definition(cell),
        **{axis: getattr(cell, axis) for axis in ("task", "model", "generator", "quantizer", "scheme", "seed")},
        "settings": cell.settings.model_dump(mode="json"),
        "status": "done",
        "metric": "top1",
        "metrics": {"top1": 100 * right / images},
        "float_metrics": {"top1": FLOAT},
        "methods": {axis: variant.describe() for axis, variant in resolved.items()},
        "model_facts": {"classes": 10, "input_size": [1, 16, 16]},
        "data": {"evaluated": images, "digest": "photos", "images": 64},
        "correct": base64.b64encode(bits).decode(),
    }
    return Result(**fields | changes)


def rows_of(suite, number, generator="zeroq", quantizer="rtn", **changes):
    """The rows of a method with all its seeds."""
    return [row_of(suite, cell, number, **changes) for cell in cells_of(suite, generator, quantizer)]


def with_option(row, axis, **options):
    """A row whose method has other options."""
    method = dict(row.methods[axis])
    return row.model_copy(update={"methods": {**row.methods, axis: method | {"options": method["options"] | options}}})
