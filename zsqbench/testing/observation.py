"""Run one call of a method as the harness would, and note what it left behind and what it read."""

import copy
import os
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from zsqbench.compat import global_hooks, hook_tables
from zsqbench.execution.isolation import forbid_opening
from zsqbench.methods import Method, Pretrained
from zsqbench.testing.report import Report
from zsqbench.zoo import digits

TEACHER = "the teacher stays as it was: weights, buffers, mode, hooks"
GLOBAL = "global state stays as it was: random numbers, gradient mode, dtype, device, threads"
FILES = "no file is read but those that options name, and none of the data"

CREATES = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
MODULES = (".py", ".pyc", ".so", ".pyd")
SYSTEM = ("/proc", "/sys", "/dev", "/etc")


@dataclass
class Call:
    """A call: what it returned, or what it raised."""

    result: Any = None
    error: Exception | None = None


def observe(
    report: Report, check: str, teacher: Pretrained, call: Callable[[Pretrained], Any], where: str = ""
) -> Call:
    """Call a method with a copy of the teacher. `check` fails if it raises; what it leaves behind is checked, too."""
    copied = Pretrained(**(vars(teacher) | {"module": copy.deepcopy(teacher.module)}))
    before, made, opened = _global_state(), Call(), Opened()
    try:
        with _decoy() as folder, forbid_opening([folder, str(digits.FILE)], report.method.name), opened.noting():
            made.result = call(copied)
    except Exception as error:
        if report.strict:
            raise
        made.error = error
    changed = _restore(before)
    if made.error is None:
        report.require(check, True, "")
    else:
        report.blame(check, made.error, where)
    for complaint in changed:
        report.require(GLOBAL, False, complaint, where)
    report.require(GLOBAL, True, "")
    if made.error is None:
        _require_untouched(report, copied, teacher, where)
    foreign = [path for path in opened.read if not _may_be_read(path, report.method)]
    complaint = f"read {', '.join(foreign)}; name a file that it needs in an option of type InputFile"
    report.require(FILES, not foreign, complaint, where)
    return made


def _require_untouched(report: Report, copied: Pretrained, teacher: Pretrained, where: str) -> None:
    modules = list(copied.module.modules())
    trainable = any(parameter.requires_grad for parameter in copied.module.parameters())
    report.require(TEACHER, copied.digest() == teacher.digest(), "changed the teacher's weights or buffers", where)
    report.require(TEACHER, not any(map(hook_tables, modules)), "left hooks on the teacher", where)
    report.require(TEACHER, not any(part.training for part in modules), "left the teacher in train mode", where)
    report.require(TEACHER, not trainable, "left the teacher's weights with requires_grad", where)


def _set_python(state: Any) -> None:
    random.setstate(state)


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what methods must leave alone
    return (name, np.asarray(keys).tobytes(), *rest)


def _set_numpy(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002


def _global_hooks() -> dict[str, list[int]]:
    return {name: sorted(hooks) for name, hooks in global_hooks().items()}


def _drop_hooks(before: Mapping[str, list[int]]) -> None:
    for name, hooks in global_hooks().items():
        for key in set(hooks) - set(before[name]):
            del hooks[key]


_STATE: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "used torch's global randomness; take it from ctx": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
    ),
    "used the global randomness of Python's random; take it from ctx": (random.getstate, _set_python),
    "used NumPy's global randomness; take it from ctx": (_numpy_state, _set_numpy),
    "left gradients on or off": (torch.is_grad_enabled, torch.set_grad_enabled),
    "changed the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "changed the default device": (torch.get_default_device, lambda _: torch.set_default_device(None)),
    "changed the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "switched deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "changed the working directory": (Path.cwd, os.chdir),
    "left global hooks of torch": (_global_hooks, _drop_hooks),
}
"""What methods leave alone: the complaint where they do not, how it is read, and how it is set back."""


def _global_state() -> dict[str, Any]:
    return {complaint: read() for complaint, (read, _) in _STATE.items()}


def _restore(before: Mapping[str, Any]) -> list[str]:
    """Set back what a method changed, so that it spoils no other check; returns the complaints."""
    after = _global_state()
    changed = [complaint for complaint in before if before[complaint] != after[complaint]]
    for complaint in changed:
        _STATE[complaint][1](before[complaint])
    return changed


@dataclass
class Opened:
    """The files that were opened for reading, and had not been made in the same call."""

    read: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what is opened meanwhile."""
        if not _Hook.installed:
            sys.addaudithook(_Hook.hook)
            _Hook.installed = True
        _Hook.opened = self
        try:
            yield
        finally:
            _Hook.opened = None

    def note(self, name: str, mode: str | None, flags: int) -> None:
        """Note one file; a folder, which is opened to list it or for a temporary file in it, is none."""
        path = os.path.realpath(name)
        if flags & CREATES or (mode and mode[0] in "wxa"):
            self.made.add(path)
        elif path not in self.made and path not in self.read and not Path(path).is_dir():
            self.read.append(path)


class _Hook:
    """An audit hook cannot be removed, so there is one for the process, which notes while there is where to.

    It sees what the worker's watch sees: Python's own `open`, and what is built on it.
    """

    opened: Opened | None = None
    installed = False

    @classmethod
    def hook(cls, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and cls.opened is not None and isinstance(args[0], str | bytes | os.PathLike):
            name, mode, flags = args
            cls.opened.note(os.fsdecode(name), mode, flags or 0)


def _may_be_read(path: str, method: Method) -> bool:
    """True if a file is a module, part of Python and its libraries, of the system, or one that an option names."""
    if path.endswith(MODULES) or path in {os.path.realpath(file) for file in method.input_files().values()}:
        return True
    libraries = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(torch.__file__).parent.parent)}
    folders = (*map(os.path.realpath, libraries), *SYSTEM)
    return any(Path(path).is_relative_to(folder) for folder in folders)


@contextmanager
def _decoy() -> Iterator[str]:
    """A data root with an image that no method may open, where the environment says that data is."""
    with tempfile.TemporaryDirectory(prefix="zsqbench-decoy-") as folder:
        for part in ("train", "val", "test"):
            file = Path(folder, "decoy", part, "class", "1.png")
            file.parent.mkdir(parents=True)
            file.write_bytes(b"")
        with mock.patch.dict(os.environ, ZSQBENCH_DATA_ROOT=folder):
            yield os.path.realpath(folder)
