"""Join the homes and rows of several machines into one home. A run on it finds all their steps done."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.leases import RUN, SECONDS, Leases
from zsqbench.reports.evidence import Difference, Evidence
from zsqbench.reports.resultfile import SCHEMA, Contents, ResultFile
from zsqbench.reports.results import Described, Result
from zsqbench.reports.suiterows import counted, named
from zsqbench.steps import KINDS
from zsqbench.store import Store

log = logging.getLogger("zsqbench")

LIBRARIES = ("zsqbench", "torch", "torchvision", "numpy")
"""Numbers of different versions of these packages are not mixed. Different builds of a version (+cpu) may be mixed."""


@dataclass(frozen=True)
class Conflict:
    """A number that differs between an artifact here and a row there, for equal keys."""

    cell: str
    metric: str
    here: object
    """The value here, which stays. None: nothing was measured under this name."""
    there: object
    folder: Path
    """The value there."""


@dataclass(frozen=True)
class Merged:
    """The counts of new data from one folder."""

    folder: Path
    artifacts: int
    rows: int


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge."""

    merged: Sequence[Merged]
    conflicts: Sequence[Conflict]


@dataclass(frozen=True)
class Place:
    """A home and its rows."""

    folder: Path
    """The folder as the user gave it."""
    store: Store
    results: Path

    def row_files(self) -> list[ResultFile]:
        """The files of rows."""
        return [ResultFile(path) for path in sorted(self.results.glob("*.jsonl"))]


@dataclass
class _Rows:
    """The rows of a place, by the name of their file, then by suite and cell."""

    files: dict[str, dict[tuple[str, str], Result]] = field(default_factory=dict)

    def all(self) -> Iterator[Result]:
        """All rows of a suite."""
        for rows in self.files.values():
            yield from rows.values()

    def add(self, other: "_Rows") -> None:
        """Add other rows. If a cell has two rows, the first stays."""
        for name, rows in other.files.items():
            self.files[name] = rows | self.files.get(name, {})


def find_place(folder: Path) -> Place:
    """Find the home and the rows that runs left in a folder, by their usual names.

    The home is `.zsqbench` or `home` in the folder, or the folder itself. The rows are in `results` in the folder,
    beside the home, or in the folder itself. Raises ZSQBenchError if there is no home, or more than one.
    """
    if not folder.is_dir():
        raise ZSQBenchError(f"there is no folder {folder} to merge")
    homes = [home for home in (folder / ".zsqbench", folder / "home", folder) if (home / "store").is_dir()]
    if len(homes) > 1:
        names = " and ".join(map(str, homes))
        raise ZSQBenchError(f"cannot merge {folder}: there are homes at {names}; give one of them")
    if not homes:
        raise _nothing_in(folder)
    home = homes[0]
    beside = folder.absolute().parent / "results" if home == folder else folder
    rows = next((each for each in (folder / "results", beside) if any(each.glob("*.jsonl"))), folder / "results")
    return Place(folder, Store(home), rows)


def _nothing_in(folder: Path) -> ZSQBenchError:
    return ZSQBenchError(
        f"there is nothing to merge in {folder}: expected a folder with the home of a run as .zsqbench or home "
        "(--home) and its rows in results (--results)"
    )


def merge_places(places: Sequence[Place], target: Place) -> MergeReport:
    """Copy missing data to the target: first artifacts, then rows. Nothing there is replaced.

    Raises ZSQBenchError with the reason if a place cannot be merged. This happens before anything is copied, or when a
    damaged artifact is found. Artifacts copied until then are sound, and no row is copied. A repeated merge continues.
    """
    _check_different(places, target)
    for place in (*places, target):
        _check_nobody_works(place)
    there = {place.folder: _read_source(place) for place in places}
    here = _read_target(target, {name for rows in there.values() for name in rows.files})
    with _blaming(target):
        backed = _backed(here, target.store)
    compared = _Rows(dict(backed.files))
    for folder, rows in there.items():
        _check_alike(compared, rows, folder)
        compared.add(_Rows({name: _done(of_file) for name, of_file in rows.files.items()}))
    with contextlib.closing(Leases(target.store.home)) as leases:
        leases.take(f"{RUN}merge-{os.getpid()}")
        copied = {place.folder: _copy(place, target.store) for place in places}
        with _blaming(target):
            conflicts = [
                conflict
                for folder, rows in there.items()
                for conflict in _conflicts(rows.all(), folder, Evidence(target.store))
            ]
        taken = {place.folder: _take_rows(there[place.folder], backed, target) for place in places}
    merged = [Merged(place.folder, copied[place.folder], taken[place.folder]) for place in places]
    return MergeReport(merged, conflicts)


def _check_different(places: Sequence[Place], target: Place) -> None:
    seen: dict[Path, Path] = {}
    for place in places:
        home = place.store.home.resolve()
        if home == target.store.home.resolve():
            raise ZSQBenchError(
                f"cannot merge {place.folder} with itself: its home is the target {target.store.home} (--home)"
            )
        if home in seen:
            raise ZSQBenchError(f"{place.folder} and {seen[home]} are one home; give it once")
        seen[home] = place.folder


def _check_nobody_works(place: Place) -> None:
    alive = Leases(place.store.home).alive()
    if alive:
        raise ZSQBenchError(
            f"a run is at work in {place.store.home} ({alive[0]}); merge when it has ended (if it was killed, or its "
            f"folder was copied just now, wait for {SECONDS:.0f} s)"
        )


def _read_target(target: Place, names: Collection[str]) -> _Rows:
    return _Rows({file.path.name: file.read() for file in target.row_files() if file.path.name in names})


def _read_source(place: Place) -> _Rows:
    """The rows of a place whose measurements are in its home. A warning counts and names the other rows."""
    found, evidence = _Rows(), Evidence(place.store)
    for file in place.row_files():
        contents = file.contents()
        if contents.schemas:
            raise ZSQBenchError(
                f"cannot merge {place.folder}: {file.path} has rows of schema "
                f"{', '.join(map(str, contents.schemas))}, and this zsqbench reads {SCHEMA}; run that part again"
            )
        own = [row for row in contents.rows if row.status != "done" or evidence.is_at_hand(row)]
        kept = {row.cell for row in own}
        left_out = {
            "row of a cell whose measurements are not in its home": [
                row.cell for row in contents.rows if row.cell not in kept
            ],
            "line without a row": [f"line {number}" for number in contents.unreadable],
        }
        for what, names in left_out.items():
            if names:
                log.warning("%s: left out %s: %s", file.path, counted(len(names), what), named(names))
        found.files[file.path.name] = {(row.suite, row.cell): row for row in own}
    if not any(found.files.values()):
        if not any(place.store.artifacts()):
            raise _nothing_in(place.folder)
        log.warning("there are no rows for %s in %s: only artifacts are merged", place.folder, place.results)
    return found


def _done(rows: Mapping[tuple[str, str], Result]) -> dict[tuple[str, str], Result]:
    return {name: row for name, row in rows.items() if row.status == "done"}


def _backed(rows: _Rows, store: Store) -> _Rows:
    """The rows of done cells that were made from artifacts of this store, not on another machine.

    Committed rows may be in the folder of results. A run measures their cells again, and uses its own rows.
    """
    evidence = Evidence(store)
    return _Rows(
        {
            name: {cell: row for cell, row in _done(of_file).items() if evidence.is_measured_here(row)}
            for name, of_file in rows.files.items()
        }
    )


def _check_alike(here: _Rows, there: _Rows, folder: Path) -> None:
    """Raise ZSQBenchError if rows of a suite have other networks, data, methods or versions than the rows here."""
    for name, rows in there.files.items():
        known: dict[str, set[str]] = {}
        for row in here.files.get(name, {}).values():
            for what, value in _facts(row):
                known.setdefault(what, set()).add(value)
        for row in _done(rows).values():
            for what, value in _facts(row):
                if value not in known.get(what, {value}):
                    ours = " and ".join(sorted(known[what]))
                    raise ZSQBenchError(
                        f"cannot merge {folder}: {what} is {value} there ({row.cell}), but {ours} here, so their "
                        "numbers do not compare; run that part again with the same as here, or merge into another home"
                    )
            _check_keys(here.files.get(name, {}).get((row.suite, row.cell)), row, folder)


def _check_keys(here: Result | None, there: Result, folder: Path) -> None:
    """Raise ZSQBenchError if equal definitions of a cell have different keys, because then the code differs."""
    if here is not None and here.definition == there.definition and here.keys != there.keys:
        kinds = [kind for kind, key in there.keys.items() if here.keys.get(kind) != key] or [*here.keys]
        raise ZSQBenchError(
            f"cannot merge {folder}: the {kinds[0]} step of {there.cell} has another key there, although the suite "
            "defines it equally: another version of zsqbench or of a method made it; run that part again"
        )


def _facts(row: Result) -> Iterator[tuple[str, str]]:
    """Values that must be equal in all rows of a suite, each with a description."""
    where = f"of {row.suite}"
    if "digest" in row.model_facts:
        digest = row.model_facts["digest"][:12]
        yield f"network {row.model} of task {row.task} {where} (its weights and preprocessing, by their digest)", digest
    if "digest" in row.data:
        yield f"the evaluation data of task {row.task} {where} (by their digest)", row.data["digest"][:12]
    for package in LIBRARIES:
        if package in row.environment:
            yield f"the version of {package}", str(row.environment[package]).partition("+")[0]
    for kind, method in row.methods.items():
        yield from _versions(kind, method)


def _versions(kind: str, method: Described) -> Iterator[tuple[str, str]]:
    yield f"the version of {kind} {method.get('method')}", str(method.get("version"))
    for other in (method.get("start"), method.get("over")):
        if other is not None:
            yield from _versions(kind, other)


def _copy(place: Place, store: Store) -> int:
    """Copy the missing artifacts. Returns their number."""
    copied = 0
    with _blaming(place):
        for kind, key in list(place.store.artifacts()):
            try:
                copied += store.take_from(place.store, kind, key)
            except OSError as error:
                raise ZSQBenchError(
                    f"cannot copy {kind} artifact {key[:12]} of {place.folder} into {store.home}: {error.strerror}; "
                    "copied artifacts stay; a repeated merge continues"
                ) from error
    return copied


@contextlib.contextmanager
def _blaming(place: Place) -> Iterator[None]:
    """The error for a damaged artifact: it names the home, and what to do."""
    try:
        yield
    except CorruptArtifactError as error:
        kind = place.store.kind_of(error.key) or "an"
        raise ZSQBenchError(
            f"cannot merge {place.folder}: {kind} artifact {error.key[:12]} in {place.store.home} is damaged "
            f"({error.detail}); copy that home again, or put the artifact aside with "
            f"`zsqbench cache verify --home {place.store.home}`"
        ) from error


def _conflicts(rows: Iterable[Result], folder: Path, evidence: Evidence) -> Iterator[Conflict]:
    """The numbers of rows of a place that differ from artifacts of the same keys here."""
    for row in rows:
        if evidence.is_at_hand(row):
            different = [each for each in evidence.differences(row) if each.name not in _times(row, evidence)]
            numbers = [each for each in different if _is_number(each)]
            for each in numbers or different:
                metric = each.name.removeprefix("metrics.").replace("float_metrics.", "float ")
                yield Conflict(row.cell, metric, each.measured, each.said, folder)


def _is_number(difference: Difference) -> bool:
    return any(isinstance(value, int | float) for value in (difference.said, difference.measured))


def _times(row: Result, evidence: Evidence) -> set[str]:
    """The names of measured times, which differ between any two runs."""
    kinds = [KINDS[kind] for kind in row.keys if kind in KINDS and KINDS[kind].exclusive]
    return {f"metrics.{name}" for kind in kinds for name in kind.row(evidence.store, row.keys).get("metrics", {})}


def _take_rows(there: _Rows, backed: _Rows, target: Place) -> int:
    """Write the accepted rows of a place. Returns how many are new here."""
    taken = 0
    for name, rows in there.files.items():
        measured = backed.files.get(name, {})
        taken += _take_file(rows, measured, ResultFile(target.results / name))
        backed.files[name] = _done(rows) | measured
    return taken


def _take_file(rows: Mapping[tuple[str, str], Result], measured: Collection[tuple[str, str]], file: ResultFile) -> int:
    """Write the accepted rows into a file, which may have rows of this machine. Returns how many are new."""
    new: dict[tuple[str, str], Result] = {}

    def arrange(contents: Contents) -> list[Result]:
        before = {(row.suite, row.cell): row for row in contents.rows}
        new.clear()
        new.update({at: row for at, row in rows.items() if _counts(row, before.get(at), at in measured)})
        return [*(before | new).values()]

    try:
        file.rewrite(arrange)
    except OSError as error:
        raise ZSQBenchError(f"cannot write {file.path}: {error.strerror}; a repeated merge continues") from error
    return len(new)


def _counts(there: Result, here: Result | None, is_measured: bool) -> bool:
    """True if a row replaces the row here, if any. `is_measured`: the row here was made from artifacts here.

    A number here stays. A cell that is done on one machine is done.
    """
    if here is None:
        return True
    if here.definition != there.definition:
        return there.counts_over(here) and not there.says_the_same(here)
    if here.status == "done":
        return there.status == "done" and not is_measured and not there.says_the_same(here)
    return there.status == "done" or (there.ended > here.ended and not there.says_the_same(here))
