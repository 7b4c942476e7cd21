"""From result rows to a table: methods by task, model and scheme, with spread over seeds, drop and what failed."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.reports.results import Result
from zsqbench.scheme import FLOAT

Control = Literal["negative control", "real data, not data-free", "float control"]

ColumnKind = Literal["measured", "oracle", "published"]


BESIDE: tuple[ColumnKind, ...] = ("oracle", "published")
"""The columns that may stand beside one of results, in their order."""


T = TypeVar("T")

METRICS = {
    "top1": "top-1 accuracy in percent",
    "top5": "top-5 accuracy in percent",
    "mAP": "COCO's mean average precision (IoU 0.5 to 0.95) in percent",
}
"""What a metric is called in a table; another one goes by its own name."""

SEVERITY = ("failed", "interrupted", "impossible", "excluded")
"""Which status a cell of the table shows where its seeds differ: the first of these."""

BELOW_CONTROL = "below the negative control"
"""The footnote of a method that is worse than noise with the same quantizer."""

ORACLE = (
    "oracle: the best epoch, chosen on the evaluated images themselves, which nobody without them can do; it is what "
    "released trainers print, and no result"
)
"""What a column of this kind is."""


@dataclass(frozen=True)
class Row:
    """A method: generator and quantizer as the suite calls them, and all in which they differ from their defaults."""

    generator: str
    generator_details: str
    quantizer: str
    quantizer_details: str
    settings: str
    control: Control | None

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
    """Where methods are compared. Two schemes are never in one column, nor are a result and what is no result."""

    task: str
    model: str
    scheme: str
    kind: ColumnKind = "measured"
    """Beside results: the best epoch by the evaluated images (oracle), and what papers say (published)."""


@dataclass(frozen=True)
class Entry:
    """What a method reached in a column: the seeds that are done, and why others are not; or what a paper says."""

    values: tuple[float, ...]
    drops: tuple[float, ...]
    status: str
    reasons: tuple[str, ...]
    """One line for each thing that happened, deduplicated."""
    calibrated: int | None = None
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

    @cached_property
    def means(self) -> dict[tuple[Row, Column], float]:
        """Means of results at the precision that is shown: methods that look equal are equal."""
        results = {place: entry.mean for place, entry in self.entries.items() if place[1].kind == "measured"}
        return {place: round(mean, 2) for place, mean in results.items() if mean is not None}

    @cached_property
    def below_control(self) -> dict[tuple[Row, Column], bool]:
        """Whether a method is worse than noise with the same quantizer, the best such noise where there are several.

        It has no place where either of them has no mean.
        """
        controls = _highest(
            ((row.apart_from_images, column), mean)
            for (row, column), mean in self.means.items()
            if row.control == "negative control"
        )
        return {
            (row, column): row.control != "negative control" and mean < controls[row.apart_from_images, column]
            for (row, column), mean in self.means.items()
            if (row.apart_from_images, column) in controls
        }

    @cached_property
    def best(self) -> frozenset[tuple[Row, Column]]:
        """Where no data-free method is better.

        Controls do not compete, nor does what is worse than noise, nor a mean over the seeds that survived.
        """
        means = {
            (row, column): mean
            for (row, column), mean in self.means.items()
            if row.control is None
            and column.scheme != FLOAT.name
            and not self.below_control.get((row, column))
            and not self.entries[row, column].reasons
        }
        highest = _highest((column, mean) for (_, column), mean in means.items())
        return frozenset((row, column) for (row, column), mean in means.items() if mean == highest[column])

    @cached_property
    def footnotes(self) -> dict[str, int]:
        """What cells have to say beside their number, each text once, numbered as a reader meets them."""
        texts = _unique(text for row in self.rows for column in self.columns for text in self.remarks(row, column))
        return {text: number for number, text in enumerate(texts, start=1)}

    def remarks(self, row: Row, column: Column) -> tuple[str, ...]:
        """Why seeds of a cell did not run, and whether it is worse than noise; or what a paper adds to its value."""
        entry = self.entries.get((row, column))
        below = (BELOW_CONTROL,) if self.below_control.get((row, column)) else ()
        return (*entry.reasons, *below) if entry else ()

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
            "negative control: Gaussian noise in place of generated images": "negative control" in controls,
            "real data, not data-free: positive control, calibrated on real images": "real data, not data-free"
            in controls,
            "float control: nothing is quantized, so it must reproduce the float network": "float control" in controls,
            "random weights: the network was never trained, its weights are seeded random numbers": self.random_models,
            ORACLE: any(column.kind == "oracle" for column in self.columns),
        }
        return [*self.measured, *(text for text, occurs in marks.items() if occurs), *self.published]

    def head(self, column: Column) -> tuple[str, str, str]:
        """Task, model and scheme as the table shows them."""
        mark = " (random weights)" if column.model in self.random_models else ""
        kind = "" if column.kind == "measured" else f" ({column.kind})"
        return column.task, column.model + mark, column.scheme + kind


def build_table(results: Sequence[Result]) -> Table:
    """Group rows by method and column. Raises ZSQBenchError where there are none."""
    if not results:
        raise ZSQBenchError("there are no results yet; run the suite first: zsqbench run SUITE")
    groups: dict[tuple[Row, Column], list[Result]] = {}
    for result in results:
        groups.setdefault((_row(result), _column(result)), []).append(result)
    entries: dict[tuple[Row, Column], Entry] = {}
    for (row, column), group in groups.items():
        entries[row, column] = _entry(group)
        for kind, entry in zip(BESIDE, (_oracle(group), _published(group)), strict=True):
            if entry is not None:
                entries[row, replace(column, kind=kind)] = entry
    there = {column for _, column in entries}
    columns = [each for _, column in groups for each in (column, *(replace(column, kind=kind) for kind in BESIDE))]
    return Table(
        suite=_listed(result.suite for result in results),
        rows=tuple(_unique(row for row, _ in groups)),
        columns=tuple(column for column in _unique(columns) if column in there),
        entries=entries,
        floats=_floats(results),
        random_models=frozenset(result.model for result in results if result.model_facts.get("random_weights")),
        caption=_caption(results),
        measured=tuple(_measured(results)),
        published=tuple(_sources(results)),
    )


def _row(result: Result) -> Row:
    generator = result.methods.get("generator", {})
    control: Control | None = None
    if result.methods.get("quantizer", {}).get("method") == "fp32":
        control = "float control"
    elif not result.data_free:
        control = "real data, not data-free"
    elif generator.get("method") == "noise":
        control = "negative control"
    return Row(
        generator=result.generator or "none",
        generator_details=_details(result.generator, generator),
        quantizer=result.quantizer,
        quantizer_details=_details(result.quantizer, result.methods.get("quantizer", {})),
        settings=_settings(result),
        control=control,
    )


def _settings(result: Result) -> str:
    """The settings that are not the default."""
    changed = {name: value for name, value in result.settings.items() if value != getattr(Settings(), name, None)}
    return ", ".join(_option(name, value) for name, value in changed.items())


def _column(result: Result) -> Column:
    return Column(result.task, result.model, result.scheme)


def _entry(group: Sequence[Result]) -> Entry:
    done = [result for result in group if result.status == "done"]
    rest = [(result.status, _one_line(result.reason)) for result in group if result.status != "done"]
    share = {what: f"{rest.count(what)} of {len(group)} seeds " if done else "" for what in rest}
    worst = min((status for status, _ in rest), key=SEVERITY.index, default="done")
    return Entry(
        values=tuple(result.value for result in done if result.value is not None),
        drops=tuple(result.drop for result in done if result.drop is not None),
        status="done" if done else worst,
        reasons=tuple(f"{share[what]}{what[0]}: {what[1]}" for what in _unique(rest)),
        calibrated=next((int(n) for result in group if (n := result.data.get("calibrated")) is not None), None),
    )


def _oracle(group: Sequence[Result]) -> Entry | None:
    """The best epochs of seeds that are done, by the evaluated images; none where no seed was asked for them."""
    found = [(result.oracle_value, result.float_value) for result in group if result.status == "done"]
    values = tuple(value for value, _ in found if value is not None)
    drops = tuple(full - value for value, full in found if value is not None and full is not None)
    return Entry(values, drops, "done", ()) if values else None


def _published(group: Sequence[Result]) -> Entry | None:
    """What a paper says, none where it says nothing; the seeds of a cell hold the same."""
    told = next((result.published for result in group if result.published), None)
    if told is None:
        return None
    drops = (told["float"] - told["value"],) if "float" in told else ()
    notes = (told["note"],) if "note" in told else ()
    return Entry((told["value"],), drops, "done", notes, stated=told.get("std"))


def _floats(results: Sequence[Result]) -> dict[Column, float]:
    """What the float network reaches, and what it is published to reach; the first row of a column counts."""
    floats: dict[Column, float] = {}
    for result in results:
        if result.float_value is not None:
            floats.setdefault(_column(result), result.float_value)
        if "float" in result.published:
            floats.setdefault(replace(_column(result), kind="published"), result.published["float"])
    return floats


def _sources(results: Sequence[Result]) -> Iterable[str]:
    """A line for each paper: which of its tables, and how it is cited."""
    tables: dict[str, list[str]] = {}
    for result in results:
        if result.published:
            tables.setdefault(result.published["citation"], []).append(result.published["source"])
    for citation, sources in tables.items():
        yield f"published: {_listed(sources)}, as its authors measured it: {citation}"


def _details(label: str | None, method: Mapping[str, Any]) -> str:
    """`dgh, 128 images, 150 iterations`: the method where the suite has a name of its own, and what is not default."""
    name = [] if method.get("method", label) == label else [str(method["method"])]
    start = method.get("start")
    options = {
        option: _option(option, value) if option != "start" or start is None else f"start {_label(value, start)}"
        for option, value in method.get("changed", {}).items()
    }
    return ", ".join([*name, *options.values()])


def _label(label: str, method: Mapping[str, Any]) -> str:
    return _with_details(label, _details(label, method))


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


def _one_line(text: str | None) -> str:
    return " ".join(text.split()) if text else "no reason was given"


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _highest(pairs: Iterable[tuple[T, float]]) -> dict[T, float]:
    highest: dict[T, float] = {}
    for key, value in pairs:
        highest[key] = max(value, highest.get(key, value))
    return highest


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in _unique(values))


def _seeds(results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results if result.seed is not None})
    if len(seeds) > 1:
        return f"mean ± sample standard deviation over seeds {_listed(seeds)}"
    return f"seed {seeds[0]}" if seeds else "unseeded"


def _metrics(results: Sequence[Result]) -> str:
    return _listed(METRICS.get(result.metric, result.metric) for result in results if result.metric) or "no metric"


def _caption(results: Sequence[Result]) -> str:
    tasks, schemes = (_listed(getattr(result, axis) for result in results) for axis in ("task", "scheme"))
    return (
        f"Suite {_listed(result.suite for result in results)}: {_metrics(results)} on {tasks} at {schemes}; "
        f"{_seeds(results)}; in parentheses the difference from the float network"
    )


def _measured(results: Sequence[Result]) -> Iterable[str]:
    for task in _unique(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        counts = (result.data.get("evaluated") for result in of_task)  # a failed row may have that of the float network
        evaluated = _listed(count for count in counts if count is not None)
        yield f"{task}: {_metrics(of_task)}, {evaluated or 'no'} samples evaluated"
    yield f"{_seeds(results)}; in parentheses the difference from the float network"
    yield from _calibrated(results)
    yield from _speeds(results)
    yield from _disagreements(results)


def _calibrated(results: Sequence[Result]) -> Iterable[str]:
    users: dict[int, list[str]] = {}
    for result in results:
        if result.generator and result.data.get("calibrated"):
            users.setdefault(result.data["calibrated"], []).append(result.generator)
    if len(users) == 1:
        yield f"calibration sets of {next(iter(users))} images"
    elif users:
        yield "calibration sets of " + "; ".join(f"{count} images ({_listed(names)})" for count, names in users.items())


def _speeds(results: Sequence[Result]) -> Iterable[str]:
    """Where cells differ in settings, what each setting costs: mean seconds over the distinct steps of a method."""
    if len({_settings(result) for result in results}) < 2:  # noqa: PLR2004
        return
    for kind, axis in (("generate", "generator"), ("quantize", "quantizer")):
        steps: dict[str, dict[str, dict[str, float]]] = {}
        for result in results:
            if result.status == "done" and kind in result.seconds:
                of_method = steps.setdefault(getattr(result, axis), {})
                of_method.setdefault(_settings(result) or "default settings", {})[result.keys[kind]] = result.seconds[
                    kind
                ]
        for method, settings in steps.items():
            means = {text: statistics.fmean(seconds.values()) for text, seconds in settings.items()}
            default = means.get("default settings")
            texts = [
                f"{text} {mean:.2f}" + (f" ({mean / default:.2f} x)" if default and text != "default settings" else "")
                for text, mean in means.items()
            ]
            yield f"mean seconds to {kind} with {method}: {'; '.join(texts)}"


def _disagreements(results: Sequence[Result]) -> Iterable[str]:
    floats: dict[str, set[float]] = {}
    for result in results:
        if result.float_value is not None:
            floats.setdefault(f"{result.task} {result.model}", set()).add(result.float_value)
    for where, values in floats.items():
        if len(values) > 1:
            yield f"{where}: float accuracy differs between rows ({_listed(sorted(values))}); run the suite again"
