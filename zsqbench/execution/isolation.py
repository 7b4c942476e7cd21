"""Give each step the same process-wide state, and refuse access to the task's data while a method runs."""

import contextlib
import copyreg
import os
import random
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def clean_state(device: "torch.device", key: str, threads: int) -> Iterator[None]:
    """Give each step the same process-wide state. Changes by the step before are undone."""
    import numpy as np
    import torch

    from zsqbench.compat import clear_global_hooks

    seed = int(key[:8], 16)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for methods that use the global generator against the rules
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would store a traceback for each possible GPU
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")  # fp32 is fp32: no TF32, on any device
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(False)
    _reset_peak_memory(device)
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        clear_global_hooks()


def copy_empty_tables_fast() -> None:
    """Let `copy.deepcopy` copy an empty OrderedDict directly, not as an object with state and items.

    A module of torch has a dozen empty tables for hooks. They took half of the copy of a small network, and each step
    makes several copies. Copies and pickles do not change.
    """
    copyreg.pickle(OrderedDict, _reduced)


def _reduced(table: OrderedDict[Any, Any]) -> Any:
    return table.__reduce__() if table or vars(table) else (OrderedDict, ())


def _reset_peak_memory(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_bytes(b"5")  # Linux: reset VmHWM


def peak_memory(device: "torch.device") -> int:
    """Peak bytes of the step so far: of the GPU, or else of the whole process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Watch:
    """The audit hook of the process. A hook cannot be removed, so the forbidden files are set for each call instead."""

    folders: tuple[str, ...] = ()
    method = ""
    installed = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Refuse to open forbidden files.

    Python calls this for many events besides `open`, such as each `id(...)` of `copy.deepcopy`. A module function takes
    a quarter of the time of a bound method, for which Python searches an attribute in vain.
    """
    if event != "open" or not _Watch.folders or not isinstance(args[0], str | bytes | os.PathLike):
        return
    name = os.fsdecode(args[0])
    for path in (os.path.abspath(name), os.path.realpath(name)):  # noqa: PTH100 - links inside the path, and a link to the file
        if any(path == folder or path.startswith(folder + os.sep) for folder in _Watch.folders):
            raise ZSQBenchError(f"{_Watch.method} opened {path}: methods must not read the task's data")


@contextlib.contextmanager
def forbid_opening(folders: list[str], method: str) -> Iterator[None]:
    """While a method runs, opening a file of the task's data is an error.

    The watch sees Python's `open` and libraries that use it (PIL, numpy). It does not see a library that opens files in
    C.
    """
    if not _Watch.installed:
        sys.addaudithook(_audit)
        _Watch.installed = True
    _Watch.folders, _Watch.method = tuple(folders), method
    try:
        yield
    finally:
        _Watch.folders = ()
