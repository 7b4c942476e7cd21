"""The checks of a generator."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from zsqbench.errors import one_line
from zsqbench.methods import CalibrationSet, Generator, Pretrained, TaskContext
from zsqbench.steps.generate import check_calibration_set
from zsqbench.testing.checkpoints import check_checkpoints
from zsqbench.testing.context import ForgetfulReporter, PatientReporter, context
from zsqbench.testing.networks import (
    tiny_teacher,
    tiny_teacher_without_bn,
    tiny_teachers,
    tiny_transformer,
    tiny_transformers,
)
from zsqbench.testing.observation import observe
from zsqbench.testing.report import Report
from zsqbench.testing.shared import (
    BF16,
    WITHOUT_BN,
    check_memory,
    check_needs_attention,
    check_needs_bn,
    check_options,
)

IMAGES = "images are float32 [N, C, H, W], finite, contiguous, on the CPU, without gradient, as many as asked for"
SEED = "one seed gives one set of images, another seed another"
LABELS = "labels are there if it declares gives_labels, and only then"
CHECKPOINTS = "going on from a checkpoint gives the same images"

MEASURED_IMAGES = 16


def check_generator(generator: Generator, teacher: Pretrained | None = None) -> CalibrationSet:
    """Check a generator on this network, or on all the tiny ones; returns the images that it made first, with seed 0.

    Checked: count, shape, type and finiteness of the images; the same seed gives the same images, another seed others
    (unless it is not `seeded`); going on from any checkpoint gives the same images; teacher, gradient mode, global
    random state and the like are left as they were; no file is read but those that options name. Without a teacher
    also: a network without BN, bfloat16, and memory. One that looks at attention is checked on tiny transformers.
    """
    report = Report(generator, strict=True)
    made = examine_generator(report, None if teacher is None else {"this network": teacher})
    assert made is not None  # noqa: S101 - a strict report raises where there is none
    return made


def examine_generator(report: Report, teachers: Mapping[str, Pretrained] | None = None) -> CalibrationSet | None:
    """Make every check of a generator; returns the images that it made first, or none where it failed."""
    check_options(report)
    needed = tiny_transformers if cast("Generator", report.method).needs_attention else tiny_teachers
    sets = [_check_on(report, teacher, name) for name, teacher in (teachers or needed()).items()]
    if teachers is None:
        _check_without_bn(report)
        _Trial(report, _network(report), BF16, "", torch.autocast("cpu", torch.bfloat16, cache_enabled=False)).run()
        _check_memory(report)
    return sets[0]


@dataclass
class _Trial:
    """One call of a generator on a network, and the checks of what it returned."""

    report: Report
    teacher: Pretrained
    check: str
    """The check that fails if the call does."""
    where: str = ""
    surroundings: AbstractContextManager[Any] = field(default_factory=nullcontext)
    seed: int = 0
    resume_from: Mapping[str, Any] | None = None
    offered: PatientReporter = field(default_factory=PatientReporter)
    """The reporter of the call, with the checkpoints."""

    def run(self) -> CalibrationSet | None:
        """The images, or none where the call failed or they are no calibration set."""
        ctx = context(self.seed)
        ctx.reporter = self.offered = PatientReporter(self.resume_from, ctx.rng)

        def call(copied: Pretrained) -> CalibrationSet:
            with self.surroundings:
                return _generate(cast("Generator", self.report.method), copied, ctx)

        called = observe(self.report, self.check, self.teacher, call, self.where)
        return called.result if called.error is None and self._check_images(called.result) else None

    def _check_images(self, made: Any) -> bool:
        report, generator = self.report, cast("Generator", self.report.method)
        try:
            check_calibration_set(made, self.teacher, generator.name)
        except Exception as error:
            if report.strict:
                raise
            return report.require(IMAGES, False, one_line(error), self.where)
        images, labels = made.images, made.labels
        right = images.device.type == "cpu" and images.is_contiguous() and not images.requires_grad
        return all(
            [
                report.require(IMAGES, right, "gave images that need .detach().cpu().contiguous()", self.where),
                report.require(
                    IMAGES,
                    generator.images in (None, len(made)),
                    f"gave {len(made)} images of {generator.images}",
                    self.where,
                ),
                report.require(
                    IMAGES,
                    labels is None or _are_labels(labels),
                    "gave labels that are neither int64 [N] nor float32 [N, classes]",
                    self.where,
                ),
            ]
        )


def _generate(generator: Generator, teacher: Pretrained, ctx: TaskContext) -> CalibrationSet:
    """Call a generator; one that uses real data gets noise in place of it."""
    if generator.uses_real_data:
        noise = torch.randn(generator.images, *teacher.input_size, generator=ctx.rng)
        labels = torch.arange(len(noise)) % (teacher.classes or 1)
        ctx.real_images = CalibrationSet(noise, labels)
    return generator.generate(teacher, ctx)


def _check_on(report: Report, teacher: Pretrained, network: str) -> CalibrationSet | None:
    """What must hold on each network."""
    where = f" (on {network})"
    first = _Trial(report, teacher, f"works on {network}", where)
    made = first.run()
    if made is None:
        return None
    again = _Trial(report, teacher, SEED, where).run()
    same = again is not None and torch.equal(made.images, again.images)
    report.require(SEED, same, "gave two different sets for one seed", where)
    if cast("Generator", report.method).seeded:
        other = _Trial(report, teacher, SEED, where, seed=1).run()
        differs = other is None or not torch.equal(made.images, other.images)
        report.require(SEED, differs, "is seeded, and gave one set for two seeds", where)
    _check_labels(report, made, where)

    def resume(state: Mapping[str, Any]) -> bool:
        resumed = _Trial(report, teacher, CHECKPOINTS, where, resume_from=state).run()
        return resumed is not None and torch.equal(made.images, resumed.images)

    check_checkpoints(report, CHECKPOINTS, first.offered, resume, where)
    return made


def _check_labels(report: Report, made: CalibrationSet, where: str) -> None:
    """A suite plans by `gives_labels`: a quantizer that needs labels goes with no generator that does not say so."""
    declared, given = cast("Generator", report.method).gives_labels, made.labels is not None
    if given and not declared:
        advice = "returned labels; declare gives_labels = True, or no quantizer that needs labels goes with it"
        report.advise(LABELS, advice, where)
    else:
        report.require(LABELS, given == declared, "declares gives_labels, and returned no labels", where)


def _check_without_bn(report: Report) -> None:
    generator, teacher = cast("Generator", report.method), tiny_teacher_without_bn()
    if generator.needs_attention:  # the networks that it was tried on have no BN
        check_needs_attention(report, lambda: _generate(generator, teacher, context()))
        return
    if report.method.needs_bn:
        check_needs_bn(report, lambda: _generate(generator, teacher, context()))
    else:
        _Trial(report, teacher, WITHOUT_BN, " on a network without BN, and does not declare needs_bn").run()


def _check_memory(report: Report) -> None:
    generator = cast("Generator", report.method)

    def call(images: int) -> CalibrationSet:
        ctx = context()
        ctx.reporter = ForgetfulReporter(rng=ctx.rng)
        options = json.dumps(generator.options() | {"images": images})
        sized = generator.model_validate_json(options, strict=True)
        return _generate(sized, _network(report), ctx)

    check_memory(report, call, MEASURED_IMAGES)


def _network(report: Report) -> Pretrained:
    """A tiny network that the generator can work on."""
    return tiny_transformer() if cast("Generator", report.method).needs_attention else tiny_teacher()


def _are_labels(labels: torch.Tensor) -> bool:
    return (labels.dtype, labels.dim()) in {(torch.int64, 1), (torch.float32, 2)}
