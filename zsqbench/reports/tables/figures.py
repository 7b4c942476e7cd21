"""Columns beside results: the number of a row for a name, its unit, and its format."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.reports.results import Result
from zsqbench.steps import KINDS

MIB = 2**20
MEGABYTE = 1e6
FLOAT_BYTES = 4

RECOVERED = "recovered"
"""The figure that is computed from three results, in recovery.py."""

PERCENT = ("top1", "top5", "agreement", "equal", "equal_exact")
"""Metrics in percent, besides those of COCO (mAP..., mAR...). For onnxruntime/top1 the last part counts."""


@dataclass(frozen=True)
class Figure:
    """A number of a row that can have a column of its own."""

    name: str
    """Its name in options, and the head of its column."""
    of: Callable[[Result], float | None]
    """The number of a row. None: the row has none."""
    of_float: Callable[[Result], float | None]
    """The number of the float network."""
    unit: str = ""
    digits: int = 2
    """Decimals."""
    note: str = ""
    """The line below the table that explains the figure, if its name does not."""

    @property
    def head(self) -> str:
        """Its name with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, number: float) -> str:
        """A number of it in the format of a table."""
        return f"{round(number, self.digits) + 0:.{self.digits}f}"  # + 0 turns -0.0 into 0.0

    def why_absent(self, result: Result) -> str | None:
        """Why it was not measured for a row, if the row says so."""
        return result.not_run.get(self.name.partition("/")[0])


def find_figures(names: Iterable[str], results: Sequence[Result]) -> tuple[Figure, ...]:
    """The figures of these names, each once, in this order.

    A name is a metric of rows, `seconds`, `memory`, `size` or `recovered`. `seconds` and `memory` may be of a single
    step, such as `seconds/quantize`. Raises ZSQBenchError for a name that no row has, unless no row is done.
    """
    names = tuple(dict.fromkeys(names))
    known = _known(results)
    is_done = any(result.status == "done" for result in results)
    groups = {group for result in results for group in result.not_run}
    for name in names:
        if is_done and name not in known and name.partition("/")[0] not in groups:
            raise ZSQBenchError(unknown("column", name, [*known, *(f"{group}/..." for group in groups)], "--columns"))
    return tuple(map(_figure, names))


def _known(results: Sequence[Result]) -> set[str]:
    """All names for which rows have numbers."""
    metrics = {name for result in results for name in result.metrics}
    steps = {f"{cost}/{step}" for result in results for cost in ("seconds", "memory") for step in result.seconds}
    return {*metrics, *steps, *_TOTALS}


def _figure(name: str) -> Figure:
    cost, _, step = name.partition("/")
    if name in _TOTALS:
        return _TOTALS[name]
    if cost == "seconds":
        return Figure(name, lambda result: result.seconds.get(step), _nothing, unit="s")
    if cost == "memory":
        return Figure(name, lambda result: _mebibytes(result.peak_memory.get(step)), _nothing, unit="MiB", digits=0)
    last = name.rpartition("/")[2]
    unit = "%" if last in PERCENT or last.startswith(("mAP", "mAR")) else ""
    # a number that was measured beside it, such as onnxruntime/float_p50_ms
    beside = "/".join([*name.split("/")[:-1], f"float_{last}"])
    return Figure(
        name,
        lambda result: result.metrics.get(name),
        lambda result: result.float_metrics.get(name, result.metrics.get(beside)),
        unit,
    )


def _nothing(_: Result) -> None:
    """None, because the float network has no such number."""


def _making(result: Result) -> list[str]:
    """The steps that lead to the quantized network, by their names in the row, without steps that measure."""
    return [name for name in result.seconds if name not in KINDS or not (KINDS[name].final or KINDS[name].ships)]


def _seconds(result: Result) -> float | None:
    steps = _making(result)
    return sum(result.seconds[name] for name in steps) if steps else None


def _memory(result: Result) -> float | None:
    return _mebibytes(max((result.peak_memory.get(name, 0) for name in _making(result)), default=None))


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / MIB


def _size(result: Result) -> float | None:
    size = result.tensors.get("size_mb")
    return None if size is None else float(str(size))


def _float_size(result: Result) -> float | None:
    parameters = result.model_facts.get("parameters")
    return None if parameters is None else int(str(parameters)) * FLOAT_BYTES / MEGABYTE


_TOTALS = {
    "seconds": Figure(
        "seconds",
        _seconds,
        _nothing,
        unit="s",
        note="seconds: of all steps that lead to the quantized network, without those that measure it; a step that "
        "several cells share counts for each",
    ),
    "memory": Figure(
        "memory",
        _memory,
        _nothing,
        unit="MiB",
        digits=0,
        note="memory: the most that one of these steps took, of the GPU, or else of its whole process, torch included",
    ),
    "size": Figure(
        "size",
        _size,
        _float_size,
        unit="MB",
        note="size: weights at their bits, in 10^6 bytes, without scales, zero points and biases; of the float network "
        "all parameters in float32",
    ),
    RECOVERED: Figure(
        RECOVERED,
        _nothing,
        _nothing,
        unit="%",
        digits=1,
        note="recovered: 100 (x - noise) / (real - noise) with the same quantizer: noise is at 0, real images are at "
        "100",
    ),
}
