"""The SQLite database that MLflow keeps: how it is named, made, looked into without MLflow, and moved aside."""

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
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 take four minutes where a server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment variables of MLflow that hold where the user has not set them."""

BUSY = 20.0
"""Seconds that a look into the database waits while another process writes, as MLflow does."""

SIDECARS = ("-journal", "-wal", "-shm")
"""SQLite keeps these files beside a database. Left beside another database of the name, a journal would damage that."""

DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")
"""SQLite's words for content that is wrong. The last one is of tables that are not what a statement expects."""


@dataclass(frozen=True)
class Logged:
    """A run of a cell that the database holds: the identity of the row, the run, whether it was ended."""

    row: str
    run_id: str
    ended: bool
    home: str | None = None
    """Whose it is: only the processes of one home are kept from logging at the same time."""


@dataclass(frozen=True)
class Database:
    """An SQLite database of MLflow, by its file."""

    path: Path

    @classmethod
    def of(cls, home: Path) -> "Database | None":
        """The database of a home folder; none where a server is logged to, or a URI that only MLflow reads."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            return cls((home / "mlflow.db").resolve())
        name = uri.removeprefix("sqlite:///")
        return cls(Path(name).absolute()) if name != uri and name and not set("?%:") & set(name) else None

    @property
    def uri(self) -> str:
        """The URI by which MLflow finds the file.

        SQLAlchemy takes what follows a question mark for options, and decodes a percent sign since version 2.1 only; a
        file with such a path is named by SQLite's own kind of URI. MLflow would make folders of that name, if the
        driver did not stand in front of it.
        """
        plain = f"sqlite:///{self.path.as_posix()}"
        if not set("?%#") & set(plain):
            return plain
        from sqlalchemy import make_url

        file = self.path.as_uri()
        spelled = (f"sqlite+pysqlite:///{name}?uri=true" for name in (file, quote(file, safe="/:")))
        return next(uri for uri in spelled if make_url(uri).database == file)

    def logged(self, suite_name: str, rows: Sequence[str] | None = None) -> list[Logged]:
        """The runs of a suite's cells, or of these rows, that nobody deleted. Raises sqlite3.Error where it cannot."""
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
        """Make the file with MLflow's tables, unless it is there.

        MLflow makes them in some fifty steps, and cannot go on where it was killed between two of them. So the file
        gets its name when it is complete. One process at a time must do this.
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
        """The damage of the file's content, by SQLite's own check, and by MLflow on a copy."""
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
        """Rename the file, and return where it is.

        SQLite's files beside it go first: a new database must not find that.
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
        """Read the list of tables: where that fails, MLflow would try again for minutes."""
        with self._connection() as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")

    def _try_copy(self) -> None:
        """Let MLflow open a copy: it keeps a file open that it has opened once, and that cannot be moved."""
        copy = self._neighbour("copy")
        try:
            shutil.copyfile(self.path, copy.path)
            client_of(copy.uri)
        finally:
            copy.path.unlink(missing_ok=True)

    def _neighbour(self, what: str) -> "Database":
        """A file beside this one, with a name that MLflow never heard; those that a dead process left are removed."""
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.{what}-*"):
            left.unlink()
        return Database(self.path.with_name(f"{self.path.name}.{what}-{uuid.uuid4().hex[:8]}"))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that makes no file. It may write, since after a kill SQLite rolls back before it reads."""
        with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True, timeout=BUSY)) as connection:
            yield connection


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database below the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or Database((home / "mlflow.db").resolve()).uri


def load_mlflow() -> None:
    """Import MLflow, which takes seconds, so that it says nothing of its own and soon fails where nobody answers."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - its loggers are set up by the import

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client_of(uri: str) -> "MlflowClient":
    """A client. Where the tables of a database are not there, MLflow makes them now."""
    load_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def cause_of(error: BaseException) -> sqlite3.Error | None:
    """The error of SQLite that MLflow and SQLAlchemy wrapped, if it was one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, sqlite3.Error):
        seen = seen.__cause__
    return seen


def is_damage(error: BaseException) -> bool:
    """True for an error that says that the content of a database is wrong, not that it is locked or the disk full."""
    return getattr(cause_of(error), "sqlite_errorname", None) in DAMAGED
