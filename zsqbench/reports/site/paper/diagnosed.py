"""Diagnostics for figures: the plain data of an artifact, parsed once into typed objects."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")

QUANTILES = ("p5", "p25", "median", "p75", "p95")
"""The quantiles of an output range."""


@dataclass(frozen=True)
class Difficulty:
    """Images by their difficulty for the float network, 1 - p."""

    by: str
    """The class of the probability p: the `label`, or the `predicted class`."""
    counts: tuple[int, ...]
    """Numbers of images in bins of equal width from 0 to 1."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """See `Diagnosed.of`."""
        return cls(str(data["by"]), _counts(data["counts"]))


@dataclass(frozen=True)
class OfLayer:
    """A number of a layer: the BN gap, in stored deviations, or the entropy of patch similarities."""

    layer: str
    value: float | None
    """The number. None: it is not finite."""

    @classmethod
    def all_of(cls, layers: Iterable[Mapping[str, Any]], number: str) -> tuple[Self, ...]:
        """The number of this name of all layers. See `Diagnosed.of`."""
        return tuple(cls(str(data["layer"]), _number(data[number])) for data in layers)


@dataclass(frozen=True)
class OutputRange:
    """Largest minus smallest value of an output, over images."""

    output: str
    quantiles: tuple[float | None, ...]
    """The values at `QUANTILES`. None: a value is not finite."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """See `Diagnosed.of`."""
        found = tuple(map(_number, data["quantiles"]))
        if len(found) != len(QUANTILES):
            raise ValueError(f"{len(found)} quantiles; expected {len(QUANTILES)}")
        return cls(str(data["output"]), found)


@dataclass(frozen=True)
class Images:
    """The diagnostics of some images. None: a part is missing, and `absent` has the reason by its name."""

    count: int
    difficulty: Difficulty | None
    bn_gaps: tuple[OfLayer, ...] | None
    """BN gaps, in order from the image on."""
    patch_entropies: tuple[OfLayer, ...] | None
    """Entropies of a network without batch normalisation, from the image on. None: also in older diagnostics."""
    output_ranges: tuple[OutputRange, ...] | None
    class_balance: tuple[int, ...] | None
    """Numbers of images that the float network assigns to each class."""
    absent: Mapping[str, str]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """See `Diagnosed.of`."""
        return cls(
            count=int(data["images"]),
            difficulty=_some(Difficulty.of, data["difficulty"]),
            bn_gaps=_some(lambda layers: OfLayer.all_of(layers, "gap"), data["bn_gaps"]),
            patch_entropies=_some(lambda blocks: OfLayer.all_of(blocks, "entropy"), data.get("patch_similarities")),
            output_ranges=_some(lambda outputs: tuple(map(OutputRange.of, outputs)), data["output_ranges"]),
            class_balance=_some(lambda balance: _counts(balance["predicted"]), data["class_balance"]),
            absent=dict(data["absent"]),
        )


@dataclass(frozen=True)
class Diagnosed:
    """The diagnostics of a set, and of the real images that it is compared with."""

    of_set: Images
    real: Images | None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Read the data of an artifact. Raises LookupError, TypeError, ValueError or ArithmeticError."""
        return cls(Images.of(data["set"]), _some(Images.of, data["real"]))


def _some(read: Callable[[Any], T], data: object) -> T | None:
    return None if data is None else read(data)


def _counts(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(int, values))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
