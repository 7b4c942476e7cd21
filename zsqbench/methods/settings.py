"""The computation of a step: precision, memory layout, compilation, threads."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of generate and quantize. They are part of a step's identity, because they may change numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs generate and quantize under autocast")
    layout: Literal["contiguous", "channels_last"] = Field("contiguous", description="memory format of the teacher")
    compile: bool = Field(False, description="let methods compile their inner loop with torch.compile")
    threads: int = Field(1, gt=0, description="CPU threads of a step")
