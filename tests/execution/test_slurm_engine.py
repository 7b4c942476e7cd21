"""Most tests put a queue of threads in the place of Slurm; those of the last parts need submitit, and a real Slurm."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from runs import Started

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import slurm_engine
from zsqbench.execution.endings import end_tree
from zsqbench.execution.nodes import Limits
from zsqbench.execution.processes import Answer, Call, WorkerDiedError
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm_engine import ENDS, Group, Slurm, SlurmExecutor, SlurmQueue, State
from zsqbench.leases import Leases
from zsqbench.methods.engine import NotBegunError
from zsqbench.plugins import load_plugins
from zsqbench.steps import Outcome

LIMIT = 10
DONE, FAILED = Outcome("done"), Outcome("failed", error="no")


class Here:
    """Conditions under which calls are made in this process."""

    def __init__(self, *faults):
        self.faults = list(faults)

    def look(self, _):
        return self.faults

    def call(self, fn, *args, **kwargs):
        return fn(*args, **kwargs)


# --- a job's function -----------------------------------------------------------------------------------------------


def group_of(folder, *functions, after=None, conditions=None):
    folder.mkdir(parents=True, exist_ok=True)
    calls = tuple(Call(function, (), {}) for function in functions)
    checkpoints = tuple(folder / f"checkpoint {place}" for place in range(len(calls)))
    return Group(folder, conditions or Here(), calls, tuple(after or [()] * len(calls)), checkpoints)


def raising(error):
    def function():
        raise error

    return function


def test_a_group_leaves_an_answer_of_each_step(tmp_path):
    group = group_of(tmp_path, lambda: DONE, raising(WorkerDiedError("died")), raising(ZSQBenchError("no")))
    group()
    done, died, refused = (group.answer(place) for place in range(3))
    assert (done, str(died.error), str(refused.error)) == (Answer(DONE), "died", "no")
    assert (type(died.error), type(refused.error)) == (WorkerDiedError, ZSQBenchError)


def test_an_answer_that_cannot_be_kept_is_an_error_of_its_own(tmp_path):
    group = group_of(tmp_path, lambda: lambda: None)
    group()
    assert isinstance(group.answer(0).error, RuntimeError)


def test_steps_after_one_that_failed_are_blocked_and_after_one_that_died_not_begun(tmp_path):
    begun = []
    functions = [lambda: FAILED, raising(WorkerDiedError("died")), *[lambda: begun.append("no")] * 3, lambda: DONE]
    group = group_of(tmp_path, *functions, after=[(), (), (0,), (1,), (2,), ()])
    group()
    answers = [group.answer(place) for place in range(6)]
    assert [answers[2].value, answers[4].value] == [Outcome("blocked", error="no")] * 2
    assert isinstance(answers[3].error, NotBegunError)
    assert (answers[5].value, begun) == (DONE, [])


def test_a_job_that_is_started_anew_goes_on_where_it_was(tmp_path, monkeypatch):
    called = []

    def is_lost():
        called.append("b")
        if called.count("b") == 1:
            raise SystemExit  # as submitit does where it has put the job back

    group = group_of(tmp_path, lambda: called.append("a"), is_lost)
    with pytest.raises(SystemExit):
        group()
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    group()
    assert (called, group.nodes()[-1], len(group.nodes())) == (["a", "b", "b"], "n2", 2)


@pytest.mark.parametrize("comes_further", [False, True])
def test_a_step_whose_job_is_ended_again_and_again_fails_unless_it_comes_further(tmp_path, monkeypatch, comes_further):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    group = group_of(tmp_path, lambda: DONE)
    for number in range(ENDS):
        assert group._ended_too_often(0) is None
        if comes_further:
            group.checkpoints[0].touch()
            os.utime(group.checkpoints[0], ns=(number + 1, number + 1))
    group()
    error = f"its job was ended {ENDS} times before it came further, on n1"
    assert group.answer(0).value == (DONE if comes_further else Outcome("failed", error=error))


def test_a_node_with_a_fault_does_no_step(tmp_path):
    group = group_of(tmp_path, raising(AssertionError), conditions=Here("has torch 2.5.0 in place of 2.6.0"))
    group()
    assert (group.fault(), group.answer(0), group.begun(0)) == ("has torch 2.5.0 in place of 2.6.0", None, False)


# --- the executor, on a queue of threads ----------------------------------------------------------------------------


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
        monkeypatch.setattr(slurm_engine, name, 0.02)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return Threads()


@pytest.fixture
def executor(tmp_path, queue):
    made = SlurmExecutor(WorkerConfig(tmp_path), Limits(), queue)
    made._conditions = Here()
    yield made
    made.shutdown(cancel_futures=True)


def submit(executor, *functions, after=None):
    calls = [(function, SimpleNamespace(key=f"{number:064}")) for number, function in enumerate(functions)]
    return executor.submit_group(lambda function, _: function(), calls, after or [()] * len(calls))


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


def test_one_step_alone_is_a_group(executor):
    job = SimpleNamespace(key="0" * 64)
    assert executor.submit(lambda config, job: (config, job.key), "config", job).result(LIMIT) == ("config", "0" * 64)


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
    why = "/opt/python: No such file or directory" if log else f"it may not see the home folder {executor._store.home}"
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

    monkeypatch.setattr(slurm_engine, "REQUEUE_SECONDS", LIMIT)
    queue.starts = lost
    (future,) = submit(executor, lambda: DONE)
    time.sleep(0.3)
    assert not future.done()
    go.set()
    assert (ended(future), future.node) == (DONE, "n2")
    assert [record.message for record in caplog.records] == [
        "job 1 goes on on node n2, after Slurm ended it on node n1"
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
    monkeypatch.setattr(slurm_engine, "WAIT_SECONDS", 0.1)
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
    assert (executor._folder.exists(), Leases(executor._store.home).alive()) == (False, [])


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


# --- options and commands -------------------------------------------------------------------------------------------


def test_the_engine_is_known_and_says_how_to_install_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    engine = load_plugins().find("engine", "slurm").method()
    with pytest.raises(ZSQBenchError, match=r"needs submitit, which is not installed: pip install 'zsqbench\[slurm\]'"):
        engine.check(WorkerConfig(tmp_path))


def test_a_machine_without_slurm_is_told_of(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ZSQBenchError, match="needs sbatch, which is not here; run on a machine of the cluster"):
        SlurmQueue({}, 1).check()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder for commands of Slurm, the only one in which commands are looked for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def add(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return add


def test_slurm_is_asked_before_the_first_step_whether_it_takes_such_jobs(commands, tmp_path):
    commands("sbatch", f'echo "$@" > {tmp_path}/asked')
    SlurmQueue({"partition": "gpu", "exclusive": "true", "time": "2:00:00"}, 4).check()
    asked = (tmp_path / "asked").read_text().split()
    expected = ["--test-only", "--cpus-per-task=4", "--time=2:00:00", "--partition=gpu", "--exclusive", "--wrap=true"]
    assert asked == expected


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("sbatch: error: invalid partition specified: zzz\nallocation failure", "invalid partition specified: zzz"),
        ("sbatch: unrecognized option '--x=3'\nTry", "unrecognized option '--x=3'"),
        ("sbatch: fatal: Unable to process configuration file", "Unable to process configuration file"),
        ("", "exit code 1"),
    ],
)
def test_options_that_slurm_does_not_take_are_one_line(commands, said, why):
    commands("sbatch", f'echo "{said}" >&2; exit 1')
    with pytest.raises(ZSQBenchError) as raised:
        SlurmQueue({"partition": "zzz"}, 1).check()
    assert str(raised.value) == f"Slurm does not take jobs with --slurm-partition zzz: {why}"


def test_options_that_the_engine_sets_are_refused(commands):
    commands("sbatch", "exit 0")
    with pytest.raises(ZSQBenchError, match="--slurm-array: zsqbench sets this itself"):
        SlurmQueue({"array": "1-3"}, 1).check()


def test_states_are_those_of_squeue(commands):
    commands("squeue", 'echo "7|PENDING|Priority|"; echo "8|FAILED|NonZeroExitCode|n2"')
    assert SlurmQueue({}, 1).states("slurm-x") == {
        "7": State("PENDING", "Priority", ""),
        "8": State("FAILED", "NonZeroExitCode", "n2"),
    }
    assert [str(State("FAILED", "NonZeroExitCode")), str(State("COMPLETED", "None"))] == [
        "FAILED, NonZeroExitCode",
        "COMPLETED",
    ]


def test_nodes_are_those_that_jobs_may_be_on(commands, tmp_path):
    commands("sinfo", f'echo "$@" > {tmp_path}/asked; echo n1; echo n2; echo n2')
    options = {"partition": "gpu", "nodelist": "n[1-2]", "qos": "high"}
    assert SlurmQueue(options, 1).nodes() == {"n1", "n2"}
    assert (tmp_path / "asked").read_text().split()[-2:] == ["--partition=gpu", "--nodes=n[1-2]"]


def test_a_command_that_hangs_is_given_up(commands, monkeypatch):
    commands("squeue", "exec sleep 60")
    monkeypatch.setattr(slurm_engine, "COMMAND_SECONDS", 0.2)
    with pytest.raises(ZSQBenchError, match="squeue does not answer"):
        SlurmQueue({}, 1).states("slurm-x")


def test_options_of_sbatch_are_refused_by_other_engines(bench):
    bench.matrix("")
    said = bench.run("--slurm-partition", "gpu", workers=1)
    assert (said.code, said.err.strip()) == (
        2,
        "error: --slurm-partition gpu: the engine pool has none; --engine slurm takes it",
    )


@pytest.mark.parametrize("words", [["--slurm-exclusive"], ["--slurm-exclusive", "--quiet"], ["--slurm-", "x"]])
def test_an_option_of_sbatch_without_value_or_name_is_refused(bench, words):
    bench.matrix("")
    said = bench.zsqbench("run", bench.file, *words)
    assert said.code == 2
    assert f"{words[0]} has no value; a flag of sbatch takes true, as in --slurm-exclusive true" in said.err


# --- jobs of submitit on this machine, and of a real Slurm ----------------------------------------------------------


class LocalQueue:
    """Jobs are processes that submitit starts on this machine."""

    def __init__(self):
        self.jobs = []

    def check(self):
        pass

    def submitter(self, folder, *_):
        submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install '.[slurm]'")
        self.executor = submitit.LocalExecutor(folder)
        self.executor.update_parameters(timeout_min=10)
        return self

    def submit(self, group):
        self.jobs.append(self.executor.submit(group))
        return self.jobs[-1]

    def states(self, _):
        return {job.job_id: State("RUNNING" if job.state == "RUNNING" else "COMPLETED") for job in self.jobs}

    def nodes(self):
        return {"here"}

    def cancel(self, _):
        for job in self.jobs:
            job.cancel()


@pytest.mark.slow("it starts processes of submitit, which take seconds each")
def test_a_suite_in_jobs_of_submitit_gives_what_one_process_gives(bench, monkeypatch):
    queue = LocalQueue()
    monkeypatch.setattr(Slurm, "_queue", queue)
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run_anew("here")
    here = bench.rows()
    said = bench.run_anew("there", "--engine", "slurm", workers=1)
    names = ("keys", "metrics", "definition", "status")
    there = bench.rows()
    assert said.code == 0, said.err
    assert [[row[name] for name in names] for row in there.values()] == [
        [row[name] for name in names] for row in here.values()
    ]
    assert len(queue.jobs) < len(list(bench.home.glob("store/*/*/manifest.json")))  # several steps in some


@pytest.mark.slow("it starts processes of submitit, which take seconds each")
def test_a_job_that_is_about_to_be_ended_goes_on_with_its_step(bench, monkeypatch):
    queue = LocalQueue()
    monkeypatch.setattr(Slurm, "_queue", queue)
    bench.add_plugin(WAITS)
    bench.matrix("generator: waits")
    ended = []
    run = threading.Thread(target=lambda: ended.append(bench.run("--engine", "slurm", workers=1)), daemon=True)
    run.start()
    wait_until((bench.folder / "started").exists)
    (task,) = psutil.Process(int(queue.jobs[-1].job_id)).children()
    task.send_signal(signal.SIGUSR2)
    wait_until(lambda: (bench.folder / "calls.txt").read_text().count("waits") == 2)
    bench.write("go", "")
    run.join(60)
    assert (ended[0].code, set(bench.statuses().values())) == (0, {"done"}), ended[0].err


WAITS = """
import time
class Waits(Toy):
    name = "waits"
    def generate(self, teacher, ctx):
        note("waits")
        (HERE / "started").touch()
        while not (HERE / "go").exists():
            time.sleep(0.1)
        return super().generate(teacher, ctx)
"""
CLUSTER = Path(__file__).parents[3] / "shared" / "cluster" / "slurm.sh"


def wait_until(holds, seconds=60):
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    assert holds()


def command(name, *words):
    """What a command prints."""
    return subprocess.run([shutil.which(name), *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def slurm():
    """A real Slurm of two nodes on this machine: a function that takes its verbs."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install '.[slurm]'")
    if not CLUSTER.exists():
        pytest.skip(f"{CLUSTER} is not there, which starts a Slurm")
    if shutil.which("slurmctld") is None or shutil.which("mariadbd") is None or os.getuid():
        pytest.skip("a Slurm needs root and Debian's packages slurm-wlm, slurmdbd, munge and mariadb-server")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # the database has a user of its own

    def cluster(verb, *more):
        words = ["/bin/bash", CLUSTER, verb, folder, *map(str, more)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # daemons keep a pipe

    cluster("start", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield cluster
    cluster("stop")
    shutil.rmtree(folder, ignore_errors=True)


def jobs():
    """The jobs that are in Slurm's queue, by state."""
    return sorted(command("squeue", "-h", "-o", "%T").split())


@pytest.mark.slow("it starts a Slurm, and its jobs take seconds each")
def test_a_suite_on_slurm_gives_what_one_process_gives(slurm, bench):
    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run_anew("here")
    here = bench.rows()
    said = bench.run_anew("there", "--engine", "slurm", "--slurm-partition", "main", workers=2)
    names = ("keys", "metrics", "definition", "status")
    assert said.code == 0, said.err
    assert [[row[name] for name in names] for row in bench.rows().values()] == [
        [row[name] for name in names] for row in here.values()
    ]


@pytest.mark.slow("it starts a Slurm, and its jobs take seconds each")
def test_a_partition_that_does_not_exist_is_one_line(slurm, bench):
    bench.matrix("")
    said = bench.run("--engine", "slurm", "--slurm-partition", "zzz", workers=1)
    reason = "Slurm does not take jobs with --slurm-partition zzz: invalid partition specified: zzz"
    assert (said.code, said.err.strip().splitlines()[-1]) == (2, f"error: {reason}")


@pytest.mark.slow("it starts a Slurm, and its jobs take seconds each")
def test_a_step_that_kills_its_worker_in_a_job_is_tried_once_more(slurm, bench):
    bench.add_plugin("""
import os
class Kills(Toy):
    name = "kills"
    def generate(self, *_):
        note("kills")
        os._exit(3)
""")
    bench.matrix("generator: [kills, toy]")
    said = bench.run("--engine", "slurm", workers=1)
    assert (said.code, list(bench.statuses().values()), bench.calls().count("kills")) == (1, ["failed", "done"], 2)


@pytest.mark.slow("it starts a Slurm, and its jobs take seconds each")
def test_ctrl_c_ends_the_jobs_of_slurm_and_the_next_run_goes_on(slurm, bench):
    run = Started(bench, "generator: [waits, toy]", "--engine", "slurm", more=WAITS)
    run.wait_for("started")
    run.process.send_signal(signal.SIGINT)
    code, said = run.end()
    assert (code, "interrupted" in set(bench.statuses().values())) == (130, True), said
    wait_until(lambda: jobs() == [], 10)
    bench.write("go", "")
    said = bench.run("--engine", "slurm", workers=1)
    assert (said.code, set(bench.statuses().values())) == (0, {"done"}), said.err


@pytest.mark.slow("it starts a Slurm and takes a node away, which takes half a minute to be seen")
def test_the_step_of_a_node_that_slurm_lost_is_done_on_another(slurm, bench):
    run = Started(bench, "generator: waits", "--engine", "slurm", "--slurm-nodelist", "n1", more=WAITS)
    run.wait_for("started")
    slurm("lose", "n1")
    for process in psutil.process_iter():  # the script leaves what runs in a job
        if process.name().startswith("slurmstepd"):
            end_tree(process.pid)
    wait_until(lambda: jobs() == ["PENDING"], 60)
    job = command("squeue", "-h", "-o", "%A").strip()
    command("scontrol", "update", f"JobId={job}", "ReqNodeList=n2", "StartTime=now")
    bench.write("go", "")
    code, said = run.end()
    assert (code, set(bench.statuses().values()), bench.calls().count("waits")) == (0, {"done"}, 2), said
    assert f"job {job} goes on on node n2, after Slurm ended it on node n1" in said
