"""Find the tensors of a network in a file whose names have parts that wrappers added."""

import re
from collections.abc import Collection, Mapping
from typing import Any

_WITHIN = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
"""The parts that torch.compile and DataParallel add, at any position, because children are also wrapped."""

_COUNTER = "n_averaged"
"""Tensors that torch's AveragedModel, and so torchvision's references, add to those of the network."""


def fitting(state: Mapping[str, Any], own: Collection[str]) -> tuple[Mapping[str, Any], str]:
    """The state under the names that fit the network best, and the change of all names, if any.

    torch.compile adds the prefix `_orig_mod.`, DataParallel `module.`, and Lightning the name of an attribute. Several
    prefixes may be stacked. Names of the network itself are not changed.
    """
    if not any(name.endswith(_COUNTER) for name in own):
        state = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    candidates = [(named, f"begin with {head!r}" if head else "") for head, named in _beheaded(state)]
    unwrapped = {_WITHIN.sub("", name): value for name, value in state.items()}
    if len(unwrapped) == len(state):  # otherwise two tensors would have one name
        within = "have parts 'module.' or '_orig_mod.'"
        candidates += [(named, within + (f" or {head!r}" if head else "")) for head, named in _beheaded(unwrapped)]
    return max(candidates, key=lambda candidate: sum(name in own for name in candidate[0]))  # the first of equals


def _beheaded(state: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The state unchanged, and without one, two, ... of the prefixes that all its names share, each with its prefix."""
    found = [("", state)]
    while head := _shared_head(found[-1][1]):
        before, named = found[-1]
        found.append((before + head, {name.removeprefix(head): value for name, value in named.items()}))
    return found


def _shared_head(names: Collection[str]) -> str:
    """The part up to the first dot, if all names have the same."""
    heads = {"".join(name.partition(".")[:2]) for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return head if head.endswith(".") else ""
