"""The figures of papers, made from the rows and the store of a suite."""

from zsqbench.reports.site.paper.catalog import KINDS, Kind, paper_figures
from zsqbench.reports.site.paper.figure import Absent, PaperFigure

__all__ = ["KINDS", "Absent", "Kind", "PaperFigure", "paper_figures"]
