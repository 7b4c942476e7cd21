"""Bases of quantizers: of all, of those with any kind of grid, and of those that go through a network by units."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.base import Auto, Compiled, Kind, Method, Network, auto
from zsqbench.scheme import Grid, RankedWeight, Scheme, is_kind_of
from zsqbench.widths import KINDS

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.methods.context import StepContext
    from zsqbench.methods.data import CalibrationSet, Pretrained
    from zsqbench.quant import Grids, Memory, Rounding


class Quantizer(Method, ABC):
    """Turns a network and calibration images into a quantized network."""

    kind: ClassVar[Kind] = "quantizer"
    needs_labels: ClassVar[bool] = False
    """True if it needs a calibration set with labels."""
    needs_images: ClassVar[Literal[True, False, "optional"]] = True
    """True if it needs calibration images. "optional" if it can also work without them: `data` is then None, and
    cells may have `generator: none`. False if it reads no images: its cells must have `generator: none`."""
    needs_graph: ClassVar[bool] = True
    """True if its student is made of the network's graph. Cells of a network without a graph are then impossible."""
    by_units: ClassVar[bool] = False
    """True if it runs a student unit by unit. The harness checks first that this equals a run of the whole student."""
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine",)
    """Possible grids of its weights. The first is used unless a scheme demands another (`pot` and `qdq` do)."""
    activation_grids: ClassVar[tuple[Grid, ...]] = ("affine",)
    """Possible grids of its activations, in the same way."""

    @property
    def starts_from(self) -> str | None:
        """The quantizer of the suite whose result is the start (`ctx.start`): the option `start`, if there is one.

        The named quantizer then prepares the student for both.
        """
        start: str | None = getattr(self, "start", None)
        return start

    @property
    def works_over(self) -> str | None:
        """The quantizer of the suite that does the work (`ctx.over`): the option `over`, if there is one.

        The inner quantizer prepares the student.
        """
        over: str | None = getattr(self, "over", None)
        return over

    @property
    def ranking_images(self) -> int | None:
        """Number of calibration images on which the harness ranks weights for `adapted`. None: no ranking."""
        return None

    def adapted(self, scheme: Scheme, weights: "Sequence[RankedWeight]") -> Scheme:  # noqa: ARG002 - for overrides
        """The scheme for which the student is prepared, from the cell's scheme and the ranked weights.

        It is called where `ranking_images` is a number. `weights` are all weights of the network, the most sensitive
        first. Raises ZSQBenchError where the options do not go together with them.
        """
        return scheme

    @property
    def keeps_epochs(self) -> bool:
        """True if it will call `ctx.keep_epoch`. The harness then also measures the kept students, for the oracle."""
        return False

    @property
    def needs_map(self) -> bool:
        """True if it reads the last map of features. Cells of a network without one are impossible."""
        return False

    def rejects(self, scheme: Scheme) -> str | None:
        """The reason why this quantizer cannot run at this scheme, or None."""
        if scheme.is_float:
            return "it quantizes, and scheme float leaves nothing to quantize"
        for kind, own in (("weight", self.weight_grids), ("activation", self.activation_grids)):
            demanded = scheme.placement.grid_of(kind)
            if not any(is_kind_of(grid, demanded) for grid in own):
                return f"{_demand(scheme, kind)}, and it has {', '.join(own)}"
        return None

    def grids_at(self, scheme: Scheme) -> "Grids":
        """The grids of the student at a scheme that the quantizer does not reject.

        They are the scheme's demanded grids, where the quantizer has them. Otherwise they are its first grids that are
        special cases of the demanded ones.
        """
        from zsqbench.quant import Grids

        weights, activations = map(scheme.placement.grid_of, KINDS)
        return Grids(_chosen(self.weight_grids, weights), _chosen(self.activation_grids, activations))

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
        """Return a copy of the network with quantizers in place. It is a function of network, scheme and options alone.

        Values that depend on data are buffers with a neutral value. Evaluation calls this again and loads the artifact
        into the result.
        """
        from zsqbench.quant import prepare

        return prepare(teacher.module, scheme, teacher.input_size, self.grids_at(scheme))

    def make_student(self, teacher: "Pretrained", scheme: Scheme) -> "fx.GraphModule":
        """The prepared student, which `quantize` changes and into which artifacts are loaded.

        Where the scheme quantizes the image, its range is fixed to that of valid pixels. Do not override this.
        """
        student = self.prepare(teacher, scheme)
        if scheme.placement.input_range == "valid":
            from zsqbench.quant import hold_image

            hold_image(student, *teacher.valid_range())
        return student

    @abstractmethod
    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set the student's quantizers (and weights), in place. The teacher must not change."""


class GridQuantizer(Quantizer, ABC):
    """A quantizer that rounds weights and activations to any kind of grid."""

    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")
    activation_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")

    grid: Auto[Grid] = auto(
        description="kind of grid, of weights and activations alike; unset: the kind that the scheme demands "
        "of each, else affine"
    )
    per_channel: bool = Field(
        True, description="true: a grid for each output channel of a weight; false: one grid for the weight"
    )

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, and the scheme's single kind of grid; None where the scheme demands two kinds."""
        found = super().automatic(network, scheme)
        if scheme is None:
            return found
        demanded = {scheme.placement.grid_of(kind) or "affine" for kind in KINDS}
        return {**found, "grid": demanded.pop() if len(demanded) == 1 else None}

    def rejects(self, scheme: Scheme) -> str | None:
        """Reject a scheme whose demanded grid contradicts the option `grid`."""
        for kind in KINDS:
            if self.grid is not None and not is_kind_of(self.grid, scheme.placement.grid_of(kind)):
                return f"{_demand(scheme, kind)}, and its option grid is {self.grid}"
        return super().rejects(scheme)

    def grids_at(self, scheme: Scheme) -> "Grids":
        """The grids of the option `grid`, else those that the scheme demands, else affine ones."""
        grids = super().grids_at(scheme)
        if self.grid is not None:
            grids = replace(grids, weights=self.grid, activations=self.grid)
        return replace(grids, per_channel=self.per_channel)


class UnitQuantizer(Quantizer, ABC):
    """A quantizer that goes through a network unit by unit, and caches the tensors that are live between two units.

    The place of cached activations changes no value, so its bounds are not part of the identity.
    """

    by_units: ClassVar[bool] = True
    execution_options: ClassVar[frozenset[str]] = frozenset({"device_memory", "host_memory"})
    memory_options: ClassVar[tuple[str, ...]] = ("host_memory", "device_memory", "batch_size")

    batch_size: int = Field(32, gt=0, description="images of an iteration")
    device_memory: float = Field(4.0, ge=0, description="GiB of a GPU's memory for cached activations")
    host_memory: float = Field(8.0, ge=0, description="GiB of host memory for cached activations; the rest is in files")

    def memory(self, device: "torch.device") -> "Memory":
        """The memory bounds of cached activations."""
        from zsqbench.quant import GIB, Memory

        return Memory(device, int(self.device_memory * GIB), int(self.host_memory * GIB))


class ReconstructionQuantizer(UnitQuantizer, ABC):
    """A quantizer that learns rounding unit by unit with `zsqbench.quant.Reconstruction`, as AdaRound does."""

    compiles: ClassVar[Compiled | None] = "units"

    rounding_lr: float = Field(1e-3, gt=0, description="learning rate of the rounding variables (Adam)")
    rounding_weight: float = Field(0.01, ge=0, description="weight of the regulariser (lambda)")
    warmup: float = Field(0.2, ge=0, le=1, description="part of the iterations on weights that has no regulariser")

    def rounding(
        self, *, annealing: Literal["linear", "cosine"] = "linear", scale_lr: float | None = None
    ) -> "Rounding":
        """The rounding settings from the options."""
        from zsqbench.quant import Annealing, Rounding

        return Rounding(
            self.rounding_lr, self.rounding_weight, Annealing(warmup=self.warmup, shape=annealing), scale_lr
        )


def _chosen(own: Sequence[Grid], demanded: Grid | None) -> Grid:
    """The demanded grid if it is in `own`, else the first grid of `own` that is a special case of it."""
    fitting = [grid for grid in own if is_kind_of(grid, demanded)]
    if demanded in fitting:
        return demanded
    if not fitting:
        raise ZSQBenchError(f"the scheme demands the grid {demanded}, and the quantizer has {', '.join(own)}")
    return fitting[0]


def _demand(scheme: Scheme, kind: str) -> str:
    """A scheme's demand on the grids of weights or activations, as the first half of a reason."""
    demanded = scheme.placement.grid_of(kind)
    of = "" if demanded == scheme.placement.grid else f" of {kind}s"
    return f"the scheme demands the grid {demanded}{of}"
