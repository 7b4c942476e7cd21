"""All methods have options that a suite sets, a version, and values that papers give for data sets."""

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
"""What methods compile: steps on pixels, updates of a student, or units that learn one by one."""


def existing_file(path: Path, info: ValidationInfo) -> Path:
    """The file that a path means, in the first of the folders that has it. Raises ValueError where none has."""
    folders = (info.context or {}).get("folders", ())
    candidates = [Path(folder) / path.expanduser() for folder in folders] or [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and not (info.context or {}).get("files_exist", True):
        return candidates[0]  # nothing that is selected reads it, or it is looked for again
    if found is None:
        raise ValueError(f"there is no file {' nor '.join(str(candidate) for candidate in dict.fromkeys(candidates))}")
    return found.resolve()


_IS_FILE = AfterValidator(existing_file)

InputFile = Annotated[Path, _IS_FILE]
"""An option that names a file that the method reads, relative to the suite or else to the data root.

Its content is part of the identity, its place is not.
"""


def _names_file(annotation: object) -> bool:
    """True if a type is `InputFile`, or holds it, as `InputFile | None` does."""
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
    """Options may depend on this part of a network: a `Pretrained` has it, and so have facts that are kept of one."""

    @property
    def input_size(self) -> Sequence[int]:
        """Channels, height, width."""

    @property
    def classes(self) -> int | None:
        """Number of classes; none where it is no classifier."""

    @property
    def architecture(self) -> str | None:
        """Name of the published definition, such as torchvision/resnet18; none for a network of one's own."""


@dataclass(frozen=True)
class NetworkTraits:
    """A `Network` that is not at hand."""

    input_size: tuple[int, ...]
    classes: int | None = None
    architecture: str | None = None


class Method(BaseModel):
    """Base of all that is pluggable: a frozen model whose fields are the options that a suite may set."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[Kind]
    name: ClassVar[str]
    """What a suite calls it."""
    version: ClassVar[int] = 1
    """Raise it whenever results change: artifacts of another version are not used again."""
    seeded: ClassVar[bool] = True
    """True if the seed changes the result; where nothing in a cell is seeded, its seeds collapse into one."""
    needs_bn: ClassVar[bool] = False
    """True if it reads batch-normalisation statistics: cells with a network without them are impossible."""
    needs_classes: ClassVar[bool] = False
    """True if it needs a classifier."""
    least_classes: ClassVar[int] = 1
    """How many classes a classifier has at least, where it needs one: cells with fewer are impossible."""
    needs_training_loss: ClassVar[bool] = False
    """True if it needs a detector whose task hands out its training loss (`Pretrained.detection`)."""
    control: ClassVar[Literal["negative", "positive", "float"] | None] = None
    """Which control of an experiment it is, if any: what every method must beat (negative), a reference that has more
    than methods have, such as real images (positive), or the network left in floating point (float). A control is
    marked and does not compete."""
    execution_options: ClassVar[frozenset[str]] = frozenset()
    """Options that cannot change a result (where data is, how it is batched): not part of the identity."""
    memory_options: ClassVar[tuple[str, ...]] = ()
    """Options to lower where memory is full. A step that ran out of memory is tried once more with half of those that
    are in `execution_options`, too."""
    compiles: ClassVar[Compiled | None] = None
    """The inner loop that is compiled where the settings say so, if there is one. `plan` tells what that would save."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values of `Auto` options, by the values of an option `preset`; of a method without one, under an empty name."""

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:  # noqa: ARG002 - for overrides
        """Values for options that the suite leaves open: those of the preset. Override it to let them depend on more.

        A function of options, network and scheme alone; without a scheme, what depends on it is left out.
        """
        return self.presets.get(getattr(self, "preset", ""), {})

    def resolved(self, network: Network, scheme: Scheme | None = None) -> Self:
        """A copy in which each option that the suite left open has the value that holds for this network and scheme.

        An option that is None even then means what its description says. The copy depends on options, network and
        scheme alone; resolving it again changes nothing, and needs no torch. Raises ZSQBenchError where the values do
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
                f"{self.kind} {self.name!r} fills in {filled} for this network, with which its other options do not go "
                f"together: {complaints}; give these options, too"
            ) from error

    def options(self) -> dict[str, Any]:
        """The options, defaults included, as plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def work(self, images: int) -> float:
        """About how many images pass through the network while it works on so many; above zero.

        In forward passes of one image each; a backward pass counts as two. Times of steps that have not run are scaled
        by it, and nothing else depends on it. By default it follows from options of the usual names
        (`zsqbench.methods.work`): override it where yours mean something else.
        """
        return usual_work(self, images)

    def advice_on_memory(self) -> str:
        """The options to lower where memory is full, with their values, in words."""
        named = [f"{name} ({getattr(self, name)})" for name in self.memory_options if getattr(self, name) is not None]
        return f"lower {'one of the options ' if len(named) > 1 else ''}{', '.join(named)}" if named else ""

    def changed_options(self) -> dict[str, Any]:
        """The options that differ from the defaults, as plain data."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def input_files(self) -> dict[str, Path]:
        """The options that name files which the method reads; their content is part of its identity."""
        return {
            info.alias or name: getattr(self, name)
            for name, info in type(self).model_fields.items()
            if getattr(self, name) is not None and (_IS_FILE in info.metadata or _names_file(info.annotation))
        }


SMALL = 64
"""Images with fewer pixels than this a side are taken for those of CIFAR, where papers give values for data sets."""

DATA_SETS: Mapping[str, Network] = {
    "cifar10": NetworkTraits((3, 32, 32), 10),
    "cifar100": NetworkTraits((3, 32, 32), 100),
    "imagenet": NetworkTraits((3, 224, 224), 1000),
}
"""The data sets that papers give values for, and a network as they have it for each."""


class ByDataSet(Method):
    """A method whose `presets` hold values by data set, too: papers give them so.

    They are taken for others like them: those of CIFAR-10 and CIFAR-100, by the number of classes, for images below 64
    pixels, and those of ImageNet for larger ones.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The values of the preset for the data set that is most like the network's."""
        values: Mapping[str, Any] = super().automatic(network, scheme).get(data_set(network), {})
        return values


def data_set(network: Network) -> str:
    """The data set of papers that is most like the one that a network was trained on: cifar10, cifar100 or imagenet."""
    if max(network.input_size[1:]) >= SMALL:
        return "imagenet"
    return "cifar10" if (network.classes or 0) <= 10 else "cifar100"  # noqa: PLR2004 - as the names say
