"""A reproduced table as text or as plain data."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from zsqbench.reports.reproduction.reproduction import Measured, Reproduced, Reproduction


def text_of(reproduction: Reproduction) -> str:
    """A line for each value, the counts, and notes for the reader, without a newline at the end."""
    heads = ["value", "published", "measured", "difference", "verdict"]
    table = tabulate(_lines(reproduction.values), heads, tablefmt="simple", disable_numparse=True)
    return "\n".join([table, "", *_below(reproduction)])


def data_of(reproduction: Reproduction) -> dict[str, Any]:
    """The table as plain data, with all facts of each value."""
    return {
        "source": reproduction.source.name,
        "citation": reproduction.source.citation,
        "caveats": list(reproduction.source.caveats),
        "table": reproduction.table,
        "paper_suite": reproduction.paper_suite,
        "suite": reproduction.suite,
        "counts": reproduction.counts,
        "values": [
            {
                "name": each.value.name,
                "published": {name: getattr(each.value, name) for name in ("value", "std", "metric", "note")},
                "task": each.task,
                "cells": each.cells,
                "measured": None if each.measured is None else asdict(each.measured),
                "verdict": each.verdict,
                "why": each.why,
            }
            for each in reproduction.values
        ],
    }


def counts_of(reproduction: Reproduction) -> str:
    """`17 values: 1 reached, 16 not run`."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in reproduction.counts.items())
    number = len(reproduction.values)
    return f"{number} value{'' if number == 1 else 's'}: {counts}"


def _lines(values: Sequence[Reproduced]) -> Iterator[list[str]]:
    tasks: dict[str, set[str | None]] = {}
    for each in values:
        tasks.setdefault(each.value.name, set()).add(each.task)
    for each in values:
        task = f" ({each.task})" if len(tasks[each.value.name]) > 1 else ""
        published = _plus_minus(each.value.value, each.value.std)
        measured = "" if each.measured is None else _measured(each.measured)
        yield [each.value.name + task, published, measured, _difference(each), each.sentence]


def _measured(measured: Measured) -> str:
    seeds = f", {len(measured.seeds)} seeds" if len(measured.seeds) > 1 else ""
    return _plus_minus(measured.mean, measured.deviation) + seeds


def _difference(each: Reproduced) -> str:
    """The difference. Empty: the two cannot be compared, so a difference has no meaning."""
    if not each.compares or each.measured is None:
        return ""
    found = each.measured.distance
    if found is None:
        return f"{each.measured.mean - each.value.value:+.2f}"
    return f"{found.points:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _plus_minus(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _below(reproduction: Reproduction) -> Iterator[str]:
    yield counts_of(reproduction)
    if any(each.compares for each in reproduction.values):
        yield "difference: measured less published, in points, with its 95 % interval"
    notes = dict.fromkeys(each.value.note for each in reproduction.values if each.value.note)
    yield from (f"note: {note}" for note in notes)
    yield from (f"caveat: {caveat}" for caveat in reproduction.source.caveats)
    yield f"published: {reproduction.source.citation}"
