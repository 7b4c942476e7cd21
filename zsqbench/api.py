"""zsqbench from Python: run and plan a suite, read its results, and take students and images out of the store.

Each function takes the arguments of its command, by the same names. `suite` is a file, or the name of a shipped suite.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.opening import (
    artifact_of,
    calibration_of,
    check_done,
    declared_cells,
    execute,
    find_row,
    open_reproduction,
    open_run,
    open_session,
    open_student,
    own_rows,
    part_of,
    rows_of,
    source_of,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL.Image import Image
    from torch import nn

    from zsqbench.execution.merging import MergeReport
    from zsqbench.execution.plan import Plan
    from zsqbench.execution.run import RunReport
    from zsqbench.execution.session import Isolation
    from zsqbench.export.images import ExportedImages
    from zsqbench.export.options import ExportOptions
    from zsqbench.reports.comparison.comparison import Comparison
    from zsqbench.reports.reproduction.reproduction import Reproduction
    from zsqbench.reports.results import Result
    from zsqbench.reports.site.paper.figure import PaperFigure
    from zsqbench.reports.site.sections import Section

HOME = Path(".zsqbench")
RESULTS = Path("results")


def run(
    suite: str | Path,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    select: str | None = None,
    shard: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "pool",
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
    device: str = "auto",
    isolation: "Isolation" = "auto",
    step_timeout: float | None = None,
    memory: float | None = None,
    columns: Sequence[str] = (),
    report: bool = False,
) -> "RunReport":
    """Run the missing steps of a suite, as `zsqbench run` does, and return the outcome of each cell.

    `select` is an expression over names of cells (`-k`). `shard` is one part of these cells, such as "3/8" (see
    `merge`). `overrides` are texts `a.b=value` (`--set`). `workers` is the number of steps at the same time (0: in this
    process). `engine` says where steps run. `address` (HOST:PORT) is the Ray cluster of the engine "ray". `slurm` holds
    options of sbatch for the engine "slurm", such as {"partition": "gpu"}. `isolation` says which steps get a process
    of their own: steps of methods that are not shipped with zsqbench ("auto"), all steps ("step"), or no step
    ("worker"). `step_timeout` is in seconds and overrides that of the suite. `memory` is in GiB for one worker.
    `columns` are figures that the table has beside results. With `report`, the run also writes pages for a browser, as
    the function `report` does. Raises ZSQBenchError for invalid arguments.
    """
    this, cells = open_run(
        suite, home, results, data_root, select, overrides, plugins, without, device, isolation, shard=shard
    )
    return execute(this, cells, workers, engine, step_timeout, memory, columns, report, address, slurm)


def plan(
    suite: str | Path,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    select: str | None = None,
    shard: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
) -> "Plan":
    """Plan what a run of a suite would do: cells, the steps that they share, what is cached. Nothing is run.

    A network that no run has loaded yet has a provisional identity in the plan. With a `shard`, it is loaded. Raises
    ZSQBenchError as `run` does.
    """
    this, cells = open_run(suite, home, results, data_root, select, overrides, plugins, without, shard=shard)
    part = part_of(this, cells)
    return this.provisional_plan(cells if part is None else part.cells)


def merge(folders: Sequence[Path | str], *, home: Path | str = HOME, results: Path | str = RESULTS) -> "MergeReport":
    """Add the artifacts and rows of several folders to one home and one folder of results.

    In each folder a run had its home (`.zsqbench` or `home`) and its rows (`results`), such as a shard of a suite that
    ran on another machine. Nothing is overwritten. If equal keys have different numbers, the report shows both. After
    an interruption, run the merge again. Raises ZSQBenchError for a folder without a home, with a damaged artifact or
    with a run at work, and if networks, data or versions differ from those here.
    """
    from zsqbench.execution.merging import Place, find_place, merge_places
    from zsqbench.store import Store

    target = Place(Path(home), Store(Path(home)), Path(results))
    return merge_places([find_place(Path(folder)) for folder in folders], target)


def results(
    suite: str | Path,
    *,
    results: Path | str = RESULTS,
    select: str | None = None,
    overrides: Sequence[str] = (),
    home: Path | str = HOME,
) -> "pd.DataFrame":
    """The rows of a suite: one row for each cell, with a column for each field.

    A field with several named values has a column for each, such as `metrics.top1`, `quantizer.lr` (the effective
    value) and `seconds.generate`. If `home` has the artifacts of a row and they say something else, the cell counts as
    failed. Raises ZSQBenchError if there are no rows.
    """
    import pandas as pd

    return pd.DataFrame([dict(_flat(row)) for row in rows_of(suite, Path(results), select, overrides, Path(home))])


def compare(
    suite: str | Path,
    a: str,
    b: str,
    *,
    results: Path | str = RESULTS,
    other: Path | str | None = None,
    home: Path | str = HOME,
    overrides: Sequence[str] = (),
    margin: float | None = None,
) -> "Comparison":
    """Compare the methods A and B of a suite image by image, in each column that both have.

    `a` and `b` are names of cells, parts of names, or expressions like `select` of `run`. Each of the two selects one
    method in each column. `other` is the folder of B's rows. None: `results`. With a `margin`, in points, `failing`
    holds the pairs in which B may be worse than A by the margin or more. Raises ZSQBenchError if there are no rows, and
    if nothing can be compared.
    """
    from zsqbench.reports.comparison.comparison import compare_selected
    from zsqbench.reports.comparison.selected import Selected
    from zsqbench.store import Store
    from zsqbench.suite import find_suite, suite_name

    path, store = find_suite(str(suite)), Store(Path(home))
    declared = declared_cells(path, overrides)
    folders = Path(results), Path(results if other is None else other)
    rows = {folder: own_rows(suite, folder, declared) for folder in dict.fromkeys(folders)}
    without_row = {
        folder: declared.without({row.cell for row in found}) if declared else [] for folder, found in rows.items()
    }
    at_a, at_b = folders
    in_a = Selected.of("A", a, at_a, rows[at_a], without_row[at_a], store)
    in_b = Selected.of("B", b, at_b, rows[at_b], without_row[at_b], store)
    return compare_selected(suite_name(path), in_a, in_b, store, margin)


def reproduce(
    paper: str,
    table: str,
    row: str | None = None,
    *,
    suite: str | Path | None = None,
    run: bool = False,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "pool",
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
    device: str = "auto",
) -> "Reproduction":
    """Each published value of a paper's table with what was measured, and a verdict: reached, or why not.

    `paper` is a source of results/published. `row` is an expression over names of cells that selects values. The cells
    are those of the shipped suite for the table, or of `suite`, which must use the same names. With `run`, the cells
    that can run on this machine are run first, as `zsqbench.run` does. Raises ZSQBenchError for an unknown paper, table
    or row, and for a suite that does not fit.
    """
    this = open_reproduction(paper, table, row, suite, home, results, data_root, overrides, plugins, without, device)
    if run and this.run is not None and this.runnable:
        execute(this.run, this.runnable, workers, engine, address=address, slurm=slurm)
    return this.look()


def report(
    suite: str | Path,
    folder: Path | str | None = None,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    select: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
) -> Path:
    """Write the results of a suite as pages that a browser opens from disk, and return the start page.

    Without a `folder` the pages are in `results`/NAME.report. If the data is found under `data_root`, they show
    evaluation images that flip. The commands on the pages, which make a cell again, contain `data_root` and `plugins`.
    Raises ZSQBenchError if there are no rows, and for a folder with other content.
    """
    from zsqbench.reports.site.source import Origin, report_folder
    from zsqbench.reports.site.writing import check_folder, write_report
    from zsqbench.suite import find_suite, suite_name

    rows_in = Path(results)
    place = report_folder(rows_in, suite_name(find_suite(str(suite)))) if folder is None else Path(folder)
    check_folder(place)
    root = None if data_root is None else Path(data_root)
    origin = Origin(str(suite), Path(home), rows_in, root, tuple(overrides), tuple(Path(file) for file in plugins))
    return write_report(source_of(origin, select), place)


def figures(
    suite: str | Path,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    select: str | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """The names of the charts that `figure` draws of a suite, in the order of its report."""
    return [chart.name for part in _sections(suite, home, results, select, overrides) for chart in part.charts]


def figure(
    suite: str | Path,
    name: str,
    path: Path | str,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    select: str | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Draw a chart of a suite's report into a file that ends in .svg, .pdf or .png, and return the path.

    `name` is one of `figures`. Raises ZSQBenchError for another name or file type, and if there are no rows.
    """
    from zsqbench.reports.site.drawing import check_figure_file, draw

    check_figure_file(Path(path))
    parts = _sections(suite, home, results, select, overrides)
    charts = {chart.name: (section, chart) for section in parts for chart in section.charts}
    if name not in charts:
        why = next((section.absent[name] for section in parts if name in section.absent), None)
        raise ZSQBenchError(f"there is no figure {name!r}: {why}" if why else unknown("figure", name, charts))
    section, chart = charts[name]
    draw(chart.complete(section.data), Path(path))
    return Path(path)


def _sections(
    suite: str | Path, home: Path | str, results: Path | str, select: str | None, overrides: Sequence[str]
) -> "list[Section]":
    """The parts of a report. They hold its charts."""
    from zsqbench.reports.site.sections import sections

    return sections(rows_of(suite, Path(results), select, overrides, Path(home)), Path(home))


def load_student(
    suite: str | Path,
    cell: str,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    plugins: Sequence[Path | str] = (),
    device: str = "cpu",
) -> "tuple[nn.Module, Callable[[Image], torch.Tensor]]":
    """The quantized network of a cell in eval mode, and a function that turns a PIL image into its input [1, C, H, W].

    The student computes on the same grids as when the accuracy of the cell was measured. Raises ZSQBenchError for a
    cell that does not exist or is not done, and if its artifact is not in `home`.
    """
    row = find_row(rows_of(suite, Path(results)), cell)
    opened = open_student(row, open_session(suite, home, data_root, plugins, device=device), home)
    return opened.student, opened.session.task(opened.job).preprocessor(opened.pretrained)


@dataclass(frozen=True)
class ExportedModel:
    """A file that `export_model` wrote."""

    path: Path
    script: Path
    """The script that runs the file on an image."""
    size_mb: float
    """In 10^6 bytes."""
    lines: Sequence[str]
    """Notes, outputs, and the findings of the comparison, one line each."""
    problems: Sequence[str]
    """Why the file does not compute what was measured. None: it does, or it was not compared."""


def export_model(
    suite: str | Path,
    cell: str,
    path: Path | str,
    *,
    options: "ExportOptions | None" = None,
    checked: bool = True,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
) -> ExportedModel:
    """Write the quantized network of a cell as an ONNX file, and compare it with the simulation in ONNX Runtime.

    The comparison uses the calibration images of the cell, or noise of valid pixels if it has none. Raises
    ZSQBenchError as `load_student`, without the extra `onnx`, if the network or the grids of the cell cannot be
    written, and if the file cannot be written.
    """
    from zsqbench.export import missing
    from zsqbench.export.options import ExportOptions
    from zsqbench.export.runtime import check_providers
    from zsqbench.export.script import check_place
    from zsqbench.steps.export import compare_file, write_student

    if lack := missing():
        raise ZSQBenchError(lack)
    path, options = Path(path), options or ExportOptions()
    if path.suffix != ".onnx":
        raise ZSQBenchError(f"{path} does not end in .onnx; expected a file such as model.onnx")
    if not path.parent.is_dir():
        raise ZSQBenchError(f"there is no folder {path.parent} to write {path.name} to")
    check_place(path)
    check_providers(options.providers)
    row = find_row(rows_of(suite, Path(results)), cell)
    opened = open_student(row, open_session(suite, home, data_root, plugins, without), home)
    exported = write_student(opened.student, opened.pretrained, path, options, (), {"cell": opened.row.cell})
    lines = [*exported.notes, *(f"{name} is {what}" for name, what in exported.outputs.items())]
    problems: Sequence[str] = ()
    if checked:
        images = opened.images(options.check)
        found = compare_file(path, opened.student, images, opened.pretrained, options.providers)
        lines += found.lines()
        problems = found.problems
    return ExportedModel(path, path.with_suffix(".py"), exported.size_mb, lines, problems)


def analyze_cell(
    suite: str | Path,
    row: "Result",
    *,
    home: Path | str = HOME,
    data_root: Path | str | None = None,
    plugins: Sequence[Path | str] = (),
    without: Sequence[str] = (),
) -> None:
    """Measure the error of each tensor of a row's cell, unless the store has it. The result is kept as in a run.

    Evaluation images are not read. Raises ZSQBenchError as `load_student`, if the cell is float, and if its calibration
    set or the data of its task is missing.
    """
    from zsqbench.execution.isolation import clean_state
    from zsqbench.reports.tensorerrors import Analysis
    from zsqbench.steps.analyze import Analyze
    from zsqbench.steps.generate import Generate
    from zsqbench.steps.quantize import Quantize
    from zsqbench.steps.sensitivity import Sensitivity
    from zsqbench.store import Store

    check_done(row)
    if isinstance(Analyze.find(Store(Path(home).resolve()), row), Analysis):
        return
    quantized = artifact_of(home, row, Quantize.kind, "quantized network")
    for kind, what in ((Generate.kind, "calibration set"), (Sensitivity.kind, "ranking of weights")):
        if kind in row.keys:
            artifact_of(home, row, kind, what)
    session = open_session(suite, home, data_root, plugins, without)
    job = Analyze.of_row(session, row, quantized)
    session.store.discard(job.key)  # an artifact of this key is damaged
    with clean_state(session.device, job.key, job.settings.threads):
        session.run(job)


def load_images(
    suite: str | Path,
    cell: str,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
) -> "torch.Tensor":
    """The calibration images of a cell: float32 [N, C, H, W], in the network's normalised space.

    Raises ZSQBenchError for a cell that does not exist or has no images, and if its artifact is not in `home`.
    """
    from zsqbench.steps.generate import Generate

    return Generate.load(calibration_of(home, find_row(rows_of(suite, Path(results)), cell))).images


def export_images(
    suite: str | Path,
    cell: str,
    folder: str | Path,
    *,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    plugins: Sequence[Path | str] = (),
) -> "ExportedImages":
    """Write the calibration set of a cell into a folder that is new or empty, for the calibrators of other tools.

    `zsqbench.export.images.export_images` describes the files. The result says how far the pixels of the PNGs are from
    the images. The network is loaded, because it defines how it is fed. Raises ZSQBenchError as `load_images` does, and
    for a folder that is not empty or that cannot be written to.
    """
    from zsqbench.export.images import check_target
    from zsqbench.export.images import export_images as export
    from zsqbench.steps.generate import Generate

    row = find_row(rows_of(suite, Path(results)), cell)
    artifact = calibration_of(home, row)
    check_target(Path(folder))
    session = open_session(suite, home, data_root, plugins)
    with artifact.reading():
        job = Generate.model_validate(artifact.field("job", dict))
    network = session.teacher(job)
    return export(Generate.load(artifact), network, Path(folder), f"cell {row.cell} of {row.suite}")


def embedding(
    suite: str | Path,
    path: Path | str,
    *,
    images: int = 256,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    select: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
) -> Path:
    """Draw calibration sets and real images as points into a .svg, .pdf or .png file, and return its path.

    The float network is run over the first `images` of the first set of each generator, and over as many real images
    that the task does not evaluate. Raises ZSQBenchError for cells of several networks, and as `load_images` does.
    """
    from zsqbench.execution.embedding import find_features
    from zsqbench.reports.site.drawing import check_figure_file
    from zsqbench.reports.site.paper.embedding import embedding as laid_out
    from zsqbench.steps.generate import Generate

    check_figure_file(Path(path))
    rows = [row for row in rows_of(suite, Path(results), select, overrides, Path(home)) if Generate.kind in row.keys]
    where = _only_network(rows)
    first = {str(row.generator): row for row in reversed(rows)}
    sets = {name: calibration_of(home, row) for name, row in reversed(first.items())}
    found = find_features(open_session(suite, home, data_root, plugins), sets, images)
    figure = laid_out(found.sets, found.real, found.why_no_real, where)
    return _drawn(figure, Path(path))


def landscape(
    suite: str | Path,
    path: Path | str,
    *,
    images: int = 128,
    home: Path | str = HOME,
    results: Path | str = RESULTS,
    data_root: Path | str | None = None,
    select: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path | str] = (),
    device: str = "cpu",
) -> Path:
    """Draw the loss terms of fine-tuning around quantized networks into a .svg, .pdf or .png file, and return its path.

    The terms are those of `zsqbench.quant.landscape`, on the first `images` of the calibration set of each cell. Raises
    ZSQBenchError without the extra `landscape`, for cells of several networks or too many cells of one network, and if
    an artifact is not in `home`. Also raises it for a cell that is not done, has no calibration images, has float
    weights, or whose network is not a classifier.
    """
    from zsqbench.execution.landscape import QuantizedCell, check_installed, find_landscapes
    from zsqbench.reports.site.drawing import check_figure_file
    from zsqbench.reports.site.paper.figure import MOST
    from zsqbench.reports.site.paper.landscape import landscape as drawn
    from zsqbench.steps.quantize import Quantize

    check_figure_file(Path(path))
    check_installed()
    rows = rows_of(suite, Path(results), select, overrides, Path(home))
    where = _only_network(rows)
    if len(rows) > MOST:
        raise ZSQBenchError(f"expected {MOST} cells at most, got {len(rows)}; select some with -k")
    cells = {}
    for row in rows:
        check_done(row)
        calibration = calibration_of(home, row)
        cells[row.cell] = QuantizedCell(artifact_of(home, row, Quantize.kind, "quantized network"), calibration)
    found = find_landscapes(open_session(suite, home, data_root, plugins, device=device), cells, images)
    figure = drawn(found, where)
    return _drawn(figure, Path(path))


def _drawn(figure: "PaperFigure", path: Path) -> Path:
    from zsqbench.reports.site.drawing import draw

    draw(figure.chart.complete({figure.chart.data: figure.columns}), path)
    return path


def _only_network(rows: "Sequence[Result]") -> str:
    """Task and network of rows. Raises ZSQBenchError if there are several networks, or no rows."""
    networks = sorted({f"{row.task} {row.model}" for row in rows})
    if len(networks) != 1:
        given = f"cells of several ({', '.join(networks)})" if networks else "no cell with calibration images"
        raise ZSQBenchError(f"expected cells of one network, got {given}; select some with -k")
    return networks[0]


def _flat(row: "Result") -> Iterator[tuple[str, Any]]:
    """The fields of a row as columns; the options of each method stand below its axis."""
    from zsqbench.reports.results import flat_all, flat_method

    yield from flat_all(row.model_dump(exclude={"methods"}))
    for axis, method in row.methods.items():
        yield from flat_method(axis, method)
