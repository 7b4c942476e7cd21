"""`zsqbench mlflow`: the copy of the results in MLflow."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from zsqbench.cli.options import home_option, results_option, select_option


@click.group()
def mlflow() -> None:
    """Log results to MLflow, or open its web page."""


@mlflow.command("sync")
@click.argument("suite")
@select_option
@home_option
@results_option
@click.option(
    "--move-aside",
    "aside",
    is_flag=True,
    help="First move a damaged mlflow.db aside, or rename a deleted experiment of SUITE.",
)
def mlflow_sync(suite: str, select: str | None, home: Path, results: Path, aside: bool) -> int:
    """Log the rows of SUITE that are missing in MLflow."""
    from zsqbench.opening import rows_of
    from zsqbench.reports.mlflow.tracking import move_aside, sync
    from zsqbench.store import Store

    rows = rows_of(suite, results, select, home=home)
    name, store = rows[0].suite, Store(home)
    if aside:
        click.echo(move_aside(name, store))
    count = sync(rows, name, store)
    click.echo(f"{count} of {len(rows)} cells were missing and are logged now")
    return 0


@mlflow.command("ui", context_settings={"ignore_unknown_options": True})
@home_option
@click.argument("arguments", nargs=-1)
def mlflow_ui(home: Path, arguments: Sequence[str]) -> int:
    """Open MLflow's own web page on the results (ARGUMENTS go to `mlflow ui`)."""
    import os
    import subprocess

    from zsqbench.reports.mlflow.database import tracking_uri
    from zsqbench.reports.mlflow.tracking import make_database

    uri = tracking_uri(home)
    if uri.startswith("http"):
        click.echo(f"the results are on the MLflow server {uri}")
        return 0
    make_database(home)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *arguments]
    return subprocess.run(command, check=False, env=os.environ).returncode  # noqa: S603 - our own command
