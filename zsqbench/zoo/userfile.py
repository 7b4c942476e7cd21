"""A user's own model: a .py file with a function that returns the network."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal, NoReturn

from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.weights import build_network


def load_user_model(file: Path, function: str, weights: Path | Literal["none"]) -> nn.Module:
    """Build the network of a user's file, in eval mode with frozen weights.

    Raises ZSQBenchError where the file or the function fails, there is no such function, or it returns something else.
    """
    module = _import(file)
    build = getattr(module, function, None)
    if not callable(build):
        raise ZSQBenchError(
            f"model file {file} has no function {function!r} that builds the network; name it with 'build'"
        )
    return build_network(lambda: _call(file, function, build), weights)


def _call(file: Path, function: str, build: Callable[[], object]) -> nn.Module:
    try:
        network = build()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a user's code does wrong is the user's to mend
        _fail(f"model file {file} fails in {function}()", file, error)
    if not isinstance(network, nn.Module):
        raise ZSQBenchError(
            f"{function}() of model file {file} returned {type(network).__name__}, expected a torch.nn.Module"
        )
    return network


def _import(file: Path) -> ModuleType:
    # A name of its own for each file, so that two users' net.py are two modules.
    name = f"zsqbench_model_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ZSQBenchError(f"model file {file} is not a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses and pickling in the file look themselves up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # as in _call
        del sys.modules[name]
        _fail(f"model file {file} cannot be imported", file, error)
    return module


def _fail(what: str, file: Path, error: BaseException) -> NoReturn:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f" (line {lines[-1]})" if lines else ""
    detail = " ".join(str(error).split())
    raise ZSQBenchError(f"{what}{where}: {type(error).__name__}: {detail}") from error
