"""Images of sets and real images as points. Images with similar features are near each other (DGH, Figure 2).

It is drawn on demand, because it needs the network.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.site.charts import Spec, Value
from zsqbench.reports.site.paper.figure import REAL, PaperFigure, number, panels, some, tips

if TYPE_CHECKING:
    import numpy as np

FIELDS = ("panel", "images", "x", "y")

SIDE = 260
"""Pixels of a panel's side."""
PERPLEXITY = 30
"""The perplexity of t-SNE, the default of scikit-learn. It is less for few images."""
FEWEST = 4
"""The fewest points for t-SNE."""


def embedding(sets: "Mapping[str, np.ndarray]", real: "np.ndarray | None", why: str, where: str) -> PaperFigure:
    """Features [N, F] of each set and of real images, laid out together by t-SNE, with a panel for each set.

    `why` says why there are no real images. Raises ZSQBenchError for fewer images than t-SNE can lay out.
    """
    names, left_out = some(list(sets), "sets", "first")
    parts = [(name, _finite(sets[name])) for name in names]
    parts += [] if real is None else [(REAL, _finite(real))]
    points = _laid_out([features for _, features in parts])
    rows: list[list[Value]] = []
    for (name, _), placed in zip(parts, points, strict=True):
        shown_in = names if name == REAL else [name]
        rows += [[panel, name, *(round(float(value), 2) for value in at)] for panel in shown_in for at in placed]
    title = f"{where}: features by t-SNE, of each set (blue) and of real images (grey){left_out}"
    if real is None:
        title = f"{where}: features of each set by t-SNE; no real images: {why}{left_out}"
    return PaperFigure.of(f"embedding {where}", title, FIELDS, rows, _spec(names))


def _finite(features: "np.ndarray") -> "np.ndarray":
    import numpy as np

    finite: np.ndarray = features[np.isfinite(features).all(axis=1)]
    return finite


def _laid_out(parts: "Sequence[np.ndarray]") -> "list[np.ndarray]":
    """Points [N, 2] of each part."""
    import numpy as np
    from sklearn.manifold import TSNE

    together = np.concatenate(list(parts))
    count, width = together.shape
    if count < FEWEST:
        raise ZSQBenchError(f"{count} images with finite features; expected {FEWEST} at least")
    start = "pca" if width > 1 else "random"
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    placed = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(together)
    return np.split(placed, np.cumsum([len(part) for part in parts])[:-1])


def _spec(names: Sequence[str]) -> Spec:
    bare = {"axis": {"labels": False, "ticks": False, "title": None}}
    place = {"x": number("x", "") | bare, "y": number("y", "") | bare, "tooltip": tips("images")}
    layers: list[Spec] = [
        {
            "transform": [{"filter": f"datum.images {test} '{REAL}'"}],
            "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.7, "color": color},
            "encoding": place,
        }
        for test, color in (("===", "#aaa"), ("!==", "#0072b2"))
    ]
    return panels("panel", names, layers, SIDE)
