"""The keys of a suite file, as plain data."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from zsqbench.export.options import ExportOptions
from zsqbench.suite.suite import NO_GENERATOR

VARIANTS = "a name for a method with options; an option {each: [a, b]} makes a variant for each value"

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]

Seeds = Annotated[list[Seed], BeforeValidator(_as_list, json_schema_input_type=Seed | list[Seed])]

Tables = Annotated[list[int | str], BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str])]

SeedPatterns = Annotated[list[int | str], BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str])]


class Block(BaseModel):
    """One full product of the matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Names = Field(min_length=1)
    model: Names = Field(min_length=1)
    generator: Names = Field([NO_GENERATOR], min_length=1)
    quantizer: Names = Field(min_length=1)
    scheme: Names = Field(min_length=1)
    seed: Seeds = Field([0], min_length=1)
    settings: dict[str, Any] = {}
    export: ExportOptions | None = Field(None, description="export, check and time these cells; unset: as the suite")
    analyze: bool | None = Field(None, description="measure the error of each tensor; unset: as the suite")


class Exclusion(BaseModel):
    """Cells that are left out, and why. Each axis is a name or a pattern (`hw/*`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    because: str = Field(min_length=1)
    task: Names = ["*"]
    model: Names = ["*"]
    generator: Names = ["*"]
    quantizer: Names = ["*"]
    scheme: Names = ["*"]
    seed: SeedPatterns = ["*"]


class Reference(BaseModel):
    """Tables of a paper. Their values are shown beside the measured values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="a file of results/published")
    table: Tables = Field(min_length=1)


References = Annotated[list[Reference], BeforeValidator(_as_list, json_schema_input_type=Reference | list[Reference])]


class SuiteFile(BaseModel):
    """The keys of a suite file. `zsqbench schema` prints their JSON schema for editors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.-]+$", description="names the result files and the MLflow experiment")
    description: str = ""
    settings: dict[str, Any] = Field({}, description="precision, layout, compile, threads of generate and quantize")
    generators: dict[str, dict[str, Any]] = Field({}, description=VARIANTS)
    quantizers: dict[str, dict[str, Any]] = Field({}, description=VARIANTS)
    tasks: dict[str, dict[str, Any]] = Field({}, description="a name for a method with options")
    models: dict[str, dict[str, Any]] = Field({}, description="a user's own network, or a variant of a named one")
    schemes: dict[str, dict[str, Any]] = Field({}, description="a name for a shipped placement with changes")
    matrix: list[Block] = Field(min_length=1, description="each block is a full product; the suite is their union")
    exclude: list[Exclusion] = []
    step_timeout: float | None = Field(None, gt=0, description="time limit of one step in seconds; unset: no limit")
    export: ExportOptions | None = Field(None, description="export, check and time all cells; needs the extra `onnx`")
    analyze: bool = Field(False, description="measure the error of each tensor of all quantized networks")
    plugins: list[str] = Field([], description="single-file plugins, relative to the suite")
    published: References = Field([], description="tables of papers; their values are shown beside the measured values")
