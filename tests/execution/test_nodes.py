import os
import tempfile

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.execution.nodes import Conditions, Installation, Limits, PluginFile, end_workers
from zsqbench.execution.session import WorkerConfig
from zsqbench.methods.engine import NodeUnfitError

HERE = Installation((("torch", "2.6.0"), ("Python", "3.11")), frozenset({"mine (mine 1.0)"}))


@pytest.mark.parametrize(
    ("there", "different"),
    [
        (HERE, []),
        (
            Installation((("torch", "2.5.1"), ("Python", "3.12")), frozenset({"mine (mine 0.9)"})),
            [
                "torch 2.5.1 in place of 2.6.0",
                "Python 3.12 in place of 3.11",
                "no plugin mine (mine 1.0)",
                "the plugin mine (mine 0.9), which is not here",
            ],
        ),
    ],
)
def test_what_another_machine_has_otherwise_is_said(there, different):
    assert HERE.differences(there) == different


def test_a_plugin_file_is_copied_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_text("here")
    file = PluginFile(path, b"here")
    assert path == file.placed()
    path.unlink()
    copy = file.placed()
    assert (copy.name, copy.read_bytes(), copy == path) == ("mine.py", b"here", False)
    assert copy == file.placed()  # a worker's session lasts as long as its configuration is the same


def test_a_folder_of_another_user_gets_no_plugin_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ZSQBenchError, match=r"zsqbench-plugins-12345 on .* belongs to another user"):
        PluginFile(tmp_path / "mine.py", b"here").placed()


def test_a_node_looks_for_what_a_run_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("zsqbench.execution.nodes.APPEAR_SECONDS", 0.0)
    plugin = tmp_path / "mine.py"
    plugin.write_text("# mine")
    conditions = Conditions.of(Limits(), WorkerConfig(tmp_path, tmp_path / "data", (plugin,)))
    plugin.write_text("# another")
    assert conditions.look({tmp_path / "token": "home folder"}) == [
        "does not see the home folder; put it where all nodes see it",
        f"does not see the data root {tmp_path / 'data'}; put it where all nodes see it",
        f"has different content in plugin file {plugin}; remove it there, or copy it",
    ]


def test_a_node_without_a_fault_says_none(tmp_path):
    assert Conditions.of(Limits(), WorkerConfig(tmp_path, tmp_path)).look({}) == []


def test_a_node_with_other_versions_makes_no_call():
    conditions = Conditions(Limits(), Installation((("torch", "0.1"),) * 5, frozenset()))
    (fault,) = conditions.look({})
    assert fault.startswith("has ")
    assert fault.endswith("; install the same on all nodes")
    with pytest.raises(NodeUnfitError, match=r"it has .* in place of 0\.1.*; install the same on all nodes"):
        conditions.call(os.getpid)


def test_calls_are_made_in_one_worker_process_until_it_is_ended():
    conditions = Conditions.of(Limits())
    kept = conditions.call(os.getpid)
    assert kept == conditions.call(os.getpid) != os.getpid()
    end_workers()
    assert kept != conditions.call(os.getpid)
    end_workers()
