"""The engine `ray`: steps are tasks of Ray on this machine, or on the machines of a cluster that see one home.

A task runs its step as nodes.py says. Ray only says where.
"""

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution.engines import cores
from zsqbench.execution.nodes import Conditions, Limits, NodeFuture, token_in
from zsqbench.execution.processes import PATIENCE, Answer, Call, WorkerDiedError
from zsqbench.execution.session import WorkerConfig
from zsqbench.hookspecs import hookimpl
from zsqbench.methods import Engine
from zsqbench.methods.engine import NodeLostError

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

log = logging.getLogger("zsqbench")

INSTALL = "pip install 'zsqbench[ray]', or pip install '.[ray]' in a checkout"
OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory for Ray on this machine. It is the minimum of Ray, because steps pass files, not objects."""
CONNECT_SECONDS = 5.0
"""Seconds in which Ray must answer."""
CHECK_SECONDS = 60.0
"""Seconds in which a node must report its installed software. Its first process takes some seconds."""

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of a client of HTTP/2 (RFC 9113, section 3.4), with an empty frame of settings."""
_SETTINGS = b"\x04"
"""The type of the frame with which a server of HTTP/2, such as Ray, must answer. It is behind three bytes of length."""


class Ray(Engine):
    """Tasks of Ray, on this machine or on a cluster whose nodes see the home folder."""

    name: ClassVar[str] = "ray"

    address: str | None = Field(
        None, description="HOST:PORT of a running Ray; unset: RAY_ADDRESS, or else a new Ray on this machine"
    )
    _executor: "RayExecutor | None" = PrivateAttr(None)

    def check(self, config: WorkerConfig) -> None:
        """Check that all nodes see the folders and have the software of this machine. Raises ZSQBenchError."""
        executor = self._connected()
        try:
            executor.check(config)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise

    def slots(self) -> int:
        """The number that the user asks for. Unset: one for each GPU, or each `threads` cores, of the present nodes."""
        return self.workers or self._connected().slots()

    def start(self) -> Executor:
        """The executor, connected to Ray."""
        return self._connected()

    def leave_out(self, node: str) -> bool:
        """Give a node no more tasks, if there are other nodes."""
        return self._connected().leave_out(node)

    def _connected(self) -> "RayExecutor":
        """The executor that is not shut down yet, or a new executor. Nothing is started before it is needed."""
        if self._executor is None or self._executor.closed:
            limits = Limits(self.threads, self.step_timeout, self.memory)
            self._executor = RayExecutor(self.address, limits, self.workers)
        return self._executor


@dataclass(frozen=True)
class Node:
    """A present machine of Ray."""

    id: str
    name: str
    cpus: int
    gpus: int

    def slots(self, cpus: int, gpus: int) -> int:
        """How many steps with these CPUs and GPUs it runs at the same time."""
        return min(self.cpus // cpus, self.gpus // gpus if gpus else self.cpus)


class RayExecutor(Executor):
    """Submits each call as a task of Ray. Ray does not repeat tasks, because the run loop does this."""

    replaces_workers = True
    """Tells the run loop not to restart the executor when a worker dies."""

    def __init__(self, address: str | None = None, limits: Limits | None = None, workers: int | None = None) -> None:
        """Connect to Ray, or use the connection of this process. Raises ZSQBenchError if no Ray answers.

        A new Ray on this machine has CPUs for so many `workers`. None: the CPUs of the machine.
        """
        self.closed = False
        """True when it accepts no more calls."""
        self._limits = limits or Limits()
        self._own = _connect(address, self._limits.threads * workers if workers else cores())
        import ray

        # max_calls: Ray would end a process after each task that has a GPU
        self._task = ray.remote(max_retries=0, max_calls=0)(run_call)
        self._tasks: dict[NodeFuture, ObjectRef[Any]] = {}
        self._placed: dict[Future[Any], str] = {}
        """The nodes to which tasks were assigned by id, after a node was left out."""
        self._left_out: set[str] = set()
        """Names of nodes."""
        self._conditions = Conditions.of(self._limits)
        self._device = "auto"

    def slots(self) -> int:
        """How many steps the present nodes run at the same time. Without a node it is 1, and this step waits."""
        nodes = self._nodes()
        cpus, gpus = self._needs(nodes)
        return max(1, sum(node.slots(cpus, gpus) for node in nodes))

    def leave_out(self, node: str) -> bool:
        """Give a node no more tasks. False: there is no other node, and nothing changes."""
        others = {other.name for other in self._nodes() if other.cpus} - {node}
        if others:
            self._left_out.add(node)
        return bool(others)

    def check(self, config: WorkerConfig) -> None:
        """Compare all nodes that take steps with this machine, and send the plugin files with the calls.

        Raises ZSQBenchError if a node does not see the folders, or has other versions, plugins or plugin files.
        """
        self._conditions, self._device = Conditions.of(self._limits, config), config.device
        nodes = [node for node in self._nodes() if node.cpus]  # a head often takes no steps
        if not nodes:
            raise ZSQBenchError("no node of the Ray has a CPU for steps; start one with --num-cpus of 1 or more")
        with token_in(config.home) as token:
            found = _look_around(nodes, self._conditions, {token: f"home folder {config.home}"})
        if faults := [f"node {node.name} {fault}" for node in nodes for fault in found[node.id]]:
            raise ZSQBenchError("; ".join(faults))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NodeFuture:
        """Run a call in a process of a node, as soon as a node has room."""
        nodes = self._nodes()
        cpus, gpus = self._needs(nodes)
        future = NodeFuture()
        task = self._task.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=self._place(future, nodes))
        reference = task.remote(self._conditions, Call(fn, args, kwargs))
        future.set_running_or_notify_cancel()  # `shutdown` cancels running tasks
        self._tasks[future] = reference
        reference.future().add_done_callback(functools.partial(self._hand_on, future))
        return future

    def _nodes(self) -> list[Node]:
        """The present nodes that are not left out."""
        return [node for node in _nodes() if node.name not in self._left_out]

    def _place(self, future: NodeFuture, nodes: Sequence[Node]) -> "str | NodeAffinitySchedulingStrategy":
        """The choice of Ray. After a node was left out, which Ray cannot know, it is the node with the fewest tasks."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not self._left_out or not nodes:
            return "SPREAD"
        tasks = Counter(self._placed.values())
        node = min(nodes, key=lambda node: (tasks[node.id] + 1) / max(node.cpus, 0.1))
        self._placed[future] = node.id
        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnect from Ray, and end it if it was started here. With `cancel_futures`, interrupt tasks."""
        import ray

        if self.closed:
            return
        self.closed = True
        tasks = dict(self._tasks)
        with contextlib.suppress(Exception):  # Ray may be gone
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
        return max(1, min(self._limits.threads, most)), int(self._device != "cpu" and any(node.gpus for node in nodes))

    def _hand_on(self, future: NodeFuture, ended: "Future[tuple[str, Answer]]") -> None:
        """Give the outcome of the task to the caller's future."""
        self._tasks.pop(future, None)
        self._placed.pop(future, None)
        if (error := ended.exception()) is not None:
            future.set_exception(unwrapped(error))
            return
        future.node, answer = ended.result()
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error)


def unwrapped(error: BaseException) -> BaseException:
    """The exception of a task without the wrapping of Ray, or an error of zsqbench for its end."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else RuntimeError(one_line(error))
    if isinstance(
        error, exceptions.NodeDiedError | exceptions.LocalRayletDiedError | exceptions.TaskUnschedulableError
    ):
        return NodeLostError("its node was lost")
    if isinstance(error, exceptions.OutOfMemoryError):
        return WorkerDiedError(
            f"Ray ended the worker process, for its node was out of memory: {_first_sentence(error)}"
        )
    return WorkerDiedError(f"the worker process died: {_first_sentence(error)}")


def run_call(conditions: Conditions, call: Call) -> tuple[str, Answer]:
    """The task: the name of the node, and the answer of its worker process to a call."""
    import ray

    node = _name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())
    return node, Call(conditions.call, (call.fn, *call.args), call.kwargs).answer()


def _name(address: str, node: str) -> str:
    """The name of a node for people."""
    return f"{address} ({node[:8]})"


def _connect(address: str | None, cpus: int) -> bool:
    """Connect this process to Ray. True: it was not connected before.

    Raises ZSQBenchError if Ray is not installed, or no Ray answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    is_own = address == "local"
    if not is_own:
        _show_token()
    try:
        import ray
    except ImportError as error:
        raise ZSQBenchError(f"the engine ray needs Ray, which is not installed: {INSTALL}") from error
    if ray.is_initialized():
        return False
    if is_own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports each start to its makers
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


def _show_token() -> None:
    """Let Ray use the token of the cluster, if this machine has one. `ray start --head` of Ray 2.60 asks for it.

    Ray reads the variable once, when it is imported. A cluster without a token accepts any token.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _tell(message: Mapping[str, Sequence[str]], **_: object) -> None:
    """Log the messages of Ray on its nodes. Ray would print them to stdout, with pages of its log, beside the table."""
    said = " ".join(message["lines"]).strip().partition("\n")[0]
    _tell_once(said.partition(". ")[0])


@functools.cache
def _tell_once(said: str) -> None:
    log.warning("Ray says: %s", said)


def _place(address: str) -> str:
    return {"local": "of this machine", "auto": "that runs on this machine"}.get(address, f"at {address}")


def _check_answer(address: str) -> None:
    """Raise ZSQBenchError if no Ray answers. Ray itself would try for minutes."""
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
        raise ZSQBenchError(f"the server at {address} is not Ray; give the HOST:PORT that `ray start --head` prints")


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, because Ray replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _nodes() -> list[Node]:
    """The present nodes."""
    import ray

    return [
        Node(
            node["NodeID"],
            _name(node["NodeManagerAddress"], node["NodeID"]),
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _look_around(nodes: Sequence[Node], conditions: Conditions, seen: Mapping[Path, str]) -> dict[str, list[str]]:
    """The faults of each node, by id. `seen` names the paths that it must see."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(Conditions.look)
    asked = {
        node.id: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            conditions, seen
        )
        for node in nodes
    }
    until = time.monotonic() + CHECK_SECONDS
    found: dict[str, list[str]] = {}
    for node, reference in asked.items():
        try:
            found[node] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            found[node] = [f"did not say within {CHECK_SECONDS:g} s what is installed there"]
        except Exception as error:  # noqa: BLE001 - zsqbench may be missing there, or the node gone
            found[node] = [f"cannot run steps: {_first_sentence(unwrapped(error))}"]
    return found


def _first_sentence(error: BaseException) -> str:
    """The first sentence of a message of Ray, which has many lines."""
    return one_line(error).partition(". ")[0]


@hookimpl
def register_engines() -> list[type[Engine]]:
    """Ray, which need not be installed until it is used."""
    return [Ray]
