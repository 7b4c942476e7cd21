"""The curves that the steps of a cell logged, thinned to a visible number of points."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.bitwidths import RECONSTRUCTION, UnitLoss, unit_losses
from zsqbench.reports.results import Result
from zsqbench.reports.site import charts
from zsqbench.reports.site.charts import Chart, Columns, Value
from zsqbench.store import Store

MOST_POINTS = 300
"""Number of points of a curve that are drawn. The artifact has all."""

MOST_CURVES = 24
"""Number of curves of a step that are drawn. The artifact has all."""


@dataclass(frozen=True)
class Curves:
    """Charts with their data, and notes."""

    charts: Sequence[Chart] = ()
    data: Mapping[str, Columns] = field(default_factory=dict)
    """The data of charts by name."""
    notes: Sequence[str] = ()


def find_curves(row: Result, store: Store) -> Curves:
    """The curves of all steps of a row in the store. Curves of units are shown as losses before and after."""
    found: list[Chart] = []
    data: dict[str, Columns] = {}
    notes: list[str] = []
    for step, key in row.keys.items():
        kind = store.kind_of(key)
        if kind is None:
            continue
        try:
            logged = store.look(kind, key).curves
        except CorruptArtifactError as error:
            notes.append(f"{step}: {error}")
            continue
        if losses := unit_losses(logged):
            name = f"units {step}"
            data[name] = Columns(("stage", "unit", "when", "loss"), [line for each in losses for line in _both(each)])
            for stage in dict.fromkeys(each.stage for each in losses):
                title = f"{step}, {stage}: loss of each unit before and after it was reconstructed"
                found.append(charts.unit_losses(title, name, stage))
        others = {name: points for name, points in logged.items() if not name.startswith(RECONSTRUCTION) and points}
        if others:
            name = f"curves {step}"
            shown = list(others)[:MOST_CURVES]
            data[name] = Columns(
                ("curve", "step", "value"), [line for each in shown for line in _lines(each, others[each])]
            )
            found.append(charts.curves(f"{step}: curves", name))
            if len(others) > len(shown):
                notes.append(f"{step}: {len(shown)} of {len(others)} curves are drawn; its artifact {key[:12]} has all")
    return Curves(found, data, notes)


def _both(loss: UnitLoss) -> Iterator[list[Value]]:
    yield [loss.stage, loss.unit, "before", loss.before]
    yield [loss.stage, loss.unit, "after", loss.after]


def _lines(name: str, points: Sequence[tuple[int, float]]) -> Iterator[list[Value]]:
    """At most MOST_POINTS of the points, evenly, the first and the last among them."""
    stride = max((len(points) - 1) / (MOST_POINTS - 1), 1)
    count = min(len(points), MOST_POINTS)
    for place in range(count):
        step, value = points[round(place * stride)]
        yield [name, step, float(f"{value:.6g}")]
