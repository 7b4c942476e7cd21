"""All kinds of steps share the node of a plan, the job that a worker is handed, and what came of it."""

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
"""Operations in whose time a CPU does all that is counted in none, for one image on its way through a network.

Steps of four methods take 3.4 to 5.9 times as long on the embedded detector, with 52 million operations, as on the
embedded ResNet-20, with 1.3 million.
"""


@dataclass(frozen=True, slots=True)
class Work:
    """How much a step has to do; seconds for it are alike in steps that share kind, method and network."""

    kind: str
    method: str
    """The generator, the quantizer that does the work, or the task."""
    network: str
    """The network's identity."""
    images: Amount
    """How many images pass through the network, in forward passes of one image."""
    operations: Amount
    """Of a forward pass of one image."""
    compiled: bool = False
    """True where the settings say that methods compile their inner loop."""

    @property
    def cost(self) -> float:
        """Operations of a forward pass, with those that its other work stands for: networks compare by it."""
        return self.operations + BESIDE


@dataclass(slots=True, eq=False)
class Step:
    """One unit of work: plain data in, one artifact out. Not changed once made; frozen would make planning slower."""

    type: "type[Job]"
    key: str
    """Hash of all that the step reads."""
    label: str
    needs: tuple["Step", ...]
    cell: Cell
    """The first of the cells that need it: tells the worker which model, generator and scheme are meant."""
    timing_key: str = ""
    """Hash of the same without seed and scheme: steps with equal ones take about the same time. Empty: unknown."""
    seed: int | None = None
    """None where the step does not use it."""
    order_only: tuple["Step", ...] = ()
    """Ordering-only dependencies: steps that have to end well before it starts, although it reads nothing of theirs."""
    variant: Variant | None = None
    """The method that the step calls, with the options that hold for its network."""
    work: Work | None = None
    """None where it is not known: of a network that was not loaded yet, or whose operations could not be counted."""

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
    """One line."""
    traceback: str | None = None
    """None where the error is the user's to mend."""
    damaged: str | None = None
    """Key of an artifact that this step needed and that is not what was written."""
    outdated: bool = False
    """True if a file changed after the run began: running again takes it as it is."""
    spent: bool = False
    """True if what ran may have changed its process for others: an engine must not use that process again."""

    @property
    def cause(self) -> str:
        """Why the step is not done."""
        return self.error or self.status


@dataclass(frozen=True)
class Progress:
    """How far a running step is."""

    done: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    """Last value of each curve."""
    note: str = ""
    """One more thing to know, such as that nothing was heard of the step for long."""


class MethodCall(BaseModel):
    """A method by name with all its options, as a worker makes it."""

    model_config = ConfigDict(frozen=True)

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, variant: Variant) -> Self:
        """The call of a method of a suite."""
        return cls(method=variant.method.name, options=variant.method.options())


@dataclass(frozen=True)
class Shown:
    """The part of `zsqbench show` that tells of an artifact."""

    name: str
    """The key under which `data` stands in JSON."""
    data: Any
    text: str


@dataclass(frozen=True)
class Dataset:
    """A calibration set, as MLflow lists it."""

    name: str
    key: str
    folder: Path
    images: int | None


@dataclass(frozen=True)
class Tracked:
    """All that MLflow is told of an artifact besides its curves."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    """Plain data, kept as JSON files of these names."""
    dataset: Dataset | None = None
    unreadable: str | None = None
    """Why there is less than there should be, where a file was gone or damaged."""


class Job(BaseModel, ABC):
    """A kind of step; an instance is one such step as a worker is handed it: plain data, and how to run it.

    The class methods are for the parent process and for commands, which load neither torch nor plugins for them.
    """

    # planning makes no job, so it does not wait for pydantic to build their validators
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[str]
    final: ClassVar[bool] = False
    """A cell is done when its final steps are, and its row is made of what they left."""
    background: ClassVar[bool] = False
    """No cell waits for it and no row holds its key. It runs where no other step could, for people."""
    of_set: ClassVar[bool] = False
    """Its step is one for all cells that share task, network, generator, seed and settings: it is planned once."""
    ships: ClassVar[bool] = False
    """It writes a network down for others: what it takes is no cost of the methods that made the network."""
    exclusive: ClassVar[bool] = False
    """It measures time: it runs while no other step does."""
    axis: ClassVar[Literal["generator", "quantizer"] | None] = None
    """The axis of the matrix whose method it calls, if it does."""

    key: str
    label: str
    model: ModelSpec
    task: MethodCall
    settings: Settings
    seed: int
    needs: Mapping[str, str]
    """The artifact of each step that it needs, by kind."""
    resolve: str
    """The step that learned what the network is."""
    network: str | None
    """The network's identity, which the loaded network must have. None for the step that learns it."""

    @classmethod
    @abstractmethod
    def plan(cls, cell: "CellPlanning") -> Step | None:
        """The step of this kind that a cell has, made by `cell.step`, or none.

        `cell.steps` has those of the kinds before it.
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
            # only what calls a method computes as the settings say; the others have no more of them in their keys
            settings=cell.settings if cls.axis else Settings(threads=cell.settings.threads),
            seed=step.seed or 0,
            needs={need.kind: need.key for need in step.needs},
            resolve=resolve,
            network=network,
            **cls.details(step, suite, data),
        )

    @property
    def called(self) -> str:
        """The field that holds the call of the method whose work it is: the one of its axis, or the task."""
        return self.axis or "task"

    @property
    def call(self) -> MethodCall:
        """The call of that method."""
        call: MethodCall = getattr(self, self.called)
        return call

    def calling(self, options: Mapping[str, Any]) -> Self:
        """The same step with other options of that method, which are in no key."""
        call = self.call.model_copy(update={"options": {**self.call.options, **options}})
        return self.model_copy(update={self.called: call})

    @classmethod
    def not_run(cls, cell: Cell) -> dict[str, str]:  # noqa: ARG003 - for subclasses
        """Why a cell that asks for a step of this kind has none, by the group of metrics that it would have made."""
        return {}

    @classmethod
    def leading_to(cls, step: Step) -> dict[str, Step]:  # noqa: ARG003 - for subclasses
        """Steps before this one that a row tells of by a name of their own."""
        return {}

    @classmethod
    def row(cls, store: Store, keys: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG003 - for subclasses
        """The fields that a final step fills in the row of a cell with these artifacts; dictionaries are merged.

        Raises CorruptArtifactError where the artifact is damaged.
        """
        return {}

    @classmethod
    def show(cls, store: Store, row: Result) -> Shown | None:  # noqa: ARG003 - for subclasses
        """The view of the artifact that a row was made from, or none."""
        return None

    @classmethod
    def track(cls, store: Store, row: Result) -> Tracked | None:  # noqa: ARG003 - for subclasses
        """All that MLflow is told of the artifact that a row was made from; none where there is nothing (yet)."""
        return None

    @classmethod
    def is_expected(cls, row: Result) -> bool:  # noqa: ARG003 - for subclasses
        """True if a background step of this kind will leave something of a row that `track` tells nothing of yet."""
        return False

    @classmethod
    def is_kept(cls, key: str, kept: frozenset[str]) -> bool:
        """True if `cache gc` leaves an artifact of this kind, where rows refer to the keys in `kept`."""
        return key in kept


def contributed(kinds: Iterable[type[Job]], store: Store, keys: Mapping[str, str]) -> dict[str, Any]:
    """The fields that steps of these kinds fill in the row of a cell.

    Where several fill one, mappings and lists are joined, and of others the last counts.
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
