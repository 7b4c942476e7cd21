"""`zsqbench cache`: look at the store of artifacts and at compiled kernels, verify them, and clear them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS
from zsqbench.cli.options import home_option, results_option

if TYPE_CHECKING:
    from zsqbench.leftovers import Leftover
    from zsqbench.store import Store

NAMED = 3
"""At most so many stray files are named."""


@click.group()
def cache() -> None:
    """Look at the store of artifacts, verify it, and clear it."""


@cache.command("ls")
@home_option
def cache_ls(home: Path) -> int:
    """List the artifacts, and how much space the compiled kernels take."""
    from zsqbench.errors import CorruptArtifactError, in_one_line
    from zsqbench.execution.kernels import archives
    from zsqbench.leftovers import size_of
    from zsqbench.store import Store

    store = Store(home)
    for kind, key in store.artifacts():
        try:
            label = in_one_line(store.look(kind, key).label)
        except CorruptArtifactError as error:
            label = str(error)
        click.echo(f"{kind:9} {key[:12]} {_megabytes(size_of(store.folder(kind, key)))}  {label}")
    kernels = archives(home)
    if kernels:
        counted = f"{len(kernels)} archives of kernels, which `cache gc --compiled` removes"
        click.echo(f"compiled  {' ' * 12} {_megabytes(sum(map(size_of, kernels)))}  {counted}")
    _tell_strays(store)
    return 0


@cache.command("verify")
@home_option
def cache_verify(home: Path) -> int:
    """Check every artifact against its checksums, and put damaged artifacts aside. The next run makes them again.

    Damaged archives of compiled kernels are removed.
    """
    from zsqbench.errors import CorruptArtifactError
    from zsqbench.execution.kernels import archives, is_sound
    from zsqbench.leftovers import check_nobody_works, remove
    from zsqbench.store import Store

    check_nobody_works(home)
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
    for archive in archives(home):
        count += 1
        if not is_sound(archive):
            damaged += 1
            remove(archive)
            click.echo(f"compiled {archive.relative_to(home)} was damaged, and is removed")
    _tell_strays(store)
    click.echo(f"{count} artifacts, {damaged} damaged")
    return EXIT_FAILED_CELLS if damaged else 0


@cache.command("gc")
@home_option
@results_option
@click.option("--compiled", is_flag=True, help="Remove compiled kernels, too. The next steps compile them again.")
@click.option("--yes", is_flag=True, help="Remove the files. Without --yes they are only listed.")
def cache_gc(home: Path, results: Path, compiled: bool, yes: bool) -> int:
    """Remove artifacts that no row in the results folder refers to, and leftovers of interrupted or damaged steps."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.execution.kernels import archives
    from zsqbench.leftovers import Leftover, Leftovers, check_nobody_works
    from zsqbench.reports.resultfile import ResultFile
    from zsqbench.steps import KINDS
    from zsqbench.store import Store

    store = Store(home)
    rows = [row for path in sorted(results.glob("*.jsonl")) for row in ResultFile(path).read().values()]
    if not rows:
        raise ZSQBenchError(
            f"there are no rows in {results}, so every artifact would be removed; name the folder with --results"
        )
    kept = frozenset(key for row in rows for key in row.keys.values())
    unused = [(kind, key) for kind, key in store.artifacts() if kind not in KINDS or not KINDS[kind].is_kept(key, kept)]
    artifacts = [Leftover(store.folder(kind, key), "no row refers to it") for kind, key in unused]
    leftovers = Leftovers(home).all()
    if compiled:
        leftovers += [Leftover(archive, "kernels of a network") for archive in archives(home)]
    check_nobody_works(home)  # no process uses what was found before this check
    size, failed = _clear(home, artifacts + leftovers, yes)
    _tell_strays(store)
    counts = f"{len(artifacts)} artifacts and {len(leftovers)} leftovers, {_megabytes(size).strip()},"
    if failed:
        click.echo(f"{counts} were to be removed, and {failed} of them could not be")
        return EXIT_FAILED_CELLS
    click.echo(f"{counts} {'removed' if yes else 'would go; --yes removes them'}")
    return 0


def _clear(home: Path, found: "Sequence[Leftover]", yes: bool) -> tuple[int, int]:
    """List what would be removed, or remove and list it. Returns the bytes, and how many could not be removed."""
    from zsqbench.errors import in_one_line
    from zsqbench.leftovers import remove, size_of

    total = failed = 0
    for leftover in found:
        place, size = in_one_line(str(leftover.path.relative_to(home))), size_of(leftover.path)
        try:
            if yes:
                remove(leftover.path)
        except OSError as error:
            failed += 1
            click.echo(f"cannot remove {place}: {error.strerror}", err=True)
            continue
        total += size
        click.echo(f"{'removed' if yes else 'would remove'} {_megabytes(size)} {place} ({leftover.what})")
    return total, failed


def _tell_strays(store: "Store") -> None:
    """Say in one line which files in the store are not of zsqbench."""
    from zsqbench.errors import in_one_line

    strays = [in_one_line(str(path.relative_to(store.home))) for path in store.strays()]
    if strays:
        others = f" and {len(strays) - NAMED} more" if len(strays) > NAMED else ""
        click.echo(f"not of zsqbench, and left alone: {', '.join(strays[:NAMED])}{others}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:9.2f} MB"
