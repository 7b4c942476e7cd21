"""A scheme says which tensors of a network are quantized, at how many bits, and whether BN is folded first.

A scheme is a placement (`hw`) with bit-widths (`w4a4`), written `hw/w4a4`. docs/schemes.md explains each.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from zsqbench.errors import ZSQBenchError, did_you_mean

FLOAT_BITS = 32
"""The bit-width that means "left in floating point", as the field writes W32A32."""

MIN_BITS = 2
MAX_BITS = 16
"""More integer bits than this do not survive the float32 arithmetic that simulates them."""


WEIGHT_ROLES = ("first_weight", "weight", "last_weight")
"""Each weight plays one of these."""

ACTIVATION_ROLES = (
    "input",
    "relu",
    "activation",
    "gate",
    "linear",
    "addend",
    "sum",
    "product",
    "concat",
    "pooled",
    "logits",
    "other",
)
"""Each activation plays one of these, according to what makes and reads it."""

POSITIONS = ("stem", "features", "feature_sum")
"""Where an activation may stand besides; a placement that gives a position a width overrides the role there."""


def _bits(value: Any) -> Any:
    if value in ("w", "a", "float"):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"expected 'w' (weight bits), 'a' (activation bits), 'float' or {MIN_BITS} to {MAX_BITS} bits")
    return value


Grid = Literal["affine", "symmetric", "power_of_two"]
"""Where a quantizer's points lie: q = clamp(round(x / scale) + zero_point, 0, 2^b - 1), x' = scale (q - zero_point).

`affine` is free; `symmetric` has its zero point in the middle (signed) or at 0 (unsigned); `power_of_two` is symmetric
with a threshold 2^k, so that rescaling is a shift.
"""

Width = Annotated[Literal["w", "a", "float"] | int, BeforeValidator(_bits)]
"""A tensor's width: the scheme's weight bits, its activation bits, a fixed number of bits, or float."""

PositionWidth = Annotated[
    Literal["w", "a", "float"] | int | None, BeforeValidator(lambda value: None if value is None else _bits(value))
]
"""The same, or none: the width of the role that the tensor has otherwise."""


class Placement(BaseModel):
    """Which tensors are quantized. Each field but the first two is a role that a tensor plays in the graph.

    A tensor has one role. The operator between a layer and its activation function, or between an addition and the
    activation function that follows it, is not a tensor here: such pairs are computed as one on hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold_bn: bool = Field(True, description="fold batch normalisation into the layer before it")
    grid: Grid | None = Field(None, description="the grid that every tensor has to have; none: the quantizer's choice")
    first_weight: Width = Field("w", description="weight of the first convolution or linear layer")
    weight: Width = Field("w", description="weight of every other layer")
    last_weight: Width = Field(
        "w", description="weight of the last layer, the classifier; of a detector those of each head"
    )
    input: Width = Field("a", description="the image")
    relu: Width = Field("a", description="output of ReLU or ReLU6")
    activation: Width = Field("a", description="output of another activation function (hard-swish, SiLU, ...)")
    gate: Width = Field(
        "a", description="output of an activation function that only multiplications read (squeeze-excite)"
    )
    linear: Width = Field(
        "a", description="output of a layer that no activation function follows (a linear bottleneck)"
    )
    addend: Width = Field("a", description="output of a layer that is read by an addition only")
    sum: Width = Field("a", description="sum that no activation function follows")
    product: Width = Field("a", description="product of two tensors")
    concat: Width = Field("a", description="concatenation")
    pooled: Width = Field("a", description="average-pooled features")
    logits: Width = Field("a", description="output of the network")
    other: Width = Field("a", description="output of any other operator that makes new values")
    stem: PositionWidth = Field(
        None, description="what the first layer (with its activation function) makes: the second layer's input"
    )
    features: PositionWidth = Field(
        None, description="what the last layers read, seen through pooling, where one layer makes it"
    )
    feature_sum: PositionWidth = Field(
        None, description="what the last layers read, seen through pooling, where an addition makes it"
    )

    def role(self, role: str, positions: Collection[str] = ()) -> str:
        """The role that counts for a tensor that plays `role` at `positions`: the first of these that has a width."""
        return next((position for position in positions if getattr(self, position) is not None), role)


_ONLY_RELU: dict[str, Any] = {role: "float" for role in ACTIVATION_ROLES if role != "relu"}
_ACADEMIC: dict[str, Any] = {
    "first_weight": 8,
    "last_weight": 8,
    "stem": 8,
    "features": 8,
    **dict.fromkeys(("input", "addend", "pooled", "logits"), "float"),
}

PLACEMENTS: Mapping[str, Placement] = {
    # HAST's released code, and IntraQ's, whose trainer it is: the weights of convolutions and linear layers, the output
    # of each nn.ReLU and nn.ReLU6, and nothing else; BN is a layer of its own. The paper calls this "all layers".
    "hast": Placement(fold_bn=False, **_ONLY_RELU),
    # DGH's release with --head_stem_8bit --disable_network_output_quantization (its Table 5). The 8 bits that are meant
    # for the classifier's input go to the quantizer of the layer before it. In a ResNet that one is switched off, for
    # the addition behind it has its own; so there the classifier reads A bits.
    "academic": Placement(**_ACADEMIC),
    # What these options are meant to do: the classifier's input has 8 bits in ResNets, too.
    "academic_intended": Placement(**_ACADEMIC, feature_sum=8),
    # DGH's "hardware-friendly", as its released BRECQ does it by default (Tables 1 and 4).
    "hw": Placement(input="float", addend="float", pooled="float"),
    # All that int8 hardware stores: what MCT v1.0.0, the code of HPTQ (Habi et al., 2021), quantizes.
    "hw_strict": Placement(),
    # The same on HPTQ's grid: symmetric, with thresholds that are powers of two.
    "pot": Placement(grid="power_of_two"),
}
"""The shipped placements, by name."""


class Scheme(BaseModel):
    """A placement at given bit-widths; `float` (no placement, 32 bits) is the unquantized network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    placement: Placement
    weight_bits: int
    activation_bits: int

    def bits(self, role: str) -> int:
        """Bits of the tensors that play this role, as `Placement.role` names it; 32 means float."""
        width: int | str = getattr(self.placement, role)
        named = {"w": self.weight_bits, "a": self.activation_bits, "float": FLOAT_BITS}
        return width if isinstance(width, int) else named[width]

    @property
    def is_float(self) -> bool:
        """True if this scheme quantizes nothing at all."""
        positions = tuple(name for name in POSITIONS if getattr(self.placement, name) is not None)
        return not self.quantizes_weights and all(self.bits(r) == FLOAT_BITS for r in ACTIVATION_ROLES + positions)

    @property
    def quantizes_weights(self) -> bool:
        """True if any weight is quantized."""
        return any(self.bits(role) != FLOAT_BITS for role in WEIGHT_ROLES)


FLOAT = Scheme(
    name="float",
    placement=Placement(fold_bn=False),
    weight_bits=FLOAT_BITS,
    activation_bits=FLOAT_BITS,
)
"""The scheme of the unquantized network, for the `fp32` control."""


def parse_scheme(text: str, placements: Mapping[str, Placement] = PLACEMENTS) -> Scheme:
    """Read `hw/w4a4` or `float`. Raises ZSQBenchError for an unknown placement or an impossible width."""
    if text == FLOAT.name:
        return FLOAT
    match = re.fullmatch(r"(?P<placement>[\w.-]+)/w(?P<weight>\d+)a(?P<activation>\d+)", text)
    if match is None:
        raise ZSQBenchError(f"scheme {text!r} is not a placement and bit-widths such as 'hw/w4a4', nor 'float'")
    name = match["placement"]
    if name not in placements:
        known = ", ".join(sorted(placements))
        close = did_you_mean(name, placements) or ";"
        raise ZSQBenchError(f"unknown scheme {name!r} in {text!r}{close} known: {known}")
    widths = {what: int(match[what]) for what in ("weight", "activation")}
    for what, bits in widths.items():
        if bits != FLOAT_BITS and not MIN_BITS <= bits <= MAX_BITS:
            expected = f"{MIN_BITS} to {MAX_BITS}, or {FLOAT_BITS} for float"
            raise ZSQBenchError(f"{bits} {what} bits in scheme {text!r}: expected {expected}")
    return Scheme(
        name=text, placement=placements[name], weight_bits=widths["weight"], activation_bits=widths["activation"]
    )


@dataclass(frozen=True)
class MappedTensor:
    """A weight, or a value that the network computes, with its role and its bits (32: float)."""

    kind: str
    """`weight` or `activation`."""
    name: str
    role: str
    bits: int


@dataclass(frozen=True)
class TensorOnGrid(MappedTensor):
    """A tensor with the grid that decides how its codes are read."""

    grid: Grid | Literal["float"] = "float"
    axis: int | None = None
    """Along which each output channel of torch's layer has a grid of its own (1 in a transposed convolution); none: the
    tensor has one grid."""


@dataclass(frozen=True)
class MeasuredTensor(TensorOnGrid):
    """A tensor with what calibration found."""

    low: float | None = None
    """Smallest value of its grids; none for a tensor that stays float."""
    high: float | None = None
    groups: int | None = None
    """Number of grids; none for a tensor that stays float."""
    elements: int | None = None
    """Number of values of a weight; none for an activation."""


@dataclass(frozen=True)
class Inspection:
    """Facts of a network at a scheme, found before anything is quantized."""

    blocker: str | None = None
    """Why it cannot be quantized, in one line; none if it can."""
    weights: int = 0
    """Number of quantized weights."""
    activations: int = 0
    """Number of quantized activations."""
    folded: tuple[str, ...] = ()
    """Paths of the layers that took in a batch normalisation."""
    unfolded: Mapping[str, str] = field(default_factory=dict)
    """Why a batch normalisation stays, by its path."""
