import multiprocessing
import pickle
from types import SimpleNamespace

import pytest

from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.execution import worker
from zsqbench.execution.session import WorkerConfig
from zsqbench.methods import Settings
from zsqbench.steps import Progress
from zsqbench.store import Store


@pytest.fixture
def outcome(monkeypatch, tmp_path):
    """The outcome of a step that does this."""

    def outcome(does):
        import torch

        session = SimpleNamespace(device=torch.device("cpu"), run=does, loaded_others=False)
        monkeypatch.setattr(worker, "_session", lambda _: session)
        return worker.run_step(WorkerConfig(tmp_path), SimpleNamespace(key="0" * 64, settings=Settings()))

    return outcome


def raises(error):
    def does(_):
        raise error

    return does


def test_a_step_that_ends_is_done(outcome):
    found = outcome(lambda _: None)
    assert (found.status, found.device, found.error, found.seconds >= 0) == ("done", "cpu", None, True)


def test_a_bug_is_a_failure_with_its_traceback(outcome):
    found = outcome(raises(ValueError("no\nluck")))
    assert (found.status, found.error, found.damaged) == ("failed", "ValueError: no luck", None)
    assert found.traceback.rstrip().endswith("ValueError: no\nluck")


def test_a_mistake_of_the_user_has_no_traceback(outcome):
    found = outcome(raises(ZSQBenchError("give another seed")))
    assert (found.status, found.error, found.traceback) == ("failed", "give another seed", None)


def test_a_damaged_artifact_is_named_by_its_key(outcome):
    found = outcome(raises(CorruptArtifactError("a" * 64, "torn")))
    assert (found.status, found.damaged, found.traceback) == ("failed", "a" * 64, None)


def test_memory_that_is_full_beside_the_work_of_a_method_is_told(outcome):
    assert outcome(raises(MemoryError())).error == "the worker ran out of memory (MemoryError)"


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError(), GeneratorExit()])
def test_whatever_a_method_raises_is_an_outcome(outcome, error):
    assert outcome(raises(error)).status == "failed"


def test_control_c_is_handed_on_in_the_process_of_the_command_and_in_no_worker(outcome, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        outcome(raises(KeyboardInterrupt()))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "a command")
    assert outcome(raises(KeyboardInterrupt())).status == "failed"


def test_an_outcome_survives_the_way_back_from_a_worker(outcome):
    found = outcome(raises(CorruptArtifactError("a" * 64, "torn")))
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own


def test_progress_is_what_a_step_said_last(tmp_path):
    store = Store(tmp_path)
    assert worker.read_progress(store, "key") is None
    store.partial("key").mkdir(parents=True)
    file = store.partial("key") / "progress.json"
    file.write_text('{"done": 3, "total": 9, "values": {"loss": 0.5}}')
    assert worker.read_progress(store, "key") == Progress(3, 9, {"loss": 0.5})
    file.write_text('{"done": 3, "tot')
    assert worker.read_progress(store, "key") is None


@pytest.mark.parametrize(
    "text", ["[]", "5", '{"done": "x"}', '{"values": [1]}', '{"values": {"loss": []}}', "\udcff", "[" * 100_000]
)
def test_progress_that_is_none_is_not_shown(tmp_path, text):
    store = Store(tmp_path)
    store.partial("key").mkdir(parents=True)
    (store.partial("key") / "progress.json").write_text(text, errors="surrogateescape")
    assert worker.read_progress(store, "key") is None
