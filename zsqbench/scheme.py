"""A scheme says which tensors of a network are quantized, at how many bits, and whether BN is folded first.

A scheme is a placement (`hw`) with bit-widths (`w4a4`), written `hw/w4a4`. docs/schemes.md explains each.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.widths import KINDS, MAX_BITS, MIN_BITS, PositionWidth, TensorPatterns, Width

FLOAT_BITS = 32
"""The bit-width that means "stays in floating point". Papers write W32A32."""

WEIGHT_ROLES = ("first_weight", "weight", "last_weight")
"""The roles of weights. Each weight has one."""

ACTIVATION_ROLES = (
    "input",
    "preactivation",
    "embedding",
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
"""The roles of activations. Each activation has one. It depends on the operators that make and read it."""

PARTS = (
    "query",
    "key",
    "value",
    "scaled_query",
    "unscaled_scores",
    "scores",
    "masked_scores",
    "softmax",
    "context",
    "residual",
    "layer_norm",
    "gelu",
)
"""Positions of activations in a transformer. An activation with several counts as the first that has a width."""

POSITIONS = ("stem", "features", "feature_sum", *PARTS)
"""All positions of activations. A placement that gives a position a width overrides the role there."""


Grid = Literal["affine", "symmetric", "power_of_two"]
"""The points of a quantizer: q = clamp(round(x / scale) + zero_point, 0, 2^b - 1), x' = scale (q - zero_point).

`affine` has a free zero point. `symmetric` has its zero point in the middle (signed) or at 0 (unsigned). `power_of_two`
is symmetric with a threshold 2^k, so that rescaling is a shift. Each grid is a special case of the grid before it.
"""

LogGrid = Literal["log_sqrt2"]
"""A grid that is not affine: zero and x' = top 2^(-q/2), q = clamp(round(-2 log2(x / top)), 0), for codes q < 2^b."""

Side = Literal["outputs", "inputs"]
"""Where tensors are quantized: behind the operators that make them, or before the layers and products that read."""

InputRange = Literal["calibrated", "valid"]
"""The range of the grid of the image: chosen by the quantizer, or the range of valid pixels."""


def is_kind_of(grid: Grid, demanded: Grid | None) -> bool:
    """True if a grid fulfils a demand. A power-of-two grid is also symmetric, and both are also affine."""
    kinds = get_args(Grid)
    return demanded is None or kinds.index(grid) >= kinds.index(demanded)


_ADDED = (
    "tensors",
    "weight_grid",
    "activation_grid",
    "softmax_grid",
    "input_range",
    "side",
    "fold_layer_norm",
    "preactivation",
    "embedding",
    *PARTS,
)
"""Fields that are not hashed if they have their default values."""


class Placement(BaseModel):
    """Which tensors are quantized. Each field that takes a width is a role of a tensor in the graph, or a position.

    A tensor has one role. The value between a layer or an addition and the activation function behind it does not count
    as a tensor, because hardware computes the pair as one. If hardware does so only for ReLU and ReLU6, the other
    functions read a tensor, a `preactivation`. With `side` `inputs`, only the inputs of layers and of products of
    matrices are tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold_bn: bool = Field(True, description="fold batch normalisation into the layer before it")
    fold_layer_norm: bool = Field(
        False, description="fold gain and offset of layer normalisation into its readers, if all are linear layers"
    )
    side: Side = Field(
        "outputs",
        description="outputs: each tensor is quantized behind the operator that makes it; inputs: only inputs of "
        "layers and of products of matrices are quantized, for each reader alone",
    )
    grid: Grid | None = Field(None, description="the grid that every tensor must have; unset: the quantizer chooses")
    weight_grid: Grid | None = Field(None, description="the grid that weights must have; unset: as `grid`")
    activation_grid: Grid | None = Field(None, description="the grid that activations must have; unset: as `grid`")
    softmax_grid: LogGrid | None = Field(
        None, description="the grid of attention weights (needs a width for `softmax`); unset: that of activations"
    )
    input_range: InputRange = Field(
        "calibrated",
        description="range of the image: calibrated (the quantizer chooses) or valid (that of valid pixels)",
    )
    first_weight: Width = Field("w", description="weight of the first convolution or linear layer")
    weight: Width = Field("w", description="weight of every other layer")
    last_weight: Width = Field(
        "w", description="weight of the last layer, the classifier; in a detector, the last weights of each head"
    )
    input: Width = Field("a", description="the image")
    preactivation: PositionWidth = Field(
        None,
        description="output of a layer or an addition that an activation function other than ReLU and ReLU6 reads; "
        "unset: there is no tensor between them",
    )
    embedding: PositionWidth = Field(
        None,
        description="learned values that an addition reads: position embeddings, relative position biases; unset: "
        "they stay float",
    )
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
        None, description="output of the first layer (with its activation function): the input of the second layer"
    )
    features: PositionWidth = Field(
        None, description="input of the last layers (looking back through pooling), if one layer makes it"
    )
    feature_sum: PositionWidth = Field(
        None, description="input of the last layers (looking back through pooling), if an addition makes it"
    )
    query: PositionWidth = Field(None, description="queries of attention, alone or with keys and values in one tensor")
    key: PositionWidth = Field(None, description="keys of attention, alone or with values in one tensor")
    value: PositionWidth = Field(None, description="values of attention")
    scaled_query: PositionWidth = Field(
        None, description="queries or keys times a constant, where the network scales them itself"
    )
    unscaled_scores: PositionWidth = Field(
        None, description="products of queries and keys before scaling, where the network scales them itself"
    )
    scores: PositionWidth = Field(None, description="products of queries and keys, scaled, and their sums with biases")
    masked_scores: PositionWidth = Field(
        None, description="scores after a mask, whose numbers of -100 and less hide keys"
    )
    softmax: PositionWidth = Field(None, description="softmax of scores: attention weights")
    context: PositionWidth = Field(None, description="product of attention weights and values")
    residual: PositionWidth = Field(None, description="sums of the residual stream, which layer normalisations read")
    layer_norm: PositionWidth = Field(None, description="output of layer normalisation")
    gelu: PositionWidth = Field(None, description="output of GELU")
    tensors: TensorPatterns = Field({}, description="widths by patterns of tensor names; they override all roles")

    @model_validator(mode="after")
    def _check_grids(self) -> Self:
        if self.softmax_grid is not None and self.softmax is None:
            raise ValueError(
                f"softmax_grid is {self.softmax_grid}, and softmax has no width: give one, such as softmax: a"
            )
        name, demanded = ("grid", self.grid) if self.grid else ("activation_grid", self.activation_grid)
        if None not in (self.softmax_grid, demanded):
            raise ValueError(
                f"{name} {demanded} is for all activations, and softmax_grid is {self.softmax_grid}: "
                "give one of the two"
            )
        for kind in KINDS:
            own = getattr(self, f"{kind}_grid")
            if None not in (self.grid, own) and own != self.grid:
                raise ValueError(f"grid {self.grid} is for all tensors, and {kind}_grid is {own}: give one of the two")
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A placement is hashed without unused fields, so that a new field changes no key."""
        data: dict[str, Any] = serialize(self)
        unused = {name for name in _ADDED if getattr(self, name) == type(self).model_fields[name].default}
        return {key: value for key, value in data.items() if key not in unused}

    def grid_of(self, kind: str) -> Grid | None:
        """The grid that tensors of this kind (`weight` or `activation`) must have. None: the quantizer chooses."""
        own: Grid | None = getattr(self, f"{kind}_grid")
        return own if own is not None else self.grid

    @property
    def image_grid(self) -> Grid | None:
        """The grid of the image if its range is that of valid pixels. None: the quantizer chooses grid and range."""
        return None if self.input_range == "calibrated" else self.grid_of("activation") or "affine"

    def role(self, role: str, positions: Collection[str] = ()) -> str:
        """The role or position that decides: the first of `positions` with a width, or else `role`."""
        return next((position for position in positions if getattr(self, position) is not None), role)

    def pattern_of(self, kind: str, name: str) -> str | None:
        """The pattern that decides for a tensor: the last match that has a width for its kind, if any."""
        names = [pattern for pattern, widths in self.tensors.items() if widths.of(kind) is not None]
        return next((pattern for pattern in reversed(names) if fnmatchcase(name, pattern)), None)


_ONLY_RELU: dict[str, Any] = {
    role: "float" for role in ACTIVATION_ROLES if role not in ("relu", "preactivation", "embedding")
}
_ACADEMIC: dict[str, Any] = {
    "first_weight": 8,
    "last_weight": 8,
    "stem": 8,
    "features": 8,
    **dict.fromkeys(("input", "addend", "pooled", "logits"), "float"),
}

PLACEMENTS: Mapping[str, Placement] = {
    # The released code of HAST, which uses the trainer of IntraQ. It quantizes the weights of convolutions and linear
    # layers and the output of each nn.ReLU and nn.ReLU6. BN stays a layer. The paper calls this "all layers".
    "hast": Placement(fold_bn=False, **_ONLY_RELU),
    # DGH's release with --head_stem_8bit --disable_network_output_quantization (its Table 5). The 8 bits for the
    # classifier's input go to the quantizer of the layer before it. In a ResNet this quantizer is off, because the
    # addition behind the layer has its own. So there the classifier reads A bits.
    "academic": Placement(**_ACADEMIC),
    # The intended effect of these options: the classifier's input has 8 bits in ResNets, too.
    "academic_intended": Placement(**_ACADEMIC, feature_sum=8),
    # DGH's "hardware-friendly" scheme, the default of its released BRECQ (Tables 1 and 4).
    "hw": Placement(input="float", addend="float", pooled="float"),
    # All tensors that int8 hardware stores. MCT v1.0.0, the code of HPTQ (Habi et al., 2021), quantizes these.
    "hw_strict": Placement(),
    # The same on HPTQ's grid: symmetric, with thresholds that are powers of two.
    "pot": Placement(grid="power_of_two"),
    # The tensors that integer runtimes store between QuantizeLinear and DequantizeLinear: weights as int8 around zero,
    # activations as uint8, the image as its pixels, and inputs of activation functions that no runtime computes
    # together with the layer.
    "qdq": Placement(weight_grid="symmetric", activation_grid="affine", input_range="valid", preactivation="a"),
    # The released code of PSAQ-ViT: all values of a transformer except attention weights, and learned embeddings.
    "psaq": Placement(
        embedding="a",
        **dict.fromkeys(("scaled_query", "unscaled_scores", "masked_scores", "softmax"), "float"),
    ),
    # The released code of RepQ-ViT: inputs of layers and of products of matrices. The image has 8 bits. Attention
    # weights are on powers of the square root of two.
    "repq": Placement(side="inputs", input=8, softmax="a", softmax_grid="log_sqrt2"),
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
        """Bits of the tensors with this role, as `Placement.role` names it. 32: float, or no tensor has the role."""
        return self._bits_at(getattr(self.placement, role))

    def bits_of(self, kind: str, name: str, role: str) -> int:
        """Bits of one tensor, by the pattern that decides for it, or else by its role."""
        pattern = self.placement.pattern_of(kind, name)
        return self.bits(role) if pattern is None else self._bits_at(self.placement.tensors[pattern].of(kind))

    @property
    def is_float(self) -> bool:
        """True if this scheme quantizes nothing at all."""
        return not self.quantizes_weights and not self._quantizes("activation", ACTIVATION_ROLES + POSITIONS)

    @property
    def quantizes_weights(self) -> bool:
        """True if any weight is quantized."""
        return self._quantizes("weight", WEIGHT_ROLES)

    def left_in_float(self) -> list[str]:
        """The roles of tensors without a grid, and the norms that are not folded.

        The outputs of the network are left out. So are preactivations and learned values, which only some networks
        have.
        """
        optional = ("logits", "preactivation", "embedding")
        roles = [role for role in (*WEIGHT_ROLES, *ACTIVATION_ROLES) if role not in optional]
        given = [part for part in PARTS if getattr(self.placement, part) is not None]
        found = [role for role in (*roles, *given) if self.bits(role) == FLOAT_BITS]
        return found if self.placement.fold_bn else [*found, "batch normalisation"]

    def check_patterns(self, tensors: Collection[tuple[str, str]]) -> None:
        """Raise ZSQBenchError for a pattern that matches no tensor of a network. Tensors are given by kind and name."""
        for pattern, widths in self.placement.tensors.items():
            if problem := widths.mismatch(pattern, tensors):
                raise ZSQBenchError(f"scheme {self.name}: {problem} `zsqbench scheme hw/w4a4 MODEL` lists its tensors")

    def _quantizes(self, kind: str, roles: Iterable[str]) -> bool:
        widths = [getattr(self.placement, role) for role in roles]
        widths += [pattern.of(kind) for pattern in self.placement.tensors.values()]
        return any(self._bits_at(width) != FLOAT_BITS for width in widths if width is not None)

    def _bits_at(self, width: Any) -> int:
        """Bits of a `Width`."""
        named = {"w": self.weight_bits, "a": self.activation_bits, "float": FLOAT_BITS, None: FLOAT_BITS}
        return int(width) if isinstance(width, int) else named[width]


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
class PlannedTensor(MappedTensor):
    """A tensor as a scheme plans it."""

    pattern: str | None = None
    """The pattern of the scheme that sets its bits. None: its role sets them."""


@dataclass(frozen=True)
class TensorOnGrid(MappedTensor):
    """A tensor with its grid, which says how codes are read."""

    grid: Grid | LogGrid | Literal["float"] = "float"
    axis: int | None = None
    """The axis of output channels if each has its own grid (1 in a transposed convolution). None: the tensor has one
    grid."""


@dataclass(frozen=True)
class MeasuredTensor(TensorOnGrid):
    """A tensor with the results of calibration."""

    low: float | None = None
    """Smallest value of its grids. None: the tensor stays float."""
    high: float | None = None
    groups: int | None = None
    """Number of grids. None: the tensor stays float."""
    elements: int | None = None
    """Number of values of a weight. None: the tensor is an activation."""


@dataclass(frozen=True)
class RankedWeight(MappedTensor):
    """A weight with its effect on a network in which only this weight is quantized."""

    elements: int
    """Number of values."""
    error: float | None
    """Squared error of the raw outputs, relative to their squares. None: the scheme leaves the weight float."""


@dataclass(frozen=True)
class TensorError(MappedTensor):
    """A quantized tensor with its error. Ratios of signal to error are in decibels, shares go from 0 to 1."""

    sqnr: float | None = None
    """Signal to error. For an activation: on the calibration images, with the error of all tensors before it. For a
    weight: relative to the float weight."""
    sqnr_real: float | None = None
    """`sqnr` of an activation on real images."""
    own: float | None = None
    """Signal to error of the rounding of this tensor alone. For an activation: input against output of its quantizer,
    on the calibration images. For a weight: the same as `sqnr`."""
    own_real: float | None = None
    """`own` of an activation on real images."""
    clipped: float | None = None
    """Share of values that are beyond the grid by more than half a step, of a weight or on the calibration images."""
    clipped_real: float | None = None
    """`clipped` of an activation on real images."""
    codes: float | None = None
    """Share of the codes of the grid that occur, on the calibration images, or on real images if there is no set.
    Channels with their own grids are taken together."""
    alone: float | None = None
    """The sensitivity of a weight: squared error of the network's outputs, relative to their squares, if only this
    weight is quantized."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why a number is None, by the name of the number."""

    @property
    def rounding(self) -> float | None:
        """The worse of `own` and `own_real`."""
        return min((ratio for ratio in (self.own, self.own_real) if ratio is not None), default=None)


@dataclass(frozen=True)
class Inspection:
    """Facts of a network at a scheme, found before anything is quantized."""

    blocker: str | None = None
    """Why it cannot be quantized, in one line. None: it can."""
    weights: int = 0
    """Number of quantized weights."""
    activations: int = 0
    """Number of quantized activations."""
    folded: tuple[str, ...] = ()
    """Paths of the layers that took in a batch normalisation."""
    unfolded: Mapping[str, str] = field(default_factory=dict)
    """Why a batch normalisation is not folded, by its path."""
    last_map: tuple[int, ...] = ()
    """Height and width of the last feature map with more than one position. Empty: there is none."""
    attention: int = 0
    """Number of attention blocks whose softmax and product with the values are separate operators."""
    patch: tuple[int, ...] = ()
    """Height and width of the patches into which a first convolution cuts the image. Empty: it cuts no patches."""
