"""Print notes on a suite, and the command `schema`, which prints the form of a suite file."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zsqbench.suite import Suite


def tell_notes(suite: "Suite") -> None:
    """Print the notes of a suite on stderr."""
    for note in suite.notes:
        click.echo(f"note: {note}", err=True)


@click.command("schema")
def schema() -> int:
    """Print the JSON schema of a suite file, for editors."""
    from zsqbench.suite import SuiteFile

    click.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
    return 0
