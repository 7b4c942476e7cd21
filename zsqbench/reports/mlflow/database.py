"""The SQLite database of MLflow: name it, make it, read it without MLflow, and move it aside."""

import contextlib
import glob
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the 7 of MLflow take four minutes if a server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Default values for environment variables of MLflow."""

BUSY = 20.0
"""Seconds that a query waits while another process writes, as in MLflow."""

SIDECARS = ("-journal", "-wal", "-shm")
"""Files of SQLite beside a database. A journal that is left beside a new database with this name would damage it."""

DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")
"""The words of SQLite for wrong content. The last one means that tables differ from those in a statement."""


@dataclass(frozen=True)
class Logged:
    """A run of a cell in the database: the identity of the row, the run, and true if it was ended."""

    row: str
    run_id: str
    ended: bool
    home: str | None = None
    """The home of the run. Only processes of the same home take turns in logging."""


@dataclass(frozen=True)
class Database:
    """An SQLite database of MLflow, by its file."""

    path: Path

    @classmethod
    def of(cls, home: Path) -> "Database | None":
        """The database of a home folder. None: results are logged to a server, or to a URI that only MLflow reads."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            return cls((home / "mlflow.db").resolve())
        name = uri.removeprefix("sqlite:///")
        return cls(Path(name).absolute()) if name != uri and name and not set("?%:") & set(name) else None

    @property
    def uri(self) -> str:
        """The URI by which MLflow finds the file.

        SQLAlchemy takes the part behind a question mark as options, and decodes percent signs only since version 2.1. A
        path with such a character is written as a URI of SQLite. The driver is in front of it, because otherwise MLflow
        would make folders with this name.
        """
        plain = f"sqlite:///{self.path.as_posix()}"
        if not set("?%#") & set(plain):
            return plain
        from sqlalchemy import make_url

        file = self.path.as_uri()
        spelled = (f"sqlite+pysqlite:///{name}?uri=true" for name in (file, quote(file, safe="/:")))
        return next(uri for uri in spelled if make_url(uri).database == file)

    def logged(self, suite_name: str, rows: Sequence[str] | None = None) -> list[Logged]:
        """The runs of a suite's cells, or of these rows, that are not deleted. Raises sqlite3.Error on failure."""
        if not self._holds_something():
            return []
        query = """
            SELECT rows.value, runs.run_uuid, runs.status != 'RUNNING', homes.value
            FROM experiments
            JOIN runs USING (experiment_id)
            JOIN tags AS rows ON rows.run_uuid = runs.run_uuid AND rows.key = 'zsqbench.row'
            LEFT JOIN tags AS homes ON homes.run_uuid = runs.run_uuid AND homes.key = 'zsqbench.home'
            WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'
        """
        with self._connection() as connection:
            if rows is None:
                found = connection.execute(query, [suite_name])
            else:
                these = ", ".join("?" * len(rows))
                found = connection.execute(f"{query} AND rows.value IN ({these})", [suite_name, *rows])
            return [Logged(value, run_id, bool(ended), home) for value, run_id, ended, home in found]

    def make(self) -> None:
        """Make the file with MLflow's tables, unless it exists.

        MLflow makes the tables in about fifty steps, and cannot continue after it was killed between two of them. So
        the file gets its name when it is complete. One process at a time must do this.
        """
        if self._holds_something():
            self._look()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self._neighbour("new")
        client_of(new.uri)
        for sidecar in SIDECARS:
            Path(f"{self.path}{sidecar}").unlink(missing_ok=True)
        new.path.replace(self.path)

    def damage(self) -> str | None:
        """The damage of the file, found by SQLite's own check, and by MLflow on a copy. None: no damage."""
        if not self._holds_something():
            return None
        try:
            with self._connection() as connection:
                (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                return str(said).splitlines()[-1]
            self._try_copy()
        except Exception as error:
            if is_damage(error):
                return str(cause_of(error))
            raise
        return None

    def move_aside(self) -> Path:
        """Rename the file, and return its new path.

        The files of SQLite beside it are renamed first, because a new database must not find them.
        """
        aside = self.path.with_name(time.strftime(f"{self.path.name}.damaged-%Y-%m-%dT%H%M%S"))
        for sidecar in SIDECARS:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{sidecar}").rename(f"{aside}{sidecar}")
        self.path.rename(aside)
        return aside

    def _holds_something(self) -> bool:
        """SQLite takes an empty file for an empty database."""
        return self.path.exists() and self.path.stat().st_size > 0

    def _look(self) -> None:
        """Read the list of tables. If this fails, MLflow would try again for minutes."""
        with self._connection() as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")

    def _try_copy(self) -> None:
        """Let MLflow open a copy. MLflow keeps a file open, and an open file cannot be moved."""
        copy = self._neighbour("copy")
        try:
            shutil.copyfile(self.path, copy.path)
            client_of(copy.uri)
        finally:
            copy.path.unlink(missing_ok=True)

    def _neighbour(self, what: str) -> "Database":
        """A file beside this one, with a name that MLflow has never seen. Files of dead processes are removed."""
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.{what}-*"):
            left.unlink()
        return Database(self.path.with_name(f"{self.path.name}.{what}-{uuid.uuid4().hex[:8]}"))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that makes no file. It may write, because SQLite may have to roll back before it reads."""
        with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True, timeout=BUSY)) as connection:
            yield connection


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database below the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or Database((home / "mlflow.db").resolve()).uri


def load_mlflow() -> None:
    """Import MLflow, which takes seconds. It prints nothing of its own, and fails soon if a server does not answer."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - its loggers are set up by the import

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client_of(uri: str) -> "MlflowClient":
    """A client. If the database has no tables, MLflow makes them now."""
    load_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def cause_of(error: BaseException) -> sqlite3.Error | None:
    """The error of SQLite inside an error of MLflow and SQLAlchemy, if any."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, sqlite3.Error):
        seen = seen.__cause__
    return seen


def is_damage(error: BaseException) -> bool:
    """True for an error about wrong content of a database, not about a lock or a full disk."""
    return getattr(cause_of(error), "sqlite_errorname", None) in DAMAGED
