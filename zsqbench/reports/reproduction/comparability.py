"""Find if a published value is comparable with rows: their differences from the cells of a paper's suite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zsqbench.methods import Method, ModelSpec
from zsqbench.methods.base import DATA_SETS, NetworkTraits
from zsqbench.reports.published import DataSet, Value
from zsqbench.reports.results import Described, Result
from zsqbench.suite import Cell, Suite, Variant

FLOAT_TOLERANCE = 0.1
"""Allowed points between the measured and the stated float accuracy of the same network on the same images."""

KEPT_ONLY = frozenset({"keep_every"})
"""Options that only decide what is kept beside the result."""

BUDGET = frozenset({"batch", "epochs", "images", "iterations", "steps", "updates", "warmup"})
"""An option with one of these words in its name belongs to the budget."""

ORIGIN = frozenset({"name", "base", "file", "build", "weights", "float_accuracy"})
"""Fields for the origin or the expected accuracy of a network. The other fields describe its preprocessing."""

LONGEST = 3
"""At most so many options that differ are named."""

What = Literal["weights", "data", "weights or data", "budget", "options", "settings", "version", "definition", "method"]


@dataclass(frozen=True)
class Other:
    """A difference between the measured and the published setting."""

    what: What
    detail: str

    def __str__(self) -> str:
        return f"other {self.what} ({self.detail})"


@dataclass(frozen=True)
class Asked:
    """A published value, and the cells of a paper's suite that measure it, one for each seed."""

    value: Value
    full: float | None
    """The accuracy of the float network that the source states."""
    data: DataSet | None
    suite: Suite
    cells: Sequence[Cell]

    @property
    def floats(self) -> list[float]:
        """The accuracies of the float network: expected by the suite for these weights, and stated by the source."""
        said = [self.suite.models[self.cells[0].model].float_accuracy, self.full]
        return [each for each in said if each is not None]


def others(rows: Sequence[Result], asked: Asked, used: Suite) -> list[Other]:
    """The differences of done rows of one method, one for each seed, from the request. Empty: they are comparable.

    `used` is the suite of the rows. Each row is checked, because a seed may come from a run with other options.
    """
    current = all(row.definition == used.definition(cell) for row, cell in _with_cells(rows, used))
    found = [each for row in rows for each in _others_of_row(row, asked, used if current else None, used)]
    if len({row.data.get("digest") for row in rows}) > 1:
        found.append(Other("data", "seeds were evaluated on different images"))
    found += _seeds(rows, asked.cells)
    if not found and not current:
        found = [Other("definition", f"suite {used.name} has changed since, or was run with --set: run it again")]
    return _merged(found)


def _others_of_row(row: Result, asked: Asked, known: Suite | None, used: Suite) -> Iterator[Other]:
    """The differences of one row. `known` is the suite, if its network definitions hold for the row."""
    yield from _data(row, asked, used)
    yield from _calibration(row)
    yield from _weights(row, asked, known)
    yield from _methods(row, asked)
    yield from _settings(row, asked.cells[0])


def _merged(found: Sequence[Other]) -> list[Other]:
    """Each kind once, with all details."""
    details: dict[What, list[str]] = {}
    for each in dict.fromkeys(found):
        details.setdefault(each.what, []).append(each.detail)
    return [Other(what, "; ".join(parts)) for what, parts in details.items()]


def others_of_float(row: Result, asked: Asked, used: Suite) -> list[Other]:
    """The differences of a row's float network or data from the request."""
    current = all(row.definition == used.definition(cell) for row, cell in _with_cells([row], used))
    return [*_data(row, asked, used), *_weights(row, asked, used if current else None)]


def _with_cells(rows: Sequence[Result], suite: Suite) -> Iterator[tuple[Result, Cell]]:
    cells = {cell.name: cell for cell in suite.cells}
    return ((row, cells[row.cell]) for row in rows)


def _data(row: Result, asked: Asked, used: Suite) -> Iterator[Other]:
    evaluated = row.data.get("evaluated")
    if asked.data is not None and evaluated != asked.data.images:
        yield Other("data", f"{_number(evaluated)} of {asked.data.images:,} images")
    published, here = (suite.tasks[cell.task].method for suite, cell in ((asked.suite, asked.cells[0]), (used, row)))
    kinds = [" ".join([method.name, str(method.options().get("data", ""))]).strip() for method in (here, published)]
    if kinds[0] != kinds[1]:
        yield Other("data", f"{kinds[0]} {here.options().get('root') or ''}".strip() + f", published {kinds[1]}")


def _number(count: int | None) -> str:
    return "an unknown number" if count is None else f"{count:,}"


def _calibration(row: Result) -> Iterator[Other]:
    """A difference if there were fewer real images than the generator should take."""
    wanted: Any = row.methods.get("generator", {}).get("options", {}).get("images")
    given = row.data.get("images")
    if isinstance(wanted, int) and given is not None and given < wanted:
        yield Other("data", f"{given:,} calibration images, of {wanted:,} that are asked for")


def _weights(row: Result, asked: Asked, used: Suite | None) -> Iterator[Other]:
    """Different weights: by the definitions of the suites, if the row is of the suite, and by their accuracy."""
    if used is not None:
        here, published = (origin(suite.models[row.model]) for suite in (used, asked.suite))
        if here != published:
            yield Other("weights", f"{here}, published {published}")
        mine, theirs = (suite.models[row.model].model_dump(exclude=set(ORIGIN)) for suite in (used, asked.suite))
        if changed := [field for field in mine if mine[field] != theirs[field]]:
            yield Other("options", f"{', '.join(changed)} of the network")
    measured = row.float_value
    if asked.floats and measured is not None and min(abs(measured - each) for each in asked.floats) > FLOAT_TOLERANCE:
        yield Other("weights or data", f"float network {measured:.2f}, published {asked.floats[-1]:.2f}")


def origin(model: ModelSpec) -> str:
    """The origin of a network and its weights in words: `brecq/resnet18 with resnet18_imagenet.pth.tar`."""
    base = model.base or model.builder
    weights = model.weights_from
    if weights is None:
        return base
    return f"{base} with {weights.name if isinstance(weights, Path) else model.weights}"


def _methods(row: Result, asked: Asked) -> Iterator[Other]:
    cell, facts = asked.cells[0], row.model_facts
    network = NetworkTraits(
        tuple(facts.get("input_size", ())),
        facts.get("classes"),
        facts.get("architecture"),
    )
    scheme = asked.suite.schemes[cell.scheme]
    variants = {"quantizer": asked.suite.quantizers[cell.quantizer].resolved(network, scheme)}
    if cell.generator:
        variants["generator"] = asked.suite.generators[cell.generator].resolved(network, None)
    different: dict[What, list[str]] = {}
    for axis, variant in variants.items():
        for each in _differences(axis, row.methods.get(axis, {}), variant):
            different.setdefault(each.what, []).append(each.detail)
    for what, details in different.items():
        more = len(details) - LONGEST
        yield Other(what, "; ".join(details[:LONGEST]) + (f"; {more} more" if more > 0 else ""))


def _differences(name: str, here: Described, published: Variant) -> Iterator[Other]:
    """The differences of a method in a row from a variant. Methods that it starts from are included."""
    method = published.method
    if here.get("method") != method.name:
        yield Other("method", f"{name} is {here.get('method')}, published {method.name}")
        return
    if here.get("version") != method.version:
        yield Other("version", f"{method.name} {here.get('version')}, and it is {method.version} now: run it again")
    options = method.options()
    given: Mapping[str, Any] = here.get("options", {})
    for option in sorted(options.keys() - method.execution_options - KEPT_ONLY):
        if given.get(option) != options[option]:
            what: What = "budget" if _is_budget(option) else "options"
            yield Other(what, f"{name} {option} {given.get(option)}, published {options[option]}")
    for link, variant in (("start", published.start), ("over", published.over)):
        if variant is not None:
            yield from _differences(f"{name} {link}", here.get(link, {}), variant)  # type: ignore[arg-type]


def budget_of(method: Method, data: str) -> dict[str, Any]:
    """The options of a method's budget, with their effective values for this data set of papers."""
    network = DATA_SETS.get(data)
    options = (method if network is None else method.resolved(network)).options()
    named = (name for name in options if _is_budget(name) and name not in method.execution_options)
    return {name: options[name] for name in named if options[name] is not None}


def _is_budget(option: str) -> bool:
    return not BUDGET.isdisjoint(option.split("_"))


def _settings(row: Result, cell: Cell) -> Iterator[Other]:
    """A difference in precision. Layout, compilation and threads only change the last digits."""
    here, published = row.settings.get("precision", "fp32"), cell.settings.precision
    if here != published:
        yield Other("settings", f"precision {here}, published {published}")


def _seeds(rows: Sequence[Result], cells: Sequence[Cell]) -> Iterator[Other]:
    if len(rows) < len(cells):
        yield Other("budget", f"{len(rows)} of {len(cells)} seeds")
