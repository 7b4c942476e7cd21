"""Run one step: plain data in, an artifact in the store and an Outcome out. All engines use this."""

import gc
import multiprocessing
import time
import traceback
from functools import lru_cache

from pydantic import TypeAdapter

from zsqbench.errors import (
    CorruptArtifactError,
    OutdatedError,
    OutOfMemoryError,
    OutOfResourcesError,
    ZSQBenchError,
    is_memory_shortage,
    one_line,
)
from zsqbench.execution.isolation import clean_state, copy_empty_tables_fast
from zsqbench.execution.session import GIB, Session, WorkerConfig
from zsqbench.steps.step import Job, Outcome, Progress
from zsqbench.store import Store

_PROGRESS = TypeAdapter(Progress)


def run_step(config: WorkerConfig, job: Job) -> Outcome:
    """Run a step. Exceptions of the step become its outcome."""
    started = time.perf_counter()
    device = ""
    try:
        session = _session(config)
        device = str(session.device)
        _run(session, job)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise  # Ctrl-C in the process of the command; a worker does not see it
        # a method may raise anything, or exit: it is recorded
        return Outcome(
            status="failed",
            seconds=time.perf_counter() - started,
            device=device,
            error=_cause(error, config),
            traceback=None if isinstance(error, ZSQBenchError) else "".join(traceback.format_exception(error)),
            damaged=error.key if isinstance(error, CorruptArtifactError) else None,
            outdated=isinstance(error, OutdatedError),
        )
    return Outcome("done", time.perf_counter() - started, device, spent=_is_spent(config))


def read_progress(store: Store, key: str) -> Progress | None:
    """The last progress of a running step. None: there is none."""
    try:
        return _PROGRESS.validate_json((store.partial(key) / "progress.json").read_bytes())
    except (OSError, ValueError):  # the step may have ended meanwhile, and a plugin may write anything there
        return None


def _run(session: Session, job: Job) -> None:
    """Run a step. If memory was full, run it once more with options that need less memory and change no number."""
    try:
        with clean_state(session.device, job.key, job.settings.threads):
            session.run(job)
    except OutOfMemoryError:
        less = session.with_less_memory(job)
        if less is None:
            raise
    else:
        return
    gc.collect()  # free the memory of the first attempt
    lower, note = less
    with clean_state(session.device, job.key, job.settings.threads):
        session.run(lower, note)


def _cause(error: BaseException, config: WorkerConfig) -> str:
    """The failure in one line. If memory was full outside the work of a method, the line names the limit."""
    said = one_line(error)
    if isinstance(error, OutOfResourcesError) or not is_memory_shortage(error):
        return said
    limit = f", and --memory allows {config.memory / GIB:g} GiB" if config.memory else ""
    return f"the worker ran out of memory ({said}{limit})"


def _is_spent(config: WorkerConfig) -> bool:
    """True if no other step may run in this process, because a method that is not shipped ran in it."""
    if config.isolation == "auto":
        return _session(config).loaded_others
    return config.isolation == "step"


@lru_cache(maxsize=1)
def _session(config: WorkerConfig) -> Session:
    copy_empty_tables_fast()
    return Session(config)
