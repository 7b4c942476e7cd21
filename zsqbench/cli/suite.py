"""The suite that a command is about: its cells, notes and rows; and `schema`, the form of its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zsqbench.execution.run import Run
    from zsqbench.reports.results import Result
    from zsqbench.suite import Cell, Suite


def open_suite(
    suite: str,
    expression: str | None,
    overrides: Sequence[str],
    data_root: Path | None,
    home: Path,
    results: Path,
    plugins: Sequence[Path],
    without: Sequence[str],
    device: str = "auto",
) -> "tuple[Run, Sequence[Cell]]":
    """Load a suite and select its cells."""
    from zsqbench.execution.run import Run
    from zsqbench.execution.session import Place
    from zsqbench.suite import find_suite, load_suite, select

    loaded = load_suite(find_suite(suite), plugins, without, overrides, data_root)
    cells = loaded.cells if expression is None else select(loaded.cells, expression)
    root = None if data_root is None else data_root.resolve()
    sources = {plugin.origin: plugin.source for plugin in loaded.catalog.plugins}
    files = tuple(loaded.plugin_files)
    place = Place(home.resolve(), root, files, tuple(sources.get(str(file)) for file in files), tuple(without), device)
    return Run(loaded, place, results), cells


def tell_notes(suite: "Suite") -> None:
    """Say what a reader of the suite file may want to know, and which plugins did not load."""
    for note in suite.notes:
        click.echo(f"note: {note}", err=True)
    for plugin in suite.catalog.plugins:
        if plugin.error:
            click.echo(f"warning: plugin {plugin.name} ({plugin.origin}) did not load: {plugin.error}", err=True)


def rows_of(suite: str, results: Path) -> "list[Result]":
    """The rows of a suite, for commands that need no plugin."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.reports.results import ResultFile
    from zsqbench.suite import find_suite, suite_name

    name = suite_name(find_suite(suite))
    rows = list(ResultFile(results / f"{name}.jsonl").read().values())
    if not rows:
        raise ZSQBenchError(f"there are no results of {name} in {results}; `zsqbench run {suite}` makes them")
    return rows


@click.command("schema")
def schema() -> int:
    """Print the JSON schema of a suite file, for editors."""
    from zsqbench.suite import SuiteFile

    click.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
    return 0
