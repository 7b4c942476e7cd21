"""The engines that come with zsqbench: a pool of long-lived worker processes, and this process for a debugger."""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

from zsqbench.hookspecs import hookimpl
from zsqbench.methods import Engine

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


class Pool(Engine):
    """Spawned worker processes on this machine, one step at a time each, one GPU each where there are GPUs.

    Every worker is a process of its own pool: when one dies, or a step fails in it, that one alone is replaced, so that
    a step never changes another and a death has one culprit.
    """

    name: ClassVar[str] = "pool"

    def slots(self) -> int:
        """As many as asked for; else one for each GPU, or for each `threads` cores."""
        return self.workers or len(_gpus()) or max(1, _cores() // self.threads)

    def start(self) -> Executor:
        """Start the workers as they are needed."""
        return WorkerPool(self.slots(), self.threads)


class InProcess(Engine):
    """No worker at all: steps run in the process that submits them, so that a debugger sees them."""

    name: ClassVar[str] = "in_process"

    def slots(self) -> int:
        """One."""
        return 1

    def start(self) -> Executor:
        """An executor that has run the step when `submit` returns."""
        return _Here()


class _Here(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor hands on whatever was raised
            future.set_exception(error)
        return future


class WorkerPool(Executor):
    """An executor of single-process executors; a process is replaced after a failed step."""

    replaces_workers = True
    """Says to the run loop that a dead worker is no reason to start the executor anew."""

    def __init__(self, workers: int, threads: int) -> None:
        self._threads = threads
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._workers: list[ProcessPoolExecutor | None] = [None] * workers
        self._lock = threading.Lock()
        self._closed = False
        for slot in range(workers):
            self._free.put(slot)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run in the next free worker; waits for one where more is submitted than there are workers."""
        slot = self._free.get()
        try:
            future = self._submit(slot, fn, *args, **kwargs)
        except BaseException:
            self._free.put(slot)
            raise
        future.add_done_callback(lambda done: self._finished(slot, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers; with `cancel_futures`, at once, in the middle of what they do."""
        self._closed = True
        for slot in range(len(self._workers)):
            self._stop(slot, kill=cancel_futures, wait=wait)

    def _submit(self, slot: int, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> "Future[Any]":
        with _main_module_hidden():
            try:
                return self._worker(slot).submit(fn, *args, **kwargs)
            except BrokenProcessPool:  # it died while it waited
                self._stop(slot, kill=True, wait=False)
                return self._worker(slot).submit(fn, *args, **kwargs)

    def _worker(self, slot: int) -> ProcessPoolExecutor:
        with self._lock:
            worker = self._workers[slot] or self._start(slot)
            self._workers[slot] = worker
        return worker

    def _start(self, slot: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        gpus = _gpus()
        gpu = gpus[slot % len(gpus)] if gpus else None
        return ProcessPoolExecutor(1, context, initializer=_start_worker, initargs=(self._threads, gpu))

    def _finished(self, slot: int, future: "Future[Any]") -> None:
        healthy = not future.cancelled() and future.exception() is None
        if healthy:
            healthy = getattr(future.result(), "status", None) != "failed"
        if not healthy and not self._closed:
            self._stop(slot, kill=True, wait=False)
        self._free.put(slot)

    def _stop(self, slot: int, *, kill: bool, wait: bool) -> None:
        with self._lock:
            worker, self._workers[slot] = self._workers[slot], None
        if worker is None:
            return
        if kill:
            for process in list((worker._processes or {}).values()):  # noqa: SLF001 - public only from Python 3.14 on
                with contextlib.suppress(OSError):
                    process.kill()
        worker.shutdown(wait=wait, cancel_futures=True)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A process that starts meanwhile does not import the script that runs the suite: it needs zsqbench alone.

    Otherwise a script that calls `zsqbench.run` would run again in each worker, unless it were guarded.
    """
    names, here = ("__file__", "__spec__"), vars(sys.modules["__main__"])
    kept = {name: here[name] for name in names if name in here}
    here.pop("__file__", None)
    here["__spec__"] = None
    try:
        yield
    finally:
        here |= kept


def _start_worker(threads: int, gpu: str | None) -> None:
    """Prepare a fresh process before it imports torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors give back for those of the next step, up to a gigabyte, instead of the system.

    Each page that comes anew is a fault and is filled with zeros: a training step of a ResNet-20, 256 images, made
    50,000 faults and took a tenth longer. Larger tensors than 32 MB, which is as far as glibc goes, are as before.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc
        change = ctypes.CDLL(None).mallopt
        for parameter, value in ((_TRIM_THRESHOLD, 2**30), (_MMAP_THRESHOLD, 2**25)):
            change(parameter, value)


def _die_with_parent() -> None:
    """End this worker when the parent is killed; it would wait for the next step for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would name, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    with contextlib.suppress(OSError):
        return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir())]
    return []


@hookimpl
def register_engines() -> list[type[Engine]]:
    """The pool and this process."""
    return [Pool, InProcess]
