from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import zsqbench
from zsqbench.methods import ModelSpec
from zsqbench.testing import check_task, tasks, tiny_teacher
from zsqbench.testing.report import Report
from zsqbench.testing.tasks import examine_task

TINY = ModelSpec(name="tiny", base="tiny")


class Sound(zsqbench.Task):
    name = "sound"
    metric = "top1"

    def find_data(self, data_root):
        return zsqbench.DataFiles({"data": Path(__file__)}, {"data": Path(__file__)})

    def find_model(self, model):
        return {}

    def load(self, model, ctx):
        return tiny_teacher()

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0, "samples": 2}, [True, False])

    def calibration_images(self, count, seed, pretrained, ctx):
        rng = torch.Generator().manual_seed(seed)
        return zsqbench.CalibrationSet(torch.randn(count, *pretrained.input_size, generator=rng))


def findings(task, model=TINY):
    """The outcome of each check, and why."""
    report = Report(task)
    examine_task(report, model)
    return {finding.check: (finding.outcome, finding.reason) for finding in report.summary()}


def failures(task):
    return {check: reason for check, (outcome, reason) in findings(task).items() if outcome == "FAILED"}


def broken(**methods):
    class Broken(Sound):
        name = "broken"

    for name, value in methods.items():
        setattr(Broken, name, value)
    return Broken()


def gives(*evaluations):
    remaining = iter(evaluations)
    return lambda *_: next(remaining)


def test_a_sound_task_passes():
    assert {outcome for outcome, _ in findings(Sound()).values()} == {"ok"}


@pytest.mark.parametrize(
    ("evaluations", "check", "reason"),
    [
        ([({"top1": 50.0},), ({"top1": 60.0},)], tasks.METRIC, "measured two different things on one network"),
        ([({"top5": 50.0},)] * 2, tasks.METRIC, "has no metric 'top1' in its evaluation"),
        ([({"top1": 101.0},)] * 2, tasks.METRIC, "has a metric that is no percentage"),
        ([({"top1": 50.0, "samples": 3}, [True])] * 2, tasks.SAMPLES, "gave 1 per-sample results of 3 samples"),
    ],
)
def test_an_evaluation_that_is_wrong_is_found(evaluations, check, reason):
    made = [zsqbench.Evaluation(*each) for each in evaluations]
    assert failures(broken(evaluate=gives(*made))) == {check: reason}


@pytest.mark.parametrize("counts", [{"samples": 2}, {}])
def test_other_numbers_of_predictions_than_of_samples_are_found(counts):
    evaluation = zsqbench.Evaluation({"top1": 50.0, **counts}, [True, False], [4, 2, 1])
    found = failures(broken(evaluate=lambda *_: evaluation))
    assert found == {tasks.SAMPLES: "gave 3 predictions of 2 samples"}


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        (({"top1": 50.0},), "it gives no per-sample results"),
        (({"top1": 50.0}, [True]), "it has no metric 'samples', the number of them to compare with"),
    ],
)
def test_per_sample_results_that_cannot_be_compared_are_not_checked(evaluation, reason):
    found = findings(broken(evaluate=lambda *_: zsqbench.Evaluation(*evaluation)))
    assert found[tasks.SAMPLES] == ("not checked", reason)


def test_a_network_that_evaluation_changes_is_found():
    def evaluate(self, module, pretrained, ctx):
        module.stem[1].train()
        module(torch.ones(1, *pretrained.input_size))
        return Sound.evaluate(self, module, pretrained, ctx)

    assert failures(broken(evaluate=evaluate)) == {tasks.NETWORK: "changed the weights or buffers of the network"}


def test_a_network_in_train_mode_is_found():
    def load(*_):
        teacher = tiny_teacher()
        teacher.module.append = nn.Identity()
        return teacher

    assert tasks.MODEL in failures(broken(load=load))


def test_no_evaluation_data_is_found():
    assert failures(broken(find_data=lambda *_: zsqbench.DataFiles({}, {}))) == {tasks.DATA: "found no evaluation data"}


def test_two_calibration_sets_for_one_seed_are_found():
    sets = (zsqbench.CalibrationSet(torch.full((4, 3, 8, 8), value)) for value in (0.0, 1.0))
    found = failures(broken(calibration_images=lambda *_: next(sets)))
    assert found == {tasks.CALIBRATION: "gave two calibration sets for one seed"}


def test_more_calibration_images_than_asked_for_are_found():
    sets = zsqbench.CalibrationSet(torch.zeros(5, 3, 8, 8))
    found = failures(broken(calibration_images=lambda *_: sets))
    assert found == {tasks.CALIBRATION: "gave 5 calibration images of 4"}


def test_calibration_images_that_do_not_fit_the_network_are_found():
    sets = zsqbench.CalibrationSet(torch.zeros(4, 1, 8, 8))
    assert "expected ('N', 3, 8, 8)" in failures(broken(calibration_images=lambda *_: sets))[tasks.CALIBRATION]


def test_calibration_is_not_checked_without_data_for_it():
    find_data = gives(*[zsqbench.DataFiles({"data": Path(__file__)}, {})] * 3)
    assert findings(broken(find_data=find_data))[tasks.CALIBRATION] == ("not checked", "it found no calibration data")


def test_what_needs_a_model_is_not_checked_without():
    found = findings(Sound(), model=None)
    assert {check for check, (outcome, _) in found.items() if outcome == "not checked"} == {
        tasks.MODEL,
        tasks.METRIC,
        tasks.SAMPLES,
        tasks.NETWORK,
        tasks.CALIBRATION,
    }


def test_the_strict_check_raises():
    with pytest.raises(AssertionError, match=r"^task broken has a metric that is no percentage$"):
        check_task(broken(evaluate=lambda *_: zsqbench.Evaluation({"top1": -1.0})), TINY)


def test_the_strict_check_hands_on_what_the_task_raises():
    with pytest.raises(StopIteration):
        check_task(broken(find_data=gives()), TINY)


def detecting(loss=lambda raw, *_: raw.square().mean(), labels=(1,), found=None):
    """A sound task whose network comes with a detection."""
    one = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1).long()}
    detection = zsqbench.Detection(labels, loss, lambda *_: found or [one, one])
    return broken(load=lambda *_: replace(tiny_teacher(), detection=detection))


def test_what_a_task_hands_out_with_a_detector_is_checked():
    classifier = replace(tiny_teacher(), detection=None)
    assert tasks.DETECTION not in findings(broken(load=lambda *_: classifier))
    assert findings(Sound())[tasks.DETECTION][0] == "ok"
    assert findings(detecting())[tasks.DETECTION][0] == "ok"
    wrong = {
        "no finite scalar with a gradient": detecting(lambda raw, *_: raw.detach().mean()),
        "no finite scalar": detecting(lambda raw, *_: raw / 0),
        "names no label": detecting(labels=()),
        "of shapes [()]": detecting(found=[{"boxes": torch.ones(1), "scores": torch.ones(1), "labels": torch.ones(1)}]),
    }
    for reason, task in wrong.items():
        assert reason.split("[")[0] in failures(task)[tasks.DETECTION]
