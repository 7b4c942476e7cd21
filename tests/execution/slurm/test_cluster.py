"""Suites in jobs of submitit on this machine, and of a real Slurm; slow, and skipped where these are not there."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from runs import WAITS, Started, check_rows

from zsqbench.execution.endings import end_tree, known
from zsqbench.execution.slurm.commands import State
from zsqbench.execution.slurm.engine import Slurm


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
    check_rows(bench, "--engine", "slurm", workers=1)
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


CLUSTER = Path(__file__).parents[4] / "shared" / "cluster" / "slurm.sh"


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
    check_rows(bench, "--engine", "slurm", "--slurm-partition", "main", workers=2)


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
            end_tree(process.pid, known(process.pid))
    wait_until(lambda: jobs() == ["PENDING"], 60)
    job = command("squeue", "-h", "-o", "%A").strip()
    command("scontrol", "update", f"JobId={job}", "ReqNodeList=n2", "StartTime=now")
    bench.write("go", "")
    code, said = run.end()
    assert (code, set(bench.statuses().values()), bench.calls().count("waits")) == (0, {"done"}, 2), said
    assert f"job {job} continues on node n2, after Slurm ended it on node n1" in said
