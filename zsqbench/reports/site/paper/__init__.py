"""The figures of papers, made of the rows of a suite and of what its store has."""

from zsqbench.reports.site.paper.catalog import KINDS, Kind, paper_figures
from zsqbench.reports.site.paper.figure import Absent, PaperFigure

__all__ = ["KINDS", "Absent", "Kind", "PaperFigure", "paper_figures"]
