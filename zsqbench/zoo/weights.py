"""Reading a network's weights from safetensors or a weights-only checkpoint, with one clear line where that fails."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zsqbench.errors import ZSQBenchError

SHOWN = 3
"""How many of the names that do not fit are shown; the rest is counted."""

_NESTS = ("state_dict", "model_state_dict", "model", "net")
_RANDOM_SEED = 0


def build_network(build: Callable[[], nn.Module], weights: Path | Literal["none"]) -> nn.Module:
    """Build a network and give it the weights of a file, or ("none") seeded random ones; eval mode, weights frozen.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        module = build()
    if weights != "none":
        load_weights(module, weights)
    return module.eval().requires_grad_(requires_grad=False)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file's weights into a network. Raises ZSQBenchError where they are unreadable or do not fit exactly."""
    state = read_weights(path)
    own = module.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}  # older checkpoints lack it; unused here
    missing = [name for name in own if name not in state and name not in optional]
    extra = [name for name in state if name not in own]
    if missing or extra:
        faults = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("also holds", extra)) if names]
        raise ZSQBenchError(
            f"weights {path} are not this network's: the file {' and '.join(faults)}; "
            f"it has {len(state)} tensors, the network {len(own)}; give the weights of this very definition"
        )
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        faults = [f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}" for name in wrong[:SHOWN]]
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ZSQBenchError(
            f"weights {path} are of another shape than the network: {'; '.join(faults)}{more}: "
            "check its width and number of classes"
        )
    module.load_state_dict(state, strict=False)  # strict was checked above


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the `module.` that DataParallel puts in front.

    Raises ZSQBenchError where it cannot be read or holds something else.
    """
    if not path.is_file():
        raise ZSQBenchError(f"there is no weights file {str(path)!r}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(_read_checkpoint(path), path)
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


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
        with warnings.catch_warnings(action="ignore"):  # of protocols that it may not know; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ZSQBenchError(
            f"weights {path} are a pickle that holds more than tensors, which is not run here, or are damaged; "
            "save them as safetensors, or with torch.save(module.state_dict(), path)"
        ) from error
    except Exception as error:  # a truncated checkpoint raises whatever its last bytes make of it
        raise ZSQBenchError(
            f"weights {path} ({path.stat().st_size} bytes) are damaged or neither safetensors nor a checkpoint of "
            f"torch.save: {_one_line(error)}; copy the file again"
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and (nest := _nest(content)) is not None:
        content = content[nest]
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    found = f"a dictionary of {_some([str(key) for key in content])}" if isinstance(content, Mapping) else ""
    raise ZSQBenchError(
        f"weights {path} hold {found or type(content).__name__}, not tensors by name, neither at the top nor under "
        f"{', '.join(_NESTS)}; save them with torch.save(module.state_dict(), path)"
    )


def _nest(content: Mapping[str, Any]) -> str | None:
    return next((name for name in _NESTS if isinstance(content.get(name), Mapping)), None)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
