"""Read the tensors of a weights file (safetensors or a weights-only checkpoint). Failures are one clear line."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import Checkpoint

SHOWN = 3
"""A line shows at most so many names, and counts the rest."""

_NESTS = ("state_dict", "model_state_dict", "model", "net", "params")


def read_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of a file by name, and the extra state of modules, which may be any data.

    If the file has a moving average, `checkpoint.note` is told, even if it is not used. Raises ZSQBenchError if the
    file cannot be read, holds something else, or lacks the requested weights.
    """
    path = checkpoint.file
    if not path.is_file():
        raise ZSQBenchError(f"there is no weights file {str(path)!r}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    return _taken(content, checkpoint)


def is_extra_state(name: str) -> bool:
    """True for the name of an entry from a module's `get_extra_state`."""
    return name.rpartition(".")[2] == "_extra_state"


def some(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ZSQBenchError(
            f"weights {path} ({path.stat().st_size} bytes) are damaged or not safetensors: {_one_line(error)}; "
            "copy the file again"
        ) from error


def _read_checkpoint(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings on unknown protocols; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ZSQBenchError(
            f"weights {path} are a pickle that holds more than tensors, which is not run here, or are damaged; "
            "save them as safetensors, or with torch.save(module.state_dict(), path)"
        ) from error
    except Exception as error:  # a truncated checkpoint may raise anything
        raise ZSQBenchError(
            f"weights {path} ({path.stat().st_size} bytes) are damaged or neither safetensors nor a checkpoint of "
            f"torch.save: {_one_line(error)}; copy the file again"
        ) from error


def _taken(content: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """The requested state. By default the model's own, or the average if there is no other state."""
    states = dict(_states(content))
    model = next((place for place in states if not _is_average(place)), None)
    average = next((place for place in states if _is_average(place)), None)
    takes_average = checkpoint.taken == "ema" or (checkpoint.taken is None and model is None)
    place = average if takes_average else model
    if place is None:
        raise ZSQBenchError(_absence(content, average, checkpoint))
    if average is not None:
        checkpoint.note(_told(model, average, checkpoint.file.name, takes_average=takes_average))
    return states[place]


def _states(content: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All mappings of names to tensors, at the top (an empty place) or below the names that training code uses."""
    if not isinstance(content, Mapping):
        return
    if content and all(isinstance(value, Tensor) or is_extra_state(str(name)) for name, value in content.items()):
        yield place, {str(name): value for name, value in content.items()}
    for name in (*_NESTS, *filter(_is_average, map(str, content))):
        yield from _states(content.get(name), f"{place}.{name}" if place else name)


def _is_average(place: str) -> bool:
    """True if a word of the name says that it is an exponential moving average, such as model_ema."""
    return "ema" in re.split(r"[^a-z]+", place.lower())


def _told(model: str | None, average: str, file: str, *, takes_average: bool) -> str:
    if model is None:
        return f"{file} holds no weights but a moving average, {average!r}, which was taken"
    both = f"{file} holds weights, {model!r}, and their moving average, {average!r}"
    if takes_average:
        return f"{both}: the average was taken, as 'checkpoint: ema' says"
    return f"{both}: the weights were taken; 'checkpoint: ema' takes the average"


def _absence(content: Any, average: str | None, checkpoint: Checkpoint) -> str:
    found = f"a dictionary of {some(list(map(str, content)))}" if isinstance(content, Mapping) else ""
    hold = f"weights {checkpoint.file} hold {found or type(content).__name__}"
    if checkpoint.taken == "ema":
        return f"{hold}, and no moving average under a name such as model_ema; leave 'checkpoint: ema' out"
    if average is not None:
        return f"{hold}, and no weights but their moving average {average!r}; leave 'checkpoint: model' out"
    return (
        f"{hold}, not tensors by name, neither at the top nor under {', '.join(_NESTS)} or a name such as model_ema; "
        "save them with torch.save(module.state_dict(), path)"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
