"""Finding the tensors of a network in a file whose names have parts that wrappers of the network have put there."""

import re
from collections.abc import Collection, Mapping
from typing import Any

_WITHIN = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
"""The parts of torch.compile and DataParallel, wherever they stand: children of a network are wrapped, too."""

_COUNTER = "n_averaged"
"""What torch's AveragedModel, and so torchvision's references, add to the tensors of the network."""


def fitting(state: Mapping[str, Any], own: Collection[str]) -> tuple[Mapping[str, Any], str]:
    """The state under the names that fit those of the network best, and what was done to all of them, if anything.

    torch.compile puts `_orig_mod.` in front, DataParallel `module.`, and Lightning the name of an attribute; several
    may be stacked. Names that are the network's own stay as they are.
    """
    if not any(name.endswith(_COUNTER) for name in own):
        state = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    candidates = [(named, f"begin with {head!r}" if head else "") for head, named in _beheaded(state)]
    unwrapped = {_WITHIN.sub("", name): value for name, value in state.items()}
    if len(unwrapped) == len(state):  # else two tensors would have one name
        within = "have parts 'module.' or '_orig_mod.'"
        candidates += [(named, within + (f" or {head!r}" if head else "")) for head, named in _beheaded(unwrapped)]
    return max(candidates, key=lambda candidate: sum(name in own for name in candidate[0]))  # the first of equals


def _beheaded(state: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The state as it is, and without one, two, ... of the parts that all its names begin with; each with these."""
    found = [("", state)]
    while head := _shared_head(found[-1][1]):
        before, named = found[-1]
        found.append((before + head, {name.removeprefix(head): value for name, value in named.items()}))
    return found


def _shared_head(names: Collection[str]) -> str:
    """The part up to the first dot, where all names have the same."""
    heads = {"".join(name.partition(".")[:2]) for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return head if head.endswith(".") else ""
