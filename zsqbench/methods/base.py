"""What all methods have in common: options that a suite sets, a version, and values that papers give for data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

if TYPE_CHECKING:
    from zsqbench.methods.data import Pretrained

if TYPE_CHECKING:
    from zsqbench.scheme import Scheme

Kind = Literal["generator", "quantizer", "task", "engine"]


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
    """Whether a type is `InputFile`, or holds it, as `InputFile | None` does."""
    return _IS_FILE in getattr(annotation, "__metadata__", ()) or any(map(_names_file, get_args(annotation)))


class Network(Protocol):
    """What the values of options may depend on of a network."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels, height, width."""

    @property
    def classes(self) -> int | None:
        """Number of classes, of a classifier."""

    @property
    def architecture(self) -> str | None:
        """Name of the published definition that it is, if it is one."""


class Method(BaseModel):
    """Base of all that is pluggable: a frozen model whose fields are the options that a suite may set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[Kind]
    name: ClassVar[str]
    """What a suite calls it."""
    version: ClassVar[int] = 1
    """Raise it whenever results change: artifacts of another version are not used again."""
    seeded: ClassVar[bool] = True
    """Whether the seed changes the result; where nothing in a cell is seeded, its seeds collapse into one."""
    needs_bn: ClassVar[bool] = False
    """Whether it reads batch-normalisation statistics: cells with a network without them are impossible."""
    needs_classes: ClassVar[bool] = False
    """Whether it needs a classifier."""
    incidental: ClassVar[frozenset[str]] = frozenset()
    """Options that cannot change a result (where data is, how it is batched): not part of the identity."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What is chosen for options that are not given, by the values of an option `preset`."""

    def chosen(self, option: str) -> Any:
        """The value of an option, given or the preset's; of what is no option, the preset's."""
        value = getattr(self, option, None)
        return self.presets[getattr(self, "preset", "")][option] if value is None else value

    def resolved(self, network: Network, scheme: "Scheme | None" = None) -> Self:  # noqa: ARG002
        """A copy in which each option that the suite left to the method has the value that holds."""
        return self

    def options(self) -> dict[str, Any]:
        """The options, defaults included, as plain data."""
        return self.model_dump(mode="json", by_alias=True)

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


class ByDataSet(Method):
    """A method whose `presets` hold values by data set, too: papers give them so.

    They are taken for others like them: those of CIFAR-10 and CIFAR-100, by the number of classes, for images below 64
    pixels, and those of ImageNet for larger ones.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]

    def by_data_set(self, option: str, teacher: "Pretrained") -> Any:
        """The value of an option: given, or the preset's for the data set that is most like the teacher's."""
        value = getattr(self, option)
        return self.values_by_data_set(teacher)[option] if value is None else value

    def values_by_data_set(self, teacher: "Pretrained") -> Mapping[str, Any]:
        """All values of the preset for this data set, by option."""
        values: Mapping[str, Any] = self.presets[getattr(self, "preset", "")][data_set(teacher)]
        return values


def data_set(teacher: "Pretrained") -> str:
    """The data set of papers that is most like the one that a network was trained on: cifar10, cifar100 or imagenet."""
    if max(teacher.input_size[1:]) >= SMALL:
        return "imagenet"
    return "cifar10" if (teacher.classes or 0) <= 10 else "cifar100"  # noqa: PLR2004 - as the names say
