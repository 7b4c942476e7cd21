"""The engines that come with zsqbench: a pool of long-lived worker processes, and this process for a debugger."""

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from zsqbench.execution.processes import Guard, Worker, WorkerDiedError
from zsqbench.hookspecs import hookimpl
from zsqbench.methods import Engine


class Pool(Engine):
    """Worker processes on this machine. Each runs one step at a time, and has one GPU if there are GPUs.

    If a worker dies, or a step fails in it, only this worker is replaced. So the step that caused a death is known.
    """

    name: ClassVar[str] = "pool"

    def slots(self) -> int:
        """The number that the user asks for. Unset: one for each GPU, or for each `threads` cores."""
        return self.workers or len(gpus()) or max(1, cores() // self.threads)

    def start(self) -> Executor:
        """Start the workers as they are needed."""
        return WorkerPool(self.slots(), self.threads, step_timeout=self.step_timeout, memory=self.memory)


class InProcess(Engine):
    """No worker: steps run in the process that submits them, so that a debugger sees them."""

    name: ClassVar[str] = "in_process"

    def slots(self) -> int:
        """One."""
        return 1

    def start(self) -> Executor:
        """An executor whose `submit` runs the step before it returns."""
        return _Here()


class _Here(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor passes any exception on
            future.set_exception(error)
        return future


class WorkerPool(Executor):
    """An executor of workers. A worker is replaced after a step that failed in it or that may have changed it."""

    replaces_workers = True
    """Tells the run loop not to restart the executor when a worker dies."""

    def __init__(
        self, workers: int, threads: int, *, step_timeout: float | None = None, memory: int | None = None
    ) -> None:
        self._threads = threads
        self._memory = memory
        self._step_timeout = step_timeout
        self._workers: list[Worker | None] = [None] * workers
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._callers = ThreadPoolExecutor(workers, "worker")
        self._guard: Guard | None = None
        self._lock = threading.Lock()
        self._closed = False
        for slot in range(workers):
            self._free.put(slot)
        atexit.register(self.shutdown, cancel_futures=True)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run a call in the next free worker. If no worker is free, the call waits."""
        return self._callers.submit(self._call, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers and the processes that they started. With `cancel_futures`, interrupt their steps."""
        self._closed = True
        atexit.unregister(self.shutdown)
        self._callers.shutdown(wait=wait and not cancel_futures, cancel_futures=cancel_futures)
        with ThreadPoolExecutor(len(self._workers)) as enders:
            for slot in range(len(self._workers)):
                enders.submit(self._end, slot, at_once=cancel_futures)
        if self._guard is not None:
            self._guard.close()

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        slot = self._free.get()
        reusable = False
        try:
            value = self._worker(slot).call(self._step_timeout, fn, *args, **kwargs)
            reusable = getattr(value, "status", None) != "failed" and not getattr(value, "spent", False)
            return value
        finally:
            if not reusable:
                self._end(slot, at_once=True)
            self._free.put(slot)

    def _worker(self, slot: int) -> Worker:
        """The worker of a slot. It is a new worker if there was none, or if it died while it waited."""
        worker = self._workers[slot]
        if worker is not None and worker.is_alive():
            return worker
        self._end(slot, at_once=True)
        gpus_here = gpus()
        with self._lock:
            if self._closed:
                raise WorkerDiedError("the workers are ended")
            if self._guard is None:
                self._guard = Guard()
            gpu = gpus_here[slot % len(gpus_here)] if gpus_here else None
            worker = self._workers[slot] = Worker(self._threads, gpu, self._memory)
            self._guard.watch(worker.pid)
        return worker

    def _end(self, slot: int, *, at_once: bool) -> None:
        with self._lock:
            worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.end(at_once=at_once)
            if self._guard is not None:
                self._guard.leave(worker.pid)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs in the form of CUDA_VISIBLE_DEVICES, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    return list(_installed_gpus())


@cache
def _installed_gpus() -> tuple[str, ...]:
    """Numbers of the GPUs that the driver has. They do not change during a run, but the run loop asks at each step."""
    with contextlib.suppress(OSError):
        return tuple(str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir()))
    return ()


@hookimpl
def register_engines() -> list[type[Engine]]:
    """The pool and this process."""
    return [Pool, InProcess]
