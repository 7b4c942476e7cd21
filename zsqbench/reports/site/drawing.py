"""A chart as a file for a paper."""

import json
from collections.abc import Callable
from pathlib import Path

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.site.charts import Spec

SCALE = 3
"""Pixels of a PNG for each pixel of the chart. It is sharp in print at 288 dots per inch."""


def check_figure_file(path: Path) -> None:
    """Raise ZSQBenchError for a file that no figure can be written to."""
    if path.suffix.lower() not in _RENDERERS:
        raise ZSQBenchError(f"{path} does not end in .svg, .pdf or .png")
    if not path.parent.is_dir():
        raise ZSQBenchError(f"there is no folder {path.parent} to write {path.name} to")


def draw(spec: Spec, path: Path) -> None:
    """Write a Vega-Lite spec with its data as SVG, PDF or PNG, by the file's ending. Nothing is fetched."""
    content = _RENDERERS[path.suffix.lower()](json.dumps(spec))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ZSQBenchError(f"cannot write {path}: {error.strerror}") from error


def _svg(spec: str) -> bytes:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])).encode()


def _pdf(spec: str) -> bytes:
    import vl_convert

    return bytes(vl_convert.vegalite_to_pdf(spec, allowed_base_urls=[]))


def _png(spec: str) -> bytes:
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=[]))


_RENDERERS: dict[str, Callable[[str], bytes]] = {".svg": _svg, ".pdf": _pdf, ".png": _png}
