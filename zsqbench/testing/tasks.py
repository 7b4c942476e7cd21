"""The checks of a task."""

from pathlib import Path
from typing import cast

import torch

from zsqbench.methods import Evaluation, ModelSpec, Pretrained, Task, TaskContext
from zsqbench.steps.generate import check_calibration_set
from zsqbench.testing.context import context
from zsqbench.testing.report import Report
from zsqbench.testing.shared import check_options

DATA = "finds its data"
MODEL = "loads its network in eval mode"
METRIC = "measures the metric that it names, in percent, the same twice"
SAMPLES = "says of each evaluated sample whether it was right"
NETWORK = "leaves the network as it was"
DETECTION = "a detector's training loss is finite and has a gradient, and its boxes are read in any size asked for"
CALIBRATION = "hands out calibration images that fit the network, the same for one seed"

CALIBRATION_IMAGES = 4


def check_task(task: Task, model: ModelSpec, data_root: Path | None = None) -> Evaluation:
    """Check a task on a model of its own; returns what it measured of the float network.

    Checked: a detector's training loss and boxes; evaluating twice gives the same and leaves the network as it was; the
    shown metric is there and is a percentage; per-sample results are as many as the samples that are counted;
    calibration images fit the network and are the same for one seed.
    """
    evaluation = examine_task(Report(task, strict=True), model, data_root)
    assert evaluation is not None  # noqa: S101 - a strict report raises where there is none
    return evaluation


def examine_task(report: Report, model: ModelSpec | None, data_root: Path | None = None) -> Evaluation | None:
    """Make every check of a task, without a model only those that need none; returns what it measured first."""
    check_options(report)
    task, ctx = cast("Task", report.method), context(data_root=data_root)
    check = DATA
    try:
        files = task.find_data(data_root)
        report.require(DATA, bool(files.evaluation), "found no evaluation data")
        if model is None:
            for name in (MODEL, METRIC, SAMPLES, NETWORK, CALIBRATION):
                report.skip(name, "no model was named that the task can load: give --model")
            return None
        check = MODEL
        task.find_model(model)
        pretrained = task.load(model, ctx)
        training = any(part.training for part in pretrained.module.modules())
        report.require(MODEL, not training, "loaded a network that is not in eval mode")
        if pretrained.detection is not None:
            check = DETECTION
            _check_detection(report, pretrained)
        check = METRIC
        evaluation = _check_evaluation(report, pretrained, ctx)
        check = CALIBRATION
        if files.calibration:
            _check_calibration(report, pretrained, ctx)
        else:
            report.skip(CALIBRATION, "it found no calibration data")
    except Exception as error:  # noqa: BLE001 - a task may raise anything
        report.blame(check, error)
        return None
    return evaluation


def _check_evaluation(report: Report, pretrained: Pretrained, ctx: TaskContext) -> Evaluation:
    task, before = cast("Task", report.method), pretrained.digest()
    with torch.no_grad():
        first, second = (task.evaluate(pretrained.module, pretrained, ctx) for _ in range(2))
    report.require(METRIC, _same(first, second), "measured two different things on one network")
    report.require(METRIC, task.metric in first.metrics, f"has no metric {task.metric!r} in its evaluation")
    percentage = 0 <= first.metrics.get(task.metric, 0) <= 100  # noqa: PLR2004 - percent
    report.require(METRIC, percentage, "has a metric that is no percentage")
    report.require(NETWORK, pretrained.digest() == before, "changed the weights or buffers of the network")
    training = any(part.training for part in pretrained.module.modules())
    report.require(NETWORK, not training, "left the network in train mode")
    samples, counted, predicted = len(first.per_sample), first.metrics.get("samples"), len(first.predictions)
    if not samples:
        report.skip(SAMPLES, "it gives no per-sample results")
    elif counted is None:
        report.skip(SAMPLES, "it has no metric 'samples', the number of them to compare with")
    else:
        report.require(SAMPLES, samples == counted, f"gave {samples} per-sample results of {counted} samples")
    if samples and predicted:
        report.require(SAMPLES, predicted == samples, f"gave {predicted} predictions of {samples} samples")
    return first


def _check_detection(report: Report, pretrained: Pretrained) -> None:
    """With a box in the first of two images, and none in the second."""
    detection, (_, height, width) = pretrained.detection, pretrained.input_size
    assert detection is not None  # noqa: S101 - the caller looked
    report.require(DETECTION, len(detection.labels) > 0, "names no label that a box could have")
    images = torch.zeros(2, *pretrained.input_size, requires_grad=True)
    raw = pretrained.module(images)
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * torch.tensor([width, height, width, height])
    found = {"boxes": box, "labels": torch.tensor(detection.labels[:1])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = detection.training_loss(raw, (height, width), [found, nothing])
    sound = isinstance(loss, torch.Tensor) and loss.dim() == 0 and bool(loss.isfinite()) and loss.requires_grad
    report.require(DETECTION, sound, "gave a training loss that is no finite scalar with a gradient")
    with torch.no_grad():
        boxes = detection.decode(raw, (height, width), 0.0, 1.0)
    shapes = [tuple(each[name].shape[1:] for name in ("boxes", "scores", "labels")) for each in boxes]
    report.require(DETECTION, shapes == [((4,), (), ())] * 2, f"decoded boxes, scores and labels of shapes {shapes}")


def _same(first: Evaluation, second: Evaluation) -> bool:
    mine, other = (dict(vars(each)) for each in (first, second))
    tensors, others = mine.pop("tensors"), other.pop("tensors")
    equal = tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    return equal and mine == other


def _check_calibration(report: Report, pretrained: Pretrained, ctx: TaskContext) -> None:
    task = cast("Task", report.method)
    sets = [task.calibration_images(CALIBRATION_IMAGES, 0, pretrained, ctx) for _ in range(2)]
    check_calibration_set(sets[0], pretrained, task.name)
    enough = len(sets[0]) <= CALIBRATION_IMAGES
    report.require(CALIBRATION, enough, f"gave {len(sets[0])} calibration images of {CALIBRATION_IMAGES}")
    same = torch.equal(sets[0].images, sets[1].images)
    report.require(CALIBRATION, same, "gave two calibration sets for one seed")
