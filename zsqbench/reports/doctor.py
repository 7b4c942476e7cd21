"""A network before a run: the findings of `zsqbench doctor`, as data and as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from zsqbench.scheme import Inspection

if TYPE_CHECKING:
    from zsqbench.quant import Examination, Output

PACKED = (8, 4)
"""The bits at which sizes are shown."""

SHOWN = 4
"""How many layers a warning names."""


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of the float network on a task's evaluation data, or why it is not known."""

    task: str
    metric: str
    value: float | None
    reason: str | None = None
    """Why it was not measured."""
    blocker: str | None = None
    """Why no cell of this network can be measured, or why it is not the network of the suite. None: no problem."""


@dataclass(frozen=True)
class Checkup:
    """The findings on a network: what can and what cannot be done with it."""

    model: str
    input_size: tuple[int, ...]
    parameters: int
    random_weights: bool
    examination: "Examination"
    students: Mapping[str, Inspection]
    """Facts of its student at each scheme that quantizes anything."""
    generators: Mapping[str, str | None]
    """Why each generator cannot run. None: it can."""
    quantizers: Mapping[str, Mapping[str, str | None]]
    """Why each quantizer cannot run, at each scheme. None: it can."""
    accuracy: Accuracy | None = None
    """The float accuracy. None: no suite names a task."""
    notes: Sequence[str] = ()
    """Notes on its weights, one line each."""

    @property
    def blockers(self) -> list[str]:
        """The problems that must be solved before a run, each once."""
        found = [self.examination.blocker]
        if self.examination.not_finite:
            found.append("outputs on seeded normal noise are NaN or infinite, so that they have no range")
        if self.accuracy is not None:
            found.append(self.accuracy.blocker)
        if self.examination.blocker is None:
            blocked = {name: student.blocker for name, student in self.students.items() if student.blocker}
            found += [f"at {', '.join(schemes)}: {reason}" for reason, schemes in _by_reason(blocked)]
        return list(dict.fromkeys(text for text in found if text))

    @property
    def warnings(self) -> list[str]:
        """Facts that cost accuracy or make a figure less reliable. docs/doctor.md has each threshold."""
        found = self.examination
        warnings = []
        if found.dead:
            channels = {path: f"{count} of {found.channels[path]}" for path, count in found.dead.items()}
            warnings.append(f"dead channels, {sum(found.dead.values())} in all: {_some(channels)}")
        if found.still:
            total = sum(found.still.values())
            warnings.append(f"variance at most eps in {total} channels of batch normalisations: {_some(found.still)}")
        if found.uneven:
            worst = dict(sorted(found.uneven.items(), key=itemgetter(1), reverse=True))
            factors = {path: f"{factor:.3g} x" for path, factor in worst.items()}
            warnings.append(f"weight ranges of channels that differ by more than 100 x: {_some(factors)}")
        if found.unbounded:
            warnings.append(f"activation functions without bound: {_counts(found.unbounded)}")
        return warnings

    def as_data(self) -> dict[str, Any]:
        """The checkup as plain data."""
        found = asdict(self)
        found["size"] = {str(bits): self.examination.size(bits) for bits in (32, *PACKED)}
        return found | {"blockers": self.blockers, "warnings": self.warnings}


def render(made: Checkup) -> str:
    """A checkup as text: the network, its students, methods, blockers and warnings."""
    parts = [_network(made), _students(made.students), _unfolded(made.students), _methods(made)]
    parts.append([f"note: {line}" for line in made.notes])
    parts.append([f"warning: {line}" for line in made.warnings])
    parts.append([f"blocker: {line}" for line in made.blockers] or ["no blocker"])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _network(made: Checkup) -> list[str]:
    found = made.examination
    weights = ", random weights" if made.random_weights else ""
    size = " x ".join(map(str, made.input_size))
    lines = [f"{made.model}: {made.parameters:,} parameters{weights}, images {size}"]
    lines.append(f"layers: {_counts(found.layers)}")
    lines.append(f"normalisations: {_counts(found.norms)}")
    if found.blocker is None:
        lines.append(f"activation functions: {_counts({**found.bounded, **found.unbounded})}")
    lines += [f"output on seeded normal noise: {_output(output)}" for output in found.outputs]
    packed = ", ".join(f"{found.size(bits):,} with weights at {bits} bits" for bits in PACKED)
    lines.append(f"bytes: {found.size(32):,} in float32, {packed} (all else in float32, scales not counted)")
    return lines if made.accuracy is None else [*lines, _accuracy(made.accuracy)]


def _accuracy(found: Accuracy) -> str:
    if found.value is None:
        return f"float accuracy on {found.task}: not measured, {found.reason or 'see the blocker'}"
    return f"float accuracy on {found.task}: {found.value:.2f} {found.metric}"


def _output(output: "Output") -> str:
    extremes = "NaN or infinite" if output.low is None else f"{output.low:.4g} .. {output.high:.4g}"
    return f"{list(output.shape)}, {extremes}"


def _students(students: Mapping[str, Inspection]) -> list[str]:
    rows = [("scheme", "weights", "activations", "folded", "not folded", "equals the network")]
    for name, found in students.items():
        counts = (found.weights, found.activations, len(found.folded), len(found.unfolded))
        weights, activations, folded, kept = ("" if found.blocker else str(count) for count in counts)
        rows.append((name, weights, activations, folded, kept, "no" if found.blocker else "yes"))
    return tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines() if students else []


def _unfolded(students: Mapping[str, Inspection]) -> list[str]:
    """Why norms are not folded. Schemes with the same reason share a line."""
    found: dict[tuple[str, str], list[str]] = {}
    for scheme, student in students.items():
        for reason, paths in _by_reason(student.unfolded):
            found.setdefault((reason, _listed(paths)), []).append(scheme)
    return [f"not folded at {', '.join(at)}: {paths} ({reason})" for (reason, paths), at in found.items()]


def _methods(made: Checkup) -> list[str]:
    lines = _able("generators", made.generators)
    alike: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
    for scheme, quantizers in made.quantizers.items():
        alike.setdefault(tuple(quantizers.items()), []).append(scheme)
    for found, schemes in alike.items():
        lines += _able(f"quantizers at {', '.join(schemes)}", dict(found))
    return lines


def _able(what: str, methods: Mapping[str, str | None]) -> list[str]:
    if not methods:
        return []
    able = [name for name, reason in methods.items() if reason is None]
    others = {name: reason for name, reason in methods.items() if reason is not None}
    return [f"{what}: {', '.join(able) or 'none'}"] + [
        f"  not {', '.join(names)}: {reason}" for reason, names in _by_reason(others)
    ]


def _by_reason(reasons: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Each reason with the names for which it holds."""
    ordered = sorted(reasons.items(), key=itemgetter(1))
    for reason, items in groupby(ordered, key=itemgetter(1)):
        yield reason, [name for name, _ in items]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _some(values: Mapping[str, object]) -> str:
    """The first few entries of a mapping by path."""
    return _listed([f"{path} ({value})" for path, value in values.items()])


def _listed(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
