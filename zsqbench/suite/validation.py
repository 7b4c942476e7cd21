"""Validate plain data. Errors name the file, the line, the given value and the expected value."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from zsqbench.errors import ZSQBenchError, did_you_mean, unknown
from zsqbench.suite.yamlfile import Location, YamlFile

Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model],
    data: Mapping[str, Any],
    source: YamlFile,
    where: Location,
    folders: Sequence[Path] = (),
    what: str = "key",
    *,
    files_exist: bool = True,
) -> Model:
    """Validate as JSON in strict mode: numbers are not texts, texts are not numbers, but a text can be a path.

    Files are looked for in `folders`. With `files_exist`, a missing file is an error.
    """
    context = {"folders": folders, "files_exist": files_exist}
    try:
        return model.model_validate_json(json.dumps(data), strict=True, context=context)
    except ValidationError as error:
        raise ZSQBenchError("\n".join(_explain(model, data, error, source, where, what))) from error


def _explain(
    model: type[BaseModel],
    data: Mapping[str, Any],
    error: ValidationError,
    source: YamlFile,
    where: Location,
    what: str,
) -> list[str]:
    """Validation errors in words of zsqbench, one line for each value: its place, given value, expected value."""
    misspelt: dict[Location, list[str]] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            misspelt.setdefault(item["loc"][:-1], []).append(str(item["loc"][-1]))
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        around, last = item["loc"][:-1], item["loc"][-1] if item["loc"] else ""
        location = existing_part(data, item["loc"])
        place, path = source.where((*where, *location)), ".".join(map(str, (*where, *location)))
        if item["type"] == "extra_forbidden":
            lines[f"{place}: {unknown(what, str(last), _fields_at(model, around))}"] = []
        elif item["type"] == "missing" and isinstance(last, str):
            if not any(did_you_mean(name, [last]) for name in misspelt.get(around, ())):
                lines[f"{place}: {what} {last!r} is missing"] = []
        elif item["type"] == "too_short":
            lines[f"{place}: {path} is empty; expected at least one value"] = []
        elif item["type"] == "missing":
            lines[f"{place}: {path} has too few values, got {shape(item['input'])}"] = []
        else:
            # the message names the fields that contradict each other; showing all fields would say less
            got = "" if item["type"] == "value_error" and isinstance(item["input"], dict) else shape(item["input"])
            given = f"{place}: {f'{path}: ' if path else ''}%s{got and f', got {got}'}"
            message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
            alternatives = lines.setdefault(given, [])
            alternatives.append(message.removeprefix("expected ") if alternatives else message)
    return [line % " or ".join(dict.fromkeys(messages)) if messages else line for line, messages in lines.items()]


def existing_part(data: Any, location: Location) -> Location:
    """The part of a location that is in the data.

    pydantic adds the names of the types that it tried. It adds an index if a single value replaces a list of one value.
    """
    found: list[str | int] = []
    for part in location:
        if part == 0 and not isinstance(data, list):
            continue
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not inside:
            break
        data = data[part]
        found.append(part)
    return tuple(found)


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the fields of the model at this location below a model."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            nested = getattr(annotation, "__args__", (annotation,))
            model = next((kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def shape(value: object) -> str:
    """A given value, shortened."""
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - fits a line
