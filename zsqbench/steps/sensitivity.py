"""The sensitivity step ranks the weights of a network by the effect of each on the outputs, without labels."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, cast

from zsqbench.reports import bitwidths
from zsqbench.reports.results import Result
from zsqbench.scheme import RankedWeight, Scheme
from zsqbench.steps.generate import Generate
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.step import Job, Shown, Step, Tracked
from zsqbench.store import Store
from zsqbench.suite import Suite, Variant
from zsqbench.versions import QUANT_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session


class Sensitivity(Job):
    """A step that reads the float network and the calibration set. It leaves the ranked weights in the manifest."""

    kind: ClassVar[str] = "sensitivity"

    scheme: Scheme
    images: int
    """At most so many images of the calibration set are read: the first ones."""

    @classmethod
    def plan(cls, cell: CellPlanning) -> Step | None:
        """One step for each set of images, scheme and number of images, if a quantizer asks for it."""
        variant = cell.quantizer.ranking
        if variant is None:
            return None
        set_of_images = cell.steps[Generate.kind]
        images = variant.quantizer.ranking_images
        parts = (cell.facts.digest, str(images), str(cell.cell.settings.threads), QUANT_VERSION)
        label = f"{cell.cell.model} {cell.cell.generator} {cell.cell.scheme} {images} images{cell.seed_ending}"
        return cell.step(
            cls, label, parts, scheme=cell.cell.scheme, needs=(set_of_images,), variant=variant, images=lambda: images
        )

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """The scheme, and the number of images."""
        variant = cast("Variant", step.variant)
        return {"scheme": suite.schemes[step.cell.scheme], "images": variant.quantizer.ranking_images}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Rank the weights."""
        from zsqbench.quant import rank_weights

        images = Generate.images(session.store, self.needs[Generate.kind]).images[: self.images]
        teacher = session.teacher(self)
        ranked = rank_weights(teacher.module, self.scheme, teacher.input_size, images, reporter.progress)
        content = {"images": len(images), "weights": [asdict(weight) for weight in ranked]}
        session.write(self, reporter, content)

    @classmethod
    def weights(cls, store: Store, key: str) -> list[RankedWeight]:
        """All weights, the most sensitive first. Raises CorruptArtifactError if the artifact is damaged."""
        artifact = store.read(cls.kind, key)
        with artifact.reading():
            return [RankedWeight(**entry) for entry in artifact.content["weights"]]

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:
        """The ranking, if a row has one."""
        key = row.keys.get(cls.kind)
        if key is None or not store.has(cls.kind, key):
            return None
        weights, artifact = cls.weights(store, key), store.read(cls.kind, key)
        with artifact.reading():
            head = (
                f"sensitivity: squared error of the outputs if only this weight is quantized, relative to their "
                f"squares, on {int(artifact.content['images'])} images ({artifact.seconds:.1f} s)"
            )
        return Shown(cls.kind, artifact.content, f"{head}\n\n{bitwidths.render_ranking(weights)}")

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:
        """The ranking as a document."""
        key = row.keys.get(cls.kind)
        if key is None or not store.has(cls.kind, key):
            return None
        weights = [asdict(weight) for weight in cls.weights(store, key)]
        return Tracked(documents={f"{cls.kind}.json": weights})
