"""The command that makes a cell again."""

import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cached_property

from zsqbench.reports.site.source import Origin


class Recipes:
    """Commands for the cells of a report."""

    def __init__(self, origin: Origin, cells: Iterable[str]) -> None:
        self._origin = origin
        self._cells = list(cells)

    def command(self, cell: str) -> str:
        """A shell command that runs only this cell."""
        return shlex.join(
            ["zsqbench", "run", self._origin.suite, "-k", self._expression(cell), *_options(self._origin)]
        )

    def _expression(self, cell: str) -> str:
        """An expression for -k that selects this name but no name that contains it (seed 10 contains seed 1)."""
        others = [name for name in self._alike.get(_core(cell), []) if cell in name and name != cell]
        return " and ".join([*_words(cell), *(f"not {word}" for other in others for word in _words(other)[-1:])])

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """The cells by a key. A cell and a cell whose name contains its name have the same key."""
        found: dict[str, list[str]] = {}
        for name in self._cells:
            found.setdefault(_core(name), []).append(name)
        return found


def _core(cell: str) -> str:
    """A name without what comes before its first colon and after its last one."""
    return cell.partition(":")[2].rpartition(":")[0]


def _words(cell: str) -> list[str]:
    """The parts of a name that -k can read. Spaces and parentheses have another meaning in -k."""
    return re.findall(r"[^\s()]+", cell)


def report_command(origin: Origin) -> str:
    """A shell command that writes the report of a suite."""
    return shlex.join(["zsqbench", "report", origin.suite, *_options(origin)])


def _options(origin: Origin) -> Iterator[str]:
    """The options for all folders, and the overrides of the suite."""
    yield from (word for override in origin.overrides for word in ("--set", override))
    yield from (word for plugin in origin.plugins for word in ("--plugin", str(plugin)))
    yield from ("--data-root", str(origin.data_root)) if origin.data_root is not None else ()
    yield from ("--home", str(origin.home), "--results", str(origin.results))
