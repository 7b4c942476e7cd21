"""The base of all methods: options that a suite sets, a version, and values that papers give for data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.asking import asking
from zsqbench.methods.work import usual_work
from zsqbench.scheme import Scheme

T = TypeVar("T")

Kind = Literal["generator", "quantizer", "task", "engine"]
"""The kinds of methods, as hooks and suites name them."""

Compiled = Literal["pixels", "updates", "units"]
"""Inner loops that methods compile: steps on pixels, updates of a student, or units that learn one by one."""


def existing_file(path: Path, info: ValidationInfo) -> Path:
    """The path of a file, in the first folder that has it. Raises ValueError where none has it."""
    folders = (info.context or {}).get("folders", ())
    candidates = [Path(folder) / path.expanduser() for folder in folders] or [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and not (info.context or {}).get("files_exist", True):
        return candidates[0]  # no selected method reads it, or it is looked for again later
    if found is None:
        raise ValueError(f"there is no file {' nor '.join(str(candidate) for candidate in dict.fromkeys(candidates))}")
    return found.resolve()


_IS_FILE = AfterValidator(existing_file)

InputFile = Annotated[Path, _IS_FILE]
"""An option that names a file that the method reads, relative to the suite or else to the data root.

The content of the file is part of the identity; its place is not.
"""


def _names_file(annotation: object) -> bool:
    """True if a type is `InputFile`, or contains it, such as `InputFile | None`."""
    return _IS_FILE in getattr(annotation, "__metadata__", ()) or any(map(_names_file, get_args(annotation)))


class _Automatic:
    """Marks an option that may be None until the method gives it a value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.nullable_schema(handler(source))


_IS_AUTOMATIC = _Automatic()

Auto = Annotated[T, _IS_AUTOMATIC]
"""The type of an option that a suite may leave to the method: None until `Method.resolved` gives it a value.

It is declared with `auto`: `lr: Auto[float] = auto(gt=0, description="learning rate")`.
"""


def auto(*, description: str, **constraints: Any) -> Any:
    """An `Auto` option, left to the method unless the suite gives it; constraints are those of pydantic's `Field`."""
    return Field(None, description=description, **constraints)


class Network(Protocol):
    """The part of a network on which options may depend. `Pretrained` has it, and so have stored facts of a network."""

    @property
    def input_size(self) -> Sequence[int]:
        """Channels, height, width."""

    @property
    def classes(self) -> int | None:
        """Number of classes; None where the network is not a classifier."""

    @property
    def architecture(self) -> str | None:
        """Name of the published definition, such as torchvision/resnet18; None for a user's own network."""


@dataclass(frozen=True)
class NetworkTraits:
    """A `Network` without the network itself."""

    input_size: tuple[int, ...]
    classes: int | None = None
    architecture: str | None = None


class Method(BaseModel):
    """Base of everything pluggable: a frozen model whose fields are the options that a suite may set."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[Kind]
    name: ClassVar[str]
    """The name of the method in a suite."""
    version: ClassVar[int] = 1
    """Raise it whenever results change: artifacts of another version are not used again."""
    seeded: ClassVar[bool] = True
    """True if the seed changes the result. Where nothing in a cell is seeded, its seeds become one cell."""
    needs_bn: ClassVar[bool] = False
    """True if it reads batch-normalisation statistics: cells with a network without them are impossible."""
    needs_classes: ClassVar[bool] = False
    """True if it needs a classifier."""
    least_classes: ClassVar[int] = 1
    """Smallest number of classes, where it needs a classifier: cells with fewer are impossible."""
    needs_training_loss: ClassVar[bool] = False
    """True if it needs a detector whose task hands out its training loss (`Pretrained.detection`)."""
    control: ClassVar[Literal["negative", "positive", "float"] | None] = None
    """Kind of control, or None. `negative`: every method must be better. `positive`: a reference that has more than
    methods have, such as real images. `float`: the network in floating point. A control is marked and cannot win."""
    execution_options: ClassVar[frozenset[str]] = frozenset()
    """Options that cannot change a result (place of data, batch size): not part of the identity."""
    memory_options: ClassVar[tuple[str, ...]] = ()
    """Options to lower where memory is full. A step that ran out of memory is tried once more, with half the values of
    the options that are also in `execution_options`."""
    compiles: ClassVar[Compiled | None] = None
    """The inner loop that is compiled where the settings say so, or None. `plan` tells the saved time."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values of `Auto` options, by the value of the option `preset`; without this option, under an empty name."""

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:  # noqa: ARG002 - for overrides
        """Values for options that the suite leaves open: those of the preset. Override it for other values.

        It is a function of options, network and scheme alone. Without a scheme, values that depend on it are left out.
        """
        return self.presets.get(getattr(self, "preset", ""), {})

    def resolved(self, network: Network, scheme: Scheme | None = None) -> Self:
        """A copy in which each option that the suite left open has its value for this network and scheme.

        The description of an option says what None means where None remains. The copy depends on options, network and
        scheme alone. Resolving it again changes nothing, and needs no torch. Raises ZSQBenchError where the values do
        not go together.
        """
        with asking(self, "automatic"):
            values = {
                name: value
                for name, value in self.automatic(network, scheme).items()
                if value is not None and getattr(self, name) is None
            }
        if not values:
            return self
        try:
            return self.model_validate(self.model_copy(update=values).model_dump(by_alias=True))
        except ValidationError as error:
            complaints = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())
            filled = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise ZSQBenchError(
                f"{self.kind} {self.name!r} fills in {filled} for this network, and its other options contradict "
                f"them: {complaints}; give these options too"
            ) from error

    def options(self) -> dict[str, Any]:
        """The options, defaults included, as plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def work(self, images: int) -> float:
        """About how many images pass through the network while the method works on this number of images; above zero.

        The unit is a forward pass of one image; a backward pass counts as two. Times of steps that have not run are
        scaled by it, and nothing else depends on it. By default it follows from options of the usual names
        (`zsqbench.methods.work`). Override it where your options mean something else.
        """
        return usual_work(self, images)

    def advice_on_memory(self) -> str:
        """The options to lower where memory is full, with their values, as text."""
        named = [f"{name} ({getattr(self, name)})" for name in self.memory_options if getattr(self, name) is not None]
        return f"lower {'one of the options ' if len(named) > 1 else ''}{', '.join(named)}" if named else ""

    def changed_options(self) -> dict[str, Any]:
        """The options that differ from the defaults, as plain data."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def input_files(self) -> dict[str, Path]:
        """The options that name files which the method reads. The content of the files is part of its identity."""
        return {
            info.alias or name: getattr(self, name)
            for name, info in type(self).model_fields.items()
            if getattr(self, name) is not None and (_IS_FILE in info.metadata or _names_file(info.annotation))
        }


SMALL = 64
"""Images with fewer pixels a side count as CIFAR's, where papers give values for data sets."""

DATA_SETS: Mapping[str, Network] = {
    "cifar10": NetworkTraits((3, 32, 32), 10),
    "cifar100": NetworkTraits((3, 32, 32), 100),
    "imagenet": NetworkTraits((3, 224, 224), 1000),
}
"""The data sets for which papers give values, each with a network as papers have it."""


class ByDataSet(Method):
    """A method whose `presets` also hold values by data set, because papers give them by data set.

    Other networks take the values of the most similar data set. Images below 64 pixels have those of CIFAR-10 or
    CIFAR-100, by the number of classes. Larger ones have those of ImageNet.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values for the data set that is most similar to the network's."""
        values: Mapping[str, Any] = super().automatic(network, scheme).get(data_set(network), {})
        return values


def data_set(network: Network) -> str:
    """The paper data set that is most similar to a network's training data: cifar10, cifar100 or imagenet."""
    if max(network.input_size[1:]) >= SMALL:
        return "imagenet"
    return "cifar10" if (network.classes or 0) <= 10 else "cifar100"  # noqa: PLR2004 - as the names say
