"""The command line: the only place that sets exit codes and prints results (progress and warnings go to stderr)."""

import json
import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from torch import nn

    from zsqbench.diagnosis import Diagnosis, Undiagnosed
    from zsqbench.methods import Method, Pretrained
    from zsqbench.plan import Plan, PlannedCell
    from zsqbench.plugins import Catalog
    from zsqbench.results import Result
    from zsqbench.scheduler import Run
    from zsqbench.scheme import Scheme
    from zsqbench.suite import Cell, Suite
    from zsqbench.testing.conformance import Conformance

EXIT_FAILED_CELLS = 1
EXIT_INTERNAL = 3
EXIT_INTERRUPTED = 130

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the one place where exceptions become exit codes."""
    from zsqbench.errors import ZSQBenchError

    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        code = cli.main(arguments, prog_name="zsqbench", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except ZSQBenchError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; there is nobody to tell
        code = 0
    except Exception:  # noqa: BLE001 - anything else is a bug of ours: show all of it
        traceback.print_exc()
        click.echo("this is a bug of zsqbench; please report it with the lines above", err=True)
        code = EXIT_INTERNAL
    sys.exit(code if isinstance(code, int) else 0)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_file = click.Path(path_type=Path)
plugin_options = _options(
    click.option("--plugin", "plugins", multiple=True, type=_file, help="A plugin file of your own (may be repeated)."),
    click.option("--no-plugin", "without", multiple=True, metavar="NAME", help="Leave an installed plugin out."),
)
home_option = click.option(
    "--home",
    type=_file,
    default=Path(".zsqbench"),
    envvar="ZSQBENCH_HOME",
    show_default=True,
    help="Folder for artifacts and mlflow.db [env: ZSQBENCH_HOME].",
)
data_root_option = click.option(
    "--data-root", type=_file, envvar="ZSQBENCH_DATA_ROOT", help="Folder of the data [env: ZSQBENCH_DATA_ROOT]."
)
results_option = click.option(
    "--results", type=_file, default=Path("results"), show_default=True, help="Folder for rows and tables."
)
suite_options = _options(
    click.argument("suite"),
    click.option("-k", "expression", metavar="EXPR", help="Only cells whose name matches, as in 'zeroq and not w8a8'."),
    click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the suite."),
    data_root_option,
    home_option,
    results_option,
    plugin_options,
)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from zsqbench.results import package_version

        click.echo(package_version("zsqbench"))
        context.exit()


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda and cuda:N")
    return device


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show it.")
def cli() -> None:
    """A benchmark harness for zero-shot (data-free) quantization.

    Exit codes: 0 all cells done, 1 some failed, 2 usage or configuration, 3 a bug, 4 a plugin that the suite needs did
    not load, 5 nothing selected, 130 interrupted.
    """


@cli.command()
@suite_options
@click.option("--workers", type=click.IntRange(min=0), help="Steps at the same time; 0 runs in this process.")
@click.option("--engine", default="pool", show_default=True, help="Where steps run: an installed engine.")
@click.option("--device", callback=_check_device, default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--quiet", is_flag=True, help="Only the table.")
def run(workers: int | None, engine: str, device: str, quiet: bool, **options: Any) -> int:
    """Run what is not there yet of SUITE (a file, or the name of a shipped one) and print its leaderboard."""
    from zsqbench.errors import NothingSelectedError, ZSQBenchError
    from zsqbench.leaderboard import leaderboard
    from zsqbench.store import write_atomically

    if quiet:
        options["without"] = (*options["without"], "progress")
    this, cells = _open(device=device, **options)
    _notes(this.suite)
    if device.startswith("cuda:") and workers != 0:
        raise ZSQBenchError(f"--device {device} needs --workers 0; for the pool, set CUDA_VISIBLE_DEVICES instead")
    threads = max((cell.settings.threads for cell in cells), default=1)
    chosen: Any = this.suite.catalog.find("engine", "in_process" if workers == 0 else engine, "--engine").method
    report = this.execute(cells, chosen(workers=workers or None, threads=threads))
    rows = list(this.rows.read().values())
    table = leaderboard(rows, "md")
    path = this.results / f"{this.suite.name}.md"
    failure = None
    try:
        write_atomically(path, table + "\n")
    except OSError as error:
        failure = ZSQBenchError(f"cannot write {path}: {error.strerror}")
    this.notify("suite_finished", suite=this.suite, results=report.results, table=None if failure else str(path))
    click.echo(table)  # after the progress display has left the terminal
    _warn_of_undiagnosed(report.undiagnosed)
    if failure:
        raise failure
    if report.interrupted:
        return EXIT_INTERRUPTED
    if any(map(_failed, report.plan.cells, report.results)):
        return EXIT_FAILED_CELLS
    return 0 if any(planned.steps for planned in report.plan.cells) else NothingSelectedError.exit_code


@cli.command()
@suite_options
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def plan(form: str, **options: Any) -> int:
    """Show what a run of SUITE would do: cells, shared steps, what is cached, and how long the rest may take."""
    this, cells = _open(**options)
    planned, pending = _plan(this, cells)
    if form == "json":
        click.echo(json.dumps(_plan_as_data(this, planned, pending), indent=1))
    else:
        _notes(this.suite)
        _print_plan(this, planned, pending)
    return 0


@cli.command()
@click.argument("suite")
@results_option
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "html", "latex", "json"]), default="md", show_default=True
)
def leaderboard(suite: str, results: Path, form: Any) -> int:
    """Print the table of SUITE from the rows of its runs."""
    from zsqbench.leaderboard import leaderboard as make

    click.echo(make(_rows(suite, results), form))
    return 0


@cli.command()
@click.argument("suite")
@click.argument("cell")
@home_option
@results_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def show(suite: str, cell: str, home: Path, results: Path, form: str) -> int:
    """Show what is known of a CELL of SUITE: row, calibration set, what was quantized, the traceback if it failed."""
    from zsqbench.diagnosis import Diagnosis, render
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.store import Store

    rows = {row.cell: row for row in _rows(suite, results)}
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
    if row.traceback:
        click.echo(row.traceback)
    return 0


@cli.command("scheme")
@click.argument("schemes", metavar="SCHEME [SCHEME]", nargs=-1, required=True)
@click.argument("model")
@click.option("--suite", help="A suite (a file, or a shipped one) whose models and schemes may be named, too.")
@data_root_option
@plugin_options
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def scheme(schemes: Sequence[str], model: str, form: str, **options: Any) -> int:
    """Show which tensors of MODEL a SCHEME quantizes at how many bits, or where two differ.

    Only the structure of the network matters: it has random weights, nothing is downloaded and nothing is run.
    """
    from zsqbench.tensormap import difference, render, render_difference, tensor_map

    if len(schemes) > 2:  # noqa: PLR2004
        raise click.UsageError(f"expected one scheme or two, and a model; got {len(schemes)} schemes")
    parsed, module, input_size = _structure(schemes, model, **options)
    maps = [tensor_map(model, module, one, input_size) for one in parsed]
    if len(maps) == 1:
        click.echo(json.dumps(maps[0].as_data(), indent=1) if form == "json" else render(maps[0]))
    else:
        found = difference(*maps)
        click.echo(json.dumps(found.as_data(), indent=1) if form == "json" else render_difference(found))
    return 0


@cli.command("schema")
def schema() -> int:
    """Print the JSON schema of a suite file, for editors."""
    from zsqbench.suite import SuiteFile

    click.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
    return 0


@cli.group()
def plugins() -> None:
    """What is installed, and how to add to it."""


@plugins.command("list")
@click.argument("name", required=False)
@plugin_options
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def plugins_list(name: str | None, plugins: Sequence[Path], without: Sequence[str], form: str) -> int:
    """List plugins and methods: where they come from, their options, defaults and what these mean."""
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.plugins import load_plugins

    catalog = load_plugins(plugins, without)
    methods = [entry for entry in _methods(catalog) if name in (None, entry["name"], entry["plugin"])]
    if name is not None and not methods and not any(plugin.name == name for plugin in catalog.plugins):
        raise ZSQBenchError(unknown("method or plugin", name, {entry["name"] for entry in _methods(catalog)}))
    broken = [plugin for plugin in catalog.plugins if plugin.error and name in (None, plugin.name)]
    if form == "json":
        failures = [{"name": plugin.name, "origin": plugin.origin, "error": plugin.error} for plugin in broken]
        click.echo(json.dumps({"methods": methods, "broken": failures, "clashes": catalog.clashes}, indent=1))
        return 0
    for entry in methods:
        click.echo(f"{entry['kind']} {entry['name']}  (version {entry['version']}, {entry['origin']})")
        click.echo(f"    {entry['summary']}")
        for option in entry["options"]:
            default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
            click.echo(f"    {option['name']}: {option['type']}, {default}  {option['description']}".rstrip())
    for plugin in broken:
        click.echo(f"broken plugin {plugin.name}  ({plugin.origin}): {plugin.error}")
        if name is not None and plugin.traceback:
            click.echo(plugin.traceback)
    for clash in catalog.clashes:
        click.echo(f"clash: {clash}")
    return 0


@plugins.command("new")
@click.argument("kind", type=click.Choice(["generator", "quantizer", "task"]))
@click.argument("name")
@click.option("--into", "folder", type=_file, default=Path(), help="Folder to write to [default: this one].")
def plugins_new(kind: str, name: str, folder: Path) -> int:
    """Write a small method that runs, NAME.py, and its test, to start your own from."""
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


@plugins.command("check")
@click.argument("given", metavar="FILE_OR_NAME")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="An option of the method.")
@click.option("--model", help="For a task: the name of a network that it can load.")
@data_root_option
@plugin_options
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def plugins_check(
    given: str,
    settings: Sequence[str],
    model: str | None,
    data_root: Path | None,
    plugins: Sequence[Path],
    without: Sequence[str],
    form: str,
) -> int:
    """Check that methods keep the contract: those of a plugin FILE, or those that an installed one of this NAME has.

    Each runs on tiny networks on the CPU, with small values for its options.
    """
    from zsqbench.methods import ModelSpec

    file = [Path(given)] if Path(given).suffix == ".py" else []
    methods = _methods_to_check(given, [*plugins, *file], without)
    options = _options_of(methods, settings)
    spec = None if model is None else ModelSpec(name=model, base=model)
    from zsqbench.testing.conformance import check_method, reduce_options

    reduced = [reduce_options(*each, data_root) for each in zip(methods, options, strict=True)]
    checked = []
    for each in reduced:
        checked.append(check_method(*each, spec, data_root))
        if form == "text":
            _print_conformance(checked[-1])
    if form == "json":
        click.echo(json.dumps([_conformance_as_data(result) for result in checked], indent=1))
    return 0 if all(result.passed for result in checked) else EXIT_FAILED_CELLS


@cli.group()
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

    from zsqbench.diagnosis import common_part
    from zsqbench.errors import ZSQBenchError
    from zsqbench.results import ResultFile
    from zsqbench.store import Store

    store = Store(home)
    rows = [row for path in sorted(results.glob("*.jsonl")) for row in ResultFile(path).read().values()]
    if not rows:
        raise ZSQBenchError(
            f"there are no rows in {results}, so every artifact would go; name the folder with --results"
        )
    kept = {key for row in rows for key in row.keys.values()}
    kept |= {common_part(row.keys["generate"]) for row in rows if "generate" in row.keys}
    gone = [
        (kind, key)
        for kind, key in store.artifacts()
        if kind != "resolve" and (common_part(key) if kind == "diagnose" else key) not in kept
    ]
    for kind, key in gone:
        click.echo(f"{'removed' if yes else 'would remove'} {kind} {key[:12]}")
        if yes:
            shutil.rmtree(store.folder(kind, key))
    for path in store.leftovers() if yes else ():
        shutil.rmtree(path)
    click.echo(f"{len(gone)} artifacts {'removed' if yes else 'would go; --yes removes them'}")
    return 0


@cli.group()
def mlflow() -> None:
    """The copy of the results in MLflow."""


@mlflow.command("sync")
@click.argument("suite")
@home_option
@results_option
def mlflow_sync(suite: str, home: Path, results: Path) -> int:
    """Log the rows of SUITE that MLflow does not have."""
    from zsqbench.store import Store
    from zsqbench.tracking import sync

    rows = _rows(suite, results)
    count = sync(rows, rows[0].suite, Store(home))
    click.echo(f"{count} of {len(rows)} cells were missing and are logged now")
    return 0


@mlflow.command("ui", context_settings={"ignore_unknown_options": True})
@home_option
@click.argument("arguments", nargs=-1)
def mlflow_ui(home: Path, arguments: Sequence[str]) -> int:
    """Open MLflow's own web page on the results (ARGUMENTS go to `mlflow ui`)."""
    import os
    import subprocess

    from zsqbench.tracking import tracking_uri

    uri = tracking_uri(home)
    if uri.startswith("http"):
        click.echo(f"the results are on the MLflow server {uri}")
        return 0
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *arguments]
    return subprocess.run(command, check=False, env=os.environ).returncode  # noqa: S603 - our own command


# --- what the commands share --------------------------------------------------------------------------------------


def _open(
    suite: str,
    expression: str | None,
    overrides: Sequence[str],
    data_root: Path | None,
    home: Path,
    results: Path,
    plugins: Sequence[Path],
    without: Sequence[str],
    device: str = "auto",
) -> "tuple[Run, Sequence[Cell]]":
    """Load a suite and select its cells."""
    from zsqbench.scheduler import Run
    from zsqbench.suite import find_suite, load_suite, select
    from zsqbench.worker import Place

    loaded = load_suite(find_suite(suite), plugins, without, overrides, data_root)
    cells = loaded.cells if expression is None else select(loaded.cells, expression)
    root = None if data_root is None else data_root.resolve()
    sources = {plugin.origin: plugin.source for plugin in loaded.catalog.plugins}
    files = tuple(loaded.plugin_files)
    place = Place(home.resolve(), root, files, tuple(sources.get(str(file)) for file in files), tuple(without), device)
    return Run(loaded, place, results), cells


def _rows(suite: str, results: Path) -> "list[Result]":
    """The rows of a suite, for commands that need no plugin."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.results import ResultFile
    from zsqbench.suite import find_suite, suite_name

    name = suite_name(find_suite(suite))
    rows = list(ResultFile(results / f"{name}.jsonl").read().values())
    if not rows:
        raise ZSQBenchError(f"there are no results of {name} in {results}; `zsqbench run {suite}` makes them")
    return rows


def _structure(
    schemes: Sequence[str],
    model: str,
    suite: str | None,
    data_root: Path | None,
    plugins: Sequence[Path],
    without: Sequence[str],
) -> "tuple[list[Scheme], nn.Module, tuple[int, int, int]]":
    """What these schemes mean, and the network with random weights and the size of its images."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.scheme import PLACEMENTS, parse_scheme
    from zsqbench.suite import find_suite, load_suite
    from zsqbench.zoo.models import load_named

    if suite is None:
        if plugins or without:
            raise ZSQBenchError("--plugin and --no-plugin are for the methods of a suite; name it with --suite")
        parsed = [parse_scheme(text, PLACEMENTS) for text in schemes]
        if Path(model).suffix == ".py":
            raise ZSQBenchError(f"model {model!r} is a file: name it under 'models' in a suite, and give --suite")
        network = load_named(model, "none")
        return parsed, network.module, network.feeding.input_size
    loaded = load_suite(find_suite(suite), plugins, without, data_root=data_root)
    parsed = [parse_scheme(text, loaded.placements) for text in schemes]
    pretrained = _untrained(loaded, model, data_root)
    return parsed, pretrained.module, pretrained.input_size


def _untrained(suite: "Suite", model: str, data_root: Path | None) -> "Pretrained":
    """A network of a suite with random weights, as the task loads it that it is used with (or else the first task)."""
    from zsqbench.errors import ZSQBenchError, did_you_mean, unknown
    from zsqbench.methods import ModelSpec
    from zsqbench.testing import context

    used = (cell.task for cell in suite.cells if cell.model == model)
    task = suite.task(next(used, next(iter(suite.tasks))))
    spec = suite.models.get(model) or ModelSpec(name=model, base=model)
    spec = spec.model_copy(update={"weights": "none"})
    try:
        task.find_model(spec)
    except ZSQBenchError as error:
        if did_you_mean(model, suite.models):
            raise ZSQBenchError(unknown("model", model, suite.models, str(suite.path))) from error
        raise
    return task.load(spec, context(data_root=data_root))


def _shown_as_data(home: Path, row: "Result", diagnosis: "Diagnosis | Undiagnosed") -> dict[str, Any]:
    """The row, diagnostics with where their files are (or why there are none), and what the quantize step left."""
    from zsqbench.diagnosis import Diagnosis

    of_set: dict[str, Any]
    if isinstance(diagnosis, Diagnosis):
        of_set = {**diagnosis.data, "files": {name: str(path) for name, path in diagnosis.files.items()}}
    else:
        of_set = {"absent": diagnosis.why}
    there = "quantize" in row.keys and row.status == "done"
    quantized = _left_by_quantize(home, row.keys["quantize"]) if there else None
    return {"row": row.model_dump(mode="json"), "calibration_set": of_set, "quantized": quantized}


def _left_by_quantize(home: Path, key: str) -> dict[str, Any] | None:
    """The map, curves and notes of a quantize step whose artifact is here."""
    from zsqbench.store import Store

    store = Store(home)
    if not store.has("quantize", key):
        return None
    folder = store.read("quantize", key)
    files = {name: folder / f"{name}.json" for name in ("tensors", "curves", "notes")}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def _quantized(home: Path, key: str) -> str:
    """What a quantize step left, for people: its map, losses of reconstruction and notes; or why there is no map."""
    from zsqbench.tensormap import render_measured, render_reconstruction

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


def _notes(suite: "Suite") -> None:
    for note in suite.notes:
        click.echo(f"note: {note}", err=True)
    for plugin in suite.catalog.plugins:
        if plugin.error:
            click.echo(f"warning: plugin {plugin.name} ({plugin.origin}) did not load: {plugin.error}", err=True)


def _warn_of_undiagnosed(undiagnosed: "Mapping[str, str]") -> None:
    """One line, however many sets there are; `show` has the reason of each."""
    if undiagnosed:
        label, why = next(iter(undiagnosed.items()))
        others = f"; so did {len(undiagnosed) - 1} others" if len(undiagnosed) > 1 else ""
        click.echo(f"warning: {label} failed: {why}{others}; results do not depend on it", err=True)


def _failed(planned: "PlannedCell", result: "Result") -> bool:
    """Whether a cell ended otherwise than the suite file lets expect."""
    unexpected = result.status == "impossible" and planned.cell.reason is None
    return unexpected or result.status in {"failed", "interrupted"}


def _plan(this: "Run", cells: "Sequence[Cell]") -> "tuple[Plan, list[str]]":
    """A plan without running anything; a model that no run has loaded yet stands with a provisional identity."""
    from zsqbench.plan import ModelFacts

    known = this.find(cells)
    pending = [step.cell.model for pair, step in this.resolve.items() if pair not in known]
    unknown = {pair: ModelFacts(f"pending {step.key}", bn=1, classes=1) for pair, step in this.resolve.items()}
    return this.plan(cells, unknown | known), pending


def _state(planned: "PlannedCell", unfinished: Collection[int], to_do: Any) -> str:
    if id(planned) not in unfinished:
        return "done"
    if not planned.steps:
        return planned.status
    return "to do" if any(step.key in to_do for step in planned.steps.values()) else "cached"


def _plan_as_data(this: "Run", made: "Plan", pending: Sequence[str]) -> dict[str, Any]:
    from zsqbench.plan import Timings

    timings = Timings(this.store)
    unfinished = {id(planned): planned for planned in made.cells if not made.is_finished(planned)}
    to_do = made.to_do(list(unfinished.values()))
    cells = [
        {
            "cell": planned.cell.name,
            "state": _state(planned, unfinished, to_do),
            "reason": planned.reason,
            "steps": planned.keys,
            "diagnose": planned.diagnose and planned.diagnose.key,
        }
        for planned in made.cells
    ]
    steps = [
        {
            "kind": step.kind,
            "key": step.key,
            "label": step.label,
            "needs": [need.key for need in step.needs],
            "state": "cached" if step.key in made.cached else "to do" if step.key in to_do else "not needed",
            "seconds": timings.estimate(step) if step.key in to_do else None,
        }
        for step in made.steps.values()
    ]
    return {
        "suite": this.suite.name,
        "cells": cells,
        "steps": steps,
        "pending": list(pending),
        "notes": list(this.suite.notes),
    }


def _print_plan(this: "Run", made: "Plan", pending: Sequence[str]) -> None:
    data = _plan_as_data(this, made, pending)
    lines = [f"{data['suite']}: {len(data['cells'])} cells"]
    for cell in data["cells"]:
        reason = f"  ({cell['reason']})" if cell["reason"] else ""
        lines.append(f"  {cell['state']:10} {cell['cell']}{reason}")
    alone = sum(len(cell["steps"]) + (cell["diagnose"] is not None) for cell in data["cells"])
    lines.append(f"{len(data['steps'])} steps, where the cells one by one would take {alone}:")
    kinds: dict[str, Counter[str]] = {}
    for step in data["steps"]:
        kinds.setdefault(step["kind"], Counter())[step["state"]] += 1
    for kind, states in kinds.items():
        lines.append(f"  {kind:9} " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    for model in dict.fromkeys(pending):
        lines += [f"pending: {model} has not been loaded yet, so nothing of it is known to be cached"]
    lines.append(f"time: {_time_estimate(data['steps'])}")
    click.echo("\n".join(lines))


def _time_estimate(steps: Sequence[dict[str, Any]]) -> str:
    to_do = [step["seconds"] for step in steps if step["state"] == "to do"]
    known = [seconds for seconds in to_do if seconds is not None]
    if not to_do:
        return "nothing to do"
    unknown = len(to_do) - len(known)
    if not known:
        return f"unknown: no step like these {unknown} has run yet"
    text = f"about {sum(known):.0f} s on one worker for {len(known)} steps"
    return text + (f"; unknown for {unknown} more" if unknown else "")


def _methods(catalog: "Catalog") -> list[dict[str, Any]]:
    """Every installed method with its options, as plain data."""
    entries = []
    for (kind, name), provided in sorted(catalog.provided.items()):
        method = provided.method
        properties = method.model_json_schema()["properties"] if method.model_fields else {}
        options = [
            {
                "name": option,
                "type": _type_name(properties[option]),
                "default": None if info.is_required() else properties[option].get("default"),
                "required": info.is_required(),
                "description": info.description or "",
            }
            for option, info in ((info.alias or field, info) for field, info in method.model_fields.items())
        ]
        summary = (method.__doc__ or "").strip().splitlines()
        entries.append(
            {
                "kind": kind,
                "name": name,
                "version": method.version,
                "plugin": provided.plugin.name,
                "origin": provided.plugin.origin,
                "summary": summary[0] if summary else "",
                "options": options,
            }
        )
    return entries


def _methods_to_check(given: str, files: Sequence[Path], without: Sequence[str]) -> "list[type[Method]]":
    """The generators, quantizers and tasks of a plugin file, or of this name, or of the plugin of this name."""
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.plugins import load_plugins

    catalog = load_plugins(files, without)
    catalog.check()
    origin = str(Path(given).resolve()) if Path(given).suffix == ".py" else None
    for plugin in catalog.plugins:
        if plugin.error and (plugin.origin == origin or (origin is None and plugin.name == given)):
            listing = f"--plugin {given}" if origin else given
            raise ZSQBenchError(
                f"plugin {plugin.name} did not load: {plugin.error}; "
                f"`zsqbench plugins list {plugin.name}{f' {listing}' if origin else ''}` prints the traceback"
            )
    provided = {key: entry for key, entry in sorted(catalog.provided.items()) if key[0] != "engine"}
    found = [
        entry.method
        for (_, name), entry in provided.items()
        if (entry.plugin.origin == origin if origin else given in (name, entry.plugin.name))
    ]
    if not found and origin:
        raise ZSQBenchError(f"{given} provides no generator, quantizer or task; return its classes from a hook")
    if not found:
        raise ZSQBenchError(unknown("method", given, {name for _, name in provided}))
    return found


def _options_of(methods: "Sequence[type[Method]]", settings: Sequence[str]) -> list[dict[str, Any]]:
    """Which of these OPTION=VALUE each method takes; one that none has is given to the first, which complains."""
    import yaml

    from zsqbench.errors import ZSQBenchError

    options: list[dict[str, Any]] = [{} for _ in methods]
    for text in settings:
        option, equals, value = text.partition("=")
        if not (option and equals):
            raise ZSQBenchError(f"--set {text!r}: expected OPTION=VALUE, such as images=64")
        takers = [
            taken
            for taken, method in zip(options, methods, strict=True)
            if option in {info.alias or name for name, info in method.model_fields.items()}
        ]
        for taken in takers or options[:1]:
            try:
                taken[option] = json.loads(value)  # reads 3e-7 as a number, as a suite does
            except json.JSONDecodeError:
                taken[option] = yaml.safe_load(value)
    return options


def _print_conformance(checked: "Conformance") -> None:
    method, findings = checked.method, checked.findings
    changed = ", ".join(f"{name}={value}" for name, value in checked.reduced.items())
    click.echo(f"{method.kind} {method.name}{f'  (set for the check: {changed})' if changed else ''}")
    for finding in findings:
        click.echo(f"    {finding.outcome:12}{finding.check}{f': {finding.reason}' if finding.reason else ''}")
    counts = Counter(finding.outcome for finding in findings)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("ok", "FAILED", "not checked") if counts[outcome])
    click.echo(f"    {said}, in {checked.seconds:.0f} s")


def _conformance_as_data(checked: "Conformance") -> dict[str, Any]:
    return {
        "kind": checked.method.kind,
        "name": checked.method.name,
        "passed": checked.passed,
        "set": dict(checked.reduced),
        "seconds": checked.seconds,
        "checks": [vars(finding) for finding in checked.findings],
    }


def _type_name(schema: dict[str, Any]) -> str:
    """The type of an option, as a reader of YAML would say it."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type_name(part) for part in schema["anyOf"]))
    if schema.get("format") == "path":
        return "path"
    names = {"string": "text", "null": "none", "array": "list"}
    kind = str(schema.get("type", "any"))
    return names.get(kind, kind)
