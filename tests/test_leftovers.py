import os
import shutil

import pytest

from zsqbench import leftovers as leftovers_module
from zsqbench.leases import Leases
from zsqbench.leftovers import Leftovers, remove, size_of
from zsqbench.store import Store

KEY = "a" * 64


def make(path, old=True):
    """A file of four bytes that nobody has written to for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left")
    if old:
        os.utime(path, (1, 1))
    return path


def temporary(home):
    """The leftovers of a killed run that nobody can go on from."""
    return [
        make(home / "store" / "generate" / f".{KEY}.0123abcd" / "file").parent,
        make(home / ".digests.json.0123abcd"),
        make(home / "compiled" / "machine" / KEY / ".kernels.zip.0123abcd"),
        make(home / "partial" / KEY / ".progress.json.0123abcd"),
        make(home / "partial" / KEY / ".checkpoint.safetensors"),
        make(home / "leases" / "run-1.lease"),
        make(home / "leases" / "tmp0123abcd"),
    ]


def test_what_a_killed_run_left_is_cleared_and_what_steps_go_on_from_stays(tmp_path):
    left = temporary(tmp_path)
    kept = [make(tmp_path / "partial" / KEY / "checkpoint.safetensors"), make(tmp_path / "damaged" / "x" / "file")]
    assert Leftovers(tmp_path).clear_temporary() == len(left)
    assert [path.exists() for path in (*left, *kept)] == [False] * len(left) + [True] * len(kept)


def test_nothing_is_cleared_while_others_are_at_work(tmp_path):
    left = temporary(tmp_path)
    with Leases(tmp_path).hold("run-2"):
        assert Leftovers(tmp_path).clear_temporary(["run-3"]) == 0
        assert all(path.exists() for path in left)
        assert Leftovers(tmp_path).clear_temporary(["run-2"]) == len(left)
        assert Leases(tmp_path).alive() == ["run-2"]


def test_what_begins_while_leftovers_are_looked_for_is_not_cleared(tmp_path, monkeypatch):
    """A run that comes after the look is not seen by it; one that comes before is seen by its lease."""
    other = Leases(tmp_path)
    late = tmp_path / "store" / "generate" / f".{KEY}.ffffffff"

    def alive(self):
        late.mkdir(parents=True, exist_ok=True)
        return []

    monkeypatch.setattr(Leases, "alive", alive)
    assert Leftovers(tmp_path).clear_temporary() == 0
    assert (late.exists(), other.take("run-1")) == (True, True)


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    new = [
        make(tmp_path / ".digests.json.0123abcd", old=False),
        make(tmp_path / "partial" / KEY / ".x.json", old=False),
    ]
    assert Leftovers(tmp_path).clear_temporary() == 0
    assert all(path.exists() for path in new)
    assert [leftover.path for leftover in Leftovers(tmp_path).all()] == [tmp_path / "partial" / KEY]


def test_what_is_not_of_zsqbench_is_no_leftover(tmp_path):
    for name in (".hidden", ".env.backup", "notes.0123abcd", "store/generate/.git/config", "store/.x.0123abcd/file"):
        make(tmp_path / name)
    assert Leftovers(tmp_path).all() == []


def test_a_home_that_is_not_there_has_no_leftovers(tmp_path):
    home = tmp_path / "home"
    assert (Leftovers(home).all(), Leftovers(home).clear_temporary(), home.exists()) == ([], 0, False)


def test_what_vanishes_while_it_is_removed_is_no_error(tmp_path, monkeypatch):
    left = temporary(tmp_path)
    look = Leftovers._unfinished

    def vanish(self):
        found = look(self)
        for path in found:
            remove(path)
        return found

    monkeypatch.setattr(Leftovers, "_unfinished", vanish)
    assert Leftovers(tmp_path).clear_temporary() == len(left)
    remove(tmp_path / "nowhere")


def test_what_cannot_be_removed_costs_space_only(tmp_path, monkeypatch):
    left = temporary(tmp_path)

    def refused(path):
        raise PermissionError(path)

    monkeypatch.setattr(leftovers_module, "remove", refused)
    Leftovers(tmp_path).clear_temporary()
    assert all(path.exists() for path in left)


def test_an_artifact_is_complete_or_absent_while_it_is_removed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write("generate", KEY, {}, lambda folder: make(folder / "a") and None)

    def killed(path):
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(store.folder("generate", KEY))
    assert (store.has("generate", KEY), store.strays()) == (False, [])
    assert [leftover.path for leftover in Leftovers(tmp_path).all()] == store.unfinished()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    make(tmp_path / "folder" / "file")
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_size_is_that_of_all_files(tmp_path):
    make(tmp_path / "a" / "b" / "file")
    make(tmp_path / "a" / "file")
    (tmp_path / "a" / "link").symlink_to("nowhere")
    assert size_of(tmp_path / "a" / "file") == 4
    assert size_of(tmp_path / "a") == 8 + (tmp_path / "a" / "link").lstat().st_size
    assert size_of(tmp_path / "nowhere") == 0
