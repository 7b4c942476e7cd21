"""The checks of a quantizer."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from zsqbench.errors import one_line
from zsqbench.methods import CalibrationSet, Pretrained, Quantizer, StepContext
from zsqbench.quant import activation_quantizers, finalize, prepare, restore
from zsqbench.scheme import Scheme, parse_scheme
from zsqbench.testing.checkpoints import check_checkpoints
from zsqbench.testing.context import ForgetfulReporter, PatientReporter, context
from zsqbench.testing.networks import tiny_teacher, tiny_teacher_without_bn, tiny_teachers
from zsqbench.testing.observation import observe
from zsqbench.testing.reading import READ, check_reading
from zsqbench.testing.report import Report
from zsqbench.testing.shared import BF16, WITHOUT_BN, check_memory, check_needs_bn, check_options
from zsqbench.testing.structure import changed_part

SAME = "one seed gives one network, and data does not change its structure"
ARTIFACT = "the artifact, loaded into a fresh network, gives the same outputs"
CHECKPOINTS = "going on from a checkpoint gives the same network"
OUTPUTS = "outputs are finite"
IMAGE = "the image stays on the range that the scheme gives it"
NO_IMAGES = "works without images, which it calls optional"
LABELS = "works with labels, and without where it does not need them"

IMAGES = 32
MEASURED_IMAGES = 16


def check_quantizer(
    quantizer: Quantizer, scheme: str = "hw/w4a4", teacher: Pretrained | None = None, labels: bool = False
) -> nn.Module:
    """Check a quantizer on this network, or on all the tiny ones; returns the network that it quantized first.

    Checked: what is quantized depends on network and scheme alone; the same data gives the same network; the artifact,
    loaded into a freshly prepared network, gives the same outputs bit for bit; outputs are finite; teacher, gradient
    mode, global random state and the like are left as they were; no file is read but those that options name. Without a
    teacher also: going on from checkpoints, a network without BN, no images where these are optional, labels, bfloat16,
    how many images it says that it reads, and memory.
    """
    report, teachers = Report(quantizer, strict=True), None if teacher is None else {"this network": teacher}
    student = examine_quantizer(report, parse_scheme(scheme), teachers, labels)
    assert student is not None  # noqa: S101 - a strict report raises where there is none
    return student


def examine_quantizer(
    report: Report, scheme: Scheme, teachers: Mapping[str, Pretrained] | None = None, labels: bool = False
) -> nn.Module | None:
    """Make every check of a quantizer at a scheme; returns the network quantized first, or none where that failed."""
    check_options(report)
    quantizer = cast("Quantizer", report.method)
    labels = labels or quantizer.needs_labels
    networks = teachers or networks_at(report, scheme)
    trials = [_Trial(report, scheme, teacher, name, labels) for name, teacher in networks.items()]
    students = [trial.check() for trial in trials]
    if teachers is None:
        plain = tiny_teacher()
        if students[0] is not None:
            trials[0].check_checkpoints(students[0])
        _check_without_bn(report, scheme, labels)
        if quantizer.needs_images == "optional":
            _Trial(report, scheme, plain, "plain BN, no images", labels, images=False).run(NO_IMAGES)
        _check_labels(report, scheme, plain)
        _Trial(report, scheme, plain, "plain BN", labels).run(
            BF16, torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        )
        _check_reading(report, scheme, labels)
        _check_memory(report, scheme, labels)
    return students[0]


def networks_at(report: Report, scheme: Scheme) -> Mapping[str, Pretrained]:
    """The tiny networks that a scheme is made for: `hast` quantizes what ReLU gives, and one of them has no ReLU."""
    networks = tiny_teachers()
    fitting = {
        name: teacher
        for name, teacher in networks.items()
        if activation_quantizers(prepare(teacher.module, scheme, teacher.input_size))
    }
    if not fitting:  # it leaves activations in float
        return networks
    for name in networks.keys() - fitting.keys():
        report.skip(f"works on {name}, {scheme.name}", "the scheme quantizes no activation of this network")
    return fitting


@dataclass
class _Trial:
    """A quantizer at a scheme on a network."""

    report: Report
    scheme: Scheme
    teacher: Pretrained
    network: str
    labels: bool
    images: bool = True
    resume_from: Mapping[str, Any] | None = None
    offered: PatientReporter = field(default_factory=PatientReporter)
    """The reporter of the last call, with the checkpoints."""

    @property
    def where(self) -> str:
        return f" (on {self.network}, {self.scheme.name})"

    def run(self, check: str, surroundings: AbstractContextManager[Any] | None = None) -> nn.Module | None:
        """The quantized network, or none where the call failed; then `check` did, too."""
        ctx = context()
        ctx.reporter = self.offered = PatientReporter(self.resume_from, ctx.rng)

        def call(copied: Pretrained) -> nn.Module:
            with surroundings or nullcontext():
                data = _data(copied, IMAGES, self.labels) if self.images else None
                return _quantize(self.report, self.scheme, copied, data, ctx)

        called = observe(self.report, check, self.teacher, call, self.where)
        student: nn.Module | None = called.result
        return student

    def check(self) -> nn.Module | None:
        """What must hold on each network."""
        student = self.run(f"works on {self.network}, {self.scheme.name}")
        again = None if student is None else self.run(SAME)
        if student is None or again is None:
            return student
        same_names = student.state_dict().keys() == again.state_dict().keys()
        self._require(SAME, same_names, "has an artifact of changing structure")
        self._require(SAME, _are_same(student, again), "gave two different networks for one seed")
        self._check_artifact(student)
        self._check_image(student)
        return student

    def check_checkpoints(self, student: nn.Module) -> None:
        """Going on from the states that the last call offered must give the student that it gave."""

        def resume(state: Mapping[str, Any]) -> bool:
            resumed = replace(self, resume_from=state).run(CHECKPOINTS)
            return resumed is not None and _are_same(student, resumed)

        check_checkpoints(self.report, CHECKPOINTS, self.offered, resume, self.where)

    def _check_image(self, student: nn.Module) -> None:
        if self.scheme.placement.input_range == "calibrated":
            return
        fresh = cast("Quantizer", self.report.method).make_student(self.teacher, self.scheme)
        found, expected = (
            [each.state_dict() for _, each in activation_quantizers(network) if each.role == "input"]
            for network in (student, fresh)
        )
        same = len(found) == len(expected) and all(
            torch.equal(ours[name], theirs[name])
            for ours, theirs in zip(found, expected, strict=True)
            for name in ("scale", "zero_point")
        )
        self._require(IMAGE, same, "moved the range of the image, which the scheme gives it; leave its quantizer alone")

    def _check_artifact(self, student: nn.Module) -> None:
        images, loaded = _data(self.teacher, IMAGES, labels=False).images, None
        try:
            quantizer = cast("Quantizer", self.report.method).resolved(self.teacher, self.scheme)
            loaded = quantizer.make_student(self.teacher, self.scheme)
            restore(loaded, student.state_dict())
            with torch.no_grad():
                expected, found = student.eval()(images), loaded.eval()(images)
        except Exception as error:
            advice = "" if loaded is None else _structural_advice(student, loaded)
            if self.report.strict and not advice:
                raise
            complaint = f"has an artifact that does not load and run{advice}: {one_line(error)}"
            self.report.require(ARTIFACT, False, complaint, self.where, error)
            return
        self._require(OUTPUTS, bool(expected.isfinite().all()), "gave a network with NaN or infinite outputs")
        same = torch.equal(expected, found)
        advice = "" if same else _structural_advice(student, loaded)
        self._require(ARTIFACT, same, f"has an artifact that gives other outputs when it is loaded{advice}")

    def _require(self, check: str, condition: bool, complaint: str) -> None:
        self.report.require(check, condition, complaint, self.where)


def _are_same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _structural_advice(student: nn.Module, loaded: nn.Module) -> str:
    """The advice for a network whose structure `quantize` changed, or nothing where it did not."""
    part = changed_part(student, loaded)
    return f" (its structure was changed in quantize: {part}; do it in prepare, which is called again)" if part else ""


def _quantize(
    report: Report, scheme: Scheme, teacher: Pretrained, data: CalibrationSet | None, ctx: StepContext
) -> nn.Module:
    """Prepare, quantize and finish, as a worker does."""
    ctx.scheme = scheme
    quantizer = cast("Quantizer", report.method).resolved(teacher, scheme)
    student = quantizer.make_student(teacher, scheme)
    quantizer.quantize(student, teacher, data if quantizer.needs_images else None, ctx)
    finalize(student)
    return student


def _data(teacher: Pretrained, images: int, labels: bool) -> CalibrationSet:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, *teacher.input_size, generator=noise)
    return CalibrationSet(pixels, torch.arange(images) % (teacher.classes or 1) if labels else None)


def _check_without_bn(report: Report, scheme: Scheme, labels: bool) -> None:
    teacher = tiny_teacher_without_bn()
    if report.method.needs_bn:
        check_needs_bn(report, lambda: _quantize(report, scheme, teacher, _data(teacher, IMAGES, labels), context()))
    else:
        where = "a network without BN, and it does not declare needs_bn"
        _Trial(report, scheme, teacher, where, labels).run(WITHOUT_BN)


def _check_labels(report: Report, scheme: Scheme, teacher: Pretrained) -> None:
    quantizer = cast("Quantizer", report.method)
    if not quantizer.needs_images:
        report.skip(LABELS, "it reads no images")
        return
    for labels in {True, quantizer.needs_labels}:
        network = f"plain BN, images {'with' if labels else 'without'} labels"
        _Trial(report, scheme, teacher, network, labels).run(LABELS)


def _check_reading(report: Report, scheme: Scheme, labels: bool) -> None:
    if not cast("Quantizer", report.method).needs_images:
        report.skip(READ, "it reads no images")
        return
    for count in (IMAGES, IMAGES + 1):  # the one more fills no batch
        check_reading(
            report,
            lambda data, ctx: _quantize(report, scheme, tiny_teacher(), data, ctx),
            _data(tiny_teacher(), count, labels),
            f" (on plain BN, {scheme.name})",
        )


def _check_memory(report: Report, scheme: Scheme, labels: bool) -> None:
    def call(images: int) -> nn.Module:
        ctx = context()
        ctx.reporter = ForgetfulReporter(rng=ctx.rng)
        teacher = tiny_teacher()
        return _quantize(report, scheme, teacher, _data(teacher, images, labels), ctx)

    check_memory(report, call, MEASURED_IMAGES)
