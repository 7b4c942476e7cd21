"""Statistics between methods that were measured on the same images: which is better, by how much, and which tie.

In reading order: counts.py (two networks, by images that one has right), intervals.py (over images and seeds),
difference.py (two methods, with seeds), power.py (what it takes to tell them, and a verdict), ties.py (a column),
stated.py (a method beside a number that others state).
"""

from zsqbench.statistics.counts import SIGNIFICANT, differs, mcnemar, tango
from zsqbench.statistics.difference import (
    MIN_SEEDS,
    Difference,
    Samples,
    Scope,
    compare,
    paired,
    rows_in_common,
    unpacked,
)
from zsqbench.statistics.power import detectable, needed, verdict
from zsqbench.statistics.stated import Distance, distance, distance_of_means
from zsqbench.statistics.ties import COLUMN_SEEDS, Ties, letters, ties

__all__ = [
    "COLUMN_SEEDS",
    "MIN_SEEDS",
    "SIGNIFICANT",
    "Difference",
    "Distance",
    "Samples",
    "Scope",
    "Ties",
    "compare",
    "detectable",
    "differs",
    "distance",
    "distance_of_means",
    "letters",
    "mcnemar",
    "needed",
    "paired",
    "rows_in_common",
    "tango",
    "ties",
    "unpacked",
    "verdict",
]
