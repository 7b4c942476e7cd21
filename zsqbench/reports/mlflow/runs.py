"""Rows as runs of MLflow: an experiment for a suite, a run for an invocation, runs below it for cells."""

import json
import re
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from zsqbench.errors import CorruptArtifactError
from zsqbench.hashing import digest_of
from zsqbench.reports.evidence import ReadOnce
from zsqbench.reports.mlflow.database import Database, Logged, client_of, load_mlflow, tracking_uri
from zsqbench.reports.mlflow.tables import CellRun, Point, Tables, as_json
from zsqbench.reports.mlflow.turns import Turns
from zsqbench.reports.results import Result, environment, flat, flat_method
from zsqbench.steps import KINDS, Tracked
from zsqbench.steps.step import Dataset
from zsqbench.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Param


# MLflow's limits, mlflow/utils/validation.py
PARAM_LENGTH = 6000
TAG_LENGTH = 5000  # 8000 since MLflow 3
NAME_LENGTH = 250  # also for a run's name: the database of a server may have no more room
DIGEST_LENGTH = 36
PARAMS_PER_BATCH = 100
VALUES_PER_BATCH = 1000
ROWS_PER_TURN = 500
"""The most rows of one transaction. Other processes wait meanwhile, for about a second.

The ids of runs are random, so each transaction writes to many pages of the indexes. Fewer transactions are cheaper.
"""
SIZE_PER_TURN = 5_000_000
"""After about so many bytes of curves and texts, a turn takes no further row. This limits the memory."""
BYTES_PER_POINT = 100
CURVE_POINTS = 320
"""The most logged points of a curve. MLflow draws as many. The artifact in the store has all points."""


def identity(result: Result) -> str:
    """The hash by which MLflow knows a row: the cell, its artifacts, and its outcome."""
    return digest_of([result.cell, result.definition, result.keys, result.status, result.reason])


ROW = "zsqbench.row"
"""The tag of a run with the identity of its row."""

UNRUN = ("impossible", "excluded")
"""Statuses of cells that no invocation will ever run."""


@dataclass(frozen=True)
class Ending:
    """The data for the parent run at the end."""

    results: Sequence[Result]
    table: "Path | None" = None
    report: "Path | None" = None
    """The folder of the pages. None: not requested."""


@dataclass(frozen=True)
class BackgroundStep:
    """A background step that is done: its kind, and the artifacts that it needed."""

    kind: str
    needs: frozenset[str]


class DeletedExperimentError(Exception):
    """The experiment of a suite was deleted in MLflow. MLflow keeps it and its name until it is restored."""

    def __init__(self, name: str, experiment_id: str) -> None:
        super().__init__(f"the experiment {name} (id {experiment_id}) was deleted in MLflow")
        self.experiment_id = experiment_id


@dataclass(frozen=True)
class Experiment:
    """A suite's experiment in MLflow."""

    client: "MlflowClient"
    id: str
    suite_name: str
    store: Store
    turns: Turns
    tables: Tables | None = None
    """The tables of its database. None: results are logged to a server, or to a URI that only MLflow reads."""

    @classmethod
    def open(cls, suite_name: str, store: Store, turns: Turns | None = None) -> "Experiment":
        """Connect, and make the database and the experiment if they do not exist yet.

        Raises DeletedExperimentError if the experiment was deleted.
        """
        turns = turns or Turns.of(store.home)
        load_mlflow()
        with turns.take():
            client = connect(store.home)
            experiment_id = _experiment_id(client, suite_name, store)
            tables = Tables.of(client, experiment_id) if Database.of(store.home) is not None else None
            return cls(client, experiment_id, suite_name, store, turns, tables)

    def logged(self, rows: Sequence[str] | None = None) -> list[Logged]:
        """The runs of cells, or of these rows, in MLflow. A database is read without MLflow in a tenth of the time."""
        database = Database.of(self.store.home)
        if database is not None:
            return database.logged(self.suite_name, rows)
        if rows is None:
            return self._found("tags.`zsqbench.row` != ''")
        return [run for row in rows for run in self._found(f"tags.`zsqbench.row` = '{row}'")]

    def _found(self, which: str) -> list[Logged]:
        """The runs of cells that MLflow finds, on all pages."""
        found: list[Logged] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.id], which, max_results=1000, page_token=token)
            for run in page:
                tags, ended = run.data.tags, run.info.status != "RUNNING"
                found.append(Logged(tags[ROW], run.info.run_id, ended, tags.get("zsqbench.home")))
            token = page.token
            if not token:
                return found

    def identities(self) -> set[str]:
        """Identities of the rows in MLflow. A run that was never ended does not count, because data may be missing."""
        return {run.row for run in self.logged() if run.ended}

    @property
    def rows_at_once(self) -> int:
        """How many rows are logged in one turn, so that no turn is long."""
        return 1 if self.tables is None else ROWS_PER_TURN

    def claim(self, rows: Sequence[str]) -> set[str]:
        """The rows that are to be logged. Unfinished runs of dead processes of this home are removed. In a turn."""
        found = self.logged(rows)
        held = {run.row for run in found if run.ended}
        for run in found:
            if run.row not in held and run.home == self.turns.home:
                self.client.delete_run(run.run_id)
        return set(rows) - held

    def start(self, what: str) -> str:
        """Make the parent run of one invocation, and end the parent runs of dead processes of this home. In a turn."""
        whose = f"attributes.status = 'RUNNING' AND tags.`zsqbench.home` = '{self.turns.home}'"
        for run in self.client.search_runs([self.id], whose):
            if "mlflow.parentRunId" not in run.data.tags and not self.turns.is_alive(run.info.run_id):
                self.client.set_terminated(run.info.run_id, "KILLED")
        tags = self.tags | {"zsqbench.version": environment()["zsqbench"]}
        made = self.client.create_run(self.id, tags=tags, run_name=time.strftime(f"{what} %Y-%m-%d %H:%M:%S"))
        run_id: str = made.info.run_id
        self.turns.begin(run_id)
        return run_id

    @property
    def tags(self) -> dict[str, str]:
        """The tags of all its runs."""
        return {"zsqbench.suite": self.suite_name, "zsqbench.home": self.turns.home}


@dataclass
class Invocation:
    """A parent run and the runs below it. It is made when there is a cell to log.

    Runs are nested by MLflow's own tag. The fluent interface is not used: it is not made for threads, and an
    MLFLOW_RUN_ID in the environment would override the parent (mlflow issue 15713).
    """

    experiment: Experiment
    what: str
    run_id: str | None = None
    awaiting: dict[str, list[tuple[str, Result]]] = field(default_factory=dict)
    """By kind of background step, the runs of cells that were logged before the step had results for them."""

    def log(self, *results: Result) -> list[Result]:
        """Log rows, with their sets and curves from the store, and return the rows that MLflow did not have.

        Rows with much content are logged in several turns. Each is read before its turn.
        """
        store = ReadOnce(self.experiment.store.home)
        found = (Found.of(result, store) for result in results)
        return [row.result for rows in _turns(found) for row in self._log_in_turn(rows)]

    def _log_in_turn(self, rows: Sequence["Found"]) -> Sequence["Found"]:
        """Log the rows that MLflow does not have, and return them."""
        with self.experiment.turns.take():
            missing = self.experiment.claim([row.identity for row in rows])
            new = [row for row in rows if row.identity in missing]
            if new:
                self.run_id = self.run_id or self.experiment.start(self.what)
                self._log_cells(new, {**self.experiment.tags, "mlflow.parentRunId": self.run_id})
        return new

    def _log_cells(self, new: Sequence["Found"], tags: Mapping[str, str]) -> None:
        runs = [_cell_run(row, tags) for row in new]
        tables = self.experiment.tables
        ids = list(map(self._by_client, runs)) if tables is None else tables.write(runs)
        for run_id, row in zip(ids, new, strict=True):
            for kind in row.details.awaited:
                self.awaiting.setdefault(kind, []).append((run_id, row.result))

    def _by_client(self, new: CellRun) -> str:
        """Make a run with calls of MLflow's client. It is ended last, and only then counts."""
        client = self.experiment.client
        made = client.create_run(self.experiment.id, start_time=new.start, tags=dict(new.tags), run_name=new.name)
        run_id: str = made.info.run_id
        _log_values(client, run_id, new.params, new.points)
        for path in new.files:
            client.log_artifact(run_id, str(path))
        for name, text in new.texts.items():
            client.log_text(run_id, text, name)
        if new.datasets:
            client.log_inputs(run_id, list(new.datasets))
        client.set_terminated(run_id, new.status, new.end)
        return run_id

    def log_background(self, news: BackgroundStep) -> None:
        """Log the results of a background step to the cells that were logged without them."""
        waiting = self.awaiting.pop(news.kind, [])
        store = ReadOnce(self.experiment.store.home)
        for run_id, result in waiting:
            concerned = news.needs <= set(result.keys.values())
            tracked = KINDS[news.kind].track(store, result) if concerned else None
            if tracked is None:
                self.awaiting.setdefault(news.kind, []).append((run_id, result))
            else:
                with self.experiment.turns.take():
                    self._log(run_id, tracked)

    def _log(self, run_id: str, tracked: Tracked) -> None:
        client = self.experiment.client
        _log_values(client, run_id, {}, _numbers([tracked]))
        for path in tracked.files:
            client.log_artifact(run_id, str(path))
        for name, document in tracked.documents.items():
            client.log_text(run_id, as_json(document), name)
        if tracked.dataset is not None:
            client.log_inputs(run_id, [_dataset_input(tracked.dataset)])

    def finish(self, ending: Ending) -> None:
        """End the parent run, if there is one, with the cells of each status counted, the table and the report."""
        if self.run_id is None:
            return
        for kind in list(self.awaiting):  # another run may have done the step
            self.log_background(BackgroundStep(kind, frozenset()))
        client = self.experiment.client
        counts = Counter(result.status for result in ending.results)
        with self.experiment.turns.take():
            _log_values(client, self.run_id, {}, [Point(f"cells.{status}", n, 0) for status, n in counts.items()])
            if ending.table is not None:
                client.log_artifact(self.run_id, str(ending.table))
            if ending.report is not None:
                client.log_artifacts(self.run_id, str(ending.report), "report")
            client.set_terminated(self.run_id, "KILLED" if counts["interrupted"] else "FINISHED")
        self.experiment.turns.end(self.run_id)


def connect(home: "Path") -> "MlflowClient":
    """A client for a home folder. Its database is made if it does not exist. In a turn."""
    database = Database.of(home)
    if database is not None:
        database.make()
    return client_of(tracking_uri(home))


def rename_deleted(client: "MlflowClient", suite_name: str) -> str | None:
    """Rename a suite's deleted experiment, so that a new one can have its name. Returns the new name. In a turn."""
    found = client.get_experiment_by_name(suite_name)
    if found is None or found.lifecycle_stage == "active":
        return None
    name = time.strftime(f"{suite_name} deleted %Y-%m-%d %H:%M:%S")
    client.restore_experiment(found.experiment_id)  # MLflow renames no deleted experiment
    client.rename_experiment(found.experiment_id, name)
    client.delete_experiment(found.experiment_id)
    return name


@dataclass(frozen=True)
class Details:
    """The content of the store for a cell besides its row. A missing or damaged file is named, and the rest is kept."""

    points: tuple[Point, ...] = ()
    """Points of curves, and single numbers."""
    files: tuple["Path", ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """Content of further files, by name."""
    datasets: tuple[Dataset, ...] = ()
    awaited: tuple[str, ...] = ()
    """The kinds of background steps without results yet."""
    unreadable: tuple[str, ...] = ()

    @classmethod
    def read(cls, result: Result, store: Store) -> "Details":
        """Curves of all steps in the row, and the content for MLflow of each kind of step."""
        points: list[Point] = []
        unreadable: list[str] = []
        for name, key in result.keys.items():
            try:
                points += _curves(name, key, store)
            except (CorruptArtifactError, OSError, ValueError, TypeError) as error:
                unreadable.append(f"{name}: {one_line(error)}")
        by_kind = {kind: found for kind, job in KINDS.items() if (found := job.track(store, result)) is not None}
        tracked = by_kind.values()
        return cls(
            points=(*points, *_numbers(tracked)),
            files=tuple(path for found in tracked for path in found.files),
            texts={name: as_json(document) for found in tracked for name, document in found.documents.items()},
            datasets=tuple(found.dataset for found in tracked if found.dataset is not None),
            awaited=tuple(kind for kind, job in KINDS.items() if kind not in by_kind and job.is_expected(result)),
            unreadable=(*unreadable, *(found.unreadable for found in tracked if found.unreadable)),
        )

    @property
    def size(self) -> int:
        """Its approximate size in memory, in bytes."""
        return BYTES_PER_POINT * len(self.points) + sum(map(len, self.texts.values()))


@dataclass(frozen=True)
class Found:
    """A row, its identity, and its content in the store."""

    result: Result
    identity: str
    details: Details

    @classmethod
    def of(cls, result: Result, store: Store) -> "Found":
        """Read a row's content from the store."""
        details = Details() if result.status in UNRUN else Details.read(result, store)
        return cls(result, identity(result), details)


def _turns(rows: Iterable[Found]) -> Iterator[Sequence[Found]]:
    """The rows of each turn, read when the turn comes."""
    turn: list[Found] = []
    size = 0
    for row in rows:
        turn.append(row)
        size += row.details.size
        if size >= SIZE_PER_TURN:
            yield turn
            turn, size = [], 0
    if turn:
        yield turn


def _cell_run(row: Found, common: Mapping[str, str]) -> CellRun:
    """The run of a row, with the tags that all runs have."""
    now, result, details = _now(), row.result, row.details
    unreadable = {"zsqbench.unreadable": "; ".join(details.unreadable)[:TAG_LENGTH]} if details.unreadable else {}
    name = result.cell[:NAME_LENGTH]
    return CellRun(
        name=name,
        status="FAILED" if result.status == "failed" else "FINISHED",
        start=now - int(1000 * sum(result.seconds.values())),
        end=now,
        tags={**common, **_tags(result), ROW: row.identity, **unreadable, "mlflow.runName": name},
        params={_name(key): text for key, text in _params(result).items()},
        points=[Point(_name(point.name), point.value, point.step) for point in (*_final(result), *details.points)],
        datasets=[_dataset_input(dataset) for dataset in details.datasets],
        files=details.files,
        texts={**details.texts, **({"traceback.txt": result.traceback} if result.traceback else {})},
    )


def _numbers(tracked: Iterable[Tracked]) -> list[Point]:
    return [Point(name, value, 0) for found in tracked for name, value in found.numbers.items()]


def _experiment_id(client: "MlflowClient", suite_name: str, store: Store) -> str:
    """A suite's experiment. With a database, its artifacts are below the store's home. A server decides itself."""
    found = client.get_experiment_by_name(suite_name)
    if found is None:
        is_database = tracking_uri(store.home).startswith("sqlite")
        location = (store.home / "mlartifacts").resolve().as_uri() if is_database else None
        return str(client.create_experiment(suite_name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise DeletedExperimentError(suite_name, found.experiment_id)
    return str(found.experiment_id)


def _log_values(client: "MlflowClient", run_id: str, params: Mapping[str, str], points: Sequence[Point]) -> None:
    """Log params and metrics in as few calls as MLflow's limits allow. For a database, each call is a transaction."""
    from mlflow.entities import Metric, Param

    now = _now()
    metrics = [Metric(_name(point.name), point.value, now, point.step) for point in points]
    for param_batch, metric_batch in _batches([Param(_name(name), text) for name, text in params.items()], metrics):
        client.log_batch(run_id, metrics=metric_batch, params=param_batch)


def _batches(
    params: Sequence["Param"], metrics: Sequence["Metric"]
) -> Iterator[tuple[Sequence["Param"], Sequence["Metric"]]]:
    while params or metrics:
        room = VALUES_PER_BATCH - len(params[:PARAMS_PER_BATCH])
        yield params[:PARAMS_PER_BATCH], metrics[:room]
        params, metrics = params[PARAMS_PER_BATCH:], metrics[room:]


def _now() -> int:
    return int(time.time() * 1000)


@lru_cache(maxsize=4096)
def _name(text: str) -> str:
    """A name that MLflow accepts: only allowed characters, and a normal relative path."""
    parts = re.sub(r"[^\w\-. /]", "_", text).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)[:NAME_LENGTH].rstrip("/")


def _params(result: Result) -> dict[str, str]:
    """Flat options: `generator`, `generator.method`, `generator.iterations`, `settings.precision`, ..."""
    labels = {axis: getattr(result, axis) for axis in ("task", "model", "generator", "quantizer", "scheme", "seed")}
    values: dict[str, Any] = {axis: value for axis, value in labels.items() if value is not None}
    for axis, method in result.methods.items():
        values |= dict(flat_method(axis, method))
    values |= dict(flat("settings", result.settings))
    return {name: _value(value)[:PARAM_LENGTH] for name, value in values.items()}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _tags(result: Result) -> dict[str, str]:
    tags = {
        "cell": result.cell,
        "definition": result.definition,
        "status": result.status,
        "reason": result.reason,
        "keys": result.keys,
        "data_free": result.data_free,
        "random_weights": result.model_facts.get("random_weights", False),
    }
    return {f"zsqbench.{name}": _value(value)[:TAG_LENGTH] for name, value in tags.items() if value is not None}


def _final(result: Result) -> Iterable[Point]:
    values: dict[str, float] = {**result.metrics}
    values |= {f"float.{name}": value for name, value in result.float_metrics.items()}
    values |= {f"oracle.{name}": value for name, value in result.oracle.get("metrics", {}).items()}
    values |= {f"oracle.{name}": result.oracle[name] for name in ("epoch", "of") if name in result.oracle}
    values |= {f"seconds.{step}": value for step, value in result.seconds.items()}
    values |= {f"peak_memory.{step}": value for step, value in result.peak_memory.items()}
    if result.drop is not None:
        values["drop"] = result.drop
    return (Point(name, value, 0) for name, value in values.items())


def _curves(name: str, key: str, store: Store) -> list[Point]:
    """Curves of a step, `generate/loss`, so that MLflow shows a step's charts in one section."""
    kind = name if store.has(name, key) else store.kind_of(key)  # a name such as `start` is not a kind
    if kind is None:
        return []
    points = []
    for curve, values in store.look(kind, key).curves.items():
        latest = dict(values)  # MLflow would keep several values of one step, and draw them above each other
        points += [Point(f"{name}/{curve}", float(latest[step]), int(step)) for step in _thinned(list(latest))]
    return points


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """At most CURVE_POINTS of the steps, evenly, the first and the last among them."""
    if len(steps) <= CURVE_POINTS:
        return steps
    stride = (len(steps) - 1) / (CURVE_POINTS - 1)
    return [steps[round(place * stride)] for place in range(CURVE_POINTS)]


@lru_cache(maxsize=256)
def _dataset_input(dataset: Dataset) -> "DatasetInput":
    """A calibration set that MLflow can list, find and compare runs by."""
    from mlflow.entities import Dataset as MLflowDataset
    from mlflow.entities import DatasetInput, InputTag

    entity = MLflowDataset(
        name=dataset.name,
        digest=dataset.key[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(dataset.folder.resolve())}),
        profile=json.dumps({"num_rows": dataset.images}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "calibration")])


def one_line(error: BaseException) -> str:
    """An error of MLflow as one line: its class and the first line of its text."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 200)}"
