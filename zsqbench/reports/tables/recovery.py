"""The figure `recovered`: the part of the gain of real images over noise that a method reaches."""

from collections.abc import Mapping
from dataclasses import replace

from zsqbench.reports.tables.axes import Column, ColumnKind
from zsqbench.reports.tables.competition import Competition, Place
from zsqbench.reports.tables.figures import RECOVERED
from zsqbench.reports.tables.table import Entry

UNDEFINED = "undefined"
"""The text that replaces a number if there is nothing to recover."""

NOTHING = "nothing to recover: chance explains how real images differ from noise, or they are worse"
"""The footnote for this text."""


def recovered(competition: Competition, entries: Mapping[Place, Entry]) -> dict[Place, Entry]:
    """The entries of the figure's columns, for each method with the quantizer and settings of both controls.

    For each seed it is 100 (x - noise) / (real - noise). noise and real are means of the best control over its seeds.
    """
    found: dict[Place, Entry] = {}
    for place, noise in competition.negative.items():
        real = competition.positive.get(place)
        if real is not None:
            row, column = place
            found[row, of_column(column)] = _entry(competition, entries, place, noise, real)
    return found


def _entry(competition: Competition, entries: Mapping[Place, Entry], place: Place, noise: Place, real: Place) -> Entry:
    below, above = (float(entries[control].mean or 0.0) for control in (noise, real))
    if above <= below or not competition.differ(real, noise):
        return Entry((), (), UNDEFINED, (), remarks=(NOTHING,))
    return Entry(tuple(100 * (value - below) / (above - below) for value in entries[place].values), (), "done", ())


def of_column(column: Column) -> Column:
    """The column of the figure beside one of results."""
    return replace(column, kind=ColumnKind.FIGURE, figure=RECOVERED)
