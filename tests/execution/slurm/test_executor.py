import threading
import time
from types import SimpleNamespace

import pytest
from conditions import Here

import zsqbench.execution.slurm.executor as executing
from zsqbench.errors import ZSQBenchError
from zsqbench.execution.nodes import Limits
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm.commands import State
from zsqbench.execution.slurm.executor import SlurmExecutor
from zsqbench.leases import Leases
from zsqbench.steps import Outcome

LIMIT = 10
DONE = Outcome("done")


class Threads:
    """Starts each job as a thread. A job ends as the test says, or by itself."""

    def __init__(self):
        self.known = {}
        self.excluded = []
        self.cancelled = []
        self.refusals = []
        self.starts = lambda group: group()

    def submitter(self, folder, name, exclude):
        self.folder, self.excluded = folder, list(exclude)
        return self

    def submit(self, group):
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        number = str(len(self.known) + 1)
        self.known[number] = State("RUNNING")
        job = SimpleNamespace(job_id=number, paths=SimpleNamespace(stderr=self.folder / f"{number}_0_log.err"))

        def work():
            self.starts(group)
            if self.known[number].name == "RUNNING":
                self.known[number] = State("COMPLETED")

        threading.Thread(target=work, daemon=True).start()
        return job

    def states(self, _):
        return dict(self.known)

    def nodes(self):
        return {"n1", "n2"}

    def cancel(self, name):
        self.cancelled.append(name)
        self.known = dict.fromkeys(self.known, State("CANCELLED"))


@pytest.fixture
def queue(monkeypatch):
    for name in ("POLL_SECONDS", "STATE_SECONDS", "APPEAR_SECONDS", "REQUEUE_SECONDS"):
        monkeypatch.setattr(executing, name, 0.02)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return Threads()


@pytest.fixture
def executor(tmp_path, queue):
    made = SlurmExecutor(WorkerConfig(tmp_path), Limits(), queue)
    made._conditions = Here()
    yield made
    made.shutdown(cancel_futures=True)


def submit(executor, *functions, after=None):
    jobs = [SimpleNamespace(key=f"{number:064}", do=function) for number, function in enumerate(functions)]
    config = WorkerConfig(executor._home)
    return executor.submit_group(lambda _, job: job.do(), config, jobs, after or [()] * len(jobs))


def ended(future):
    """The name of the error with what it says, or the value."""
    error = future.exception(LIMIT)
    return future.result() if error is None else f"{type(error).__name__}: {error}"


def test_each_step_is_done_as_soon_as_its_answer_is_there(executor):
    go = threading.Event()
    first, second = submit(executor, lambda: DONE, lambda: go.wait(LIMIT))
    assert (first.result(LIMIT), first.node) == (DONE, "n1")
    until = time.monotonic() + LIMIT
    while not second.running() and time.monotonic() < until:
        time.sleep(0.01)
    assert (second.running(), second.done()) == (True, False)
    go.set()
    assert second.result(LIMIT) is True


def test_a_job_that_ends_in_a_step_has_killed_it_and_the_rest_was_not_begun(executor, queue, caplog):
    def killed():
        queue.known["1"] = State("OUT_OF_MEMORY")
        time.sleep(LIMIT)

    futures = submit(executor, lambda: DONE, killed, lambda: DONE)
    assert [ended(future) for future in futures] == [
        DONE,
        "WorkerDiedError: its job 1 ended (OUT_OF_MEMORY)",
        "NotBegunError: job 1 ended (OUT_OF_MEMORY)",
    ]
    executor.shutdown(cancel_futures=True)
    (told,) = (record.message for record in caplog.records)
    assert (told.startswith("job 1 ended (OUT_OF_MEMORY); its log is "), executor._folder.exists()) == (True, True)


def test_a_job_that_somebody_cancels_in_the_queue_is_a_death(executor, queue):
    queue.starts = lambda _: queue.known.update({"1": State("CANCELLED")})
    (future,) = submit(executor, lambda: DONE)
    assert ended(future) == "WorkerDiedError: its job 1 ended (CANCELLED)"


@pytest.mark.parametrize("log", ["", "x\n/opt/python: No such file or directory\n\n"])
def test_a_job_that_ends_before_its_first_step_has_an_unfit_node(executor, queue, log):
    def ends(_):
        (queue.folder / "1_0_log.err").write_text(log)
        queue.known["1"] = State("FAILED", "NonZeroExitCode", "n2")

    queue.starts = ends
    futures = submit(executor, lambda: DONE, lambda: DONE)
    why = "/opt/python: No such file or directory" if log else f"it may not see the home folder {executor._home}"
    expected = f"NodeUnfitError: job 1 ended (FAILED, NonZeroExitCode) before its first step: {why}"
    assert [ended(future) for future in futures] == [expected] * 2
    assert futures[0].node == "n2"


def test_a_job_that_finds_a_fault_has_an_unfit_node(executor):
    executor._conditions = Here("has torch 2.5.0 in place of 2.6.0; install the same on all nodes")
    (future,) = submit(executor, lambda: DONE)
    assert ended(future) == "NodeUnfitError: it has torch 2.5.0 in place of 2.6.0; install the same on all nodes"
    assert future.node == "n1"


def test_a_job_whose_node_is_lost_is_waited_for(executor, queue, caplog, monkeypatch):
    go = threading.Event()

    def lost(group):
        with (group.folder / "nodes").open("w") as nodes:
            nodes.write("n1\n")
        queue.known["1"] = State("NODE_FAIL")
        time.sleep(0.1)
        queue.known["1"] = State("PENDING", "BeginTime")
        go.wait(LIMIT)
        monkeypatch.setenv("SLURMD_NODENAME", "n2")
        group()

    monkeypatch.setattr(executing, "REQUEUE_SECONDS", LIMIT)
    queue.starts = lost
    (future,) = submit(executor, lambda: DONE)
    time.sleep(0.3)
    assert not future.done()
    go.set()
    assert (ended(future), future.node) == (DONE, "n2")
    assert [record.message for record in caplog.records] == [
        "job 1 continues on node n2, after Slurm ended it on node n1"
    ]


def test_a_job_that_slurm_does_not_take_waits_for_the_end_of_another(executor, queue, caplog):
    go = threading.Event()
    (first,) = submit(executor, lambda: go.wait(LIMIT))
    until = time.monotonic() + LIMIT
    while not queue.known and time.monotonic() < until:
        time.sleep(0.01)
    queue.refusals = ["sbatch: error: QOSMaxSubmitJobPerUserLimit\nmore"] * 20
    (second,) = submit(executor, lambda: DONE)
    time.sleep(0.3)
    assert not second.done()
    queue.refusals.clear()
    assert second.result(LIMIT) == DONE
    go.set()
    assert first.result(LIMIT)
    (told,) = (record.message for record in caplog.records)
    assert told == "Slurm takes no further job for now: QOSMaxSubmitJobPerUserLimit"


def test_a_job_that_slurm_never_takes_fails_its_steps(executor, queue):
    queue.refusals = ["sbatch: error: Batch job submission failed: Requested node configuration is not available"] * 20
    (future,) = submit(executor, lambda: DONE)
    why = "Batch job submission failed: Requested node configuration is not available"
    assert ended(future) == f"RuntimeError: Slurm does not take its job: {why}"


def test_jobs_that_all_wait_for_long_are_told_with_slurms_reason(executor, queue, caplog, monkeypatch):
    monkeypatch.setattr(executing, "WAIT_SECONDS", 0.1)
    go = threading.Event()

    def waits(group):
        queue.known["1"] = State("PENDING", "QOSGrpCpuLimit")
        go.wait(LIMIT)
        group()

    queue.starts = waits
    (future,) = submit(executor, lambda: DONE)
    time.sleep(0.5)
    go.set()
    assert future.result(LIMIT) == DONE
    assert [record.message for record in caplog.records] == ["all jobs (1) wait in Slurm's queue: QOSGrpCpuLimit"]


def test_a_slurm_that_does_not_answer_for_a_while_is_asked_again(executor, queue, caplog):
    states = queue.states
    fails = iter([True, True, False])

    def sometimes(name):
        if next(fails, False):
            raise ZSQBenchError("squeue does not answer: Socket timed out")
        return states(name)

    queue.states = sometimes
    queue.starts = lambda _: queue.known.update({"1": State("CANCELLED")})
    (future,) = submit(executor, lambda: DONE)
    assert ended(future) == "WorkerDiedError: its job 1 ended (CANCELLED)"
    assert "squeue does not answer: Socket timed out" in caplog.records[0].message


def test_a_node_is_excluded_unless_it_is_the_last(executor, queue):
    assert (executor.leave_out("n1"), executor.leave_out("n2")) == (True, False)
    (future,) = submit(executor, lambda: DONE)
    assert (future.result(LIMIT), queue.excluded) == (DONE, ["n1"])


def test_the_end_of_the_executor_ends_jobs_and_removes_their_files(executor, queue):
    (future,) = submit(executor, lambda: time.sleep(LIMIT))
    until = time.monotonic() + LIMIT
    while not future.running() and time.monotonic() < until:
        time.sleep(0.01)
    executor.shutdown(wait=False, cancel_futures=True)
    assert queue.cancelled == [executor.name]
    assert (executor._folder.exists(), Leases(executor._home).alive()) == (False, [])


def test_jobs_of_a_killed_run_are_ended_before_others_are_started(tmp_path, queue):
    (tmp_path / "slurm" / "slurm-killed").mkdir(parents=True)
    (tmp_path / "slurm" / "slurm-alive").mkdir()
    leases = Leases(tmp_path)
    leases.take("slurm-alive")
    queue.known["7"] = State("RUNNING")
    SlurmExecutor(WorkerConfig(tmp_path), Limits(), queue).shutdown()
    leases.close()
    assert queue.cancelled == ["slurm-killed"]
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["slurm-alive"]
