"""Classes that all kinds of steps share: the node of a plan, the job for a worker, and its outcome."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from zsqbench.methods import ModelSpec, Settings
from zsqbench.reports.results import Result
from zsqbench.store import Store
from zsqbench.suite import Cell, Suite, Variant

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session
    from zsqbench.steps.planning import CellPlanning, Data


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]

BESIDE = 1.3e7
"""The work besides counted operations, for one image that passes through a network, expressed in operations.

Steps of four methods take 3.4 to 5.9 times as long on the embedded detector, with 52 million operations, as on the
embedded ResNet-20, with 1.3 million.
"""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a step. Steps with the same kind, method and network need similar seconds per work."""

    kind: str
    method: str
    """The generator, the quantizer that does the work, or the task."""
    network: str
    """The network's identity."""
    images: Amount
    """How many images pass through the network, in forward passes of one image."""
    operations: Amount
    """Operations of a forward pass of one image."""
    compiled: bool = False
    """True if the settings let methods compile their inner loop."""

    @property
    def cost(self) -> float:
        """Operations of a forward pass, with its other work expressed in operations. It makes networks comparable."""
        return self.operations + BESIDE


@dataclass(slots=True, eq=False)
class Step:
    """One unit of work: plain data in, one artifact out. It does not change. Frozen would make planning slower."""

    type: "type[Job]"
    key: str
    """Hash of everything that the step reads."""
    label: str
    needs: tuple["Step", ...]
    cell: Cell
    """The first of the cells that need it. It gives the worker the model, generator and scheme."""
    timing_key: str = ""
    """Hash of the same without seed and scheme. Steps with an equal hash take about equal time. Empty: unknown."""
    seed: int | None = None
    """None: the step does not use it."""
    order_only: tuple["Step", ...] = ()
    """Dependencies for the order only: these steps must succeed before it starts, but it reads no results of them."""
    variant: Variant | None = None
    """The method that the step calls, with the effective options for its network."""
    work: Work | None = None
    """None: not known, because the network was not loaded yet, or its operations could not be counted."""

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return self.type.kind


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    status: Literal["done", "failed", "blocked", "interrupted"]
    seconds: float = 0.0
    device: str = ""
    error: str | None = None
    """The reason of a failure, in one line."""
    traceback: str | None = None
    """None: the user can correct the error."""
    damaged: str | None = None
    """Key of a damaged artifact that this step needed."""
    outdated: bool = False
    """True if a file changed after the run began. Another run accepts the new content."""
    spent: bool = False
    """True if the step may have changed its process. Then an engine must not use the process again."""

    @property
    def cause(self) -> str:
        """Why the step is not done."""
        return self.error or self.status


@dataclass(frozen=True)
class Progress:
    """The progress of a running step."""

    done: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    """Last value of each curve."""
    note: str = ""
    """A further note, for example that the step has not reported for a long time."""


class MethodCall(BaseModel):
    """A method by name with all its options. A worker makes the method from it."""

    model_config = ConfigDict(frozen=True)

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, variant: Variant) -> Self:
        """The call of a method of a suite."""
        return cls(method=variant.method.name, options=variant.method.options())


@dataclass(frozen=True)
class Shown:
    """The part of `zsqbench show` that describes an artifact."""

    name: str
    """The key of `data` in JSON."""
    data: Any
    text: str


@dataclass(frozen=True)
class Dataset:
    """A calibration set in the form that MLflow lists."""

    name: str
    key: str
    folder: Path
    images: int | None


@dataclass(frozen=True)
class Tracked:
    """The content of an artifact for MLflow, without its curves."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    """Plain data that is kept as JSON files with these names."""
    dataset: Dataset | None = None
    unreadable: str | None = None
    """Why a part is missing: a file was gone or damaged."""


class Job(BaseModel, ABC):
    """A kind of step. An instance is the job of one step for a worker: plain data, and how to run it.

    The class methods are for the parent process and for commands. They load neither torch nor plugins.
    """

    # planning makes no job, so it does not wait for pydantic to build their validators
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[str]
    final: ClassVar[bool] = False
    """A cell is done when its final steps are done. Its row is made from their results."""
    background: ClassVar[bool] = False
    """No cell waits for it and no row holds its key. It runs when no other step can run. Its results are for people."""
    of_set: ClassVar[bool] = False
    """All cells with the same task, network, generator, seed and settings share its step. It is planned once."""
    ships: ClassVar[bool] = False
    """It writes a network for other tools. Its time and memory are no cost of the methods that made the network."""
    exclusive: ClassVar[bool] = False
    """It measures time, so it runs while no other step runs."""
    axis: ClassVar[Literal["generator", "quantizer"] | None] = None
    """The axis of the matrix whose method it calls. None: it calls no method."""

    key: str
    label: str
    model: ModelSpec
    task: MethodCall
    settings: Settings
    seed: int
    needs: Mapping[str, str]
    """The artifact of each step that it needs, by kind."""
    resolve: str
    """The step that found the identity of the network."""
    network: str | None
    """The identity that the loaded network must have. None: this step finds the identity."""

    @classmethod
    @abstractmethod
    def plan(cls, cell: "CellPlanning") -> Step | None:
        """The step of this kind for a cell, made by `cell.step`. None: the cell has no such step.

        `cell.steps` has the steps of the kinds before.
        """

    @classmethod
    def details(cls, step: Step, suite: Suite, data: "Data | None") -> dict[str, Any]:  # noqa: ARG003 - for subclasses
        """The fields of the job that its kind adds."""
        return {}

    @classmethod
    def key_of(cls, identity: str, needs: tuple[Step, ...]) -> str:  # noqa: ARG003 - for subclasses
        """The key of a step whose identity has this hash."""
        return identity

    @abstractmethod
    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Do the step in a worker, and end with `session.write`."""

    @classmethod
    def of(cls, step: Step, suite: Suite, data: "Data | None", resolve: str, network: str | None) -> Self:
        """The job of a step."""
        cell = step.cell
        return cls(
            key=step.key,
            label=step.label,
            model=suite.models[cell.model],
            task=MethodCall.of(suite.tasks[cell.task]),
            # only steps that call a method compute with the settings; the keys of other steps do not hold them
            settings=cell.settings if cls.axis else Settings(threads=cell.settings.threads),
            seed=step.seed or 0,
            needs={need.kind: need.key for need in step.needs},
            resolve=resolve,
            network=network,
            **cls.details(step, suite, data),
        )

    @property
    def called(self) -> str:
        """The field with the call of the method that does the work: the method of its axis, or the task."""
        return self.axis or "task"

    @property
    def call(self) -> MethodCall:
        """The call of that method."""
        call: MethodCall = getattr(self, self.called)
        return call

    def calling(self, options: Mapping[str, Any]) -> Self:
        """The same job with other options of its method. These options are in no key."""
        call = self.call.model_copy(update={"options": {**self.call.options, **options}})
        return self.model_copy(update={self.called: call})

    @classmethod
    def not_run(cls, cell: Cell) -> dict[str, str]:  # noqa: ARG003 - for subclasses
        """Why a cell that asks for a step of this kind has none, by the group of the missing metrics."""
        return {}

    @classmethod
    def leading_to(cls, step: Step) -> dict[str, Step]:  # noqa: ARG003 - for subclasses
        """Steps before this step that have their own names in a row."""
        return {}

    @classmethod
    def row(cls, store: Store, keys: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG003 - for subclasses
        """The fields that a final step fills in the row of a cell with these artifacts. Dictionaries are merged.

        Raises CorruptArtifactError if the artifact is damaged.
        """
        return {}

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:  # noqa: ARG003 - for subclasses
        """The view of the artifact from which a row was made. None: there is none."""
        return None

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:  # noqa: ARG003 - for subclasses
        """The content for MLflow of the artifact from which a row was made. None: there is nothing (yet)."""
        return None

    @classmethod
    def is_expected(cls, row: Result) -> bool:  # noqa: ARG003 - for subclasses
        """True if a background step of this kind will leave results for a row, and `track` has none yet."""
        return False

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """True if `cache gc` keeps an artifact of this kind, when rows refer to the keys in `kept`."""
        return key in kept


def contributed(kinds: Iterable[type[Job]], store: Store, keys: Mapping[str, str]) -> dict[str, Any]:
    """The fields that steps of these kinds fill in the row of a cell.

    If several steps fill one field, mappings and lists are joined. For other fields the last step counts.
    """
    row: dict[str, Any] = {}
    for kind in kinds:
        for name, value in kind.row(store, keys).items():
            before = row.get(name)
            if isinstance(before, dict):
                row[name] = before | value
            else:
                row[name] = before + value if isinstance(before, list) else value
    return row
