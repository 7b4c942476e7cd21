"""All checks of one method, with options that make it quick: what `zsqbench plugins check` runs."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.methods import Generator, Method, ModelSpec, Quantizer, Task
from zsqbench.scheme import FLOAT, Scheme, parse_scheme
from zsqbench.testing.generators import examine_generator
from zsqbench.testing.quantizers import examine_quantizer, networks_at
from zsqbench.testing.report import Finding, Report
from zsqbench.testing.tasks import examine_task

SCHEMES = ("hw/w4a4", "academic/w4a4", "hast/w4a4", "hw_strict/w4a4", "qdq/w4a4")
"""A quantizer is checked in full at the first that it takes, and on networks alone at the others: what else is checked
has nothing to do with the scheme."""
SIZES = (4, 8, 16, 32)
"""What is tried for an option that says how much there is to do; the first that its constraints allow is taken."""
EXTENSIVE = re.compile(r"(^|_)(images|batch_size|iterations|steps|epochs|updates|updates_per_epoch|warmup)$")
"""Names of such options. `images` gets the second size, so that there is more than one batch."""


@dataclass(frozen=True)
class Conformance:
    """What became of the checks of a method."""

    method: Method
    reduced: Mapping[str, Any]
    """The options that were set lower than they are by default, to be quick."""
    findings: Sequence[Finding]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(finding.outcome != "FAILED" for finding in self.findings)


def check_method(
    method: Method,
    reduced: Mapping[str, Any],
    model: ModelSpec | None = None,
    data_root: Path | None = None,
    schemes: Sequence[Scheme] = (),
) -> Conformance:
    """Check what `reduce_options` made: a generator, a quantizer or a task, the last with a model or as far as without.

    A quantizer is checked at these schemes, or else at those of all placements that methods are compared at. Raises
    ZSQBenchError for a method of another kind.
    """
    started = time.perf_counter()
    report = Report(method)
    if isinstance(method, Generator):
        examine_generator(report)
    elif isinstance(method, Quantizer):
        _examine_at_schemes(report, method, schemes or [parse_scheme(text) for text in SCHEMES])
    elif isinstance(method, Task):
        examine_task(report, model, data_root)
    else:
        raise ZSQBenchError(f"there are no checks of an {method.kind}; expected a generator, a quantizer or a task")
    return Conformance(method, reduced, report.summary(), time.perf_counter() - started)


def reduce_options(
    kind: type[Method], given: Mapping[str, Any], data_root: Path | None = None
) -> tuple[Method, dict[str, Any]]:
    """The method with these options and small values for how much there is to do, and which these are.

    Raises ZSQBenchError for options that it does not take.
    """
    folders = [Path.cwd(), *([data_root] if data_root else [])]

    def build(options: Mapping[str, Any]) -> Method:
        return kind.model_validate_json(json.dumps(options), strict=True, context={"folders": folders})

    try:
        method = build(given)
    except ValidationError as error:
        raise ZSQBenchError("; ".join(_explain(kind, given, error))) from error
    if isinstance(method, Task):
        return method, {}
    reduced: dict[str, Any] = {}
    for field, info in kind.model_fields.items():
        option = info.alias or field
        for size in _smaller(option, getattr(method, field)) if option not in given else ():
            try:
                method = build({**given, **reduced, option: size})
            except ValidationError:
                continue
            reduced[option] = size
            break
    return method, reduced


def _smaller(option: str, value: object) -> Sequence[int]:
    """Values to try in place of a larger one. None stands for a preset's number of iterations, but for all images."""
    if not EXTENSIVE.search(option) or (value is None and option.endswith("images")):
        return ()
    if not (value is None or (isinstance(value, int) and not isinstance(value, bool))):
        return ()
    sizes = SIZES[1:] if option.endswith("images") else SIZES
    return [size for size in sizes if value is None or size < value]


def _explain(kind: type[Method], given: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Validation errors in our words."""
    lines = []
    for item in error.errors():
        option = str(item["loc"][0]) if item["loc"] else ""
        message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
        known = [info.alias or field for field, info in kind.model_fields.items()]
        if item["type"] == "extra_forbidden":
            suggestion = did_you_mean(option, known) or ";"
            names = ", ".join(sorted(known)) or "none"
            lines.append(f"unknown option of {kind.name} {option!r}{suggestion} known: {names}")
        elif item["type"] == "missing":
            lines.append(f"option of {kind.name} {option!r} is missing: give --set {option}=VALUE")
        elif option:
            lines.append(f"option of {kind.name} {option!r}: {message}, got {json.dumps(given.get(option))}")
        else:
            lines.append(f"options of {kind.name}: {message}")
    return list(dict.fromkeys(lines))


def _examine_at_schemes(report: Report, quantizer: Quantizer, schemes: Sequence[Scheme]) -> None:
    """At each scheme that the quantizer takes; at `float` where it takes none of the others."""
    if quantizer.works_over is not None:
        report.skip("quantizes", f"it leaves that to {quantizer.works_over!r}, which a suite gives it; check that one")
        return
    taken = []
    for scheme in schemes:
        if reason := quantizer.rejects(scheme):
            report.skip(f"works at {scheme.name}", f"it rejects this scheme: {reason}")
        else:
            taken.append(_without_patterns(report, scheme))
    if not taken and quantizer.rejects(FLOAT):
        report.skip("quantizes", f"it rejects {', '.join(scheme.name for scheme in (*schemes, FLOAT))}")
        return
    first, *others = taken or [FLOAT]
    works = examine_quantizer(report, first) is not None
    for scheme in others:
        if works:
            examine_quantizer(report, scheme, networks_at(report, scheme))
        else:
            report.skip(f"works at {scheme.name}", f"it does not even work at {first.name}")


def _without_patterns(report: Report, scheme: Scheme) -> Scheme:
    """A scheme without widths by names of tensors, which are those of another network than the tiny ones."""
    if not scheme.placement.tensors:
        return scheme
    patterns = ", ".join(scheme.placement.tensors)
    report.skip(f"patterns of {scheme.name}", f"{patterns} name tensors of your network; the rest is checked")
    return scheme.model_copy(update={"placement": scheme.placement.model_copy(update={"tensors": {}})})
