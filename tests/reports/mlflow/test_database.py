import sqlite3
from pathlib import Path

import pytest

from zsqbench.reports.mlflow.database import Database, tracking_uri


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "mlflow.db")


def fill(path, statement="CREATE TABLE experiments (name)"):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("", "HOME/mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "/elsewhere/mlflow.db"),
        ("sqlite:///here.db", "CWD/here.db"),
        ("sqlite:///here.db?timeout=5", None),
        ("sqlite:///file:here.db", None),
        ("http://localhost:5000", None),
        ("postgresql://localhost/mlflow", None),
    ],
)
def test_only_a_database_whose_file_is_known_is_looked_into_without_mlflow(tmp_path, monkeypatch, uri, path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    expected = path and Database(Path(path.replace("HOME", str(tmp_path)).replace("CWD", str(Path.cwd()))))
    assert Database.of(tmp_path) == expected


def test_the_uri_of_a_plain_path_is_plain(tmp_path):
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a#b", "ä %3F?&=+;'"])
def test_sqlalchemy_opens_the_file_that_the_uri_is_of(tmp_path, monkeypatch, name):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()

    engine = sqlalchemy.create_engine(Database(tmp_path / name / "mlflow.db").uri)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE here (x)")
    engine.dispose()

    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*.db")] == [Path(name) / "mlflow.db"]


def test_where_there_is_no_database_nothing_is_logged(database):
    assert database.logged("suite") == []
    database.path.touch()
    assert (database.logged("suite"), database.damage()) == ([], None)


def test_a_page_that_is_damaged_is_found(database):
    fill(database.path, "CREATE TABLE numbers AS SELECT randomblob(3000) FROM pragma_function_list LIMIT 20")
    content = bytearray(database.path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    database.path.write_bytes(content)

    assert database.damage() == "Page 3: btreeInitPage() returns error code 11"


def test_tables_that_mlflow_cannot_complete_are_damage(database):
    fill(database.path, "CREATE TABLE alembic_version (version)")

    assert "no such column" in str(database.damage())
    assert [file.name for file in database.path.parent.iterdir()] == ["mlflow.db"]


def test_a_database_that_is_locked_is_not_damaged(database, monkeypatch):
    monkeypatch.setattr("zsqbench.reports.mlflow.database.BUSY", 0.01)
    fill(database.path)
    other = sqlite3.connect(database.path)
    other.execute("BEGIN EXCLUSIVE")

    with pytest.raises(sqlite3.OperationalError, match="locked"):
        database.damage()

    other.close()


def test_what_sqlite_keeps_beside_a_database_is_moved_with_it(database):
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{database.path}{suffix}").touch()

    aside = database.move_aside()

    kept = sorted(file.name.removeprefix(aside.name) for file in database.path.parent.iterdir())
    assert kept == ["", "-journal", "-shm", "-wal"]


def test_a_database_gets_its_name_when_it_is_complete(database, monkeypatch):
    left = database.path.with_name("mlflow.db.new-of a dead process")
    left.touch()

    def dies(uri):
        assert not left.exists()
        fill(uri.removeprefix("sqlite:///"))
        raise SystemExit

    monkeypatch.setattr("zsqbench.reports.mlflow.database.client_of", dies)

    with pytest.raises(SystemExit):
        database.make()

    assert not database.path.exists()


def test_a_new_database_is_not_made_beside_what_was_kept_for_another(database, monkeypatch):
    Path(f"{database.path}-journal").touch()
    monkeypatch.setattr("zsqbench.reports.mlflow.database.client_of", lambda uri: fill(uri.removeprefix("sqlite:///")))

    database.make()

    assert [file.name for file in database.path.parent.iterdir()] == ["mlflow.db"]
