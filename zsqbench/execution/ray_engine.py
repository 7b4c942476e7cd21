"""The engine `ray`: steps are tasks of a Ray on this machine, or on the machines of a cluster that see one home.

A task hands its step to a worker process like the pool's, which the Ray process keeps. So isolation, limits and the
ends of workers are those of the pool, and Ray only says where a step runs.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import signal
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution.engines import WorkerPool, cores
from zsqbench.execution.processes import PATIENCE, Call, WorkerDiedError
from zsqbench.execution.session import WorkerConfig
from zsqbench.hookspecs import hookimpl
from zsqbench.methods import Engine
from zsqbench.methods.engine import NodeLostError
from zsqbench.plugins import installed_plugins
from zsqbench.reports.results import package_version
from zsqbench.store import temporary_beside

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger("zsqbench")

INSTALL = "pip install 'zsqbench[ray]', or pip install '.[ray]' in a checkout"
OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory for a Ray on this machine, the least that Ray takes: steps pass files, not objects."""
CONNECT_SECONDS = 5.0
"""Time that a Ray has to answer."""
CHECK_SECONDS = 60.0
"""Time that a node has to say what is installed there; its first process takes some seconds."""
APPEAR_SECONDS = 5.0
"""Time that a new file may take until a network file system shows it on another machine."""

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2 begins (RFC 9113, section 3.4), with an empty frame of settings."""
_SETTINGS = b"\x04"
"""The type, after three bytes of length, of the frame with which a server of HTTP/2, such as Ray's, has to answer."""


class Ray(Engine):
    """Tasks of Ray: on this machine, or on a cluster whose nodes see the home folder."""

    name: ClassVar[str] = "ray"

    address: str | None = Field(
        None, description="HOST:PORT of a Ray that runs; else RAY_ADDRESS, else a Ray of its own on this machine"
    )
    _executor: "RayExecutor | None" = PrivateAttr(None)

    def check(self, config: WorkerConfig) -> None:
        """Look whether all nodes see the folders and have what is installed here. Raises ZSQBenchError elsewise."""
        executor = self._connected()
        try:
            executor.check(config)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise

    def slots(self) -> int:
        """As many as asked for; else one for each GPU, or for each `threads` cores, of the nodes that are there."""
        return self.workers or self._connected().slots()

    def start(self) -> Executor:
        """The executor, connected to its Ray."""
        return self._connected()

    def _connected(self) -> "RayExecutor":
        """The executor that is not shut down yet, or a new one; nothing is started before it is needed."""
        if self._executor is None or self._executor.closed:
            limits = Limits(self.threads, self.step_timeout, self.memory)
            self._executor = RayExecutor(self.address, limits, self.workers)
        return self._executor


@dataclass(frozen=True)
class Limits:
    """What a step may take."""

    threads: int = 1
    step_timeout: float | None = None
    """Seconds."""
    memory: int | None = None
    """Bytes of host memory."""


@dataclass(frozen=True)
class Node:
    """A machine of a Ray that is there."""

    id: str
    name: str
    cpus: int
    gpus: int

    def slots(self, cpus: int, gpus: int) -> int:
        """How many steps that take so many CPUs and GPUs it runs at the same time."""
        return min(self.cpus // cpus, self.gpus // gpus if gpus else self.cpus)


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
class Sight:
    """What a node has and sees."""

    installation: Installation
    unseen: tuple[Path, ...] = ()
    """Those of the paths that are asked about which are not there."""
    changed: tuple[Path, ...] = ()
    """The plugin files that are there with another content."""


@dataclass(frozen=True)
class NodeCall:
    """A call that a node is to make, and all that it has to know for that: plain data."""

    limits: Limits
    here: Installation
    """What is installed where the run is."""
    without: tuple[str, ...]
    files: tuple[PluginFile, ...]
    call: Call


class RayExecutor(Executor):
    """Submits each call as a task of Ray, which tries none again: that is the run loop's."""

    replaces_workers = True
    """Says to the run loop that a dead worker is no reason to start the executor anew."""

    def __init__(self, address: str | None = None, limits: Limits | None = None, workers: int | None = None) -> None:
        """Connect to a Ray, or to the one that this process is connected to. Raises ZSQBenchError where none answers.

        A Ray of its own on this machine has CPUs for so many `workers`, or else those of the machine.
        """
        self.closed = False
        """True once it takes no more."""
        self._limits = limits or Limits()
        self._own = _connect(address, self._limits.threads * workers if workers else cores())
        import ray

        # max_calls: Ray would end a process after each task that has a GPU
        self._task = ray.remote(max_retries=0, max_calls=0, scheduling_strategy="SPREAD")(run_call)
        self._tasks: dict[Future[Any], ObjectRef[Any]] = {}
        self._config: WorkerConfig | None = None
        self._files: tuple[PluginFile, ...] = ()

    def slots(self) -> int:
        """How many steps the nodes run at the same time that are there now; one, which waits, where none is."""
        nodes = _nodes()
        cpus, gpus = self._needs(nodes)
        return max(1, sum(node.slots(cpus, gpus) for node in nodes))

    def check(self, config: WorkerConfig) -> None:
        """Compare all nodes that take steps with this machine, and take the plugin files along.

        Raises ZSQBenchError where a node does not see the folders, or has other versions, plugins or plugin files.
        """
        self._config = config
        self._files = tuple(PluginFile(path, path.read_bytes()) for path in config.plugin_files)
        nodes = [node for node in _nodes() if node.cpus]  # a head often takes no steps
        if not nodes:
            raise ZSQBenchError("no node of the Ray has a CPU for steps; start one with --num-cpus of 1 or more")
        here = installation(config.without)
        with _token(config.home) as token:
            asked = {token: f"home folder {config.home}"}
            if config.data_root is not None:
                asked[config.data_root] = f"data root {config.data_root}"
            sights = _look_around(nodes, tuple(asked), self._files, config.without)
        faults = [f"node {node.name} {fault}" for node in nodes for fault in faults_of(sights[node.id], here, asked)]
        if faults:
            raise ZSQBenchError("; ".join(faults))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run in a process of a node, as soon as one has room."""
        cpus, gpus = self._needs(_nodes())
        without = self._config.without if self._config else ()
        call = NodeCall(self._limits, installation(without), without, self._files, Call(fn, args, kwargs))
        reference = self._task.options(num_cpus=cpus, num_gpus=gpus).remote(call)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # `cancel` of a task that runs is the business of `shutdown`
        self._tasks[future] = reference
        reference.future().add_done_callback(functools.partial(self._hand_on, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the Ray, and end it where it was started for this; with `cancel_futures`, in the middle of tasks."""
        import ray

        if self.closed:
            return
        self.closed = True
        tasks = dict(self._tasks)
        with contextlib.suppress(Exception):  # the Ray may be gone
            if cancel_futures:
                for reference in tasks.values():
                    ray.cancel(reference, force=True)
                wait_for(tasks, PATIENCE)
            elif wait:
                wait_for(tasks)
        if self._own:
            ray.shutdown()

    def _needs(self, nodes: Sequence[Node]) -> tuple[int, int]:
        """The CPUs and GPUs of a step. A machine with fewer CPUs than threads runs one step, as with the pool."""
        most = max((node.cpus for node in nodes), default=1)
        device = self._config.device if self._config else "auto"
        return max(1, min(self._limits.threads, most)), int(device != "cpu" and any(node.gpus for node in nodes))

    def _hand_on(self, future: "Future[Any]", ended: "Future[Any]") -> None:
        """Give the caller's future what became of the task."""
        self._tasks.pop(future, None)
        error = ended.exception()
        if error is None:
            future.set_result(ended.result())
        else:
            future.set_exception(unwrapped(error))


def unwrapped(error: BaseException) -> BaseException:
    """What was raised in a task in place of Ray's wrapping, or one of our own errors for what ended it."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else RuntimeError(one_line(error))
    if isinstance(error, exceptions.NodeDiedError | exceptions.LocalRayletDiedError):
        return NodeLostError("its node was lost")
    if isinstance(error, exceptions.OutOfMemoryError):
        return WorkerDiedError(
            f"Ray ended the worker process, for its node was out of memory: {_first_sentence(error)}"
        )
    return WorkerDiedError(f"the worker process died: {_first_sentence(error)}")


def faults_of(sight: "Sight | str", here: Installation, asked: Mapping[Path, str]) -> list[str]:
    """What is wrong with a node, by what it has and sees, or by why it did not say; `asked` names paths."""
    if isinstance(sight, str):
        return [sight]
    faults = [f"does not see the {asked[path]}; it has to lie where all nodes see it" for path in sight.unseen]
    if different := here.differences(sight.installation):
        faults.append(f"has {', '.join(different)}; install the same on all nodes")
    return faults + [
        f"has another content of plugin file {path}; remove it there, or copy it" for path in sight.changed
    ]


@functools.cache
def installation(without: tuple[str, ...] = ()) -> Installation:
    """What is installed in this process's environment, but for the plugins that are left out; nothing is imported."""
    packages = ("zsqbench", "torch", "torchvision", "numpy")
    versions = {name: package_version(name).partition("+")[0] for name in packages}  # another build is no other version
    versions["Python"] = ".".join(platform.python_version_tuple()[:2])
    plugins = (plugin for plugin in installed_plugins() if not plugin.shipped and plugin.name not in without)
    return Installation(tuple(versions.items()), frozenset(f"{plugin.name} ({plugin.origin})" for plugin in plugins))


def run_call(asked: NodeCall) -> Any:
    """The task: call a function in the worker process that this process keeps.

    Raises ZSQBenchError on a node that came after the check and has other versions or plugins.
    """
    if different := asked.here.differences(installation(asked.without)):
        raise ZSQBenchError(f"the node {socket.gethostname()} joined with {', '.join(different)}")
    call, pool = asked.call, _pool(asked.limits, os.environ.get("CUDA_VISIBLE_DEVICES"))
    args = (_with_files(each, asked.files) if isinstance(each, WorkerConfig) else each for each in call.args)
    return pool.submit(call.fn, *args, **call.kwargs).result()


def look(paths: tuple[Path, ...], files: tuple[PluginFile, ...], without: tuple[str, ...]) -> Sight:
    """What this node has, and which paths it does not see, even after a while."""
    until = time.monotonic() + APPEAR_SECONDS
    while (unseen := tuple(path for path in paths if not path.exists())) and time.monotonic() < until:
        time.sleep(0.2)
    changed = tuple(file.path for file in files if file.path.exists() and file.path.read_bytes() != file.content)
    return Sight(installation(without), unseen, changed)


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


_pools: dict[tuple[Limits, str | None], WorkerPool] = {}


def _pool(limits: Limits, gpus: str | None) -> WorkerPool:
    """The pool of one worker that this process keeps, as long as limits and GPU stay the same."""
    if (limits, gpus) not in _pools:
        while _pools:
            _pools.popitem()[1].shutdown()
        _pools[limits, gpus] = WorkerPool(1, limits.threads, step_timeout=limits.step_timeout, memory=limits.memory)
    return _pools[limits, gpus]


def _connect(address: str | None, cpus: int) -> bool:
    """Connect this process to a Ray; True where it was not connected before.

    Raises ZSQBenchError where Ray is not installed, or none answers at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ZSQBenchError(f"the engine ray needs Ray, which is not installed: {INSTALL}") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    is_own = address == "local"
    if is_own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers of each start
    elif address != "auto":
        _check_answer(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker.print_to_stdstream = _tell  # noqa: SLF001 - there is no option that keeps stdout clean
    try:
        with _kept_handler(), warnings.catch_warnings(action="ignore"):
            ray.init(
                address,
                num_cpus=cpus if is_own else None,
                object_store_memory=OBJECT_STORE if is_own else None,
                include_dashboard=False if is_own else None,
                log_to_driver=False,
                configure_logging=False,
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ZSQBenchError(f"cannot use the Ray {_place(address)}: {_first_sentence(error)}") from error
    return True


def _tell(message: Mapping[str, Sequence[str]], **_: object) -> None:
    """Take what Ray says of its nodes, which it would print to stdout, where the table goes, with pages of its log."""
    said = " ".join(message["lines"]).strip().partition("\n")[0]
    _tell_once(said.partition(". ")[0])


@functools.cache
def _tell_once(said: str) -> None:
    log.warning("Ray says: %s", said)


def _place(address: str) -> str:
    return {"local": "of this machine", "auto": "that runs on this machine"}.get(address, f"at {address}")


def _check_answer(address: str) -> None:
    """Raise ZSQBenchError where no Ray answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ZSQBenchError(
            f"--address {address}: expected HOST:PORT of a Ray, as `ray start --head` tells it, or auto"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ZSQBenchError(f"no Ray answers at {address}: {why}; `ray start --head` starts one there") from error
    if answer[3:] != _SETTINGS:
        raise ZSQBenchError(f"what answers at {address} is no Ray; give HOST:PORT that `ray start --head` told")


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _nodes() -> list[Node]:
    """The nodes that are there now."""
    import ray

    return [
        Node(
            node["NodeID"],
            f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})",
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _look_around(
    nodes: Sequence[Node], paths: tuple[Path, ...], files: tuple[PluginFile, ...], without: tuple[str, ...]
) -> dict[str, Sight | str]:
    """What each node has and sees, by id, or why it did not say."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        node.id: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            paths, files, without
        )
        for node in nodes
    }
    until = time.monotonic() + CHECK_SECONDS
    found: dict[str, Sight | str] = {}
    for node, reference in asked.items():
        try:
            found[node] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            found[node] = f"did not say within {CHECK_SECONDS:g} s what is installed there"
        except Exception as error:  # noqa: BLE001 - zsqbench may not be there, or the node gone
            found[node] = f"cannot run steps: {_first_sentence(unwrapped(error))}"
    return found


@contextlib.contextmanager
def _token(home: Path) -> Iterator[Path]:
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


def _first_sentence(error: BaseException) -> str:
    """The first of what Ray says, which goes on for many lines."""
    return one_line(error).partition(". ")[0]


@hookimpl
def register_engines() -> list[type[Engine]]:
    """Ray, which need not be installed until it is used."""
    return [Ray]
