"""The machines to which engines distribute steps: the requirements of a machine, and how a step runs there.

The engine's process on a node keeps a worker process like a worker of the pool. A step runs in this worker. So
isolation, limits and the ends of workers are those of the pool. An engine only says where a step runs.
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
"""A network file system shows a new file on another machine within so many seconds."""


class NodeFuture(Future[Any]):
    """A future that knows where its call ran."""

    node: str | None = None
    """The name of the node. None: not known yet."""


@dataclass(frozen=True)
class Limits:
    """The limits of a step."""

    threads: int = 1
    step_timeout: float | None = None
    """Seconds."""
    memory: int | None = None
    """Bytes of host memory."""


@dataclass(frozen=True)
class PluginFile:
    """A plugin file that is sent with the steps."""

    path: Path
    content: bytes

    def placed(self) -> Path:
        """Its path on this machine: the original path if a file is there, or else a copy."""
        return self.path if self.path.exists() else _copy_of(self)


@dataclass(frozen=True)
class Installation:
    """Installed software of a machine on which steps depend: versions, and plugins that are not shipped."""

    versions: tuple[tuple[str, str], ...]
    plugins: frozenset[str]

    def differences(self, there: "Installation") -> list[str]:
        """The differences of another machine, each as `torch 2.5.0 in place of 2.6.0`."""
        found = [
            f"{package} {theirs} in place of {ours}"
            for (package, ours), (_, theirs) in zip(self.versions, there.versions, strict=True)
            if ours != theirs
        ]
        found += [f"no plugin {name}" for name in sorted(self.plugins - there.plugins)]
        return found + [f"the plugin {name}, which is not here" for name in sorted(there.plugins - self.plugins)]


@dataclass(frozen=True)
class Conditions:
    """The conditions under which nodes call functions. They are plain data that is sent with the calls."""

    limits: Limits
    here: Installation
    """The installed software on the machine of the run."""
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
        """The faults of this node. Each is the end of a sentence that begins with its name. `seen` adds paths."""
        asked = dict(seen)
        if self.data_root is not None:
            asked[self.data_root] = f"data root {self.data_root}"
        faults = [f"does not see the {asked[path]}; put it where all nodes see it" for path in _unseen(asked)]
        if different := self._differences():
            faults.append(f"has {different}")
        changed = [file.path for file in self.files if file.path.exists() and file.path.read_bytes() != file.content]
        return faults + [
            f"has different content in plugin file {path}; remove it there, or copy it" for path in changed
        ]

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value of a function, called in the worker process that this process keeps.

        Raises NodeUnfitError on a node with other versions or plugins. Exceptions of the function and of the pool pass
        on.
        """
        if different := self._differences():
            raise NodeUnfitError(f"it has {different}")
        placed = (_with_files(each, self.files) if isinstance(each, WorkerConfig) else each for each in args)
        pool = _pool(self.limits, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return pool.submit(fn, *placed, **kwargs).result()

    def _differences(self) -> str:
        """The differences in installed software here, and what to do. Empty: there are none."""
        different = ", ".join(self.here.differences(installation(self.without)))
        return different and f"{different}; install the same on all nodes"


@functools.cache
def installation(without: tuple[str, ...] = ()) -> Installation:
    """The installed software of this process, without the plugins that are left out. Nothing is imported."""
    packages = ("zsqbench", "torch", "torchvision", "numpy")
    versions = {name: package_version(name).partition("+")[0] for name in packages}  # another build is the same version
    versions["Python"] = ".".join(platform.python_version_tuple()[:2])
    plugins = (plugin for plugin in installed_plugins() if not plugin.shipped and plugin.name not in without)
    return Installation(tuple(versions.items()), frozenset(f"{plugin.name} ({plugin.origin})" for plugin in plugins))


def _unseen(paths: Collection[Path]) -> list[Path]:
    """The paths that do not exist, even after a while."""
    until = time.monotonic() + APPEAR_SECONDS
    while (unseen := [path for path in paths if not path.exists()]) and time.monotonic() < until:
        time.sleep(0.2)
    return unseen


def _with_files(config: WorkerConfig, files: Sequence[PluginFile]) -> WorkerConfig:
    """A configuration whose plugin files are on this machine."""
    placed = {file.path: file.placed() for file in files}
    return replace(config, plugin_files=tuple(placed.get(path, path) for path in config.plugin_files))


def _copy_of(file: PluginFile) -> Path:
    """A copy of a plugin file below the folder for temporary files, one for each content.

    Processes of Ray are killed, so they cannot remove copies of their own. Raises ZSQBenchError if the folder belongs
    to another user, who could put any file there.
    """
    folder = Path(tempfile.gettempdir()) / f"zsqbench-plugins-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ZSQBenchError(f"{folder} on {socket.gethostname()} belongs to another user; remove it")
    copy = folder / hashlib.sha256(file.content).hexdigest()[:16] / file.path.name
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        temporary = temporary_beside(copy)  # other processes of Ray write it, too
        temporary.write_bytes(file.content)
        temporary.replace(copy)
    return copy


def end_workers() -> None:
    """End the worker process that this process keeps, even during a step."""
    while _pools:
        _pools.popitem()[1].shutdown(cancel_futures=True)


_pools: dict[tuple[Limits, str | None], WorkerPool] = {}


def _pool(limits: Limits, gpus: str | None) -> WorkerPool:
    """The pool of one worker that this process keeps, while limits and GPU stay the same."""
    if (limits, gpus) not in _pools:
        while _pools:
            _pools.popitem()[1].shutdown()
        _pools[limits, gpus] = WorkerPool(1, limits.threads, step_timeout=limits.step_timeout, memory=limits.memory)
    return _pools[limits, gpus]


@contextlib.contextmanager
def token_in(home: Path) -> Iterator[Path]:
    """A file in the home folder that exists during the block."""
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
