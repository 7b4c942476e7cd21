"""The commands that tell of a suite, and `schema`, the form of its file."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zsqbench.suite import Suite


def tell_notes(suite: "Suite") -> None:
    """Say what a reader of the suite file may want to know, and which plugins did not load."""
    for note in suite.notes:
        click.echo(f"note: {note}", err=True)
    for plugin in suite.catalog.plugins:
        if plugin.error:
            click.echo(f"warning: plugin {plugin.name} ({plugin.origin}) did not load: {plugin.error}", err=True)


@click.command("schema")
def schema() -> int:
    """Print the JSON schema of a suite file, for editors."""
    from zsqbench.suite import SuiteFile

    click.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
    return 0
