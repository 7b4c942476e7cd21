"""Rows as runs of MLflow: an experiment for a suite, a run for an invocation, runs below it for cells."""

import contextlib
import json
import logging
import os
import re
import sqlite3
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zsqbench.errors import CorruptArtifactError
from zsqbench.hashing import digest_of
from zsqbench.reports.results import Result, environment, flat, flat_method
from zsqbench.steps import KINDS, Tracked
from zsqbench.steps.step import Dataset
from zsqbench.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

T = TypeVar("T")


# MLflow's limits, mlflow/utils/validation.py
PARAM_LENGTH = 6000
TAG_LENGTH = 5000  # 8000 since MLflow 3
NAME_LENGTH = 250
DIGEST_LENGTH = 36
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
CURVE_POINTS = 320
"""Points that are logged of a curve, as many as MLflow draws. The artifact in the store has all of them."""

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 take four minutes where a server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment variables of MLflow that hold where the user has not set them."""


def identity(result: Result) -> str:
    """Hash that says whether MLflow holds a row: what the cell is, what was made for it, and what became of it."""
    return digest_of([result.cell, result.definition, result.keys, result.status, result.reason])


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database below the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(home / 'mlflow.db').resolve().as_posix()}"


UNRUN = ("impossible", "excluded")
"""Cells that no invocation will ever run."""


@dataclass(frozen=True)
class Ending:
    """What the parent run is told at the end."""

    results: Sequence[Result]
    table: Path | None = None


@dataclass(frozen=True)
class BackgroundStep:
    """A background step is done: its kind, and the artifacts that it needed."""

    kind: str
    needs: frozenset[str]


@dataclass(frozen=True)
class Experiment:
    """A suite's experiment in MLflow."""

    client: "MlflowClient"
    id: str
    suite_name: str
    store: Store

    @classmethod
    def open(cls, suite_name: str, store: Store) -> "Experiment":
        """Connect, and make the database and the experiment where they are not there yet.

        Only a database has its artifacts below the store's home; a server knows where it keeps them.
        """
        uri = tracking_uri(store.home)
        client = _client(uri)
        found = client.get_experiment_by_name(suite_name)
        if found is not None:
            return cls(client, found.experiment_id, suite_name, store)
        location = (store.home / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
        return cls(client, client.create_experiment(suite_name, artifact_location=location), suite_name, store)

    def identities(self) -> set[str]:
        """Identities of the rows that are held. A run that was never ended is not counted: it may lack something."""
        found: set[str] = set()
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.id], "attributes.status != 'RUNNING'", max_results=1000, page_token=token
            )
            found.update(run.data.tags["zsqbench.row"] for run in page if "zsqbench.row" in run.data.tags)
            token = page.token
            if not token:
                return found

    def start(self, what: str) -> "Invocation":
        """Begin the parent run of one invocation."""
        tags = {"zsqbench.suite": self.suite_name, "zsqbench.version": environment()["zsqbench"]}
        run = self.client.create_run(self.id, tags=tags, run_name=time.strftime(f"{what} %Y-%m-%d %H:%M:%S"))
        return Invocation(self, run.info.run_id)


@dataclass(frozen=True)
class Invocation:
    """A parent run and the runs below it.

    Runs are nested by MLflow's own tag. The fluent interface is avoided: it is not made for threads, and a stray
    MLFLOW_RUN_ID in the environment takes precedence over the parent there (mlflow issue 15713).
    """

    experiment: Experiment
    run_id: str
    awaiting: dict[str, list[tuple[str, Result]]] = field(default_factory=dict)
    """By kind of background step, the runs of cells that were logged before it had left something of them."""

    def log(self, result: Result) -> None:
        """Log a row with what the store has of its set and curves. Ending the run comes last and makes it count."""
        client, store = self.experiment.client, self.experiment.store
        now = int(time.time() * 1000)
        details = Details() if result.status in UNRUN else Details.read(result, store)
        tags = {"mlflow.parentRunId": self.run_id, "zsqbench.suite": self.experiment.suite_name, **_tags(result)}
        if details.unreadable:
            tags["zsqbench.unreadable"] = "; ".join(details.unreadable)[:TAG_LENGTH]
        run = client.create_run(
            self.experiment.id,
            start_time=now - int(1000 * sum(result.seconds.values())),
            tags=tags,
            run_name=result.cell,
        )
        run_id = run.info.run_id
        _log_values(client, run_id, _params(result), [*_final(result), *details.points], now)
        for tracked in details.tracked.values():
            self._log(run_id, tracked)
        for kind in details.awaited:
            self.awaiting.setdefault(kind, []).append((run_id, result))
        if result.traceback:
            client.log_text(run_id, result.traceback, "traceback.txt")
        client.set_terminated(run_id, "FAILED" if result.status == "failed" else "FINISHED", now)

    def log_background(self, news: BackgroundStep) -> None:
        """Log what a background step left to the cells that were logged without."""
        waiting = self.awaiting.pop(news.kind, [])
        for run_id, result in waiting:
            concerned = news.needs <= set(result.keys.values())
            tracked = KINDS[news.kind].track(self.experiment.store, result) if concerned else None
            if tracked is None:
                self.awaiting.setdefault(news.kind, []).append((run_id, result))
            else:
                self._log(run_id, tracked)

    def _log(self, run_id: str, tracked: Tracked) -> None:
        client = self.experiment.client
        points = [Point(name, value, 0) for name, value in tracked.numbers.items()]
        _log_values(client, run_id, {}, points, int(time.time() * 1000))
        for path in tracked.files:
            client.log_artifact(run_id, str(path))
        for name, document in tracked.documents.items():
            client.log_dict(run_id, document, name)
        if tracked.dataset is not None:
            client.log_inputs(run_id, [_dataset_input(tracked.dataset)])

    def finish(self, ending: Ending) -> None:
        """End the parent run with how many cells there are of each status, and the table."""
        client = self.experiment.client
        counts = Counter(result.status for result in ending.results)
        points = [Point(f"cells.{status}", count, 0) for status, count in counts.items()]
        _log_values(client, self.run_id, {}, points, int(time.time() * 1000))
        if ending.table is not None:
            client.log_artifact(self.run_id, str(ending.table))
        client.set_terminated(self.run_id, "KILLED" if counts["interrupted"] else "FINISHED")


@dataclass(frozen=True)
class Point:
    """One point of a metric."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class Details:
    """What the store has of a cell besides its row. A file that is gone or damaged is named, and costs nothing else."""

    points: tuple[Point, ...] = ()
    tracked: Mapping[str, Tracked] = field(default_factory=dict)
    """Those that are there, by kind of step."""
    awaited: tuple[str, ...] = ()
    """The kinds of background steps that have not left anything yet."""
    unreadable: tuple[str, ...] = ()

    @classmethod
    def read(cls, result: Result, store: Store) -> "Details":
        """Curves of all steps that the row names, and what each kind of step has to tell."""
        points: list[Point] = []
        unreadable: list[str] = []
        for name, key in result.keys.items():
            try:
                points += _curves(name, key, store)
            except (CorruptArtifactError, OSError, ValueError, TypeError) as error:
                unreadable.append(f"{name}: {one_line(error)}")
        tracked = {kind: found for kind, job in KINDS.items() if (found := job.track(store, result)) is not None}
        unreadable += [found.unreadable for found in tracked.values() if found.unreadable]
        awaited = tuple(kind for kind, job in KINDS.items() if kind not in tracked and job.is_expected(result))
        return cls(tuple(points), tracked, awaited, tuple(unreadable))


def _client(uri: str) -> "MlflowClient":
    """A client that says nothing of its own, no log of migrations and no links, and soon fails where nobody answers."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _open_database(uri)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets them to INFO
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


def _open_database(uri: str) -> None:
    """Open or make the file of an SQLite database: where that fails, MLflow would try again for minutes."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")


def _log_values(
    client: "MlflowClient", run_id: str, params: Mapping[str, str], points: Sequence[Point], now: int
) -> None:
    from mlflow.entities import Metric, Param

    metrics = [Metric(_name(point.name), point.value, now, point.step) for point in points]
    for batch in _batches([Param(_name(name), text) for name, text in params.items()], PARAMS_PER_BATCH):
        client.log_batch(run_id, params=batch)
    for metric_batch in _batches(metrics, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metric_batch)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _name(text: str) -> str:
    """A name that MLflow accepts: its characters only, and a normal relative path."""
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
        "row": identity(result),
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
    kind = store.kind_of(key)
    if kind is None:
        return []
    points = []
    for curve, values in store.look(kind, key).curves.items():
        latest = dict(values)  # MLflow keeps several values of one step, and draws them above each other
        points += [Point(f"{name}/{curve}", float(latest[step]), int(step)) for step in _thinned(list(latest))]
    return points


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """At most CURVE_POINTS of the steps, evenly, the first and the last among them."""
    if len(steps) <= CURVE_POINTS:
        return steps
    stride = (len(steps) - 1) / (CURVE_POINTS - 1)
    return [steps[round(place * stride)] for place in range(CURVE_POINTS)]


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
    """An error of MLflow as one line: its class and the first line that it says."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 200)}"
