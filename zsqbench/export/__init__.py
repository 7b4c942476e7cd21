"""From a quantized network to a file that ships: ONNX with QuantizeLinear and DequantizeLinear, checked and timed.

Read it in this order: options.py (what can be asked for), integers.py (a student as integer hardware computes it),
symbols.py (the same in ONNX's words), tidying.py over storedweights.py, bounds.py and graph.py (the form that runtimes
fuse), exporting.py (all of it, into a file), script.py (which runs it), runtime.py (ONNX Runtime), structure.py (what
runs with integers), comparison.py (the file beside the simulation) and latency.py. All but the first need the extra
`onnx`; images.py, which writes calibration images for other tools, does not.
"""

import importlib.util

OPSET = 21
"""The operator set of ONNX that files are written in: the first with integers of 4 and 16 bits, and one that released
runtimes know."""

IR_VERSION = 10
"""The version of ONNX's file format that goes with it."""

MOST_OPSET = 25

NEEDED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")

INSTALL = "pip install 'zsqbench[onnx]'"


def missing() -> str | None:
    """The line on a package that exporting needs and that is not installed; none where all are there."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed: {INSTALL}" if absent else None
