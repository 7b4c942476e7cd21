"""Result rows: one JSON object per cell in results/<suite>.jsonl. Tables and MLflow are made from them."""

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict  # pydantic accepts the standard library's from Python 3.12 on

LONG_AGO = datetime.min.replace(tzinfo=UTC)

Status = Literal["done", "failed", "impossible", "excluded", "interrupted"]


def _unicode(text: Any) -> Any:
    """Text for a file. Characters that cannot be encoded, for example from a broken file name, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_unicode)]


@with_config(ConfigDict(extra="allow"))
class Oracle(TypedDict, total=False):
    """The best kept epoch by the evaluation images: its number, its metric, and the number of kept epochs."""

    epoch: int
    metrics: dict[str, float]
    of: int


@with_config(ConfigDict(extra="allow"))
class Published(TypedDict, total=False):
    """The values of a paper for a cell and for the float network."""

    value: FiniteFloat
    std: FiniteFloat
    float: FiniteFloat
    source: str
    citation: str
    note: str


@with_config(ConfigDict(extra="allow"))
class Counts(TypedDict, total=False):
    """Evaluation samples, the digest of their data, images of the calibration set, and how many were read."""

    evaluated: int | None
    digest: str
    images: int | None
    calibrated: int | None


@with_config(ConfigDict(extra="allow"))
class Described(TypedDict, total=False):
    """A method. `options` are all options with their effective values. `changed` are those that the suite set."""

    method: str
    version: int
    origin: str
    options: dict[str, Any]
    changed: dict[str, Any]
    control: Literal["negative", "positive", "float"] | None
    start: "Described"
    over: "Described"


@with_config(ConfigDict(extra="allow"))
class Facts(TypedDict, total=False):
    """The facts of a network: digest, parameters, classes, and more."""

    digest: str
    parameters: int
    classes: int | None
    input_size: list[int]
    architecture: str | None
    random_weights: bool
    notes: list[str]


@with_config(ConfigDict(extra="allow"))
class Tensors(TypedDict, total=False):
    """The effective tensor map: its hash, the hash of only its bits, counts of quantized tensors, size of weights.

    `mean_weight_bits` is a mean over all values of weights. `size_mb` is their size at these bits in 10^6 bytes,
    without scales and zero points.
    """

    hash: str
    bits: str
    quantized_weights: int
    quantized_activations: int
    mean_weight_bits: float
    size_mb: float


class Measured(NamedTuple):
    """The fields of a row with measured values."""

    metrics: dict[str, float]
    float_metrics: dict[str, float]
    oracle: Oracle
    correct: str | None
    resampled: dict[str, str]


NOTHING = Measured({}, {}, {}, None, {})


class Result(BaseModel):
    """The outcome of one cell. A row needs no other file."""

    # factories, because pydantic makes a deep copy of an empty mapping for each row
    # planning without rows must not wait until pydantic builds the validator

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", defer_build=True)

    suite: str
    cell: str = Field(description="its name: task:model:generator:quantizer:scheme:seed")
    definition: str = Field(description="hash of everything that the suite says of the cell")
    task: str
    model: str
    generator: str | None = Field(description="null: the quantizer reads no images")
    quantizer: str
    scheme: str
    seed: int | None = Field(description="null: no method of the cell uses the seed")
    settings: dict[str, Any] = Field(default_factory=dict)
    status: Status
    reason: Text | None = Field(None, description="one line, for every status except done")
    finished: AwareDatetime | None = Field(None, description="when the cell ended; older rows do not have it")
    traceback: Text | None = None
    metric: str | None = Field(None, description="the metric that tables show; higher is better")
    metrics: dict[str, float] = Field(default_factory=dict)
    float_metrics: dict[str, float] = Field(default_factory=dict)
    oracle: Oracle = Field(default_factory=Oracle)
    published: Published = Field(default_factory=Published)
    methods: dict[str, Described] = Field(default_factory=dict, description="task, generator and quantizer")
    model_facts: Facts = Field(default_factory=Facts)
    data: Counts = Field(default_factory=Counts)
    notes: list[Text] = Field(default_factory=list, description="notes of the task when it measured the float network")
    correct: str | None = Field(
        None, description="which evaluation samples were right: packed bits in base64, the first in the highest bit"
    )
    resampled: dict[str, str] = Field(
        default_factory=dict,
        description="metrics on resampled images, which give them a standard error: float32 in base64",
    )
    clipped: dict[str, FiniteFloat] = Field(
        default_factory=dict,
        description="share of values, 0 to 1, of each quantized output that are beyond its grid on evaluation images",
    )
    footnotes: list[Text] = Field(
        default_factory=list, description="notes of its methods that a reader of the number needs"
    )
    not_run: dict[str, Text] = Field(
        default_factory=dict,
        description="why a group of metrics, such as those named onnxruntime/..., was not measured; one line each",
    )
    data_free: bool = Field(True, description="false: the generator was given real images")
    tensors: Tensors = Field(default_factory=Tensors)
    keys: dict[str, str] = Field(
        default_factory=dict, description="artifact of each step, and of the quantize step that it starts from"
    )
    seconds: dict[str, FiniteFloat] = Field(default_factory=dict)
    peak_memory: dict[str, int] = Field(default_factory=dict, description="bytes, per step")
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its cell."""
        return self.cell

    @property
    def value(self) -> float | None:
        """The metric that tables show."""
        return self.metrics.get(self.metric) if self.metric else None

    @property
    def oracle_value(self) -> float | None:
        """The metric of the best kept epoch."""
        metrics: dict[str, float] = self.oracle.get("metrics", {})
        return metrics.get(self.metric) if self.metric else None

    @property
    def float_value(self) -> float | None:
        """The metric of the float network."""
        return self.float_metrics.get(self.metric) if self.metric else None

    @property
    def drop(self) -> float | None:
        """The loss by quantization: the float network's metric minus this metric."""
        if self.value is None or self.float_value is None:
            return None
        return self.float_value - self.value

    def counts_over(self, other: "Result") -> bool:
        """True if this row counts and the other row of its cell does not: the last finished row counts.

        If the times are equal or unknown, this row counts. An interrupted row never replaces a done row.
        """
        if self.is_cut_short(other):
            return False
        return other.is_cut_short(self) or self.ended >= other.ended

    def is_cut_short(self, other: "Result") -> bool:
        """True if this row is of an interrupted run that did not get as far as the other row."""
        same = self.definition == other.definition and self.keys in ({}, other.keys)
        return self.status == "interrupted" and other.status == "done" and same

    def says_the_same(self, other: "Result") -> bool:
        """True if both rows stand for the same in a file, whenever they finished."""
        first, second = (row.model_dump_json(exclude={"finished"}) for row in (self, other))
        return first == second

    @property
    def ended(self) -> datetime:
        """When it finished. A row without a time counts as very old."""
        return self.finished or LONG_AGO

    @property
    def measured(self) -> Measured:
        """All measured values."""
        return Measured(self.metrics, self.float_metrics, self.oracle, self.correct, self.resampled)

    def refused(self, reason: str) -> Self:
        """A row of a failed cell that replaces this row. It has no measured values."""
        return self.model_copy(update={"status": "failed", "reason": reason, **NOTHING._asdict()})

    def checked(self) -> Self:
        """The row. If a metric is NaN or infinite, a row of a failed cell, because no table can show the metric."""
        for name, value in flat_all(self.measured._asdict()):
            if isinstance(value, float) and not math.isfinite(value):
                return self.refused(f"{name} is {value}, which is not a valid measurement")
        return self


def flat_method(prefix: str, method: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a row about a method as `generator.method`, `generator.iterations`.

    The fields of its start, or of the quantizer that it is over, are below `start` or `over`.
    """
    yield from ((f"{prefix}.{key}", method[key]) for key in ("method", "version", "origin") if key in method)
    yield from flat(prefix, method.get("options", {}))
    for other in ("start", "over"):
        if other in method:
            yield from flat_method(f"{prefix}.{other}", method[other])


def changed_options(prefix: str, method: Mapping[str, Any]) -> Iterator[str]:
    """The options that the suite set, by their names in `flat_method`."""
    yield from (name for name, _ in flat(prefix, method.get("changed", {})))
    for other in ("start", "over"):
        if other in method:
            yield from changed_options(f"{prefix}.{other}", method[other])


def flat_all(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values and nested values by dotted names, such as `metrics.top1`."""
    for name, value in values.items():
        yield from flat(name, value) if isinstance(value, Mapping) else [(name, value)]


def flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by dotted names, such as `settings.precision`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def package_version(package: str) -> str:
    """The installed version of a package, or a text that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Versions and machine, for provenance. They are never part of an identity."""
    versions: dict[str, Any] = {name: package_version(name) for name in ("zsqbench", "torch", "torchvision", "numpy")}
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
