import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from zsqbench.reports.site.recipe import Recipes, report_command
from zsqbench.reports.site.source import Origin
from zsqbench.suite import select

ONE, TEN = "digits:net:dgh:rtn:hw/w4a4:1", "digits:net:dgh:rtn:hw/w4a4:10"
ORIGIN = Origin(
    "my suite.yaml", Path("home"), Path("results"), Path("/data"), ("models.a.weights=x y",), (Path("p.py"),)
)


@dataclass
class Named:
    name: str


@pytest.mark.parametrize("cell", [ONE, TEN, f"my{ONE}", "digits:net (old):dgh:rtn:hw/w4a4:1"])
def test_the_command_selects_this_cell_and_no_other(cell):
    cells = [ONE, TEN, f"my{ONE}", "digits:net (old):dgh:rtn:hw/w4a4:1"]
    words = shlex.split(Recipes(ORIGIN, cells).command(cell))
    expression = words[words.index("-k") + 1]
    assert [each.name for each in select(list(map(Named, cells)), expression)] == [cell]


def test_the_command_has_all_that_the_suite_was_given():
    assert shlex.split(Recipes(ORIGIN, [ONE]).command(ONE)) == [
        *("zsqbench", "run", "my suite.yaml", "-k", ONE, "--set", "models.a.weights=x y", "--plugin", "p.py"),
        *("--data-root", "/data", "--home", "home", "--results", "results"),
    ]


def test_the_command_of_the_report_is_one_for_a_shell():
    assert report_command(ORIGIN).startswith("zsqbench report 'my suite.yaml' --set 'models.a.weights=x y'")
