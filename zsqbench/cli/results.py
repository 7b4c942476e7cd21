"""`zsqbench leaderboard` and `zsqbench show`: looks at results, which need no plugin."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.options import format_option, home_option, results_option
from zsqbench.cli.suite import rows_of

if TYPE_CHECKING:
    from zsqbench.reports.diagnosis import Diagnosis, Undiagnosed
    from zsqbench.reports.results import Result


@click.command()
@click.argument("suite")
@results_option
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "html", "latex", "json"]), default="md", show_default=True
)
def leaderboard(suite: str, results: Path, form: Any) -> int:
    """Print the table of SUITE from the rows of its runs."""
    from zsqbench.reports.leaderboard import leaderboard as make

    click.echo(make(rows_of(suite, results), form))
    return 0


@click.command()
@click.argument("suite")
@click.argument("cell")
@home_option
@results_option
@format_option
def show(suite: str, cell: str, home: Path, results: Path, form: str) -> int:
    """Show what is known of a CELL of SUITE: row, calibration set, what was quantized, its oracle, why it failed."""
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.reports.diagnosis import Diagnosis, find_picture, render
    from zsqbench.store import Store

    rows = {row.cell: row for row in rows_of(suite, results)}
    found = [row for name, row in rows.items() if name == cell] or [row for name, row in rows.items() if cell in name]
    if not found:
        raise ZSQBenchError(unknown("cell", cell, rows))
    if len(found) > 1:
        raise ZSQBenchError(f"{cell!r} is part of {len(found)} names: {', '.join(row.cell for row in found)}")
    row, diagnosis = found[0], Diagnosis.find(Store(home), found[0])
    if form == "json":
        click.echo(json.dumps(_shown_as_data(home, row, diagnosis), indent=1))
        return 0
    click.echo(row.model_dump_json(indent=1, exclude={"traceback"}))
    if "generate" in row.keys:
        click.echo(f"\n{render(diagnosis)}")
    if "quantize" in row.keys and row.status == "done":
        click.echo(f"\n{_quantized(home, row.keys['quantize'])}")
    if (picture := find_picture(Store(home), row)) is not None:
        click.echo(f"\n{picture}")
    if row.oracle:
        click.echo(f"\n{_oracle(row)}")
    if row.traceback:
        click.echo(row.traceback)
    return 0


def _shown_as_data(home: Path, row: "Result", diagnosis: "Diagnosis | Undiagnosed") -> dict[str, Any]:
    """The row, diagnostics with where their files are (or why there are none), and what the quantize step left."""
    from zsqbench.reports.diagnosis import Diagnosis, find_picture
    from zsqbench.store import Store

    of_set: dict[str, Any]
    if isinstance(diagnosis, Diagnosis):
        of_set = {**diagnosis.data, "files": {name: str(path) for name, path in diagnosis.files.items()}}
    else:
        of_set = {"absent": diagnosis.why}
    there = "quantize" in row.keys and row.status == "done"
    quantized = _left_by_quantize(home, row.keys["quantize"]) if there else None
    shown: dict[str, Any] = {"row": row.model_dump(mode="json"), "calibration_set": of_set, "quantized": quantized}
    if (picture := find_picture(Store(home), row)) is not None:
        shown["picture"] = str(picture)
    return shown | ({"oracle": _left_by_oracle(home, row.keys["oracle"])} if row.oracle else {})


def _quantized(home: Path, key: str) -> str:
    """What a quantize step left, for people: its map, losses of reconstruction and notes; or why there is no map."""
    from zsqbench.reports.tensormaps import render_measured, render_reconstruction

    left = _left_by_quantize(home, key)
    if left is None:
        return f"what was quantized is not in {home}: this cell was run on another machine, or its artifact was removed"
    entries = left.get("tensors")
    parts = [
        render_measured(entries) if entries else "nothing was quantized, or the quantizer left no map of it",
        render_reconstruction(left.get("curves", {})),
        "\n".join(left.get("notes", [])),
    ]
    return "\n\n".join(filter(None, parts))


def _oracle(row: "Result") -> str:
    """The best of the kept epochs beside the last, for people."""
    best, epoch, kept = row.oracle_value, row.oracle["epoch"], row.oracle["of"]
    return (
        f"oracle: {best:.2f} {row.metric} after epoch {epoch}, the best of {kept} kept epochs by the evaluated images "
        f"themselves; the result is the last epoch's {row.value:.2f}"
    )


def _left_by_oracle(home: Path, key: str) -> dict[str, Any] | None:
    """What each kept epoch reaches, where that artifact is here."""
    from zsqbench.store import Store

    store = Store(home)
    return store.read_json("oracle", key, "oracle.json") if store.has("oracle", key) else None


def _left_by_quantize(home: Path, key: str) -> dict[str, Any] | None:
    """The map, curves and notes of a quantize step whose artifact is here."""
    from zsqbench.store import Store

    store = Store(home)
    if not store.has("quantize", key):
        return None
    folder = store.read("quantize", key)
    files = {name: folder / f"{name}.json" for name in ("tensors", "curves", "notes")}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
