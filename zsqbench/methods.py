"""What a plugin provides: generators, quantizers, tasks and engines, and the plain data that they exchange."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from zsqbench.errors import ZSQBenchError
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from zsqbench.quant import Memory, Rounding

Kind = Literal["generator", "quantizer", "task", "engine"]
F = TypeVar("F", bound=Callable[..., Any])


COMPILED_AT_MOST = 64
"""How many versions of a function, for other networks or batch sizes, a worker compiles."""


class Settings(BaseModel):
    """How generate and quantize compute. Part of a step's identity, since it may change numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs generate and quantize under autocast")
    layout: Literal["contiguous", "channels_last"] = Field("contiguous", description="memory format of the teacher")
    compile: bool = Field(False, description="let methods compile their inner loop with torch.compile")
    threads: int = Field(1, gt=0, description="CPU threads of a step")


def _existing_file(path: Path, info: ValidationInfo) -> Path:
    folders = (info.context or {}).get("folders", ())
    candidates = [Path(folder) / path.expanduser() for folder in folders] or [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f"there is no file {' nor '.join(str(candidate) for candidate in dict.fromkeys(candidates))}")
    return found.resolve()


_IS_FILE = AfterValidator(_existing_file)
InputFile = Annotated[Path, _IS_FILE]
"""An option that names a file that the method reads, relative to the suite or else to the data root.

Its content is part of the identity, its place is not.
"""


def _names_file(annotation: object) -> bool:
    """Whether a type is `InputFile`, or holds it, as `InputFile | None` does."""
    return _IS_FILE in getattr(annotation, "__metadata__", ()) or any(map(_names_file, get_args(annotation)))


def _weights(text: str, info: ValidationInfo) -> str:
    return text if text == "none" else str(_existing_file(Path(text), info))


class ModelSpec(BaseModel):
    """A network as a suite names it: a shipped or published one, a variant of one, or a user's own file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what the suite calls it")
    base: str | None = Field(None, description="a named model that this one is a variant of")
    file: InputFile | None = Field(None, description="a .py file with a function that returns the module")
    build: str = Field("build", description="name of that function")
    weights: Annotated[str, AfterValidator(_weights)] | None = Field(
        None, description="safetensors or a weights-only checkpoint; 'none' for seeded random weights"
    )
    classes: int | None = Field(None, gt=0, description="number of classes, where a shipped definition is built for it")
    input_size: tuple[int, int, int] | None = Field(None, description="channels, height, width")
    resize: int | Literal["none"] | None = Field(None, description="length of the shorter side before the crop")
    crop: int | Literal["none"] | None = Field(None, description="side of the central crop")
    mean: tuple[float, ...] | None = Field(None, description="per channel, on the value range")
    std: tuple[float, ...] | None = Field(None, description="per channel, on the value range")
    channels: Literal["rgb", "bgr"] | None = Field(None, description="order of the input channels")
    value_range: tuple[float, float] | None = Field(None, description="what black and white are before mean and std")
    float_accuracy: float | None = Field(
        None,
        allow_inf_nan=False,
        description="what the float network reaches, in percent; its cells fail where it is not within 0.1",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if (self.base is None) == (self.file is None):
            raise ValueError("a model is either a variant of a named one ('base') or a 'file' of your own")
        if self.file is not None and self.weights is None:
            raise ValueError("a model from a 'file' needs 'weights': a path, or none for seeded random weights")
        if self.file is not None and self.input_size is None:
            raise ValueError("a model from a 'file' needs 'input_size': [channels, height, width]")
        return self

    @property
    def weights_from(self) -> Path | Literal["none"] | None:
        """The weights that the suite gives, if any; "none" asks for random ones."""
        if self.random_weights:
            return "none"
        return None if self.weights is None else Path(self.weights)

    @property
    def random_weights(self) -> bool:
        """Whether the weights are seeded random numbers; rows of such a model are marked."""
        return self.weights == "none"


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


class Generator(Method, ABC):
    """Makes calibration images from a network alone (or, as a control, from real images)."""

    kind: ClassVar[Kind] = "generator"
    uses_real_data: ClassVar[bool] = False
    """Whether it is handed real images (`ctx.real_images`); its rows are marked as not data-free."""
    gives_labels: ClassVar[bool] = False
    """Whether its calibration sets carry labels."""

    images: int = Field(1024, gt=0, description="size of the calibration set")

    @abstractmethod
    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Return `images` images in the teacher's normalised space. The teacher must stay as it is."""


class Quantizer(Method, ABC):
    """Turns a network and calibration images into a quantized network."""

    kind: ClassVar[Kind] = "quantizer"
    needs_labels: ClassVar[bool] = False
    """Whether it needs a calibration set with labels."""
    data_free: ClassVar[bool] = False
    """Whether it reads no calibration images: its cells have `generator: none`."""
    grids: ClassVar[tuple[Grid, ...]] = ("affine",)
    """The grids that it can use, of which a scheme may demand one (`pot` does)."""

    @property
    def starts_from(self) -> str | None:
        """The quantizer of the suite from whose result it goes on (`ctx.start`): its option `start`, if it has one.

        That one then prepares the student for both.
        """
        start: str | None = getattr(self, "start", None)
        return start

    @property
    def keeps_epochs(self) -> bool:
        """Whether it will call `ctx.keep_epoch`: the harness then also measures what it kept, for the oracle."""
        return False

    def rejects(self, scheme: Scheme) -> str | None:
        """Why this quantizer cannot run at this scheme, or none."""
        if scheme.is_float:
            return "it quantizes, and scheme float leaves nothing to quantize"
        demanded = scheme.placement.grid
        if demanded is not None and demanded not in self.grids:
            return f"the scheme demands the grid {demanded}, and it has {', '.join(self.grids)}"
        return None

    def images_of(self, data: "CalibrationSet | None") -> "torch.Tensor":
        """The calibration images. Raises ZSQBenchError where there are none."""
        if data is None:
            raise ZSQBenchError(f"quantizer {self.name!r} needs calibration images: its generator cannot be none")
        return data.images

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "nn.Module":
        """Return a copy of the network with quantizers in place, as a function of network, scheme and options alone.

        What data decides is a buffer with a neutral value: evaluation calls this again and loads the artifact into it.
        """
        from zsqbench.quant import prepare

        return prepare(teacher.module, scheme, teacher.input_size)

    @abstractmethod
    def quantize(
        self, student: "nn.Module", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set the student's quantizers (and weights), in place. The teacher must stay as it is."""


class GridQuantizer(Quantizer, ABC):
    """A quantizer that rounds weights and activations to any one kind of grid."""

    grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")

    grid: Grid | None = Field(None, description="kind of grid; none: what the scheme demands, else affine")
    per_channel: bool = Field(True, description="a grid for each output channel of a weight, or one for the weight")

    def rejects(self, scheme: Scheme) -> str | None:
        """A grid of its own that is not the one that the scheme demands."""
        demanded = scheme.placement.grid
        if self.grid is not None and demanded not in (None, self.grid):
            return f"the scheme demands the grid {demanded}, and its option grid is {self.grid}"
        return super().rejects(scheme)

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "nn.Module":
        """Put quantizers of this kind of grid in place."""
        from zsqbench.quant import Grids, prepare

        grid = self.grid or scheme.placement.grid or "affine"
        return prepare(teacher.module, scheme, teacher.input_size, Grids(grid, grid, self.per_channel))


class ReconstructionQuantizer(Quantizer, ABC):
    """A quantizer that learns rounding unit by unit with `zsqbench.quant.Reconstruction`.

    Where activations are cached changes no value, so the bounds on that are no part of the identity.
    """

    incidental: ClassVar[frozenset[str]] = frozenset({"device_memory", "host_memory"})

    batch_size: int = Field(32, gt=0, description="images of an iteration")
    rounding_lr: float = Field(1e-3, gt=0, description="learning rate of the rounding variables (Adam)")
    rounding_weight: float = Field(0.01, ge=0, description="weight of the regulariser (lambda)")
    warmup: float = Field(0.2, ge=0, le=1, description="part of the iterations on weights without regulariser")
    device_memory: float = Field(4.0, ge=0, description="GiB of a GPU's memory that cached activations may take")
    host_memory: float = Field(8.0, ge=0, description="GiB of host memory that they may take; the rest is in files")

    def memory(self, device: "torch.device") -> "Memory":
        """The bounds of what is cached."""
        from zsqbench.quant import GIB, Memory

        return Memory(device, int(self.device_memory * GIB), int(self.host_memory * GIB))

    def rounding(
        self, *, annealing: Literal["linear", "cosine"] = "linear", scale_lr: float | None = None
    ) -> "Rounding":
        """How rounding is learned, as the options say."""
        from zsqbench.quant import Annealing, Rounding

        return Rounding(
            self.rounding_lr, self.rounding_weight, Annealing(warmup=self.warmup, shape=annealing), scale_lr
        )


@dataclass(frozen=True)
class DataFiles:
    """The files that a task reads, so that the harness can hash them, watch them and say early that they are missing.

    Names are relative and stable across machines; `split` is whatever else decides which sample is in which part.
    """

    evaluation: Mapping[str, Path]
    calibration: Mapping[str, Path]
    split: Mapping[str, Any] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    """Folders that no method may open files in."""


class Task(Method, ABC):
    """Loads networks, measures their accuracy, and hands out calibration images that it does not evaluate."""

    kind: ClassVar[Kind] = "task"
    seeded: ClassVar[bool] = False
    metric: ClassVar[str]
    """The metric that leaderboards show, a key of `Evaluation.metrics`; higher is better."""

    @abstractmethod
    def find_data(self, data_root: Path | None) -> DataFiles:
        """Find the data without torch. Raises ZSQBenchError where it is absent or empty."""

    @abstractmethod
    def find_model(self, model: ModelSpec) -> Mapping[str, Path]:
        """The files that define a model, without torch, as far as they are known before it is loaded.

        Raises ZSQBenchError for a model that this task does not know.
        """

    @abstractmethod
    def load(self, model: ModelSpec, ctx: "StepContext") -> "Pretrained":
        """Load a network with its weights and its own preprocessing."""

    @abstractmethod
    def evaluate(self, module: "nn.Module", pretrained: "Pretrained", ctx: "TaskContext") -> "Evaluation":
        """Measure a network (the float one, or a quantized copy) on the evaluation data."""

    def picture(
        self,
        module: "nn.Module",  # noqa: ARG002
        pretrained: "Pretrained",  # noqa: ARG002
        ctx: "TaskContext",  # noqa: ARG002
    ) -> "Image | None":
        """What people should see of a quantized network, beside the float one; by default, nothing."""
        return None

    @abstractmethod
    def calibration_images(
        self, count: int, seed: int, pretrained: "Pretrained", ctx: "TaskContext"
    ) -> "CalibrationSet":
        """Real images, preprocessed for this network, none of which is evaluated; fewer where there are no more."""


class Engine(Method, ABC):
    """Where steps run: anything that gives a `concurrent.futures.Executor`."""

    kind: ClassVar[Kind] = "engine"
    seeded: ClassVar[bool] = False

    workers: int | None = Field(None, ge=0, description="steps that run at the same time")
    threads: int = Field(1, gt=0, description="CPU threads that one step takes")

    @abstractmethod
    def slots(self) -> int:
        """How many steps to hand to the executor at the same time."""

    @abstractmethod
    def start(self) -> Executor:
        """Start the executor. Workers build their own plugin manager; what is submitted is plain data."""


@dataclass(frozen=True)
class Pretrained:
    """A trained network in eval mode with frozen weights, and how to feed it."""

    module: "nn.Module"
    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    """What black and white are before mean and std are applied."""
    outputs: tuple[str, ...] = ("logits",)
    """Names of the raw outputs."""
    classes: int | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What else the task needs to feed it (resize, crop, channel order), as plain data; part of the identity."""
    architecture: str | None = None
    """Name of the published definition that it is, such as torchvision/resnet18; none for a network of one's own."""

    output_layers: tuple[str, ...] = ()
    """Paths of the modules that give the raw outputs; none where the network returns them as they are."""
    decoding: Any = None
    """What only the task that loaded it needs, to feed it and to read its outputs; in no identity."""

    def valid_range(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Smallest and largest value of a valid pixel in normalised space, each [1, C, 1, 1]."""
        import torch

        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        low, high = self.value_range
        return (low - mean) / std, (high - mean) / std

    def digest(self) -> str:
        """Hash of weights, buffers and preprocessing: changes when anything that a method can read of it changes."""
        import torch

        sha = hashlib.sha256()
        feeding = [
            self.input_size,
            self.mean,
            self.std,
            self.value_range,
            self.outputs,
            self.classes,
            self.architecture,
            *self.output_layers,
        ]
        sha.update(json.dumps([*feeding, dict(self.preprocessing)], sort_keys=True).encode())
        for name, tensor in self.module.state_dict().items():
            array = tensor.detach().contiguous().cpu()
            sha.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            sha.update(array.flatten().view(torch.uint8).numpy())
        return sha.hexdigest()


@dataclass(frozen=True)
class CalibrationSet:
    """Images that a quantizer calibrates on, in the network's normalised space."""

    images: "torch.Tensor"
    """float32 [N, C, H, W]."""
    labels: "torch.Tensor | None" = None
    """int64 [N], or float32 [N, classes] for soft labels."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, as plain data, for people."""

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write a safetensors file: `images`, `labels`, and the provenance as metadata."""
        from safetensors.torch import save_file

        tensors = {"images": self.images.detach().cpu().float().contiguous()}
        if self.labels is not None:
            tensors["labels"] = self.labels.detach().cpu().contiguous()
        save_file(tensors, path, metadata={"provenance": json.dumps(dict(self.provenance))})

    @classmethod
    def load(cls, path: Path) -> "CalibrationSet":
        """Read what `save` wrote, or any safetensors file with a tensor `images`. Raises ZSQBenchError for others."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if "images" not in names:
                    raise ZSQBenchError(f"{path} holds no tensor 'images'; it holds {', '.join(names) or 'nothing'}")
                images = file.get_tensor("images")
                labels = file.get_tensor("labels") if "labels" in names else None
                provenance = json.loads((file.metadata() or {}).get("provenance", "{}"))
        except SafetensorError as error:
            raise ZSQBenchError(f"{path} is not a safetensors file that can be read: {error}") from error
        return cls(images, labels, provenance)


@dataclass(frozen=True)
class Evaluation:
    """What a task measured: named metrics (accuracies in percent), and which samples were right."""

    metrics: Mapping[str, float]
    per_sample: Sequence[bool] = ()
    predictions: Sequence[int] = ()
    """What was predicted of each sample, such as the index of a class; below 0 where nothing was. With them, the
    harness says on how many samples a quantized network agrees with the float one."""
    tensors: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """What else there is of each sample, such as boxes, so that any statistic can be computed later."""


class ReportsProgress(Protocol):
    """Where a step's context sends what it is told; implemented by the worker. See `StepContext` for what they mean."""

    def log(self, name: str, value: "float | torch.Tensor", step: int) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Note how far the step is."""

    def note(self, line: str) -> None:
        """Keep a line for people."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep a state, now and then."""

    def resume(self) -> dict[str, Any] | None:
        """The state kept last."""

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep a student as it is after an epoch."""


@dataclass
class StepContext:
    """What a method may use besides its arguments: device, seeded randomness, reporting, checkpoints."""

    device: "torch.device"
    seed: int
    rng: "torch.Generator"
    """A generator on `device`, seeded; all randomness of a method comes from it."""
    settings: Settings
    reporter: ReportsProgress
    real_images: CalibrationSet | None = None
    """Real images, for a generator with `uses_real_data` only."""
    start: "nn.Module | None" = None
    """The finalized student of the quantizer that the option `start` names, for a quantizer that has one only."""

    def randn(self, *shape: int) -> "torch.Tensor":
        """Standard normal numbers on the device, from `rng`."""
        import torch

        return torch.randn(*shape, generator=self.rng, device=self.device)

    def rand(self, *shape: int) -> "torch.Tensor":
        """Uniform numbers in [0, 1) on the device, from `rng`."""
        import torch

        return torch.rand(*shape, generator=self.rng, device=self.device)

    def log(self, name: str, value: "float | torch.Tensor", step: int = 0) -> None:
        """Add a point to a curve. Curves are kept with the artifact and go to MLflow.

        A scalar tensor is read when it is shown, not now, so that logging does not hold up a GPU.
        """
        self.reporter.log(name, value, step)

    def progress(self, done: int, total: int) -> None:
        """Say how far the method is."""
        self.reporter.progress(done, total)

    def note(self, line: str) -> None:
        """Say in one line what the method found or decided. Notes are kept with the artifact; `zsqbench show` has them.

        A line is kept once, however often it is said.
        """
        self.reporter.note(line)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state (tensors, numbers, strings, by name) to resume from; it is written every few seconds at most.

        The state of `rng` is kept with it.
        """
        self.reporter.checkpoint(state)

    def resume(self) -> dict[str, Any] | None:
        """The state that an interrupted run of this very step left, with `rng` set back to it, or none."""
        return self.reporter.resume()

    def keep_epoch(self, epoch: int, student: "nn.Module") -> None:
        """Keep a copy of the student as the result would be if training ended with this epoch.

        Only for a quantizer that said so (`keeps_epochs`). The result is the student that `quantize` leaves, all the
        same. After an interruption, the copies that were kept are still there.
        """
        self.reporter.keep_epoch(epoch, student)

    def compile(self, function: F) -> F:
        """The function, compiled where the settings say so.

        The same function of a later step is not compiled again: what differs must be in arguments, in tensors, or in
        attributes of the same types. Raises ZSQBenchError where there is no compiler.
        """
        if not self.settings.compile:
            return function
        import torch

        if self.device.type == "cpu":
            _require_compiler()
        # networks of one worker may be many, and beyond its limit torch would go on uncompiled
        torch._dynamo.config.recompile_limit = COMPILED_AT_MOST  # noqa: SLF001 - where torch documents it
        return cast("F", torch.compile(function))


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ZSQBenchError(
            "settings.compile is true, and torch finds no C++ compiler; install g++, name one in the variable CXX, or "
            "leave compile out"
        ) from error


@dataclass
class TaskContext(StepContext):
    """A step context that also knows where the data is: for tasks alone."""

    data_root: Path | None = None
    folder: Path | None = None
    """Where a task may keep data that it makes; methods cannot open files there."""
