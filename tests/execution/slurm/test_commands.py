import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.session import WorkerConfig
from zsqbench.execution.slurm import commands as slurm_commands
from zsqbench.execution.slurm.commands import SlurmQueue, State
from zsqbench.plugins import load_plugins


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
    monkeypatch.setattr(slurm_commands, "COMMAND_SECONDS", 0.2)
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
