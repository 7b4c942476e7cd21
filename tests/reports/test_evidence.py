"""Rows beside their artifacts: what a run made, and what a hand did to it afterwards."""

import json
import shutil

import pytest
from brief import parametrize_briefly

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.evidence import Evidence
from zsqbench.reports.results import Result
from zsqbench.store import Store


@pytest.fixture
def made(bench):
    """A row with all that can be measured, and the evidence for it."""
    bench.matrix("quantizer: keeper")
    assert bench.run().code == 0
    return Result.model_validate(bench.row()), Evidence(Store(bench.home))


def test_a_row_as_a_run_made_it_is_what_its_artifacts_say(made):
    row, evidence = made
    assert (evidence.is_at_hand(row), evidence.contradiction(row), evidence.is_source(row)) == (True, None, True)


CHANGES = {
    "metrics": {"metrics": {"top1": 99.5}},
    "one metric more": {"metrics": {"top1": 60.0, "top5": 99.5}},
    "float_metrics": {"float_metrics": {"top1": 1.5}},
    "oracle": {"oracle": {"epoch": 1, "metrics": {"top1": 99.5}, "of": 1}},
    "best epoch": {"oracle": {"epoch": 2, "metrics": {"top1": 60.0}, "of": 1}},
    "correct": {"correct": "////"},
    "no metrics": {"metrics": {}},
}

SAID = {
    "metrics": "metrics.top1 is 99.5, but 60.0 in its artifact",
    "one metric more": "metrics.top5 is 99.5, but nothing in its artifact",
    "float_metrics": "float_metrics.top1 is 1.5, but 60.0 in its artifact",
    "oracle": "oracle.metrics.top1 is 99.5, but 60.0 in its artifact",
    "best epoch": "oracle.epoch is 2, but 1 in its artifact",
    "no metrics": "metrics.top1 is nothing, but 60.0 in its artifact",
}


@parametrize_briefly("change", CHANGES, 4)
def test_what_a_hand_changed_is_told_with_both_values(made, change):
    row, evidence = made
    said = evidence.contradiction(row.model_copy(update=CHANGES[change]))
    assert said == SAID.get(change, f"correct is ////, but {row.correct} in its artifact")


def test_last_digits_that_a_machine_sums_otherwise_are_no_difference(made):
    row, evidence = made
    assert evidence.contradiction(row.model_copy(update={"metrics": {"top1": 60.0 + 1e-12}})) is None


def test_a_row_that_another_machine_made_is_not_from_these_artifacts(made):
    row, evidence = made
    assert not evidence.is_source(row.model_copy(update={"seconds": dict.fromkeys(row.seconds, 9.9)}))


def test_a_row_was_measured_here_where_one_of_its_artifacts_is_its_own(made):
    row, evidence = made
    others = dict.fromkeys(row.seconds, 9.9)
    shared = row.model_copy(update={"seconds": row.seconds | {"baseline": 9.9}})
    elsewhere = row.model_copy(update={"seconds": others})
    assert [evidence.is_measured_here(each) for each in (row, shared, elsewhere)] == [True, True, False]


@pytest.mark.parametrize("kind", ["baseline", "evaluate", "oracle"])
def test_without_one_of_its_artifacts_there_is_no_evidence(made, bench, kind):
    row, evidence = made
    shutil.rmtree(bench.artifact(kind).folder)
    assert not evidence.is_at_hand(row)


def test_a_row_that_is_not_done_has_no_evidence(made):
    row, evidence = made
    assert not evidence.is_at_hand(row.model_copy(update={"status": "failed"}))


def test_a_damaged_artifact_is_none(made, bench):
    row, evidence = made
    manifest = bench.artifact("evaluate").folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"content": {"metrics": {"top1": 99.5}}}))
    with pytest.raises(CorruptArtifactError):
        evidence.contradiction(row)
