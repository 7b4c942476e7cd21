"""Open the objects of commands and of the API: a suite to run, its rows, a paper's table, the network of a cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zsqbench.errors import ZSQBenchError, unknown

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.execution.run import Run, RunReport
    from zsqbench.execution.session import Isolation, Session
    from zsqbench.execution.shards import Part
    from zsqbench.methods import Engine, Pretrained
    from zsqbench.reports.reproduction.reproduction import PaperTable, Reproduction
    from zsqbench.reports.reproduction.requirements import Requirements
    from zsqbench.reports.results import Result
    from zsqbench.reports.site.source import Origin, Source
    from zsqbench.steps.quantize import Quantize
    from zsqbench.store import Artifact
    from zsqbench.suite import Cell, DeclaredCells


def open_run(
    suite: str | Path,
    home: Path | str,
    results: Path | str,
    data_root: Path | str | None = None,
    select: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
    device: str = "auto",
    isolation: "Isolation" = "auto",
    *,
    shard: str | None = None,
    find_files: bool = True,
) -> "tuple[Run, Sequence[Cell]]":
    """Load a suite and select its cells; see `run` for the arguments, and `load_suite` for `find_files`.

    The cells are those of all shards. The cells of the run's own shard are known only after networks are loaded.
    """
    from zsqbench.execution.run import Run
    from zsqbench.execution.session import WorkerConfig
    from zsqbench.execution.shards import Shard
    from zsqbench.reports.site.source import Origin
    from zsqbench.suite import find_suite, load_suite

    part = None if shard is None else Shard.parse(shard)
    root = None if data_root is None else Path(data_root)
    path, given = find_suite(str(suite)), tuple(map(Path, plugins))
    loaded = load_suite(path, given, without, overrides, root, select, find_files=find_files)
    working = [plugin for plugin in loaded.catalog.plugins if not plugin.error]
    sources = {plugin.origin: plugin.source for plugin in working}
    files = tuple(file for file in loaded.plugin_files if str(file) in sources)
    # a plugin that does not load here is not tried in workers, because it may end them
    broken = {plugin.name for plugin in loaded.catalog.broken if plugin.source is None}
    lost = broken - {plugin.name for plugin in working}
    config = WorkerConfig(
        Path(home).resolve(),
        None if root is None else root.resolve(),
        files,
        tuple(sources[str(file)] for file in files),
        (*without, *sorted(lost)),
        device,
        isolation,
    )
    origin = Origin(str(suite), Path(home), Path(results), root, tuple(overrides), given)
    return Run(loaded, config, Path(results), origin=origin, shard=part), loaded.selected


def part_of(
    this: "Run", cells: "Sequence[Cell]", workers: int | None = None, tell: "Callable[[str], None]" = lambda _: None
) -> "Part | None":
    """The part of these cells that is in the shard of a run. None: the run has no shard.

    Networks that no run has loaded yet are loaded, because work is counted in operations of a network. `tell` reports
    it.
    """
    from zsqbench.execution.probing import load_networks

    if this.shard is None:
        return None
    facts = load_networks(this, cells, engine_of(this, cells, 1 if workers is None else min(workers, 1)), tell)
    return this.part(cells, facts, this.shard)


def engine_of(
    this: "Run", cells: "Sequence[Cell]", workers: int | None, engine: str = "pool", **limits: Any
) -> "Engine":
    """The engine that runs cells. With 0 workers, it is this process."""
    found = this.suite.catalog.find("engine", "in_process" if workers == 0 else engine, "--engine").method
    threads = max((cell.settings.threads for cell in cells), default=1)
    for field, taker in (("address", "ray"), ("slurm", "slurm")):
        if (value := limits.get(field)) and field not in found.model_fields:
            given = f" {value}" if isinstance(value, str) else "-" + " ".join(next(iter(value.items())))
            raise ZSQBenchError(f"--{field}{given}: the engine {found.name} has none; --engine {taker} takes it")
    return cast("type[Engine]", found)(workers=workers or None, threads=threads, **limits)


def execute(
    this: "Run",
    cells: "Sequence[Cell]",
    workers: int | None,
    engine: str,
    step_timeout: float | None = None,
    memory: float | None = None,
    columns: Sequence[str] = (),
    report: bool = False,
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
) -> "RunReport":
    """Run cells on an engine; see `run`."""
    from zsqbench.execution.session import GIB
    from zsqbench.reports.site.source import report_folder

    if report:
        from zsqbench.reports.site.writing import check_folder

        check_folder(report_folder(this.results, this.suite.name))  # checked before hours of work
    if workers == 0:
        asked = {
            "--isolation step": this.config.isolation == "step",
            "--step-timeout": step_timeout,
            "--memory": memory,
        }
        if given := [name for name, value in asked.items() if value]:
            raise ZSQBenchError(f"{given[0]} needs worker processes, but --workers 0 runs steps in this process")
    device = this.config.device
    if device.startswith("cuda:") and workers != 0:
        raise ZSQBenchError(f"--device {device} needs --workers 0; for the pool, set CUDA_VISIBLE_DEVICES instead")
    this.config = replace(this.config, memory=None if memory is None else int(memory * GIB))
    this.columns, this.reports = tuple(columns), report
    limits = {"step_timeout": step_timeout or this.suite.step_timeout, "memory": this.config.memory}
    own = {name: value for name, value in {"address": address, "slurm": slurm and dict(slurm)}.items() if value}
    return this.execute(cells, engine_of(this, cells, workers, engine, **limits, **own))  # of one engine alone


def rows_of(
    suite: str | Path,
    results: Path,
    select: str | None = None,
    overrides: Sequence[str] = (),
    home: Path | None = None,
) -> "list[Result]":
    """The rows of the cells that a suite has. No plugin is needed. Warnings name the rows that are left out.

    If the store has the artifacts of a row and they say something else, the cell counts as failed. Raises ZSQBenchError
    if there are no rows.
    """
    from zsqbench.reports.suiterows import believed
    from zsqbench.store import Store
    from zsqbench.suite import find_suite, suite_name
    from zsqbench.suite import select as select_cells

    path = find_suite(str(suite))
    own = own_rows(suite, results, declared_cells(path, overrides))
    selected = select_cells(own, select)
    if not selected:
        raise ZSQBenchError(f"none of the {len(own)} rows of {suite_name(path)} matches -k {select!r}")
    return selected if home is None else believed(selected, Store(home))


def find_row(rows: "Sequence[Result]", cell: str) -> "Result":
    """The row of a cell, by its name or by a unique part of it. Raises ZSQBenchError for any other text."""
    found = [row for row in rows if row.cell == cell] or [row for row in rows if cell in row.cell]
    if not found:
        raise ZSQBenchError(unknown("cell", cell, [row.cell for row in rows]))
    if len(found) > 1:
        raise ZSQBenchError(f"{cell!r} is part of {len(found)} names: {', '.join(row.cell for row in found)}")
    return found[0]


def own_rows(suite: str | Path, results: Path, declared: "DeclaredCells | None") -> "list[Result]":
    """The rows of a folder whose cells a suite has. If the cells are not known, all rows of the suite.

    Raises ZSQBenchError if there are no rows.
    """
    from zsqbench.suite import find_suite, suite_name

    name = suite_name(find_suite(str(suite)))
    found = found_rows(name, results, declared)
    if not found:
        raise ZSQBenchError(f"there are no results of {name} in {results}; `zsqbench run {suite}` makes them")
    return found


def found_rows(name: str, results: Path, declared: "DeclaredCells | None") -> "list[Result]":
    """The rows of `own_rows`. Empty: there are no rows."""
    from zsqbench.reports.resultfile import ResultFile
    from zsqbench.reports.suiterows import SuiteRows

    file = ResultFile(results / f"{name}.jsonl")
    contents = file.contents()
    file.refuse_others(contents)
    found = SuiteRows.of(contents, name, declared.have if declared else lambda _: True)
    found.warn(file.path, contents)
    return found.own


def declared_cells(path: Path, overrides: Sequence[str]) -> "DeclaredCells | None":
    """The cells that a suite file has. None: the file has an error. A warning says so, and no row is hidden."""
    import logging

    from zsqbench.suite import DeclaredCells

    try:
        return DeclaredCells.read(path, overrides)
    except ZSQBenchError as error:
        if overrides:
            raise
        text = "all rows of the suite are taken, because its cells cannot be found: %s"
        logging.getLogger("zsqbench").warning(text, error)
        return None


def source_of(origin: "Origin", select: str | None) -> "Source":
    """The rows of a suite, the cells without a row, and a function that shows their evaluation samples."""
    from zsqbench.execution.viewing import Viewers
    from zsqbench.reports.site.source import Source
    from zsqbench.store import Store
    from zsqbench.suite import find_suite, suite_name
    from zsqbench.suite import select as select_cells

    path = find_suite(origin.suite)
    rows = rows_of(origin.suite, origin.results, select, origin.overrides, origin.home)
    declared = declared_cells(path, origin.overrides)
    without = select_cells(declared.without({row.cell for row in rows}), select) if declared else []
    viewers = Viewers(open_session(origin.suite, origin.home, origin.data_root, origin.plugins))
    return Source(suite_name(path), rows, tuple(cell.name for cell in without), Store(origin.home), origin, viewers)


@dataclass(frozen=True)
class OpenedReproduction:
    """A paper's table, the run that measures it, and the requirements of the run. No run: no suite has the table."""

    table: "PaperTable"
    run: "Run | None"
    requirements: "Requirements | None"

    @property
    def runnable(self) -> "Sequence[Cell]":
        """The cells that can run on this machine."""
        return self.requirements.runnable if self.requirements is not None else ()

    def look(self) -> "Reproduction":
        """The verdicts from the present rows."""
        from zsqbench.reports.suiterows import believed
        from zsqbench.suite import DeclaredCells

        if self.run is None or self.requirements is None:
            return self.table.reproduction([], lambda _: None)
        suite = self.run.suite
        declared = DeclaredCells.read(suite.path, suite.overrides)
        rows = believed(found_rows(suite.name, self.run.results, declared), self.run.store)
        return self.table.reproduction(rows, self.requirements.missing)


def open_reproduction(
    paper: str,
    table: str,
    row: str | None,
    suite: str | Path | None,
    home: Path | str,
    results: Path | str,
    data_root: Path | str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
    device: str = "auto",
    isolation: "Isolation" = "auto",
) -> OpenedReproduction:
    """Find a paper's table and the suites for it; see `reproduce` for the arguments."""
    from zsqbench.reports.published import read_data_sets, read_source
    from zsqbench.reports.reproduction.reproduction import PaperTable, entries_of
    from zsqbench.reports.reproduction.requirements import Requirements
    from zsqbench.suite import find_suite, load_suite, suites_of_table

    source = read_source(paper)
    values = source.table(table)
    shipped = _only_suite(paper, table, suites_of_table(paper, table), suite)
    asked = None if shipped is None else load_suite(find_suite(shipped), find_files=False)
    if suite is None and shipped is None:
        if overrides:
            raise ZSQBenchError(f"--set {overrides[0]} changes no suite: no shipped one asks for {paper} {table}")
        return OpenedReproduction(PaperTable(source, table, entries_of(values, None, row), None, None), None, None)
    this, _ = open_run(
        suite or str(shipped),
        home,
        results,
        data_root,
        None,
        overrides,
        plugins,
        without,
        device,
        isolation,
        find_files=False,
    )
    entries = entries_of(values, this.suite, row)
    found = PaperTable(source, table, entries, asked, this.suite, read_data_sets())
    needed = Requirements(this.suite, found.cells, this.config.data_root, found.data_of_tasks)
    return OpenedReproduction(found, this, needed)


def _only_suite(paper: str, table: str, shipped: Sequence[str], given: str | Path | None) -> str | None:
    """The shipped suite for a table, or the given one if there are several. None: no suite asks for the table."""
    if len(shipped) > 1 and str(given) not in shipped:
        listed = " or ".join(f"--suite {name}" for name in shipped)
        raise ZSQBenchError(f"{len(shipped)} suites ask for table {table} of {paper}; give one of them: {listed}")
    if len(shipped) > 1:
        return str(given)
    return shipped[0] if shipped else None


@dataclass(frozen=True)
class OpenedCell:
    """The quantized network of a cell, from the store."""

    row: "Result"
    session: "Session"
    job: "Quantize"
    student: "fx.GraphModule"

    @property
    def pretrained(self) -> "Pretrained":
        """The float network."""
        return self.session.teacher(self.job)

    def images(self, count: int) -> "torch.Tensor":
        """The first calibration images, or seeded noise of valid pixels if the cell has none."""
        import torch

        from zsqbench.steps.generate import Generate

        key = self.row.keys.get(Generate.kind)
        if key is not None and self.session.store.has(Generate.kind, key):
            return Generate.load(self.session.store.read(Generate.kind, key)).images[:count]
        noise = torch.rand(count, *self.pretrained.input_size, generator=torch.Generator().manual_seed(0))
        low, high = self.pretrained.valid_range()
        return low + noise * (high - low)


def open_student(row: "Result", session: "Session", home: Path | str) -> OpenedCell:
    """Rebuild the quantized network of a row's cell. Raises errors as `load_student` does."""
    from zsqbench.steps.quantize import Quantize

    check_done(row)
    artifact = artifact_of(home, row, Quantize.kind, "quantized network")
    with artifact.reading():
        job = Quantize.model_validate(artifact.field("job", dict))
    student = cast("fx.GraphModule", job.restored(session, job.prepared(session), artifact))
    return OpenedCell(row, session, job, student)


def check_done(row: "Result") -> None:
    """Raise ZSQBenchError for a cell that has no result."""
    if row.status != "done":
        raise ZSQBenchError(f"cell {row.cell} is {row.status}: {row.reason}")


def open_session(
    suite: str | Path,
    home: Path | str,
    data_root: Path | str | None,
    plugins: Sequence[Path | str],
    without: Sequence[str] = (),
    device: str = "cpu",
) -> "Session":
    """A session that loads networks and methods as a run of this suite did."""
    from zsqbench.execution.session import Session, WorkerConfig
    from zsqbench.suite import find_suite, suite_plugins

    root = None if data_root is None else Path(data_root).resolve()
    files = [*(Path(file).resolve() for file in plugins), *suite_plugins(find_suite(str(suite)))]
    return Session(WorkerConfig(Path(home).resolve(), root, tuple(files), without=tuple(without), device=device))


def calibration_of(home: Path | str, row: "Result") -> "Artifact":
    """The calibration set of a row's cell. Raises ZSQBenchError for a cell without a set, and as `artifact_of`."""
    from zsqbench.steps.generate import Generate

    if Generate.kind not in row.keys:
        raise ZSQBenchError(f"cell {row.cell} has no calibration images")
    return artifact_of(home, row, Generate.kind, "calibration set")


def artifact_of(home: Path | str, row: "Result", kind: str, what: str) -> "Artifact":
    """The artifact that a row was made from, verified. Raises ZSQBenchError if it is missing or damaged."""
    from zsqbench.store import Store

    store = Store(Path(home).resolve())
    key = row.keys[kind]
    if not store.has(kind, key):
        raise ZSQBenchError(
            f"the {what} of {row.cell} is not in {store.home}: it was made with another home, or removed; run the "
            "suite with an empty home to make it again"
        )
    return store.read(kind, key)
