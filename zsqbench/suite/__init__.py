"""A suite: a YAML file of matrices, checked against what is installed and expanded into cells."""

from zsqbench.suite.declared import DeclaredCells, settings_said
from zsqbench.suite.files import find_suite, shipped_suites, suite_name, suite_plugins, suites_of_table
from zsqbench.suite.reader import load_suite
from zsqbench.suite.schema import SuiteFile
from zsqbench.suite.selection import select
from zsqbench.suite.suite import AXES, NO_GENERATOR, Cell, Suite, Variant

__all__ = [
    "AXES",
    "NO_GENERATOR",
    "Cell",
    "DeclaredCells",
    "Suite",
    "SuiteFile",
    "Variant",
    "find_suite",
    "load_suite",
    "select",
    "settings_said",
    "shipped_suites",
    "suite_name",
    "suite_plugins",
    "suites_of_table",
]
