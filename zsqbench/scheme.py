"""A scheme says which tensors of a network are quantized, at how many bits, and whether BN is folded first.

A scheme is a placement (`hw`) with bit-widths (`w4a4`), written `hw/w4a4`. It has no grid: that is the quantizer's.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from zsqbench.errors import ZSQBenchError, did_you_mean

FLOAT_BITS = 32
"""The bit-width that means "left in floating point", as the field writes W32A32."""

MIN_BITS = 2
MAX_BITS = 16
"""More integer bits than this do not survive the float32 arithmetic that simulates them."""


def _bits(value: Any) -> Any:
    if value in ("w", "a", "float"):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"expected 'w' (weight bits), 'a' (activation bits), 'float' or {MIN_BITS} to {MAX_BITS} bits")
    return value


Width = Annotated[Literal["w", "a", "float"] | int, BeforeValidator(_bits)]
"""A tensor's width: the scheme's weight bits, its activation bits, a fixed number of bits, or float."""


class Placement(BaseModel):
    """Which tensors are quantized. Each field is a role that a tensor plays in the graph; a tensor has one role.

    The operator between a layer and its activation function, or between an addition and the activation function that
    follows it, is not a tensor here: such pairs are computed as one on hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold_bn: bool = Field(True, description="fold batch normalisation into the layer before it")
    first_weight: Width = Field("w", description="weight of the first convolution or linear layer")
    weight: Width = Field("w", description="weight of every other layer")
    last_weight: Width = Field("w", description="weight of the last layer, the classifier")
    input: Width = Field("a", description="the image")
    activation: Width = Field("a", description="output of an activation function")
    linear: Width = Field(
        "a", description="output of a layer that no activation function follows (a linear bottleneck)"
    )
    addend: Width = Field("a", description="output of a layer that is read by an addition only")
    sum: Width = Field("a", description="sum that no activation function follows")
    pooled: Width = Field("a", description="average-pooled features")
    logits: Width = Field("a", description="output of the network")
    other: Width = Field("a", description="output of any other operator that makes new values (concat, multiply, ...)")


PLACEMENTS: Mapping[str, Placement] = {
    # DGH's "hardware-friendly": what its released BRECQ quantizes (methods of the paper's Table 1).
    "hw": Placement(input="float", addend="float", pooled="float"),
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
        """Bits of the tensors that play this role, a field name of `Placement`; 32 means float."""
        width: int | str = getattr(self.placement, role)
        named = {"w": self.weight_bits, "a": self.activation_bits, "float": FLOAT_BITS}
        return width if isinstance(width, int) else named[width]

    @property
    def is_float(self) -> bool:
        """Whether this scheme quantizes nothing at all."""
        return self.weight_bits == self.activation_bits == FLOAT_BITS


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
