"""Export a quantized network to a file for deployment: ONNX with QuantizeLinear and DequantizeLinear.

The file is also checked and timed. Read the modules in this order: options.py (the options), integers.py (a student as
integer hardware computes it), symbols.py (the student in operators of ONNX), tidying.py over storedweights.py,
bounds.py and graph.py (the form that runtimes fuse), exporting.py (write the file), script.py (a script that runs it),
runtime.py (ONNX Runtime), structure.py (the layers that run with integers), comparison.py (the file beside the
simulation) and latency.py. All but the first need the extra `onnx`. images.py, which writes calibration images for
other tools, does not need it.
"""

import importlib.util

OPSET = 21
"""The operator set of ONNX for files. It is the first with integers of 4 and 16 bits, and released runtimes know
it."""

IR_VERSION = 10
"""The matching version of the ONNX file format."""

MOST_OPSET = 25

NEEDED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")

INSTALL = "pip install 'zsqbench[onnx]'"


def missing() -> str | None:
    """A line on a package that exporting needs and that is not installed. None: all are installed."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed: {INSTALL}" if absent else None
