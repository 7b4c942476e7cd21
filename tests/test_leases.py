import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zsqbench.leases import SECONDS, Leases

HOLDER = """
import sys, time
from pathlib import Path
from zsqbench.leases import Leases
leases = Leases(Path(sys.argv[1]))
print(getattr(leases, sys.argv[2])("key"), flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def other_process(home, how):
    """A process that holds "key" by `take` or `claim`, and does not end by itself."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, home, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    with other_process(tmp_path, "take") as process:
        yield process


@pytest.fixture
def claimant(tmp_path):
    with other_process(tmp_path, "claim") as process:
        yield process


def test_a_lease_has_one_holder(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert one.take("key")
    assert one.take("key")
    assert not other.take("key")
    assert other.take("another key")
    one.release("key")
    assert other.take("key")


def test_a_lease_of_another_process_is_taken_over_once_it_is_dead(tmp_path, holder):
    leases = Leases(tmp_path)
    assert not leases.take("key")
    holder.kill()
    holder.wait()
    assert leases.take("key")


def test_a_lease_is_held_for_a_while_only(tmp_path):
    leases = Leases(tmp_path)
    with leases.hold("key") as taken:
        assert taken
        with Leases(tmp_path).hold("key") as also:
            assert not also
        assert leases.alive() == ["key"]
    assert leases.alive() == []


def test_those_alive_are_told_by_how_their_names_begin(tmp_path, holder):
    leases = Leases(tmp_path)
    leases.take("run-1")
    assert leases.alive() == ["key", "run-1"]
    assert leases.alive("run-") == ["run-1"]
    old = time.time() - 2 * SECONDS
    os.utime(tmp_path / "leases" / "key.lease", (old, old))
    assert leases.alive() == ["run-1"]


def test_files_of_the_dead_are_stale(tmp_path):
    leases = Leases(tmp_path)
    assert leases.stale() == []
    leases.take("run-1")
    left = [tmp_path / "leases" / name for name in ("key.lease", "tmp12345678")]
    for file in (*left, tmp_path / "leases" / "folder" / "file"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (1, 1))
    assert (leases.stale(), leases.alive()) == (left, ["run-1"])


def test_a_lease_that_is_given_back_during_a_look_is_not_alive(tmp_path, monkeypatch):
    leases = Leases(tmp_path)
    leases.take("run-1")
    monkeypatch.setattr(Path, "glob", lambda self, _: [self / "run-0.lease", self / "run-1.lease"])
    assert leases.alive() == ["run-1"]


def test_all_are_given_back_at_the_end(tmp_path):
    leases = Leases(tmp_path)
    leases.take("one")
    leases.take("other")
    leases.close()
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_grants_each_lease():
    assert Leases(Path("/proc")).take("key")


def test_a_claim_has_one_holder_until_it_is_given_back(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert one.claim("step")
    assert one.claim("step")
    assert one.claim("another")
    assert not other.claim("step")
    one.release("step")
    assert other.claim("step")
    assert not one.claim("step")
    one.release("step")
    assert not one.claim("step")  # what is not one's own is not given back
    one.close()
    other.close()
    assert list((tmp_path / "leases").iterdir()) == []


def test_many_claims_have_one_heartbeat(tmp_path):
    leases = Leases(tmp_path)
    before = threading.active_count()
    assert all(leases.claim(f"step {number}") for number in range(20))
    assert threading.active_count() == before + 1
    leases.close()


def test_a_claim_of_a_process_that_died_is_taken_over_once(tmp_path, claimant):
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert not one.claim("key")
    claimant.kill()
    claimant.wait()
    assert one.claim("key")
    assert not other.claim("key")


def test_claims_of_the_dead_are_stale(tmp_path, claimant):
    leases = Leases(tmp_path)
    leases.claim("mine")
    assert leases.stale() == []
    claimant.kill()
    claimant.wait()
    old = time.time() - 2 * SECONDS
    for file in (tmp_path / "leases").glob("*.lease"):
        if str(os.getpid()) not in file.name:
            os.utime(file, (old, old))
    assert [file.name for file in leases.stale() if file.suffix == ".claim"] == ["key.claim"]


def test_a_claim_is_a_lease_like_any_other_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert one.claim("key")
    assert not other.claim("key")
    one.release("key")
    assert other.claim("key")


def test_a_folder_that_cannot_be_written_to_grants_each_claim():
    assert Leases(Path("/proc")).claim("key")
