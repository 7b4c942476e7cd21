"""Statistics of methods that were measured on the same images: which is better, by how much, and which tie.

In reading order: counts.py (two networks, by images that one has right), intervals.py (over images and seeds),
resampling.py (images left out), samples.py (the values of a method), difference.py (two methods, with seeds),
power.py (what it takes to tell them, and a verdict), ties.py (a column), stated.py (a method beside a number that
others state).
"""

from zsqbench.statistics.counts import SIGNIFICANT, differs, mcnemar, tango
from zsqbench.statistics.difference import MIN_SEEDS, Difference, Scope, compare
from zsqbench.statistics.power import detectable, needed, verdict
from zsqbench.statistics.resampling import groups_of, resamples
from zsqbench.statistics.samples import Measured, Resampled, Samples, paired, rows_in_common, unpacked
from zsqbench.statistics.stated import Distance, distance, distance_of_means
from zsqbench.statistics.ties import COLUMN_SEEDS, Ties, letters, ties

__all__ = [
    "COLUMN_SEEDS",
    "MIN_SEEDS",
    "SIGNIFICANT",
    "Difference",
    "Distance",
    "Measured",
    "Resampled",
    "Samples",
    "Scope",
    "Ties",
    "compare",
    "detectable",
    "differs",
    "distance",
    "distance_of_means",
    "groups_of",
    "letters",
    "mcnemar",
    "needed",
    "paired",
    "resamples",
    "rows_in_common",
    "tango",
    "ties",
    "unpacked",
    "verdict",
]
