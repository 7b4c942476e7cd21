"""Result rows: one JSON object per cell in results/<suite>.jsonl, the truth that tables and MLflow are made from."""

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict  # pydantic takes that of the standard library from Python 3.12 on

LONG_AGO = datetime.min.replace(tzinfo=UTC)

Status = Literal["done", "failed", "impossible", "excluded", "interrupted"]


def _unicode(text: Any) -> Any:
    """Text that a file takes: what cannot be encoded, from a broken file name for instance, is spelt out."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_unicode)]


@with_config(ConfigDict(extra="allow"))
class Oracle(TypedDict, total=False):
    """The best of the kept epochs by the evaluated images: which, what it reached, and of how many it is the best."""

    epoch: int
    metrics: dict[str, float]
    of: int


@with_config(ConfigDict(extra="allow"))
class Published(TypedDict, total=False):
    """The values of a paper for a cell, and for the float network."""

    value: FiniteFloat
    std: FiniteFloat
    float: FiniteFloat
    source: str
    citation: str
    note: str


@with_config(ConfigDict(extra="allow"))
class Counts(TypedDict, total=False):
    """Evaluated samples and the digest of their data; images of the calibration set, and those that were read."""

    evaluated: int | None
    digest: str
    images: int | None
    calibrated: int | None


@with_config(ConfigDict(extra="allow"))
class Described(TypedDict, total=False):
    """A method: `options` are all, with the values that held, `changed` those that the suite set otherwise."""

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
    """The effective tensor map: its hash, the hash of its bits alone, counts of quantized tensors, size of weights.

    `mean_weight_bits` is a mean over all values of weights, `size_mb` their size at these bits in 10^6 bytes, without
    scales and zero points.
    """

    hash: str
    bits: str
    quantized_weights: int
    quantized_activations: int
    mean_weight_bits: float
    size_mb: float


class Measured(NamedTuple):
    """The fields of a row that say what was measured."""

    metrics: dict[str, float]
    float_metrics: dict[str, float]
    oracle: Oracle
    correct: str | None
    resampled: dict[str, str]


NOTHING = Measured({}, {}, {}, None, {})


class Result(BaseModel):
    """What became of one cell, self-contained."""

    # factories, since pydantic makes a deep copy of an empty mapping for each row
    # planning without rows does not wait for pydantic to build the validator

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", defer_build=True)

    suite: str
    cell: str = Field(description="its name: task:model:generator:quantizer:scheme:seed")
    definition: str = Field(description="hash of all that the suite says of the cell")
    task: str
    model: str
    generator: str | None = Field(description="none for a quantizer that reads no images")
    quantizer: str
    scheme: str
    seed: int | None = Field(description="none where nothing in the cell uses the seed")
    settings: dict[str, Any] = Field(default_factory=dict)
    status: Status
    reason: Text | None = Field(None, description="one line, for every status but done")
    finished: AwareDatetime | None = Field(None, description="when the cell came to this end; older rows do not say it")
    traceback: Text | None = None
    metric: str | None = Field(None, description="the metric that tables show; higher is better")
    metrics: dict[str, float] = Field(default_factory=dict)
    float_metrics: dict[str, float] = Field(default_factory=dict)
    oracle: Oracle = Field(default_factory=Oracle)
    published: Published = Field(default_factory=Published)
    methods: dict[str, Described] = Field(default_factory=dict, description="task, generator and quantizer")
    model_facts: Facts = Field(default_factory=Facts)
    data: Counts = Field(default_factory=Counts)
    notes: list[Text] = Field(
        default_factory=list, description="what the task noted when it measured the float network"
    )
    correct: str | None = Field(
        None, description="which evaluated samples were right: packed bits in base64, the first in the highest bit"
    )
    resampled: dict[str, str] = Field(
        default_factory=dict,
        description="metrics on resampled images, which give them a standard error: float32 in base64",
    )
    clipped: dict[str, FiniteFloat] = Field(
        default_factory=dict,
        description="of each quantized output, the share of values, 0 to 1, beyond its grid on the evaluated images",
    )
    footnotes: list[Text] = Field(
        default_factory=list, description="what its methods say that whoever reads the number must know"
    )
    not_run: dict[str, Text] = Field(
        default_factory=dict,
        description="why a group of metrics, such as those named onnxruntime/..., was not measured; one line each",
    )
    data_free: bool = Field(True, description="false where the generator was given real images")
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
        """The same metric of the best of the kept epochs."""
        metrics: dict[str, float] = self.oracle.get("metrics", {})
        return metrics.get(self.metric) if self.metric else None

    @property
    def float_value(self) -> float | None:
        """The same metric of the float network."""
        return self.float_metrics.get(self.metric) if self.metric else None

    @property
    def drop(self) -> float | None:
        """How much was lost by quantization."""
        if self.value is None or self.float_value is None:
            return None
        return self.float_value - self.value

    def counts_over(self, other: "Result") -> bool:
        """True if this row, and not the other one of its cell, counts: the one that finished last.

        Of two that do not say when, or finished at once, it is this one. An interruption undoes nothing that is done.
        """
        if self.is_cut_short(other):
            return False
        return other.is_cut_short(self) or self.ended >= other.ended

    def is_cut_short(self, other: "Result") -> bool:
        """True if this is the row of a run that was interrupted before it could say what the other one says."""
        same = self.definition == other.definition and self.keys in ({}, other.keys)
        return self.status == "interrupted" and other.status == "done" and same

    def says_the_same(self, other: "Result") -> bool:
        """True if both rows stand for the same in a file, whenever they finished."""
        first, second = (row.model_dump_json(exclude={"finished"}) for row in (self, other))
        return first == second

    @property
    def ended(self) -> datetime:
        """When it finished; long ago where it does not say."""
        return self.finished or LONG_AGO

    @property
    def measured(self) -> Measured:
        """All that was measured."""
        return Measured(self.metrics, self.float_metrics, self.oracle, self.correct, self.resampled)

    def refused(self, reason: str) -> Self:
        """The row of a failed cell in place of this one: none of what it says was measured is there."""
        return self.model_copy(update={"status": "failed", "reason": reason, **NOTHING._asdict()})

    def checked(self) -> Self:
        """The row, or that of a failed cell where a metric is NaN or infinite: no table can show it."""
        for name, value in flat_all(self.measured._asdict()):
            if isinstance(value, float) and not math.isfinite(value):
                return self.refused(f"{name} is {value}, which is no measurement")
        return self


def flat_method(prefix: str, method: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a row about a method as `generator.method`, `generator.iterations`.

    Those of its start, or of what it is over, stand below `start` or `over`.
    """
    yield from ((f"{prefix}.{key}", method[key]) for key in ("method", "version", "origin") if key in method)
    yield from flat(prefix, method.get("options", {}))
    for other in ("start", "over"):
        if other in method:
            yield from flat_method(f"{prefix}.{other}", method[other])


def changed_options(prefix: str, method: Mapping[str, Any]) -> Iterator[str]:
    """The options that the suite set, by the names that `flat_method` gives."""
    yield from (name for name, _ in flat(prefix, method.get("changed", {})))
    for other in ("start", "over"):
        if other in method:
            yield from changed_options(f"{prefix}.{other}", method[other])


def flat_all(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values, and those inside of values by names that say where they stand, such as `metrics.top1`."""
    for name, value in values.items():
        yield from flat(name, value) if isinstance(value, Mapping) else [(name, value)]


def flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by names that say where they stand, such as `settings.precision`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def package_version(package: str) -> str:
    """The installed version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Versions and machine, as provenance; never part of an identity."""
    versions: dict[str, Any] = {name: package_version(name) for name in ("zsqbench", "torch", "torchvision", "numpy")}
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
