"""Write runs of cells into the tables of MLflow's database, many in one transaction.

MLflow's client makes a run in a dozen transactions, and reads the run again in each. So the table rows are made here,
from MLflow's own classes, with MLflow's default values.
"""

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zsqbench.reports.mlflow.database import BUSY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Point:
    """One point of a metric."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class CellRun:
    """The run of a finished cell, with its complete content for MLflow. Its names must be valid in MLflow."""

    name: str
    status: str
    """The status in MLflow's words."""
    start: int
    """The start in milliseconds, like `end`."""
    end: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[Point]
    datasets: Sequence["DatasetInput"] = ()
    files: Sequence[Path] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """Content of further files, by name."""


@dataclass(frozen=True)
class Tables:
    """The tables of a database, for the runs of one experiment."""

    store: "SqlAlchemyStore"
    experiment_id: str
    artifacts: str
    """The URI of the experiment's artifacts."""
    folder: Path | None
    """The folder of the experiment's artifacts. None: they are not on a disk."""

    @classmethod
    def of(cls, client: "MlflowClient", experiment_id: str) -> "Tables":
        """The tables to which a client of a database writes."""
        location = client.get_experiment(experiment_id).artifact_location
        store = client._tracking_client.store  # noqa: SLF001 - MLflow has no public access to it
        return cls(store, experiment_id, location, _folder(location))

    def write(self, runs: Sequence[CellRun]) -> list[str]:
        """Add all runs or none, and return their ids. Files come first, so that each run in a table has its files."""
        ids = [uuid.uuid4().hex for _ in runs]
        for run_id, run in zip(ids, runs, strict=True):
            if run.files or run.texts:
                self._keep_files(run_id, run)
        with self.store.engine.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * BUSY:.0f}")
            self._insert(connection, dict(zip(ids, runs, strict=True)))
        return ids

    def _keep_files(self, run_id: str, run: CellRun) -> None:
        """Copy the files of a run, and write its texts.

        Nobody knows the run yet, so the files are written directly. MLflow would check each folder of a path again and
        again, which takes longer than writing the file.
        """
        if self.folder is None:
            self._upload_files(run_id, run)
            return
        place = self.folder / run_id / self.store.ARTIFACTS_FOLDER_NAME
        place.parent.mkdir(parents=True)
        place.mkdir()
        for path in run.files:
            shutil.copy2(path, place)
        for name, text in run.texts.items():
            (place / name).write_text(text, encoding="utf-8")

    def _upload_files(self, run_id: str, run: CellRun) -> None:
        """Copy the files of a run with MLflow. MLflow only takes files, so texts are first written to a folder."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(self._place(run_id))
        for path in run.files:
            repository.log_artifact(str(path))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in run.texts.items():
                file = Path(folder, name)
                file.write_text(text, encoding="utf-8")
                repository.log_artifact(str(file))

    def _place(self, run_id: str) -> str:
        from mlflow.utils.uri import append_to_uri_path

        return str(append_to_uri_path(self.artifacts, run_id, self.store.ARTIFACTS_FOLDER_NAME))

    def _insert(self, connection: "Connection", runs: Mapping[str, CellRun]) -> None:
        from mlflow.store.tracking.dbmodels import models

        def insert(table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
            if rows:
                connection.execute(table.__table__.insert(), rows)

        insert(models.SqlRun, [self._run(run_id, run) for run_id, run in runs.items()])
        for table, given in ((models.SqlTag, "tags"), (models.SqlParam, "params")):
            pairs = ((run_id, pair) for run_id, run in runs.items() for pair in getattr(run, given).items())
            insert(table, [{"run_uuid": run_id, "key": key, "value": value} for run_id, (key, value) in pairs])
        metrics = {run_id: list(self._metrics(run_id, run)) for run_id, run in runs.items()}
        insert(models.SqlMetric, [row for rows in metrics.values() for row in rows])
        insert(models.SqlLatestMetric, [row for rows in metrics.values() for row in _latest(rows)])
        self._insert_datasets(connection, runs)

    def _run(self, run_id: str, run: CellRun) -> dict[str, Any]:
        return {
            "run_uuid": run_id,
            "name": run.name,
            "experiment_id": int(self.experiment_id),
            "status": run.status,
            "start_time": run.start,
            "end_time": run.end,
            "artifact_uri": self._place(run_id),
            "lifecycle_stage": "active",
            "source_type": "UNKNOWN",
            "source_name": "",
            "source_version": "",
            "entry_point_name": "",
            "user_id": "unknown",
        }

    def _metrics(self, run_id: str, run: CellRun) -> Iterator[dict[str, Any]]:
        for point in dict.fromkeys(run.points):
            is_nan, value = self.store.sanitize_metric_value(point.value)
            known = {"key": point.name, "value": value, "step": point.step, "is_nan": is_nan}
            yield {"run_uuid": run_id, "timestamp": run.end, **known}

    def _insert_datasets(self, connection: "Connection", runs: Mapping[str, CellRun]) -> None:
        """Add datasets that the experiment does not have yet, and link them to the runs that read them."""
        from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlInput, SqlInputTag

        wanted = [(run_id, read) for run_id, run in runs.items() for read in run.datasets]
        if not wanted:
            return
        table = SqlDataset.__table__
        digests = {read.dataset.digest for _, read in wanted}
        there = table.select().where(
            table.c.experiment_id == int(self.experiment_id), table.c.digest.in_(sorted(digests))
        )
        known = {(row.name, row.digest): row.dataset_uuid for row in connection.execute(there)}
        for _, read in wanted:
            dataset = read.dataset
            if (dataset.name, dataset.digest) not in known:
                known[dataset.name, dataset.digest] = uuid.uuid4().hex
                new = {
                    "dataset_uuid": known[dataset.name, dataset.digest],
                    "experiment_id": int(self.experiment_id),
                    "name": dataset.name,
                    "digest": dataset.digest,
                    "dataset_source_type": dataset.source_type,
                    "dataset_source": dataset.source,
                    "dataset_schema": dataset.schema,
                    "dataset_profile": dataset.profile,
                }
                connection.execute(table.insert(), [new])
        inputs = [(uuid.uuid4().hex, run_id, read) for run_id, read in wanted]
        edges = [
            {
                "input_uuid": input_id,
                "source_type": "DATASET",
                "source_id": known[read.dataset.name, read.dataset.digest],
                "destination_type": "RUN",
                "destination_id": run_id,
            }
            for input_id, run_id, read in inputs
        ]
        connection.execute(SqlInput.__table__.insert(), edges)
        tags = [
            {"input_uuid": input_id, "name": tag.key, "value": tag.value}
            for input_id, _, read in inputs
            for tag in read.tags
        ]
        connection.execute(SqlInputTag.__table__.insert(), tags)


def _latest(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last point of each metric of a run, in MLflow's order: by step, then by value."""
    latest: dict[str, Mapping[str, Any]] = {}
    for row in metrics:
        before = latest.get(row["key"])
        if before is None or (row["step"], row["value"]) > (before["step"], before["value"]):
            latest[row["key"]] = row
    return list(latest.values())


def _folder(location: str) -> Path | None:
    """The folder of a URI. None: it is not a folder."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(location)) if urlsplit(location).scheme in ("", "file") else None


def as_json(document: Any) -> str:
    """Plain data as the text of a file, in the form of MLflow's client."""
    return _indented(json.dumps(document, default=str))


@lru_cache(maxsize=64)
def _indented(text: str) -> str:
    """JSON with a line for each value. It is cached: many runs have the same data, and indenting takes longest."""
    return json.dumps(json.loads(text), indent=2)
