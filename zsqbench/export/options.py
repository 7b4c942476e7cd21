"""How a cell is exported and checked, as a suite or a command says it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from zsqbench.export import MOST_OPSET, OPSET


class ExportOptions(BaseModel):
    """The content of an exported file, and how it is checked and timed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: int = Field(64, gt=0, description="images of which the integers of every tensor are compared")
    weights: Literal["int8", "int4"] = Field(
        "int8", description="storage of weights of up to 4 bits; int4 is half as large, and runs in float"
    )
    input: Literal["float", "uint8"] = Field(
        "float", description="the network takes preprocessed images, or 8-bit pixels, with mean and deviation inside"
    )
    opset: int = Field(OPSET, ge=OPSET, le=MOST_OPSET, description="operator set of ONNX")
    providers: tuple[str, ...] = Field(
        ("CPUExecutionProvider",), min_length=1, description="execution providers of ONNX Runtime, in this order"
    )
    batch_sizes: tuple[PositiveInt, ...] = Field(
        (1, 16), min_length=1, description="images at a time whose latency is measured"
    )
