"""The memory of rows that are what their artifacts say: it spares a comparison, and hides nothing."""

import json
import os

import pytest

from zsqbench.reports import agreements
from zsqbench.reports.agreements import Agreements
from zsqbench.reports.evidence import Evidence
from zsqbench.reports.results import Result
from zsqbench.store import Store


@pytest.fixture
def made(bench):
    """A row as a run made it."""
    bench.matrix("seed: 0")
    assert bench.run().code == 0
    return Result.model_validate(bench.row())


def compared(home, row, monkeypatch):
    """The contradiction of a row, and how often it was compared with its artifacts to find it."""
    evidence, times = Evidence(Store(home)), []
    differences = evidence.differences
    monkeypatch.setattr(evidence, "differences", lambda row: times.append(row) or differences(row))
    found = evidence.contradiction(row)
    evidence.agreements.save()
    return found, len(times)


def test_a_run_remembers_the_rows_that_it_made(bench, made, monkeypatch):
    assert compared(bench.home, made, monkeypatch) == (None, 0)


def test_a_row_is_compared_once(bench, made, monkeypatch):
    (bench.home / "agreements.json").unlink()
    found = [compared(bench.home, made, monkeypatch) for _ in range(2)]
    assert found == [(None, 1), (None, 0)]


def test_a_row_that_says_something_else_is_compared_each_time(bench, made, monkeypatch):
    changed = made.model_copy(update={"metrics": {"top1": 99.5}})
    said = "metrics.top1 is 99.5, but 60.0 in its artifact"
    assert [compared(bench.home, changed, monkeypatch) for _ in range(2)] == [(said, 1)] * 2


@pytest.mark.parametrize("kind", ["baseline", "evaluate"])
@pytest.mark.parametrize("name", ["manifest.json", "samples.safetensors"])
def test_a_file_with_another_time_is_compared_again(bench, made, monkeypatch, kind, name):
    os.utime(bench.artifact(kind).folder / name, ns=(0, 0))
    assert [compared(bench.home, made, monkeypatch) for _ in range(2)] == [(None, 1), (None, 0)]


def test_another_version_compares_anew(bench, made, monkeypatch):
    monkeypatch.setattr(agreements, "MEANING", agreements.MEANING + 1)
    assert compared(bench.home, made, monkeypatch) == (None, 1)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "\xff"])
def test_a_memory_that_cannot_be_read_is_only_slower(bench, made, monkeypatch, content):
    (bench.home / "agreements.json").write_text(content, encoding="latin-1")
    assert [compared(bench.home, made, monkeypatch) for _ in range(2)] == [(None, 1), (None, 0)]


def test_a_memory_that_cannot_be_kept_is_only_slower(bench, made, monkeypatch):
    (bench.home / "agreements.json").unlink()
    (bench.home / "agreements.json").mkdir()
    assert [compared(bench.home, made, monkeypatch) for _ in range(2)] == [(None, 1)] * 2


def test_a_row_of_no_artifact_is_not_remembered_and_makes_no_home(made, tmp_path, monkeypatch):
    written = made.model_copy(update={"keys": {}})
    assert compared(tmp_path / "nowhere", written, monkeypatch) == (None, 0)
    assert not (tmp_path / "nowhere").exists()


def test_two_processes_keep_what_both_learnt_and_nothing_of_artifacts_that_are_gone(bench, made):
    store, path = Store(bench.home), bench.home / "agreements.json"
    gone = made.model_copy(update={"keys": made.keys | {"evaluate": "0" * 64}})
    path.unlink()
    first, second = Agreements(store), Agreements(store)
    assert [memory.hold(made, "") for memory in (first, second)] == [False, False]  # both have read the file
    first.add(made, first.stamp(made.keys))
    first.save()
    second.add(gone, second.stamp(gone.keys))
    second.save()
    assert list(json.loads(path.read_text())) == [made.keys["evaluate"]]
