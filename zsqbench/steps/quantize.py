"""The quantize step turns a network and a calibration set into a quantized network."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from zsqbench.hashing import digest_of
from zsqbench.reports import bitwidths
from zsqbench.reports.results import Result
from zsqbench.scheme import FLOAT_BITS, TensorOnGrid
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning, work_of
from zsqbench.steps.step import Shown, Step
from zsqbench.steps.students import MODEL, StudentJob, measured_tensors, save_student
from zsqbench.store import Artifact, Store
from zsqbench.suite import NO_GENERATOR, Variant
from zsqbench.versions import QUANT_VERSION, SYNTHESIS_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session
    from zsqbench.methods import Quantizer

START = "start"
"""The name in a row of the step from which its quantizer starts. The step before is `start.start`."""


class Quantize(StudentJob):
    """A step that reads the float network, the calibration set, and the result of a quantizer that it starts from.

    It leaves integers, scales and zero points, the students of kept epochs, and the tensor map in the manifest.
    """

    kind: ClassVar[str] = "quantize"
    axis: ClassVar[Literal["quantizer"]] = "quantizer"

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step:
        """One step for each quantizer, set of images, scheme and seed, and one for each quantizer of its starts."""
        return cls._plan(cell, cell.quantizer)

    @classmethod
    def _plan(cls, cell: CellPlanning, variant: Variant) -> Step:
        images = (cell.steps[Generate.kind],) if variant.quantizer.needs_images and cell.cell.generator else ()
        seeded = variant.method.seeded or variant.at_work.method.seeded
        start = (cls._plan(cell, variant.start),) if variant.start is not None else ()
        parts = (cell.facts.digest, variant.digest, cell.settings, QUANT_VERSION, SYNTHESIS_VERSION)
        made_by = cell.cell.generator if images else NO_GENERATOR
        label = f"{cell.cell.model} {made_by} {variant.label} {cell.cell.scheme}{cell.seed_ending}"
        return cell.step(
            cls,
            label,
            parts,
            seed=cell.cell.seed if seeded else None,
            scheme=cell.cell.scheme,
            needs=(*images, *cls.ranking(cell), *start),
            order_only=Baseline.comes_before(cell),
            variant=variant,
            images=lambda: None if cell.calibrated is None else work_of(variant.at_work.method, cell.calibrated),
        )

    @property
    def called(self) -> str:
        """The quantizer, or the quantizer that does its work."""
        return "over" if self.over else super().called

    @classmethod
    def leading_to(cls, step: Step) -> dict[str, Step]:
        """The quantize steps from which it continues, the nearest first."""
        starts: dict[str, Step] = {}
        before = next((need for need in step.needs if need.type is cls), None)
        while before is not None:
            starts[".".join([START] * (len(starts) + 1))] = before
            before = next((need for need in before.needs if need.type is cls), None)
        return starts

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Prepare a student, quantize it, and write it to the store."""
        from zsqbench.quant import effective_map, finalize, measured_map

        quantizer, ctx = self.method(session), session.context(self, reporter)
        ctx.scheme = self.student_scheme(session)
        ctx.over = cast("Quantizer", session.method("quantizer", self.over)) if self.over else None
        made = {kind: session.store.read(kind, key) for kind, key in self.needs.items()}
        data = Generate.load(made[Generate.kind]) if Generate.kind in made else None
        start = made.get(self.kind)  # the result from which it continues
        if start is not None:
            ctx.start = self.restored(session, self.prepared(session), start)
        for line in (line for artifact in made.values() for line in artifact.footnotes):
            reporter.footnote(line)
        with session.method_call(self, quantizer, self.watched) as teacher:
            student = self.prepare(session, teacher)
            quantizer.quantize(student, teacher, data, ctx)
        finalize(student)

        def fill(folder: Path) -> None:
            save_student(student, folder / MODEL)
            for path in reporter.epochs().values():
                shutil.copyfile(path, folder / path.name)  # copied: the disk may still fill up

        measured = measured_map(student)
        content = {
            "images": None if data is None else len(data),
            "images_read": None if data is None else _images_read(start, len(data), ctx.read),
            "summary": _summary(effective_map(student)) | bitwidths.weight_size(measured),
            "tensors": [asdict(tensor) for tensor in measured],
        }
        session.write(self, reporter, content, fill)

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """Tensors with bits, grids and ranges, the loss of each unit before and after reconstruction, and notes."""
        if cls.kind not in row.keys or row.status != "done":
            return None
        key = row.keys[cls.kind]
        if not store.has(cls.kind, key):
            absent = "this cell was run on another machine, or its artifact was removed"
            return Shown("quantized", None, f"the quantized network is not in {store.home}: {absent}")
        found = store.read(cls.kind, key)
        tensors = measured_tensors(found)
        nothing = "nothing was quantized, or the quantizer left no map of it"
        with found.reading():
            parts = [
                bitwidths.render_measured(tensors) if tensors else nothing,
                bitwidths.render_reconstruction(found.curves),
                "\n".join(found.notes),
            ]
        data = {"tensors": found.content["tensors"], "curves": found.curves, "notes": found.notes}
        return Shown("quantized", data, "\n\n".join(filter(None, parts)))


def _images_read(start: Artifact | None, images: int, reported: int | None) -> int:
    """How many images of the set were read: the most that it or its start reported. No report: all images."""
    own = images if reported is None else reported
    if start is None:
        return own
    with start.reading():
        return max(own, start.content["images_read"] or 0)


def _summary(tensors: Sequence[TensorOnGrid]) -> dict[str, str | int]:
    """A tensor map in the form of a row: hashes with and without grids, and the number of quantized tensors."""
    kinds = [tensor.kind for tensor in tensors if tensor.bits != FLOAT_BITS]
    counts = {f"quantized_{kind}s": kinds.count(kind) for kind in ("weight", "activation")}
    # a column of a table compares bits, because a method may choose its grids
    bits = [[tensor.kind, tensor.name, tensor.role, tensor.bits] for tensor in tensors]
    return {"hash": digest_of([asdict(tensor) for tensor in tensors]), "bits": digest_of(bits), **counts}
