"""The commands that tell of a suite, and `schema`, the form of its file."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zsqbench.suite import Suite


def tell_notes(suite: "Suite") -> None:
    """Say what a reader of the suite file may want to know."""
    for note in suite.notes:
        click.echo(f"note: {note}", err=True)


@click.command("schema")
def schema() -> int:
    """Print the JSON schema of a suite file, for editors."""
    from zsqbench.suite import SuiteFile

    click.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
    return 0
