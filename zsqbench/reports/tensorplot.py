"""A picture of the errors of a quantized network's tensors, in network order."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zsqbench.reports.plots import REAL, SET, short_name
from zsqbench.scheme import TensorError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 60
"""The most tensors whose names fit below a plot."""


def layers_figure(tensors: Sequence[TensorError], title: str) -> "Figure":
    """Signal to error of activations (above) and of weights (below), from the image to the outputs.

    The figure is made without pyplot and its global state. A tensor without an error, or without images, has no mark.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=100)
    grid = figure.add_gridspec(2, 1, left=0.07, right=0.98, top=0.88, bottom=0.2, hspace=0.75)
    lines: Sequence[tuple[str, str, Sequence[tuple[str, str, str, str]]]] = (
        (
            "activation",
            "activations",
            (
                ("own", "own rounding", SET, "."),
                ("own_real", "own rounding, real images", REAL, "."),
                ("sqnr", "calibration images", SET, "o"),
                ("sqnr_real", "real images", REAL, "s"),
            ),
        ),
        ("weight", "weights, beside the float weights", (("sqnr", "weights", SET, "^"),)),
    )
    for row, (kind, heading, curves) in enumerate(lines):
        axes = figure.add_subplot(grid[row, 0])
        axes.set_title(heading, fontsize=10, y=1.02)
        _plot(axes, [tensor for tensor in tensors if tensor.kind == kind], curves)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    return figure


def _plot(axes: "Axes", tensors: Sequence[TensorError], curves: Sequence[tuple[str, str, str, str]]) -> None:
    for name, label, colour, marker in curves:
        values = [getattr(tensor, name) for tensor in tensors]
        if any(value is not None for value in values):
            known = [math.nan if value is None else value for value in values]
            style = ":" if name.startswith("own") else "-"
            axes.plot(known, color=colour, marker=marker, markersize=4, linewidth=1, linestyle=style, label=label)
    stride = max(1, math.ceil(len(tensors) / _NAMED))
    names = [short_name(tensor.name) for tensor in tensors[::stride]]
    axes.set_xticks(range(0, len(tensors), stride), names, rotation=90)
    axes.tick_params(labelsize=7)
    axes.set_ylabel("signal to error in dB", fontsize=8)
    axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1 and axes.lines:
        axes.legend(fontsize=8, frameon=False, ncols=len(curves))
