"""The machines that engines spread steps over: what each has to have, and how a step is done there.

A step runs in a worker process like the pool's, which the engine's process on the node keeps. So isolation, limits and
the ends of workers are those of the pool, and an engine only says where a step runs.
"""

import contextlib
import functools
import hashlib
import os
import platform
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.engines import WorkerPool
from zsqbench.execution.session import WorkerConfig
from zsqbench.methods.engine import NodeUnfitError
from zsqbench.plugins import installed_plugins
from zsqbench.reports.results import package_version
from zsqbench.store import temporary_beside

APPEAR_SECONDS = 5.0
"""Time that a new file may take until a network file system shows it on another machine."""


class NodeFuture(Future[Any]):
    """A future that says where its call ran."""

    node: str | None = None
    """The name of the node; None until it is known."""


@dataclass(frozen=True)
class Limits:
    """What a step may take."""

    threads: int = 1
    step_timeout: float | None = None
    """Seconds."""
    memory: int | None = None
    """Bytes of host memory."""


@dataclass(frozen=True)
class PluginFile:
    """A plugin file that travels with the steps."""

    path: Path
    content: bytes

    def placed(self) -> Path:
        """Its path on this machine: its own where a file is there, or else a copy."""
        return self.path if self.path.exists() else _copy_of(self)


@dataclass(frozen=True)
class Installation:
    """What steps depend on that is installed on a machine: versions, and plugins of others."""

    versions: tuple[tuple[str, str], ...]
    plugins: frozenset[str]

    def differences(self, there: "Installation") -> list[str]:
        """What another machine has otherwise, each as `torch 2.5.0 in place of 2.6.0`."""
        found = [
            f"{package} {theirs} in place of {ours}"
            for (package, ours), (_, theirs) in zip(self.versions, there.versions, strict=True)
            if ours != theirs
        ]
        found += [f"no plugin {name}" for name in sorted(self.plugins - there.plugins)]
        return found + [f"the plugin {name}, which is not here" for name in sorted(there.plugins - self.plugins)]


@dataclass(frozen=True)
class Conditions:
    """The conditions under which nodes call functions: plain data that travels with the calls."""

    limits: Limits
    here: Installation
    """What is installed where the run is."""
    without: tuple[str, ...] = ()
    """Plugins that are left out."""
    files: tuple[PluginFile, ...] = ()
    data_root: Path | None = None

    @classmethod
    def of(cls, limits: Limits, config: WorkerConfig | None = None) -> "Conditions":
        """The conditions of a run. Reads its plugin files."""
        if config is None:
            return cls(limits, installation())
        files = tuple(PluginFile(path, path.read_bytes()) for path in config.plugin_files)
        return cls(limits, installation(config.without), config.without, files, config.data_root)

    def look(self, seen: Mapping[Path, str]) -> list[str]:
        """The faults of this node, each as the end of a sentence that begins with its name; `seen` names more paths."""
        asked = dict(seen)
        if self.data_root is not None:
            asked[self.data_root] = f"data root {self.data_root}"
        faults = [f"does not see the {asked[path]}; it has to lie where all nodes see it" for path in _unseen(asked)]
        if different := self._differences():
            faults.append(f"has {different}")
        changed = [file.path for file in self.files if file.path.exists() and file.path.read_bytes() != file.content]
        return faults + [f"has another content of plugin file {path}; remove it there, or copy it" for path in changed]

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value of a function in the worker process that this process keeps.

        Raises NodeUnfitError on a node that has other versions or plugins, and what the function or the pool raises.
        """
        if different := self._differences():
            raise NodeUnfitError(f"it has {different}")
        placed = (_with_files(each, self.files) if isinstance(each, WorkerConfig) else each for each in args)
        pool = _pool(self.limits, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return pool.submit(fn, *placed, **kwargs).result()

    def _differences(self) -> str:
        """What is installed here otherwise, and what to do; empty where nothing is."""
        different = ", ".join(self.here.differences(installation(self.without)))
        return different and f"{different}; install the same on all nodes"


@functools.cache
def installation(without: tuple[str, ...] = ()) -> Installation:
    """What is installed in this process's environment, but for the plugins that are left out; nothing is imported."""
    packages = ("zsqbench", "torch", "torchvision", "numpy")
    versions = {name: package_version(name).partition("+")[0] for name in packages}  # another build is no other version
    versions["Python"] = ".".join(platform.python_version_tuple()[:2])
    plugins = (plugin for plugin in installed_plugins() if not plugin.shipped and plugin.name not in without)
    return Installation(tuple(versions.items()), frozenset(f"{plugin.name} ({plugin.origin})" for plugin in plugins))


def _unseen(paths: Collection[Path]) -> list[Path]:
    """Those that are not there, even after a while."""
    until = time.monotonic() + APPEAR_SECONDS
    while (unseen := [path for path in paths if not path.exists()]) and time.monotonic() < until:
        time.sleep(0.2)
    return unseen


def _with_files(config: WorkerConfig, files: Sequence[PluginFile]) -> WorkerConfig:
    """A configuration whose plugin files are on this machine."""
    placed = {file.path: file.placed() for file in files}
    return replace(config, plugin_files=tuple(placed.get(path, path) for path in config.plugin_files))


def _copy_of(file: PluginFile) -> Path:
    """A copy of a plugin file below the folder for temporary files, one for each content: Ray's processes are killed.

    Raises ZSQBenchError where the folder is another user's, who could put anything there.
    """
    folder = Path(tempfile.gettempdir()) / f"zsqbench-plugins-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ZSQBenchError(f"{folder} on {socket.gethostname()} belongs to another user; it has to go")
    copy = folder / hashlib.sha256(file.content).hexdigest()[:16] / file.path.name
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        temporary = temporary_beside(copy)  # other processes of Ray write it, too
        temporary.write_bytes(file.content)
        temporary.replace(copy)
    return copy


def end_workers() -> None:
    """End the worker process that this process keeps, in the middle of what it does."""
    while _pools:
        _pools.popitem()[1].shutdown(cancel_futures=True)


_pools: dict[tuple[Limits, str | None], WorkerPool] = {}


def _pool(limits: Limits, gpus: str | None) -> WorkerPool:
    """The pool of one worker that this process keeps, as long as limits and GPU stay the same."""
    if (limits, gpus) not in _pools:
        while _pools:
            _pools.popitem()[1].shutdown()
        _pools[limits, gpus] = WorkerPool(1, limits.threads, step_timeout=limits.step_timeout, memory=limits.memory)
    return _pools[limits, gpus]


@contextlib.contextmanager
def token_in(home: Path) -> Iterator[Path]:
    """A file in the home folder that is there meanwhile."""
    token = home / f"seen-{uuid.uuid4().hex}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise ZSQBenchError(f"cannot write to {home}: {error.strerror}; see --home") from error
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)
