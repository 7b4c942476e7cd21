"""Small pictures of the evaluation samples that flip."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zsqbench.reports.site.flips import Flip, Flips
from zsqbench.reports.site.pages import PICTURES, Picture
from zsqbench.reports.site.source import Viewer

SHOWN = 12
"""At most so many samples of each kind have a picture."""
SIDE = 112
"""Pixels of the longer side of a picture."""


def flip_pictures(found: Flips, viewer: Viewer) -> list[Picture]:
    """Pictures of the first samples of each kind. Each sample has one copy for all cells that show it."""
    return [
        Picture(
            _words(flip, other, word, viewer.classes),
            f"{PICTURES}/evaluated-{viewer.data[:12]}-{flip.sample}.jpg",
            partial(_save, viewer, flip.sample),
        )
        for flip, other, word in (
            *((flip, flip.after, "not") for flip in found.lost[:SHOWN]),
            *((flip, flip.before, "no longer") for flip in found.won[:SHOWN]),
        )
    ]


def _words(flip: Flip, other: int | None, word: str, classes: Sequence[str]) -> str:
    """`12: cat, not dog`: a cat is taken for a dog. `12: cat, no longer dog`: it was taken for a dog before."""
    label, wrong = _named(flip.label, classes), _named(other, classes)
    if label is None:
        return str(flip.sample)
    return f"{flip.sample}: {label}, {word} {wrong}" if wrong else f"{flip.sample}: {label}"


def _named(value: int | None, classes: Sequence[str]) -> str | None:
    """The name of a class. None: not known, or nothing was predicted."""
    if value is None or value < 0:
        return None
    return classes[value] if value < len(classes) else str(value)


def _save(viewer: Viewer, place: int, path: Path) -> None:
    """A sample as a JPEG. Small samples are enlarged pixel by pixel."""
    from PIL.Image import Resampling

    image = viewer.image(place).convert("RGB")
    longest = max(image.size)
    way = Resampling.NEAREST if longest < SIDE else Resampling.LANCZOS
    width, height = (max(1, round(side * SIDE / longest)) for side in image.size)
    image.resize((width, height), way).save(path, "JPEG", quality=85)
