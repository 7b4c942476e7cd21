"""The bases of quantizers: of all, of those that take any grid, and of those that learn rounding unit by unit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.base import Auto, Kind, Method, Network, auto
from zsqbench.scheme import Grid, RankedWeight, Scheme

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.methods.context import StepContext
    from zsqbench.methods.data import CalibrationSet, Pretrained
    from zsqbench.quant import Memory, Rounding


class Quantizer(Method, ABC):
    """Turns a network and calibration images into a quantized network."""

    kind: ClassVar[Kind] = "quantizer"
    needs_labels: ClassVar[bool] = False
    """True if it needs a calibration set with labels."""
    needs_images: ClassVar[bool] = True
    """True if it reads calibration images; the cells of one that does not have `generator: none`."""
    needs_graph: ClassVar[bool] = True
    """True if its student is made of the network's graph: cells of a network that has none are impossible then."""
    by_units: ClassVar[bool] = False
    """True if it runs a student unit by unit; that this is the same is checked before anything is generated."""
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
    def works_over(self) -> str | None:
        """The quantizer of the suite that it leaves its work to (`ctx.over`): its option `over`, if it has one.

        That one prepares the student.
        """
        over: str | None = getattr(self, "over", None)
        return over

    @property
    def ranking_images(self) -> int | None:
        """On how many calibration images the harness ranks weights by sensitivity, for `adapted`; none: it does not."""
        return None

    def adapted(self, scheme: Scheme, weights: "Sequence[RankedWeight]") -> Scheme:  # noqa: ARG002 - for overrides
        """The scheme that its student is prepared for, of the cell's scheme and the weights as they were ranked.

        Called where `ranking_images` is a number. `weights` are all of the network, the most sensitive first. Raises
        ZSQBenchError where the options do not go together with them.
        """
        return scheme

    @property
    def keeps_epochs(self) -> bool:
        """True if it will call `ctx.keep_epoch`: the harness then also measures what it kept, for the oracle."""
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

    def scheme_of(self, ctx: "StepContext") -> Scheme:
        """The scheme that the student was prepared for. Raises ZSQBenchError where the context has none."""
        if ctx.scheme is None:
            raise ZSQBenchError(f"quantizer {self.name!r} needs the student's scheme: its context has no ctx.scheme")
        return ctx.scheme

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Return a copy of the network with quantizers in place, as a function of network, scheme and options alone.

        What data decides is a buffer with a neutral value: evaluation calls this again and loads the artifact into it.
        """
        from zsqbench.quant import prepare

        return prepare(teacher.module, scheme, teacher.input_size)

    @abstractmethod
    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set the student's quantizers (and weights), in place. The teacher must stay as it is."""


class GridQuantizer(Quantizer, ABC):
    """A quantizer that rounds weights and activations to any one kind of grid."""

    grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")

    grid: Auto[Grid] = auto(description="kind of grid; none: what the scheme demands, else affine")
    per_channel: bool = Field(True, description="a grid for each output channel of a weight, or one for the weight")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The grid that the scheme demands, besides what the preset says."""
        found = super().automatic(network, scheme)
        return found if scheme is None else {**found, "grid": scheme.placement.grid or "affine"}

    def rejects(self, scheme: Scheme) -> str | None:
        """A grid of its own that is not the one that the scheme demands."""
        demanded = scheme.placement.grid
        if self.grid is not None and demanded not in (None, self.grid):
            return f"the scheme demands the grid {demanded}, and its option grid is {self.grid}"
        return super().rejects(scheme)

    def prepare(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """Put quantizers of this kind of grid in place."""
        from zsqbench.quant import Grids, prepare

        self = self.resolved(teacher, scheme)
        return prepare(teacher.module, scheme, teacher.input_size, Grids(self.grid, self.grid, self.per_channel))


class ReconstructionQuantizer(Quantizer, ABC):
    """A quantizer that learns rounding unit by unit with `zsqbench.quant.Reconstruction`.

    Where activations are cached changes no value, so the bounds on that are no part of the identity.
    """

    by_units: ClassVar[bool] = True
    execution_options: ClassVar[frozenset[str]] = frozenset({"device_memory", "host_memory"})
    memory_options: ClassVar[tuple[str, ...]] = ("host_memory", "device_memory", "batch_size")

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
