"""Options of a suite or a command that say how a cell is exported and checked."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from zsqbench.export import MOST_OPSET, OPSET


class ExportOptions(BaseModel):
    """The content of an exported file, and how it is checked and timed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: int = Field(64, gt=0, description="number of images on which the integers of every tensor are compared")
    weights: Literal["int8", "int4"] = Field(
        "int8", description="storage of weights of up to 4 bits; int4 takes half the space and computes in float"
    )
    input: Literal["float", "uint8"] = Field(
        "float", description="input: preprocessed images, or 8-bit pixels (the file then holds mean and deviation)"
    )
    opset: int = Field(OPSET, ge=OPSET, le=MOST_OPSET, description="operator set of ONNX")
    providers: tuple[str, ...] = Field(
        ("CPUExecutionProvider",), min_length=1, description="execution providers of ONNX Runtime, in this order"
    )
    batch_sizes: tuple[PositiveInt, ...] = Field(
        (1, 16), min_length=1, description="batch sizes whose latency is measured"
    )
