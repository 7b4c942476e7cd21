"""`zsqbench cache`: look at the store of artifacts, verify it, and clear it."""

from pathlib import Path

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS
from zsqbench.cli.options import home_option, results_option


@click.group()
def cache() -> None:
    """The store of artifacts."""


@cache.command("ls")
@home_option
def cache_ls(home: Path) -> int:
    """List the artifacts."""
    from zsqbench.errors import CorruptArtifactError
    from zsqbench.store import Store

    store = Store(home)
    for kind, key in store.artifacts():
        size = sum(path.stat().st_size for path in store.folder(kind, key).iterdir())
        try:
            label = store.manifest(kind, key)["label"]
        except CorruptArtifactError as error:
            label = str(error)
        click.echo(f"{kind:9} {key[:12]} {size / 1e6:9.2f} MB  {label}")
    return 0


@cache.command("verify")
@home_option
def cache_verify(home: Path) -> int:
    """Check every artifact against its checksums and put damaged ones aside; the next run makes them again."""
    from zsqbench.errors import CorruptArtifactError
    from zsqbench.store import Store

    store = Store(home)
    count = damaged = 0
    for kind, key in list(store.artifacts()):
        count += 1
        try:
            store.read(kind, key)
        except CorruptArtifactError as error:
            damaged += 1
            store.discard(key)
            click.echo(f"{kind} {error}")
    click.echo(f"{count} artifacts, {damaged} damaged")
    return EXIT_FAILED_CELLS if damaged else 0


@cache.command("gc")
@home_option
@results_option
@click.option("--yes", is_flag=True, help="Remove; without it, only say what would go.")
def cache_gc(home: Path, results: Path, yes: bool) -> int:
    """Remove the artifacts that no row in the results folder refers to, and what interrupted or damaged steps left."""
    import shutil

    from zsqbench.errors import ZSQBenchError
    from zsqbench.reports.resultfile import ResultFile
    from zsqbench.steps import KINDS
    from zsqbench.store import Store

    store = Store(home)
    rows = [row for path in sorted(results.glob("*.jsonl")) for row in ResultFile(path).read().values()]
    if not rows:
        raise ZSQBenchError(
            f"there are no rows in {results}, so every artifact would go; name the folder with --results"
        )
    kept = frozenset(key for row in rows for key in row.keys.values())
    gone = [(kind, key) for kind, key in store.artifacts() if kind not in KINDS or not KINDS[kind].is_kept(key, kept)]
    for kind, key in gone:
        click.echo(f"{'removed' if yes else 'would remove'} {kind} {key[:12]}")
        if yes:
            shutil.rmtree(store.folder(kind, key))
    for path in store.leftovers() if yes else ():
        shutil.rmtree(path)
    click.echo(f"{len(gone)} artifacts {'removed' if yes else 'would go; --yes removes them'}")
    return 0
