"""A model of the user: a .py file with a function that returns the network, and functions for inputs and outputs."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import Weights
from zsqbench.zoo.usermodules import digests, forget_changed
from zsqbench.zoo.weights import build_network


class UserFile:
    """The objects that a user's file defines. Raises ZSQBenchError if it cannot be imported."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._module = _import(file)

    def build(self, function: str, weights: Weights) -> nn.Module:
        """The network that a function of the file returns, in eval mode with frozen weights.

        Raises ZSQBenchError if there is no such function, or if it fails or returns something else.
        """
        make = getattr(self._module, function, None)
        if not callable(make):
            raise ZSQBenchError(
                f"model file {self._file} has no function {function!r} that builds the network; name it with 'build'"
            )
        network = build_network(lambda: _network(self._file, function, make), weights)
        _LOADED[self._file] = digests(self._file)
        return network

    def has(self, name: str) -> bool:
        """True if the file defines an object with this name."""
        return hasattr(self._module, name)

    def value(self, name: str) -> object:
        """The object that the file defines by this name. None: it defines none."""
        return getattr(self._module, name, None)

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the file. Its errors are mistakes of the user. Raises ZSQBenchError if there is none."""
        found = getattr(self._module, name, None)
        if not callable(found):
            raise ZSQBenchError(f"model file {self._file} has no function {name!r}, which a detector needs")

        def call(*arguments: Any) -> Any:
            return _call(self._file, name, lambda: found(*arguments))

        return call


def load_user_model(file: Path, function: str, weights: Weights) -> nn.Module:
    """Build the network of a user's file, in eval mode with frozen weights.

    Raises ZSQBenchError if there is no such function, or if the file or the function fails or returns something else.
    """
    return UserFile(file).build(function, weights)


def _network(file: Path, function: str, build: Callable[[], object]) -> nn.Module:
    network = _call(file, function, build)
    if not isinstance(network, nn.Module):
        raise ZSQBenchError(
            f"{function}() of model file {file} returned {type(network).__name__}, expected a torch.nn.Module"
        )
    return network


def _call(file: Path, function: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the user must correct any error of the user's code
        _fail(f"model file {file} fails in {function}()", file, error)


_LOADED: dict[Path, tuple[tuple[str, str], ...]] = {}
"""The user's modules that each file imported when it was last loaded in this process."""


def _import(file: Path) -> ModuleType:
    forget_changed(_LOADED.get(file, ()))
    # A unique name for each file, so that two files net.py are two modules.
    name = f"zsqbench_model_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ZSQBenchError(f"model file {file} is not a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as in an import, because dataclasses and pickling in the file look up their module
    try:
        with torch.no_grad():  # as in build_network
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
