"""The generate step makes a calibration set: images from a network alone, or real images as a control."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import CalibrationSet, Generator, Pretrained
from zsqbench.methods.data import BOX
from zsqbench.reports.results import Result
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.planning import CellPlanning, Data, work_of
from zsqbench.steps.step import Dataset, Job, MethodCall, Shown, Step, Tracked
from zsqbench.store import Artifact, Store
from zsqbench.suite import Suite
from zsqbench.versions import SYNTHESIS_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session

IMAGES = "calibration.safetensors"


class Generate(Job):
    """A step that reads the float network, and real images only for controls. It leaves a calibration set."""

    kind: ClassVar[str] = "generate"
    axis: ClassVar[Literal["generator"]] = "generator"
    of_set: ClassVar[bool] = True

    generator: MethodCall
    watched: tuple[str, ...]
    """Folders in which the method must not open files."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each generator, network and seed. All quantizers share it."""
        variant = cell.generator
        if variant is None:
            return None
        generator = cast("Generator", variant.method)
        real = (cell.data.calibration or "", cell.task) if generator.uses_real_data else ()
        parts = (cell.facts.digest, variant.digest, cell.settings, SYNTHESIS_VERSION, *real)
        label = f"{cell.cell.model} {variant.label}{cell.seed_ending}"
        seed = cell.cell.seed if generator.seeded else None
        return cell.step(
            cls,
            label,
            parts,
            seed=seed,
            order_only=Baseline.comes_before(cell),
            variant=variant,
            images=lambda: None if cell.calibrated is None else work_of(generator, cell.calibrated),
        )

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """The generator, and the folders that it must not open."""
        assert step.variant is not None  # noqa: S101 - `plan` gives it one
        watched = tuple(map(str, data.watched)) if data else ()
        return {"generator": MethodCall.of(step.variant), "watched": watched}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Generate the set, and check that any quantizer can take it."""
        generator = cast("Generator", session.method("generator", self.generator))
        ctx = session.context(self, reporter)
        if generator.uses_real_data:
            task, task_context = session.task(self), session.task_context(self, reporter)
            ctx.real_images = task.calibration_images(generator.images, self.seed, session.teacher(self), task_context)
        with session.method_call(self, generator, self.watched) as teacher:
            images = generator.generate(teacher, ctx)
        check_calibration_set(images, teacher, generator.name)
        if not generator.uses_real_data and generator.images not in (None, len(images)):
            raise ZSQBenchError(
                f"generator {generator.name} returned {len(images)} images; expected {generator.images}"
            )
        session.write(self, reporter, {"images": len(images)}, lambda folder: images.save(folder / IMAGES))

    @classmethod
    def images(cls, store: Store, key: str) -> CalibrationSet:
        """The calibration set of this key. Raises CorruptArtifactError if it is damaged."""
        return cls.load(store.read(cls.kind, key))

    @staticmethod
    def load(artifact: Artifact) -> CalibrationSet:
        """The calibration set of an artifact."""
        return CalibrationSet.load(artifact.file(IMAGES))

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The generator's notes. None: it made none, or its set is not in the store."""
        key = row.keys.get(cls.kind)
        notes = store.read(cls.kind, key).notes if key is not None and store.has(cls.kind, key) else []
        return Shown("generated", {"notes": notes}, "\n".join(notes)) if notes else None

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """The set as a dataset."""
        key = row.keys.get(cls.kind)
        if key is None or not (row.status == "done" or store.has(cls.kind, key)):
            return None
        return Tracked(dataset=Dataset(str(row.generator), key, store.folder(cls.kind, key), row.data.get("images")))


def check_calibration_set(images: object, teacher: Pretrained, name: str) -> None:
    """Raise ZSQBenchError unless this is a calibration set that any quantizer can take."""
    from zsqbench.quant import check_images

    if not isinstance(images, CalibrationSet):
        raise ZSQBenchError(f"generator {name} returned {_named(images)}; expected a CalibrationSet")
    _require_tensor(images.images, "images", "torch.from_numpy(images).float()", name)
    check_images(images.images, teacher.input_size, f"generator {name} returned")
    if images.labels is not None:
        _require_tensor(images.labels, "labels", "torch.from_numpy(labels)", name)
        if len(images.labels) != len(images):
            raise ZSQBenchError(f"generator {name} returned {len(images.labels)} labels for {len(images)} images")
    if images.boxes is not None:
        check_boxes(images, name)


def _require_tensor(value: object, what: str, conversion: str, name: str) -> None:
    """Raise ZSQBenchError unless this is a tensor; of a NumPy array the error says how it becomes one."""
    import numpy as np
    import torch

    if not isinstance(value, torch.Tensor):
        advice = f": take {conversion}" if isinstance(value, np.ndarray) else ""
        raise ZSQBenchError(f"generator {name} returned {what} as {_named(value)}; expected a torch.Tensor{advice}")


def _named(value: object) -> str:
    """The type of a value; of a NumPy array, which is often taken for a tensor, in words."""
    import numpy as np

    return f"a NumPy array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def check_boxes(images: CalibrationSet, name: str) -> None:
    """Raise ZSQBenchError unless the boxes of a set belong to its images and have a width and a height."""
    import torch

    boxes, expected = images.boxes, f"float32 [M, {BOX}]"
    if not isinstance(boxes, torch.Tensor) or boxes.dim() != 2 or boxes.shape[1] != BOX:  # noqa: PLR2004 - rows of boxes
        shape = list(boxes.shape) if isinstance(boxes, torch.Tensor) else type(boxes).__name__
        raise ZSQBenchError(f"generator {name} returned boxes of shape {shape}; expected {expected}")
    owners = boxes[:, 0]
    sound = (owners >= 0) & (owners < len(images)) & (owners == owners.round()) & (boxes[:, 4:] > 0).all(1)
    if not bool((sound & boxes.isfinite().all(1)).all()):
        odd = int((~sound).sum())
        raise ZSQBenchError(
            f"generator {name} returned {odd} of {len(boxes)} boxes that belong to no image or are empty"
        )
