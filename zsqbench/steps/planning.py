"""Make steps: the facts of a cell that a kind may use for planning, and the merging of equal steps."""

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
    """Facts found by loading a network: its identity, and properties that methods may demand."""

    digest: str
    bn: int = 0
    """Number of two-dimensional batch normalisations that store statistics."""
    other_bn: str = ""
    """The classes of other batch normalisations, such as BatchNorm1d."""
    classes: int | None = None
    training_loss: bool = False
    """True if it is a detector whose task provides its training loss."""
    parameters: int = 0
    random_weights: bool = False
    input_size: tuple[int, ...] = ()
    architecture: str | None = None
    """Name of the published definition that it is, if it is one."""
    modules: tuple[tuple[str, str], ...] = ()
    """Path and content hash of each file of the user that its definition imports."""
    operations: int = 0
    """Multiplications and additions of a forward pass of one image. 0: they could not be counted. They are in no
    identity, because only times are estimated from them."""
    notes: tuple[str, ...] = ()
    """Notes for people, such as which weights of a checkpoint were taken, one line each."""


@dataclass(frozen=True)
class Data:
    """The data of a task: its place, and its identity."""

    files: DataFiles
    evaluation: str
    calibration: str | None

    @classmethod
    def of(cls, files: DataFiles, digests: FileDigests) -> "Data":
        """Hash the content of the files. Hashes of unchanged files are remembered."""
        evaluation = digest_of([digests.files(files.evaluation), dict(files.split)])
        return cls(files, evaluation, cls.calibration_of(files, digests))

    @staticmethod
    def calibration_of(files: DataFiles, digests: FileDigests) -> str | None:
        """Hash of the images that are not evaluated, if there are any."""
        return digest_of([digests.files(files.calibration), dict(files.split)]) if files.calibration else None

    @property
    def watched(self) -> list[Path]:
        """The folders in which no method may open files."""
        return [folder.resolve() for folder in self.files.folders]


class StepMaker:
    """Makes each distinct step once. It remembers the part of a key for each part of a cell: thousands share them."""

    def __init__(self, suite: Suite) -> None:
        self.steps: dict[str, Step] = {}
        """All steps, by key. Each step is behind the steps that it needs."""
        self.suite = suite
        self.scheme = cache(lambda label: digest_of(suite.schemes[label].model_dump(mode="json", exclude={"name"})))
        self.settings = cache(lambda settings: digest_of(settings.model_dump(mode="json")))
        self.methods = cache(self._methods)
        self.resolved = cache(self._resolved)
        self.timing_key = cache(hash_of)
        self.by_identity: dict[tuple[str, ...], Step] = {}
        self.of_sets: dict[tuple[str | int | None, ...], tuple[dict[str, Step], dict[str, Step]]] = {}
        """The shared steps and background steps for which `Job.of_set` is true."""
        self.work: dict[tuple[str, str], Work | None] = {}
        """The work of steps, by timing key and scheme."""
        self.impossible: dict[tuple[str | None, ...], str | None] = {}
        """Why methods cannot work with network and data, by task, model and methods. None: they can."""

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
    """The cell for which kinds plan steps, with all facts that they may use. Frozen would make planning slower."""

    maker: StepMaker
    cell: Cell
    facts: NetworkFacts
    data: Data
    methods: Mapping[str, Variant]
    """Task, quantizer and generator, with their effective options for the network and, for quantizers, the scheme."""
    settings: str
    """Identity of the settings for the computations of generate and quantize."""
    steps: dict[str, Step] = field(default_factory=dict)
    """The steps that the cell has so far, by kind."""

    @property
    def suite(self) -> Suite:
        """The suite of the cell."""
        return self.maker.suite

    @property
    def generator(self) -> Variant | None:
        """The generator with its effective options, if the cell has one."""
        return self.methods.get("generator")

    @property
    def quantizer(self) -> Variant:
        """The quantizer with its effective options. Quantizers that it starts from have theirs, too."""
        return self.methods["quantizer"]

    @property
    def task(self) -> str:
        """Identity of the task."""
        return self.suite.tasks[self.cell.task].digest

    @property
    def seed_ending(self) -> str:
        """The end of a label: the seed of the cell. Empty: it has no seed."""
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
        """The step of a kind that reads the network, these parts and the results of the steps that it needs.

        `seed` and `scheme` are those that it uses. Steps that differ only in them share a timing key. `images` is the
        number of forward passes of one image, as far as it is known. It is in no key.
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
        """How many images are evaluated, as far as it is known before the run."""
        return self.data.files.samples or max(1, len(self.data.files.evaluation))

    @property
    def calibrated(self) -> int | None:
        """How many images the cell's calibration set has. None: only the set itself knows."""
        return 0 if self.generator is None else getattr(self.generator.method, "images", None)


def work_of(method: Method, images: int) -> float:
    """How many images pass through the network while a method works on a set of this size.

    Raises ZSQBenchError if the method does not return a number above zero.
    """
    with asking(method, "work"):
        work = float(method.work(images))
    if not 0 < work < math.inf:
        raise ZSQBenchError(f"{method.kind} {method.name!r} says that its work is {work}; expected a number above 0")
    return work


def identity_of(job: "type[Job]", parts: tuple[str, ...], seed: int | None, scheme: str, needs: Iterable[str]) -> str:
    """Hash of the identity of a step. `scheme` is the hash of its scheme, `needs` are keys of steps."""
    return hash_of(_identity(job, parts, seed, scheme, needs))


def _identity(
    job: "type[Job]", parts: tuple[str, ...], seed: int | None, scheme: str, needs: Iterable[str]
) -> tuple[str, ...]:
    return (job.kind, *parts, str(seed), scheme, *needs)


def hash_of(parts: tuple[str, ...]) -> str:
    """Hash of words and hashes. They must not hold line breaks."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
