"""Make the rows and columns of a table from results: methods, and the columns in which they are compared."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum, auto
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from zsqbench.methods import Settings
from zsqbench.reports.results import Result
from zsqbench.suite import NO_GENERATOR

T = TypeVar("T")


Axis = Literal["task", "model", "scheme"]
"""The values for each of which a table can be made."""

Control = Literal["negative control", "positive control", "real data, not data-free", "float control"]


CONTROLS: Mapping[str, Control] = {
    "float": "float control",
    "positive": "positive control",
    "negative": "negative control",
}
"""The names in a table for the kinds of controls."""


class ColumnKind(StrEnum):
    """The numbers of a column: results, the best epochs by the evaluation images, published values, other figures."""

    MEASURED = auto()
    ORACLE = auto()
    PUBLISHED = auto()
    FIGURE = auto()


BESIDE = (ColumnKind.ORACLE, ColumnKind.PUBLISHED)
"""The columns that may be beside a column of results, in this order, before other figures. They do not compete."""


MIXED = "mixed"
"""The word for cells in which sensitive weights have more bits than the scheme says."""


@dataclass(frozen=True)
class Row:
    """A method: generator and quantizer by their names in the suite, and their differences from the defaults."""

    generator: str
    generator_details: str
    quantizer: str
    quantizer_details: str
    settings: str
    control: Control | None

    @classmethod
    def of(cls, result: Result) -> "Row":
        """The row of a result in the table."""
        generator = result.methods.get("generator", {})
        kinds = [method.get("control") for method in (result.methods.get("quantizer", {}), generator)]
        control: Control | None = next((CONTROLS[kind] for kind in kinds if kind), None)
        if control in (None, "positive control") and not result.data_free:
            control = "real data, not data-free"
        return cls(
            generator=result.generator or NO_GENERATOR,
            generator_details=details_of(result.generator, generator),
            quantizer=result.quantizer,
            quantizer_details=details_of(result.quantizer, result.methods.get("quantizer", {})),
            settings=changed_settings(result),
            control=control,
        )

    @property
    def labels(self) -> tuple[str, str, str]:
        """Generator, quantizer and settings in the form of the table."""
        control = self.control or ""
        of_generator, of_quantizer = ("", control) if control == "float control" else (control, "")
        return (
            _with_details(self.generator, self.generator_details, of_generator),
            _with_details(self.quantizer, self.quantizer_details, of_quantizer),
            self.settings,
        )

    @property
    def apart_from_images(self) -> tuple[str, str, str]:
        """The parts that a method shares with its negative control."""
        return self.quantizer, self.quantizer_details, self.settings


@dataclass(frozen=True)
class Name:
    """The name of a method in charts and sentences."""

    generator: str
    """`none` for a quantizer without images."""
    quantizer: str

    @property
    def words(self) -> str:
        """`dgh with hptq`, or the quantizer alone."""
        return self.quantizer if self.generator == NO_GENERATOR else f"{self.generator} with {self.quantizer}"


def names_of(rows: Iterable[Row]) -> dict[Row, Name]:
    """A unique name for each method. It has details and settings only if other methods share its short name."""
    alike: dict[Name, list[Row]] = {}
    for row in unique(rows):
        alike.setdefault(Name(row.generator, row.quantizer), []).append(row)
    return {
        row: short if len(methods) == 1 else Name(row.labels[0], ", ".join(filter(None, row.labels[1:])))
        for short, methods in alike.items()
        for row in methods
    }


@dataclass(frozen=True)
class Column:
    """A column, in which methods are compared. Two schemes, or a result and another figure, never share a column.

    A result of mixed precision only shares a column with results of the same mean bits and size.
    """

    task: str
    model: str
    scheme: str
    kind: ColumnKind = ColumnKind.MEASURED
    mixed: str = ""
    """`mixed` if a method gave single weights more bits than the scheme, then the mean bits and size."""
    figure: str = ""
    """The name of the figure, in a column of figures."""

    @classmethod
    def of(cls, result: Result) -> "Column":
        """The column of a result, without the sizes that `grouped` adds."""
        return cls(result.task, result.model, result.scheme, mixed=MIXED if _is_mixed(result) else "")

    @property
    def label(self) -> str:
        """The scheme, and the sizes of mixed precision."""
        return f"{self.scheme} {self.mixed}".strip()

    @property
    def unsized(self) -> "Column":
        """The column without mean bits and size."""
        return replace(self, mixed=MIXED) if self.mixed else self


def grouped(results: Iterable[Result]) -> dict[tuple[Row, Column], list[Result]]:
    """Results by method and column. The seeds of one cell are together.

    A column of mixed precision has the mean bits and size of the weights of done results.
    """
    groups: dict[tuple[Row, Column], list[Result]] = {}
    last: dict[tuple[str | None, ...], tuple[Result, list[Result]]] = {}
    for result in results:
        names = (result.task, result.model, result.scheme, result.generator, result.quantizer)
        if names in last and _is_alike(result, last[names][0]):
            last[names][1].append(result)  # true for nearly all seeds of a cell; describing a method takes longer
        else:
            group = groups.setdefault((Row.of(result), Column.of(result)), [])
            group.append(result)
            last[names] = result, group
    return {
        (row, replace(column, mixed=_sized(group)) if column.mixed else column): group
        for (row, column), group in groups.items()
    }


def _is_alike(one: Result, other: Result) -> bool:
    """True if two results with the same names are in the same row and column."""
    return one.methods == other.methods and one.settings == other.settings and one.data_free == other.data_free


def _is_mixed(result: Result) -> bool:
    """True if its quantizer, or a quantizer of its starts, lets another quantizer do the work at other bits."""
    method: Mapping[str, Any] = result.methods.get("quantizer", {})
    while "start" in method:
        method = method["start"]
    return "over" in method


def _sized(group: Sequence[Result]) -> str:
    """`mixed: 4.8 bits, 2.66 MB`, as means over done seeds. Only `mixed`: no seed is done."""
    done = [result.tensors for result in group if result.status == "done" and "size_mb" in result.tensors]
    if not done:
        return MIXED
    bits = statistics.fmean(tensors["mean_weight_bits"] for tensors in done)
    return f"{MIXED}: {bits:.1f} bits, {statistics.fmean(tensors['size_mb'] for tensors in done):.3g} MB"


_DEFAULTS = Settings()


def changed_settings(result: Result) -> str:
    """The settings that differ from the default."""
    changed = {name: value for name, value in result.settings.items() if value != getattr(_DEFAULTS, name, None)}
    return ", ".join(_option(name, value) for name, value in changed.items())


def details_of(label: str | None, method: Mapping[str, Any]) -> str:
    """`dgh, 128 images, 150 iterations`: the method, if the suite gives it another name, and non-default options."""
    name = [] if method.get("method", label) == label else [str(method["method"])]
    others = {name: method[name] for name in ("start", "over") if name in method}
    options = {
        option: f"{option} {_label(value, others[option])}" if option in others else _option(option, value)
        for option, value in method.get("changed", {}).items()
    }
    return ", ".join([*name, *options.values()])


def _label(label: str, method: Mapping[str, Any]) -> str:
    return _with_details(label, details_of(label, method))


def _option(name: str, value: object) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, int) and words.endswith("s"):  # 64 images, but batch size 64
        return f"{value} {words}"
    if isinstance(value, str):
        path = PurePath(value)
        return f"{words} {path.name if path.is_absolute() else value}"  # the path of a file differs between machines
    return f"{words} {json.dumps(value)}"


def _with_details(label: str, *details: str) -> str:
    given = ", ".join(detail for detail in details if detail)
    return f"{label} ({given})" if given else label


def unique(values: Iterable[T]) -> list[T]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def listed(values: Iterable[object]) -> str:
    """Each value once, with commas."""
    return ", ".join(str(value) for value in unique(values))
