"""The leaderboard as data: methods by task, model and scheme, and what a mark or a bold figure means."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from zsqbench.methods import Settings
from zsqbench.reports.figures import Figure
from zsqbench.reports.results import Result
from zsqbench.scheme import FLOAT

Control = Literal["negative control", "positive control", "real data, not data-free", "float control"]


CONTROLS: Mapping[str, Control] = {
    "float": "float control",
    "positive": "positive control",
    "negative": "negative control",
}
"""How a table calls the controls that methods declare to be."""


class ColumnKind(StrEnum):
    """The numbers of a column: results, the best epochs by the evaluated images, what papers say, or other figures."""

    MEASURED = auto()
    ORACLE = auto()
    PUBLISHED = auto()
    FIGURE = auto()


BESIDE = (ColumnKind.ORACLE, ColumnKind.PUBLISHED)
"""The columns that may stand beside one of results, in their order, before other figures. They compete with none."""


T = TypeVar("T")


MIXED = "mixed"
"""The word for cells in which weights that a network is sensitive to have more bits than the scheme says."""


SEVERITY = ("failed", "interrupted", "impossible", "excluded")
"""Which status a cell of the table shows where its seeds differ: the first of these."""


BELOW_CONTROL = "below the negative control"
"""The footnote of a method that is worse than a negative control, such as noise, with the same quantizer."""


ORACLE = (
    "oracle: the best epoch, chosen on the evaluated images themselves, which nobody without them can do; it is what "
    "released trainers print, and no result"
)
"""The note that says what a column of this kind is."""


@dataclass(frozen=True)
class Row:
    """A method: generator and quantizer as the suite calls them, and all in which they differ from their defaults."""

    generator: str
    generator_details: str
    quantizer: str
    quantizer_details: str
    settings: str
    control: Control | None

    @classmethod
    def of(cls, result: Result) -> "Row":
        """The row that a result stands in."""
        generator = result.methods.get("generator", {})
        kinds = [method.get("control") for method in (result.methods.get("quantizer", {}), generator)]
        control: Control | None = next((CONTROLS[kind] for kind in kinds if kind), None)
        if control in (None, "positive control") and not result.data_free:
            control = "real data, not data-free"
        return cls(
            generator=result.generator or "none",
            generator_details=details_of(result.generator, generator),
            quantizer=result.quantizer,
            quantizer_details=details_of(result.quantizer, result.methods.get("quantizer", {})),
            settings=changed_settings(result),
            control=control,
        )

    @property
    def labels(self) -> tuple[str, str, str]:
        """Generator, quantizer and settings as the table shows them."""
        control = self.control or ""
        of_generator, of_quantizer = ("", control) if control == "float control" else (control, "")
        return (
            _with_details(self.generator, self.generator_details, of_generator),
            _with_details(self.quantizer, self.quantizer_details, of_quantizer),
            self.settings,
        )

    @property
    def apart_from_images(self) -> tuple[str, str, str]:
        """What a method shares with its negative control."""
        return self.quantizer, self.quantizer_details, self.settings


@dataclass(frozen=True)
class Column:
    """Where methods are compared. Two schemes are never in one column, nor are a result and what is no result.

    A result of mixed precision shares one with others of its mean bits and size only.
    """

    task: str
    model: str
    scheme: str
    kind: ColumnKind = ColumnKind.MEASURED
    mixed: str = ""
    """Where a method gave single weights more bits than the scheme says: `mixed`, then what came of it."""
    figure: str = ""
    """The name of the figure, in a column of such."""

    @classmethod
    def of(cls, result: Result) -> "Column":
        """The column that a result stands in, without the sizes that `grouped` adds."""
        return cls(result.task, result.model, result.scheme, mixed=MIXED if _is_mixed(result) else "")

    @property
    def unsized(self) -> "Column":
        """The same without mean bits and size."""
        return replace(self, mixed=MIXED) if self.mixed else self


@dataclass(frozen=True)
class Entry:
    """What a method reached in a column: the seeds that are done, and why others are not; or what a paper says."""

    values: tuple[float, ...]
    drops: tuple[float, ...]
    status: str
    reasons: tuple[str, ...]
    """One line for each thing that happened, deduplicated."""
    calibrated: int | None = None
    remarks: tuple[str, ...] = ()
    """Lines that whoever reads the number must know; it counts all the same."""
    stated: float | None = None
    """The deviation that a paper states."""

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that are done."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds that are done; none for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else self.stated

    @property
    def drop(self) -> float | None:
        """Mean loss against the float network."""
        return statistics.fmean(self.drops) if self.drops else None


@dataclass(frozen=True)
class Table:
    """The leaderboard as data; every format is made from this."""

    suite: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    entries: Mapping[tuple[Row, Column], Entry]
    floats: Mapping[Column, float]
    """The metric of the float network, where it was measured."""
    random_models: frozenset[str]
    caption: str
    """What a reader has to know who sees nothing but the table; what is bold comes after it."""
    measured: tuple[str, ...]
    """What was measured, on what, and calibrated on what."""
    published: tuple[str, ...] = ()
    """Where published values are from."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The figures that were asked for, by name."""

    @cached_property
    def means(self) -> dict[tuple[Row, Column], float]:
        """Means of results at the precision that is shown: methods that look equal are equal."""
        results = {place: entry.mean for place, entry in self.entries.items() if place[1].kind is ColumnKind.MEASURED}
        return {place: round(mean, 2) for place, mean in results.items() if mean is not None}

    @cached_property
    def below_control(self) -> dict[tuple[Row, Column], bool]:
        """True where a method is worse than its negative control, the best one where there are several.

        It has no place where either of them has no mean.
        """
        controls = highest(
            ((row.apart_from_images, column.unsized), mean)
            for (row, column), mean in self.means.items()
            if row.control == "negative control"
        )
        return {
            (row, column): row.control != "negative control" and mean < controls[row.apart_from_images, column.unsized]
            for (row, column), mean in self.means.items()
            if (row.apart_from_images, column.unsized) in controls
        }

    @cached_property
    def best(self) -> frozenset[tuple[Row, Column]]:
        """Where no data-free method is better.

        Controls do not compete, nor does what is below the negative control, nor a mean over the seeds that survived.
        """
        means = {
            (row, column): mean
            for (row, column), mean in self.means.items()
            if row.control is None
            and column.scheme != FLOAT.name
            and not self.below_control.get((row, column))
            and not self.entries[row, column].reasons
        }
        top = highest((column, mean) for (_, column), mean in means.items())
        return frozenset((row, column) for (row, column), mean in means.items() if mean == top[column])

    @cached_property
    def footnotes(self) -> dict[str, int]:
        """What cells have to say beside their number, each text once, numbered as a reader meets them."""
        texts = unique(text for row in self.rows for column in self.columns for text in self.remarks(row, column))
        return {text: number for number, text in enumerate(texts, start=1)}

    def remarks(self, row: Row, column: Column) -> tuple[str, ...]:
        """Why seeds did not run, what to know of the number, and that it is below its control; or a paper's remark."""
        entry = self.entries.get((row, column))
        below = (BELOW_CONTROL,) if self.below_control.get((row, column)) else ()
        return (*entry.reasons, *entry.remarks, *below) if entry else ()

    @property
    def bold(self) -> str:
        """What bold means."""
        which = f" that is not {BELOW_CONTROL}" if self.below_control else ""
        return f"bold: the best data-free method of a column{which}; controls do not compete"

    @property
    def notes(self) -> list[str]:
        """What was measured, and what the marks mean."""
        controls = {row.control for row in self.rows}
        marks = {
            self.bold: self.best,
            "negative control: what every method must beat": "negative control" in controls,
            "positive control: a reference that has more than methods have": "positive control" in controls,
            "real data, not data-free: positive control, calibrated on real images": "real data, not data-free"
            in controls,
            "float control: nothing is quantized, so it must reproduce the float network": "float control" in controls,
            "random weights: the network was never trained, its weights are seeded random numbers": self.random_models,
            ORACLE: any(column.kind is ColumnKind.ORACLE for column in self.columns),
        }
        figures = (figure.note for figure in self.figures.values() if figure.note)
        return [*self.measured, *(text for text, occurs in marks.items() if occurs), *figures, *self.published]

    def number(self, column: Column, number: float) -> str:
        """A number of a column as it is printed."""
        return self.figures[column.figure].text(number) if column.figure else f"{number:.2f}"

    def head(self, column: Column) -> tuple[str, str, str]:
        """Task, model and scheme as the table shows them."""
        mark = " (random weights)" if column.model in self.random_models else ""
        kind = "" if column.kind is ColumnKind.MEASURED else f" ({column.kind})"
        mixed = f" ({column.mixed})" if column.mixed else ""
        if column.kind is ColumnKind.FIGURE:
            kind = f" {self.figures[column.figure].head}"
        return column.task, column.model + mark, column.scheme + mixed + kind


def grouped(results: Iterable[Result]) -> dict[tuple[Row, Column], list[Result]]:
    """Results by method and column: the seeds of one are together.

    A column of mixed precision has the mean bits and size of the weights of those that are done.
    """
    groups: dict[tuple[Row, Column], list[Result]] = {}
    for result in results:
        groups.setdefault((Row.of(result), Column.of(result)), []).append(result)
    return {
        (row, replace(column, mixed=_sized(group)) if column.mixed else column): group
        for (row, column), group in groups.items()
    }


def _is_mixed(result: Result) -> bool:
    """True if its quantizer, or one that this starts from, leaves its work to another, at other bits."""
    method: Mapping[str, Any] = result.methods.get("quantizer", {})
    while "start" in method:
        method = method["start"]
    return "over" in method


def _sized(group: Sequence[Result]) -> str:
    """`mixed: 4.8 bits, 2.66 MB`, the means over seeds that are done; `mixed` alone where none is."""
    done = [result.tensors for result in group if result.status == "done" and "size_mb" in result.tensors]
    if not done:
        return MIXED
    bits = statistics.fmean(tensors["mean_weight_bits"] for tensors in done)
    return f"{MIXED}: {bits:.1f} bits, {statistics.fmean(tensors['size_mb'] for tensors in done):.3g} MB"


def changed_settings(result: Result) -> str:
    """The settings that are not the default."""
    changed = {name: value for name, value in result.settings.items() if value != getattr(Settings(), name, None)}
    return ", ".join(_option(name, value) for name, value in changed.items())


def details_of(label: str | None, method: Mapping[str, Any]) -> str:
    """`dgh, 128 images, 150 iterations`: the method where the suite has a name of its own, and what is not default."""
    name = [] if method.get("method", label) == label else [str(method["method"])]
    others = {name: method[name] for name in ("start", "over") if name in method}
    options = {
        option: f"{option} {_label(value, others[option])}" if option in others else _option(option, value)
        for option, value in method.get("changed", {}).items()
    }
    return ", ".join([*name, *options.values()])


def _label(label: str, method: Mapping[str, Any]) -> str:
    return _with_details(label, details_of(label, method))


def _option(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, int) and words.endswith("s"):  # 64 images, but batch size 64
        return f"{value} {words}"
    if isinstance(value, str):
        path = PurePath(value)
        return f"{words} {path.name if path.is_absolute() else value}"  # where a file lies differs between machines
    return f"{words} {json.dumps(value)}"


def _with_details(label: str, *details: str) -> str:
    given = ", ".join(detail for detail in details if detail)
    return f"{label} ({given})" if given else label


def unique(values: Iterable[T]) -> list[T]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def highest(pairs: Iterable[tuple[T, float]]) -> dict[T, float]:
    """The largest value of each key."""
    highest: dict[T, float] = {}
    for key, value in pairs:
        highest[key] = max(value, highest.get(key, value))
    return highest


def listed(values: Iterable[Any]) -> str:
    """Each value once, with commas."""
    return ", ".join(str(value) for value in unique(values))
