"""Result rows: one JSON object per cell in results/<suite>.jsonl, the truth that tables and MLflow are made from."""

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from zsqbench.errors import ZSQBenchError
from zsqbench.store import write_atomically

SCHEMA = 2
"""Of a row: raise it when a reader of another version would misunderstand a field, or lack one that it needs."""

Status = Literal["done", "failed", "impossible", "excluded", "interrupted"]


def _unicode(text: Any) -> Any:
    """Text that a file takes: what cannot be encoded, from a broken file name for instance, is spelt out."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_unicode)]


class Result(BaseModel):
    """What became of one cell, self-contained."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    suite: str
    cell: str = Field(description="its name: task:model:generator:quantizer:scheme:seed")
    definition: str = Field(description="hash of all that the suite says of the cell")
    task: str
    model: str
    generator: str | None = Field(description="none for a quantizer that reads no images")
    quantizer: str
    scheme: str
    seed: int | None = Field(description="none where nothing in the cell uses the seed")
    settings: dict[str, Any] = {}
    status: Status
    reason: Text | None = Field(None, description="one line, for every status but done")
    traceback: Text | None = None
    metric: str | None = Field(None, description="the metric that tables show; higher is better")
    metrics: dict[str, float] = {}
    float_metrics: dict[str, float] = {}
    oracle: dict[str, Any] = Field(
        {}, description="the best of the kept epochs by the evaluated images: epoch, metrics, and of how many"
    )
    published: dict[str, Any] = Field(
        {}, description="what a paper says of this cell: value, std, float, source, citation, note"
    )
    methods: dict[str, dict[str, Any]] = Field(
        {},
        description="task, generator, quantizer: method, version, origin, options (all, with the values that held), "
        "changed (those that the suite set, where they are not the default), control, start",
    )
    model_facts: dict[str, Any] = Field({}, description="digest, parameters, bn, classes, random_weights, notes, ...")
    data: dict[str, Any] = Field(
        {},
        description="evaluated (samples), digest (of the evaluated data), images (of the calibration set), calibrated "
        "(images of it that the quantizer read)",
    )
    notes: list[Text] = Field([], description="what the task noted when it measured the float network")
    correct: str | None = Field(
        None, description="which evaluated samples were right: packed bits in base64, the first in the highest bit"
    )
    data_free: bool = Field(True, description="false where the generator was given real images")
    tensors: dict[str, Any] = Field(
        {}, description="of the effective tensor map: hash, hash of its bits alone, and counts of quantized tensors"
    )
    keys: dict[str, str] = Field({}, description="artifact of each step, and of the quantize step that it starts from")
    seconds: dict[str, float] = {}
    peak_memory: dict[str, int] = Field({}, description="bytes, per step")
    environment: dict[str, Any] = {}

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


class ResultFile:
    """results/<suite>.jsonl: rows are appended as cells finish, the last row of a cell counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Result]:
        """Rows by cell. A line that is no row (cut off by a crash or a full disk) is left out.

        Raises ZSQBenchError where there is a file that cannot be read, or whose rows have another schema.
        """
        rows, others = self.read_all()
        if others:
            raise ZSQBenchError(
                f"{self.path} has rows of schema {', '.join(map(str, others))}, and this zsqbench reads {SCHEMA}; run "
                "the suite again, which measures what is missing and replaces them"
            )
        return rows

    def read_all(self) -> tuple[dict[str, Result], list[int]]:
        """Rows by cell of the schema that this version reads, and the schemas of the other rows.

        Raises ZSQBenchError where there is a file that cannot be read.
        """
        rows: dict[str, Result] = {}
        others: set[int] = set()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return rows, []
        except OSError as error:
            raise ZSQBenchError(f"cannot read {self.path}: {error.strerror}") from error
        for line in content.split(b"\n"):
            schema = SCHEMA if line.startswith(_BEGIN) else _schema_of(line)
            if schema == SCHEMA:
                with contextlib.suppress(ValidationError):
                    row = Result.model_validate_json(line)
                    rows[row.cell] = row
            elif schema is not None:
                others.add(schema)
        return rows, sorted(others)

    def append(self, result: Result) -> None:
        """Add a row so that it survives what comes next."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = _line(result)
        with self.path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # the line before was cut off
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, results: Iterable[Result]) -> None:
        """Replace the file by these rows, in this order."""
        write_atomically(self.path, "".join(map(_line, results)))


_BEGIN = f'{{"schema":{SCHEMA},'.encode()
"""Each line that this version wrote begins with this, so that it is parsed once."""


def _line(result: Result) -> str:
    return _BEGIN.decode() + result.model_dump_json(exclude_defaults=True)[1:] + "\n"


def _schema_of(line: bytes) -> int | None:
    """The schema of a row, of which the first had no number; None for a line that is none."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, dict) or not {"suite", "cell", "status"} <= data.keys():
        return None
    schema = data.get("schema", 1)
    return schema if isinstance(schema, int) else None


def flat_method(prefix: str, method: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a row about a method as `generator.method`, `generator.iterations`, and its start below `start`."""
    yield from ((f"{prefix}.{key}", method[key]) for key in ("method", "version", "origin") if key in method)
    yield from flat(prefix, method.get("options", {}))
    if "start" in method:
        yield from flat_method(f"{prefix}.start", method["start"])


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
