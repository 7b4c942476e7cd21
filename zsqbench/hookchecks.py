"""Refuse hooks that would never be called, or that ask for unknown arguments. pluggy explains some of these little."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from zsqbench import hookspecs
from zsqbench.errors import ZSQBenchError, unknown


def check_hooks(module: object) -> None:
    """Raise ZSQBenchError, in one line, for the first hook of a plugin that is wrong."""
    known = _arguments()
    for name in dir(module):
        value = getattr(module, name)
        options = getattr(value, f"{hookspecs.PROJECT}_impl", None)
        if options is None:
            if name in known and callable(value) and not _is_hook(value, "spec"):
                raise ZSQBenchError(f"{name} is not marked as a hook; put @zsqbench.hookimpl above it")
            continue
        hook = options["specname"] or name
        if hook in known:
            _check_function(name, value, options, known[hook])
        elif not options["optionalhook"]:
            raise ZSQBenchError(unknown("hook", hook, known))


@cache
def _arguments() -> dict[str, list[str]]:
    """The known hooks, and the arguments of each."""
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(hookspecs).items()
        if _is_hook(value, "spec")
    }


def _is_hook(value: object, kind: str) -> bool:
    return hasattr(value, f"{hookspecs.PROJECT}_{kind}")


def _check_function(name: str, function: Any, options: Any, given: list[str]) -> None:
    if options["wrapper"] or options["hookwrapper"]:
        raise ZSQBenchError(f"{name} wraps the hooks of other plugins; write it without `wrapper`")
    if not inspect.isroutine(function):
        raise ZSQBenchError(f"{name} is marked as a hook, but is a {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ZSQBenchError(f"{name} is async, and nothing waits for it; write it with `def`")
    if inspect.isgeneratorfunction(function):
        raise ZSQBenchError(f"{name} has a `yield`, so a call does not run it; return a list instead")
    for complaint in _complaints(inspect.signature(function), given):
        raise ZSQBenchError(f"{name} {complaint}")


def _complaints(signature: inspect.Signature, given: list[str]) -> Iterator[str]:
    """The faults in the parameters of a hook that is called with these arguments."""
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            names = ", ".join(given) or "nothing"
            yield f"takes {str(parameter)!r}, which would be empty; name the arguments that it needs, out of: {names}"
        elif parameter.default is not parameter.empty:
            if name in given:
                yield f"has a default for {name!r}, but always gets a value; write {name!r} without a default"
        elif name == "self":
            yield "takes 'self'; provide an object, not its class"
        elif name not in given:
            yield f"has an {unknown('argument', name, given)}"
        elif parameter.kind is parameter.KEYWORD_ONLY:
            yield f"takes {name!r} by keyword only, but hooks are called by position; write it without `*`"
