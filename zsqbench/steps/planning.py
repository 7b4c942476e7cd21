"""The making of steps: what a kind may know of the cell that it plans for, and that equal steps are one."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of
from zsqbench.methods import DataFiles, Method
from zsqbench.methods.asking import asking
from zsqbench.steps.step import Step, Work
from zsqbench.store import FileDigests
from zsqbench.suite import Cell, Suite, Variant

if TYPE_CHECKING:
    from zsqbench.steps.step import Job


@dataclass(frozen=True)
class NetworkFacts:
    """Facts that loading a network told: its identity, and what methods may demand of it."""

    digest: str
    bn: int = 0
    """Number of batch normalisations of images that store statistics."""
    other_bn: str = ""
    """The classes of batch normalisations that are none of these, such as BatchNorm1d."""
    classes: int | None = None
    training_loss: bool = False
    """True if it is a detector whose task hands out its training loss."""
    parameters: int = 0
    random_weights: bool = False
    input_size: tuple[int, ...] = ()
    architecture: str | None = None
    """Name of the published definition that it is, if it is one."""
    modules: tuple[tuple[str, str], ...] = ()
    """Path and content hash of each file of a user's own that its definition imports."""
    operations: int = 0
    """Of a forward pass of one image (multiplications and additions), 0 where they could not be counted. In no
    identity: only times are estimated by it."""
    notes: tuple[str, ...] = ()
    """What people should know of it, such as which of a checkpoint's weights were taken; one line each."""


@dataclass(frozen=True)
class Data:
    """The data of a task: where it is, and what identifies it."""

    files: DataFiles
    evaluation: str
    calibration: str | None

    @classmethod
    def of(cls, files: DataFiles, digests: FileDigests) -> "Data":
        """Hash the content of the files (remembered where they are unchanged)."""
        evaluation = digest_of([digests.files(files.evaluation), dict(files.split)])
        return cls(files, evaluation, cls.calibration_of(files, digests))

    @staticmethod
    def calibration_of(files: DataFiles, digests: FileDigests) -> str | None:
        """Hash of the images that are not evaluated, if there are some."""
        return digest_of([digests.files(files.calibration), dict(files.split)]) if files.calibration else None

    @property
    def watched(self) -> list[Path]:
        """The folders that no method may open files in."""
        return [folder.resolve() for folder in self.files.folders]


class StepMaker:
    """Makes each distinct step once, and remembers what a cell's parts contribute to keys: thousands share them."""

    def __init__(self, suite: Suite) -> None:
        self.steps: dict[str, Step] = {}
        """All steps that were made, by key, each after what it needs."""
        self.suite = suite
        self.scheme = cache(lambda label: digest_of(suite.schemes[label].model_dump(mode="json", exclude={"name"})))
        self.settings = cache(lambda settings: digest_of(settings.model_dump(mode="json")))
        self.methods = cache(self._methods)
        self.resolved = cache(self._resolved)
        self.timing_key = cache(hash_of)
        self.by_identity: dict[tuple[str, ...], Step] = {}
        self.of_sets: dict[tuple[str | int | None, ...], tuple[dict[str, Step], dict[str, Step]]] = {}
        """The steps, and the background steps, that cells share of which `Job.of_set` is true."""
        self.work: dict[tuple[str, str], Work | None] = {}
        """What steps have to do, by timing key and scheme."""
        self.impossible: dict[tuple[str | None, ...], str | None] = {}
        """Why the methods of cells cannot work with network and data, or none, by task, model and methods."""

    def _methods(
        self, task: str, generator: str | None, quantizer: str, scheme: str, network: NetworkFacts
    ) -> Mapping[str, Variant]:
        methods = {"task": self.suite.tasks[task], "quantizer": self.resolved("quantizer", quantizer, network, scheme)}
        return methods | ({"generator": self.resolved("generator", generator, network, None)} if generator else {})

    def _resolved(self, kind: str, label: str, network: NetworkFacts, scheme: str | None) -> Variant:
        variants = self.suite.generators if kind == "generator" else self.suite.quantizers
        return variants[label].resolved(network, None if scheme is None else self.suite.schemes[scheme])


@dataclass(slots=True)
class CellPlanning:
    """The cell that kinds of steps plan for, with all that they may know of it. Frozen would make planning slower."""

    maker: StepMaker
    cell: Cell
    facts: NetworkFacts
    data: Data
    methods: Mapping[str, Variant]
    """Task, quantizer and generator, with the options that hold for the network and, for quantizers, the scheme."""
    settings: str
    """Identity of the settings that generate and quantize compute with."""
    steps: dict[str, Step] = field(default_factory=dict)
    """Those that the cell has so far, by kind."""

    @property
    def suite(self) -> Suite:
        """The suite that the cell is of."""
        return self.maker.suite

    @property
    def generator(self) -> Variant | None:
        """The generator with the options that hold, if the cell has one."""
        return self.methods.get("generator")

    @property
    def quantizer(self) -> Variant:
        """The quantizer with the options that hold; so are those that it starts from."""
        return self.methods["quantizer"]

    @property
    def task(self) -> str:
        """Identity of the task."""
        return self.suite.tasks[self.cell.task].digest

    @property
    def seed_ending(self) -> str:
        """The end of a label where the cell has a seed."""
        return "" if self.cell.seed is None else f" seed {self.cell.seed}"

    def step(
        self,
        job: "type[Job]",
        label: str,
        parts: tuple[str, ...],
        *,
        seed: int | None = None,
        scheme: str | None = None,
        needs: tuple[Step, ...] = (),
        order_only: tuple[Step, ...] = (),
        variant: Variant | None = None,
        images: Callable[[], float | None] = lambda: None,
    ) -> Step:
        """The step of a kind that reads the network, these parts and what the steps that it needs have made.

        `seed` and `scheme` are those that it uses. Steps that differ in them alone share a timing key. `images` says
        how many pass through the network, forward, as far as that is known; it is in no key.
        """
        maker = self.maker
        used = "" if scheme is None else maker.scheme(scheme)
        identity = _identity(job, parts, seed, used, [need.key for need in needs])
        step = maker.by_identity.get(identity)
        if step is None:
            key = job.key_of(hash_of(identity), needs)
            timing_key = maker.timing_key((job.kind, *parts, *[need.timing_key for need in needs]))
            like = timing_key, self.cell.scheme
            if like not in maker.work:
                maker.work[like] = self._work(job, variant, images)
            work = maker.work[like]
            step = Step(job, key, f"{job.kind} {label}", needs, self.cell, timing_key, seed, order_only, variant, work)
            maker.by_identity[identity] = maker.steps[key] = step
        return step

    def _work(self, job: "type[Job]", variant: Variant | None, images: Callable[[], float | None]) -> Work | None:
        passes = images() if self.facts.operations else None
        if not passes:
            return None
        method = variant.at_work.method if job.axis and variant else self.suite.task(self.cell.task)
        compiled = bool(job.axis) and self.cell.settings.compile
        return Work(job.kind, method.name, self.facts.digest, passes, self.facts.operations, compiled)

    @property
    def evaluated(self) -> int:
        """How many images are evaluated, as far as that is known before."""
        return self.data.files.samples or max(1, len(self.data.files.evaluation))

    @property
    def calibrated(self) -> int | None:
        """How many images the cell's calibration set has; none where only the set itself knows."""
        return 0 if self.generator is None else getattr(self.generator.method, "images", None)


def work_of(method: Method, images: int) -> float:
    """How many images pass through the network while a method works on so many.

    Raises ZSQBenchError where the method says something else than a number above zero.
    """
    with asking(method, "work"):
        work = float(method.work(images))
    if not 0 < work < math.inf:
        raise ZSQBenchError(f"{method.kind} {method.name!r} says that its work is {work}; expected a number above 0")
    return work


def identity_of(job: "type[Job]", parts: tuple[str, ...], seed: int | None, scheme: str, needs: Iterable[str]) -> str:
    """Hash of the identity of a step: `scheme` is the hash of the one that it uses, `needs` are keys of steps."""
    return hash_of(_identity(job, parts, seed, scheme, needs))


def _identity(
    job: "type[Job]", parts: tuple[str, ...], seed: int | None, scheme: str, needs: Iterable[str]
) -> tuple[str, ...]:
    return (job.kind, *parts, str(seed), scheme, *needs)


def hash_of(parts: tuple[str, ...]) -> str:
    """Hash of words and hashes, none of which holds a line break."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
