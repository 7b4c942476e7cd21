"""Worker processes: start them, call functions in them, and end them with the processes that they started."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import psutil

from zsqbench.containment import describe_exit
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution import endings
from zsqbench.execution.endings import end_tree, known, tree
from zsqbench.execution.session import GIB

PATIENCE = 5.0
"""Seconds in which a worker can end itself. Then it is killed."""

_PRELOADED = ["zsqbench.execution.preload"]
_BEFORE_TORCH = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Variables that libraries read when they are loaded. The threads of torch are set for each step instead."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

_SET_CHILD_SUBREAPER = 36
"""A command of Linux's `prctl`: orphans below this process become its children."""

_starting = threading.RLock()
"""multiprocessing has no lock for its list of children and its server of processes."""


class WorkerDiedError(BrokenExecutor):
    """A worker ended in the middle of a call."""


@dataclass(frozen=True)
class Preparation:
    """The settings that a worker gets before its first call. They are plain data."""

    environment: Mapping[str, str]
    threads: int
    gpu: str | None = None
    memory: int | None = None
    """The most bytes of the process. None: no limit."""


@dataclass(frozen=True)
class Answer:
    """The answer to a call: a value, or the exception that was raised."""

    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Call:
    """A function that a worker is to call."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def answer(self) -> Answer:
        """Call it. Never raises."""
        try:
            return Answer(self.fn(*self.args, **self.kwargs))
        except BaseException as error:  # noqa: BLE001 - the parent is told of any exception
            return Answer(error=error)


class Worker:
    """The parent's side of a worker: a process that runs one call at a time.

    A server forks the workers. It has imported torch and the shipped plugins and has run nothing, so a fresh process
    costs a few hundredths of a second. Each worker leads its own session. So Ctrl-C in a terminal does not reach it,
    and the processes that it started are found below it when it ends.
    """

    def __init__(self, threads: int, gpu: str | None = None, memory: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        preparation = Preparation(dict(os.environ), threads, gpu, memory)
        self._limited = memory is not None
        with _starting, _main_module_hidden(), _environment(_BEFORE_TORCH):
            multiprocessing.forkserver.set_forkserver_preload(_PRELOADED)
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, preparation))
            self._process.start()
            theirs.close()
        self.pid: int = self._process.pid or 0
        self._known = known(self.pid)

    def is_alive(self) -> bool:
        """True if the process has not ended."""
        return not wait([self._process.sentinel], 0)

    def call(self, seconds: float | None, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in the process, and return its value or raise its exception.

        Raises WorkerDiedError if the process ends meanwhile, and ZSQBenchError if the call takes longer than `seconds`.
        """
        try:
            self._connection.send(Call(fn, args, kwargs))
            ended = wait([self._connection, self._process.sentinel], seconds)
            if not ended:
                raise ZSQBenchError(
                    f"it ran for longer than {seconds:g} s, the limit for a step; a run with a higher limit "
                    "(--step-timeout, or step_timeout in the suite) goes on from its last checkpoint"
                )
            if not self._connection.poll():  # a child that still lives may hold the other end
                raise WorkerDiedError(self._ending())
            answer: Answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._ending()) from error
        if answer.error is not None:
            raise answer.error
        return answer.value

    def end(self, *, at_once: bool) -> None:
        """End the process and all that it started. Threads, exit handlers and children have `PATIENCE` seconds."""
        started = [] if at_once else tree(self.pid)
        if not at_once:
            with contextlib.suppress(OSError):
                self._connection.send(None)
            wait([self._process.sentinel], PATIENCE)
        end_tree(self.pid, self._known, started)
        wait([self._process.sentinel], PATIENCE)
        self._connection.close()

    def _ending(self) -> str:
        wait([self._process.sentinel], PATIENCE)
        with _starting:
            code = self._process.exitcode
        if code is None:
            return "the worker process does not answer"
        if code >= 0:
            return f"the worker process died: the step ended it with {describe_exit(code)}"
        memory = "; the system may have been out of memory" if -code == signal.SIGKILL else ""
        if self._limited and -code == signal.SIGABRT:  # C++ aborts if an exception finds no memory
            memory = "; it may have been out of memory, which --memory limits"
        return f"the worker process died of {describe_exit(code)}{memory}"


class Guard:
    """A small process. When this process ends in any way, it ends the workers and the processes that they started."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", endings.__file__]  # -P: no module beside it hides a module of Python
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
        self._lock = threading.Lock()

    def watch(self, pid: int) -> None:
        """Watch a worker."""
        self._tell("watch", pid)

    def leave(self, pid: int) -> None:
        """Stop watching a worker, because it has ended."""
        self._tell("leave", pid)

    def close(self) -> None:
        """End the processes that are still watched, and the guard itself."""
        with self._lock, contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)

    def _tell(self, what: str, pid: int) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # it was killed, or is closed
            self._stdin.write(f"{what} {pid}\n")
            self._stdin.flush()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        return self._process.stdin


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A process that starts meanwhile does not import the script that runs the suite, because it only needs zsqbench.

    Otherwise a script without a guard that calls `zsqbench.run` would run again in each worker.
    """
    names, here = ("__file__", "__spec__"), vars(sys.modules["__main__"])
    kept = {name: here[name] for name in names if name in here}
    here.pop("__file__", None)
    here["__spec__"] = None
    try:
        yield
    finally:
        here |= kept


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a process that starts meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, preparation: Preparation) -> None:
    """The main function of a worker: run the calls that are sent, until the connection ends.

    It does not wait for threads and does not call exit handlers, because a method may have left some behind.
    """
    try:
        _prepare(preparation)
    except Exception as error:  # noqa: BLE001 - the first call is answered with any exception
        connection.send(Answer(error=error))
        os._exit(1)
    while (call := _receive(connection)) is not None:
        try:
            connection.send(call.answer() if isinstance(call, Call) else call)
        except OSError:
            break  # the parent has gone
        except Exception as error:  # noqa: BLE001 - the answer cannot be pickled
            connection.send(Answer(error=RuntimeError(one_line(error))))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a method may have replaced or closed the stream
            stream.flush()
    os._exit(0)


def _receive(connection: Connection) -> Call | Answer | None:
    """The next call, or the answer to a call that cannot be read. None: the parent has gone, or sends no more calls."""
    try:
        call: Call | None = connection.recv()
    except (EOFError, OSError):
        return None
    except Exception as error:  # noqa: BLE001 - the call cannot be imported here
        return Answer(error=RuntimeError(one_line(error)))
    return call


def _prepare(preparation: Preparation) -> None:
    """Prepare a fresh process for steps."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ.clear()
    os.environ.update(preparation.environment)
    for variable in _BEFORE_TORCH:
        os.environ[variable] = str(preparation.threads)  # for processes that a method starts
    if preparation.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = preparation.gpu
    _call_libc("prctl", _SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if preparation.memory is not None:
        _limit_memory(preparation.memory)


def _limit_memory(limit: int) -> None:
    """Limit the memory of this process to so many bytes. Raises ZSQBenchError if it has already taken them."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    taken = psutil.Process().memory_info().rss
    if limit < taken:
        text = f"a worker takes {taken / GIB:.1f} GiB before its first step, and --memory allows {limit / GIB:.1g}"
        raise ZSQBenchError(f"{text}; allow more")
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of freed memory for later tensors, and not return it to the system.

    Each new page causes a fault and is filled with zeros. A training step of a ResNet-20, 256 images, made 50,000
    faults and took a tenth longer. Tensors above 32 MB, the limit of glibc, are not affected.
    """
    for parameter, value in ((_TRIM_THRESHOLD, 2**30), (_MMAP_THRESHOLD, 2**25)):
        _call_libc("mallopt", parameter, value)


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the system's C library, if the library has it."""
    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


def _die_with_parent() -> None:
    """End this worker when the parent is killed. Otherwise it would wait forever for the next step.

    Usually the guard ends the worker and the processes that it started. This is for the case that the guard was killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        time.sleep(PATIENCE)
        os.killpg(0, signal.SIGKILL)
