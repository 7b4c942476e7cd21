import errno
import os
import shutil
from pathlib import Path

import pytest
from brief import parametrize_briefly

from zsqbench.execution.kernels import archives, kept_kernels
from zsqbench.leases import Leases


def last(text):
    return text.splitlines()[-1]


def test_the_cache_is_listed_by_kind_and_label(bench):
    bench.matrix("")
    bench.run()
    lines = bench.zsqbench("cache", "ls", "--home", bench.home).out.splitlines()
    expected = ["baseline a", "diagnose a toy seed 0", "evaluate a toy toyq hw/w4a4 seed 0", "generate a toy seed 0"]
    assert expected == [line.split("MB  ")[1] for line in lines[:4]]


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_the_cache_is_listed_with_what_is_damaged_in_it(bench, content):
    bench.matrix("")
    bench.run()
    (bench.artifacts("generate")[0] / "manifest.json").write_text(content)
    said = bench.zsqbench("cache", "ls", "--home", bench.home)
    assert (said.code, "is damaged" in said.out) == (0, True), said.err


def test_an_empty_cache_is_listed_as_nothing(bench):
    assert (bench.zsqbench("cache", "ls", "--home", bench.home).code, "") == (0, "")


def test_a_sound_cache_is_verified(bench):
    bench.matrix("")
    bench.run()
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    assert (said.code, said.out) == (0, "7 artifacts, 0 damaged\n")


@parametrize_briefly("kind", ["resolve", "inspect", "baseline", "generate", "diagnose", "quantize", "evaluate"], 3)
def test_verify_finds_a_flipped_byte_and_puts_the_artifact_aside(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    file = min(sorted(folder.iterdir()), key=lambda path: path.name == "manifest.json")  # some have no other
    content = bytearray(file.read_bytes())
    place = content.find(b"seconds") if file.name == "manifest.json" else -1
    content[place] ^= 1
    file.write_bytes(content)
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    named = f"{kind} artifact {folder.name[:12]} is damaged (the content of {file.name} has changed)"
    assert (said.code, named in said.out, last(said.out), folder.exists()) == (1, True, "7 artifacts, 1 damaged", False)


def test_gc_says_what_would_go_and_removes_nothing(ran):
    ran.matrix("seed: 0")
    ran.run()
    said = ran.zsqbench("cache", "gc", *ran.places())
    assert (last(said.out), len(ran.artifacts("generate"))) == (
        "4 artifacts and 0 leftovers, 0.02 MB, would go; --yes removes them",
        2,
    )


def test_gc_removes_what_no_row_refers_to(bench):
    bench.run()
    bench.matrix("seed: 0")
    bench.run()
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    bench.calls()
    again = bench.run()
    assert (last(said.out), again.code, bench.calls()) == ("4 artifacts and 0 leftovers, 0.02 MB, removed", 0, [])


def test_gc_keeps_what_a_result_started_from_and_its_oracle(bench):
    bench.add_plugin("""
class Fine(Keeper):
    name = "fine"
    start: str = "toyq"
""")
    bench.matrix("quantizer: fine")
    assert bench.run().code == 0
    said = bench.zsqbench("cache", "gc", *bench.places())
    assert last(said.out) == "0 artifacts and 0 leftovers, 0.00 MB, would go; --yes removes them"
    assert [len(bench.artifacts(kind)) for kind in ("quantize", "oracle")] == [2, 1]


KEY = "0" * 64


def make(path, content="left", old=True):
    """A file of a home folder that nobody has written to for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    if old:
        os.utime(path, (1, 1))
    return path


def leave(home):
    """The leftovers of killed writers, interrupted steps and damaged artifacts; each holds 4 bytes."""
    return [
        make(home / ".digests.json.0123abcd"),
        make(home / "store" / "generate" / f".{KEY}.0123abcd" / "file").parent,
        make(home / "leases" / "run-1.lease"),
        make(home / "partial" / KEY / "checkpoint.safetensors").parent,
        make(home / "damaged" / f"generate-{KEY}-0123abcd" / "manifest.json").parent,
    ]


def test_gc_lists_what_it_would_remove_with_sizes(bench):
    bench.matrix("")
    bench.run()
    left = leave(bench.home)
    said = bench.zsqbench("cache", "gc", *bench.places())
    *lines, total = said.out.splitlines()
    assert all(path.exists() for path in left)
    expected = [f"would remove      0.00 MB {path.relative_to(bench.home)}" for path in left]
    assert expected == [line.partition(" (")[0] for line in lines]
    assert total == "0 artifacts and 5 leftovers, 0.00 MB, would go; --yes removes them"


def test_gc_removes_what_it_has_listed(bench):
    bench.matrix("")
    bench.run()
    left = leave(bench.home)
    listed = bench.zsqbench("cache", "gc", *bench.places()).out.splitlines()
    removed = bench.zsqbench("cache", "gc", "--yes", *bench.places()).out.splitlines()
    assert [line.replace("would remove", "removed") for line in listed[:-1]] == removed[:-1]
    assert [path.exists() for path in left] == [False] * len(left)
    assert last(bench.zsqbench("cache", "gc", *bench.places()).out).startswith("0 artifacts and 0 leftovers")


def test_what_gc_cannot_remove_is_said(bench, monkeypatch):
    bench.matrix("")
    bench.run()
    leave(bench.home)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refused)
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert (said.code, said.err.count("cannot remove ")) == (1, 3)
    assert last(said.out) == "0 artifacts and 5 leftovers, 0.00 MB, were to be removed, and 3 of them could not be"


STRAYS = [".DS_Store", "README", "generate/.DS_Store", "generate/notes.txt", f"generate/{KEY}", "generate/a folder/x"]


@parametrize_briefly("stray", STRAYS, 2)
def test_what_is_no_artifact_is_named_and_left_alone(bench, stray):
    bench.matrix("")
    bench.run()
    make(bench.home / "store" / stray, "not ours")
    named = f"not of zsqbench, and left alone: store/{stray.removesuffix('/x')}"
    for command in (["ls"], ["verify"], ["gc", "--results", bench.results, "--yes"]):
        said = bench.zsqbench("cache", *command, "--home", bench.home)
        assert (said.code, named in said.out.splitlines()) == (0, True), said
    assert bench.run().code == 0
    assert (bench.home / "store" / stray).read_text() == "not ours"


def test_many_things_that_are_no_artifacts_are_counted_and_some_named(bench):
    for name in ("a", "b\n", "c\udcff", "d", "e"):
        make(bench.home / "store" / name)
    said = bench.zsqbench("cache", "ls", "--home", bench.home)
    assert said.out == "not of zsqbench, and left alone: store/a, store/b, store/c\\udcff and 2 more\n"


def test_a_file_in_place_of_a_kind_of_artifacts_stops_nothing(bench):
    bench.matrix("")
    bench.run()
    shutil.rmtree(bench.home / "store" / "diagnose")
    make(bench.home / "store" / "diagnose", "not ours")
    assert bench.zsqbench("cache", "ls", "--home", bench.home).code == 0
    said = bench.run()
    assert (said.code, len(bench.artifacts("diagnose"))) == (0, 1), said.err


@pytest.mark.parametrize("command", [["gc"], ["gc", "--yes"], ["verify"]])
@pytest.mark.parametrize("lease", ["run-1234", KEY])
def test_nothing_is_removed_while_a_run_is_at_work(ran, command, lease):
    left = leave(ran.home)
    results = ["--results", ran.results] if "gc" in command else []
    with Leases(ran.home).hold(lease):
        said = ran.zsqbench("cache", *command, "--home", ran.home, *results)
    assert (said.code, said.out, all(path.exists() for path in left)) == (2, "", True)
    assert said.err.startswith(
        f"error: a run is at work in {ran.home} ({lease}) and may need the files that would be removed;"
    )
    assert len(said.err.splitlines()) == 1


def test_gc_does_not_guess_at_a_suite_without_rows(ran):
    shutil.rmtree(ran.results)
    said = ran.zsqbench("cache", "gc", "--yes", *ran.places())
    assert (said.code, len(ran.artifacts("generate"))) == (2, 2)


def keep_kernels(home):
    with kept_kernels(home, "network"):
        Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "one.so").write_text("kernel")
    (archive,) = archives(home)
    return archive


def test_the_size_of_kernels_is_listed_and_they_go_when_they_are_named(bench, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    bench.matrix("")
    bench.run()
    archive = keep_kernels(bench.home)
    said = last(bench.zsqbench("cache", "ls", "--home", bench.home).out)
    assert said.split("MB  ")[1] == "1 archives of kernels, which `cache gc --compiled` removes"
    bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert archive.exists()
    said = bench.zsqbench("cache", "gc", "--yes", "--compiled", *bench.places())
    assert (archive.exists(), last(said.out)) == (False, "0 artifacts and 1 leftovers, 0.00 MB, removed")


def test_verify_removes_kernels_that_are_damaged(bench, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    archive = keep_kernels(bench.home)
    assert last(bench.zsqbench("cache", "verify", "--home", bench.home).out) == "1 artifacts, 0 damaged"
    archive.write_bytes(b"")
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    expected = f"compiled {archive.relative_to(bench.home)} was damaged, and is removed"
    assert (said.code, said.out.splitlines(), archive.exists()) == (1, [expected, "1 artifacts, 1 damaged"], False)
