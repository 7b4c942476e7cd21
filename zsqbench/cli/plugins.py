"""`zsqbench plugins`: `list` (plugins_list.py), `check` (plugins_check.py), and `new`, which writes a first method."""

from pathlib import Path

import click

from zsqbench.cli.options import PATH
from zsqbench.cli.plugins_check import plugins_check
from zsqbench.cli.plugins_list import plugins_list


@click.group()
def plugins() -> None:
    """List installed methods, check them, or write a new one."""


plugins.add_command(plugins_list)
plugins.add_command(plugins_check)


@plugins.command("new")
@click.argument("kind", type=click.Choice(["generator", "quantizer", "task"]))
@click.argument("name")
@click.option("--into", "folder", type=PATH, default=Path(), help="Folder to write to [default: this one].")
def plugins_new(kind: str, name: str, folder: Path) -> int:
    """Write a small working method, NAME.py, and its test. Change them to make your own method."""
    from zsqbench.plugins import load_plugins
    from zsqbench.templates import write_template

    catalog = load_plugins()
    method, test = write_template(kind, name, folder, [taken for found, taken in catalog.provided if found == kind])
    click.echo(f"wrote {method} and {test}; next:")
    if kind == "task":
        model, digits = " --model edges", f"--set matrix.0.task={name} --set matrix.0.model=edges"
    else:
        model, digits = "", f"--set matrix.0.{kind}={name}"
    click.echo(f"    zsqbench plugins check {method}{model}")
    click.echo(f"    pytest {test}")
    click.echo(f"    zsqbench run smoke --plugin {method} {digits} --results tryout")
    return 0
