import errno
import json
import multiprocessing
import os
import threading

import pytest
from faults import flip, no_space, rewrite_manifest

from zsqbench import store as store_module
from zsqbench.errors import CorruptArtifactError
from zsqbench.hashing import digest_of, file_digest
from zsqbench.store import FileDigests, Store, write_atomically


def fill(folder):
    (folder / "a.txt").write_text("content of a")
    (folder / "b.bin").write_bytes(bytes(range(256)))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def test_equal_data_has_an_equal_digest_whatever_the_order_of_its_keys():
    assert digest_of({"a": 1, "b": [2, None]}) == digest_of({"b": [2, None], "a": 1})


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (1, 1.5), (None, "None"), ([1, 2], [2, 1]), (["ab"], ["a", "b"]), (True, 1)]
)
def test_different_data_has_a_different_digest(one, other):
    assert digest_of(one) != digest_of(other)


def test_an_artifact_is_read_as_it_was_written(store):
    store.write("generate", "key", {"label": "x"}, fill)
    artifact = store.read("generate", "key")
    assert ((artifact.folder / "a.txt").read_text(), artifact.manifest["label"]) == ("content of a", "x")
    assert artifact.manifest == store.manifest("generate", "key")


def test_an_artifact_tells_what_its_step_found_its_curves_and_its_notes(store):
    found = {"content": {"bn": 3}, "curves": {"loss": [(0, 0.5), (1, float("inf"))]}, "notes": ["one", "two"]}
    store.write("generate", "key", found)
    artifact = store.read("generate", "key")
    assert {name: getattr(artifact, name) for name in found} == found
    assert [path.name for path in artifact.folder.iterdir()] == ["manifest.json"]


def test_a_look_at_an_artifact_reads_its_manifest_alone(store):
    store.write("generate", "key", {"curves": {"loss": [(0, 0.5)]}}, fill)
    flip(store.folder("generate", "key") / "b.bin")
    assert store.look("generate", "key").curves == {"loss": [(0, 0.5)]}
    flip(store.folder("generate", "key") / "manifest.json")
    with pytest.raises(CorruptArtifactError):
        store.look("generate", "key")


def test_an_artifact_lists_its_files_with_their_checksums(store):
    store.write("generate", "key", {}, fill)
    folder = store.folder("generate", "key")
    expected = {name: file_digest(folder / name) for name in ("a.txt", "b.bin")}
    assert expected == store.manifest("generate", "key")["files"]


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_crash_while_an_artifact_is_filled_leaves_nothing(store, error):
    def crash(folder):
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        store.write("generate", "key", {}, crash)
    assert list((store.home / "store" / "generate").iterdir()) == []


def test_a_disk_that_is_full_when_the_manifest_is_written_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(store_module, "write_atomically", no_space)
    with pytest.raises(OSError, match="No space left"):
        store.write("generate", "key", {}, fill)
    assert (store.has("generate", "key"), list((store.home / "store" / "generate").iterdir())) == (False, [])


def test_an_artifact_whose_writer_was_killed_is_absent(store):
    def killed(folder):
        fill(folder)
        os._exit(9)

    def write():
        store.write("generate", "key", {}, killed)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert (9, False, set(), []) == (
        process.exitcode,
        store.has("generate", "key"),
        store.keys("generate"),
        list(store.artifacts()),
    )


def test_of_many_writers_of_one_key_one_wins_and_none_fails(store):
    together, errors = threading.Barrier(8), []

    def write(number):
        def fill_slowly(folder):
            fill(folder)
            together.wait()

        try:
            store.write("generate", "key", {"writer": number}, fill_slowly)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.read("generate", "key")
    assert ([], {"key"}) == (errors, {path.name for path in (store.home / "store" / "generate").iterdir()})


@pytest.mark.parametrize("name", ["a.txt", "b.bin"])
def test_a_flipped_byte_in_a_file_is_found(store, name):
    store.write("generate", "key", {}, fill)
    flip(store.folder("generate", "key") / name, 5)
    with pytest.raises(CorruptArtifactError, match=f"the content of {name} has changed"):
        store.read("generate", "key")


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(store):
    store.write("generate", "key", {"seconds": 1.5, "label": "x"}, fill)
    manifest = store.folder("generate", "key") / "manifest.json"
    content = manifest.read_bytes()
    unnoticed = []
    for position in range(len(content)):
        flip(manifest, position)
        try:
            store.read("generate", "key")
        except CorruptArtifactError:
            pass
        else:
            unnoticed.append(position)
        manifest.write_bytes(content)
    assert unnoticed == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"files": null}'])
def test_a_manifest_that_is_none_is_a_damaged_artifact(store, content):
    store.write("generate", "key", {}, fill)
    (store.folder("generate", "key") / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        store.read("generate", "key")


@pytest.mark.parametrize("schema", [1, 3, "2", None])
def test_a_manifest_of_another_schema_is_a_damaged_artifact(store, schema):
    store.write("generate", "key", {}, fill)
    rewrite_manifest(store.folder("generate", "key"), schema=schema)
    with pytest.raises(CorruptArtifactError, match=f"its schema is {schema}, and this zsqbench reads 2"):
        store.read("generate", "key")


def test_a_manifest_without_its_checksum_is_a_damaged_artifact(store):
    store.write("generate", "key", {}, fill)
    path = store.folder("generate", "key") / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "checksum"}))
    with pytest.raises(CorruptArtifactError, match=r"the content of manifest\.json has changed"):
        store.read("generate", "key")


def test_a_missing_file_is_a_damaged_artifact(store):
    store.write("generate", "key", {}, fill)
    (store.folder("generate", "key") / "a.txt").unlink()
    with pytest.raises(CorruptArtifactError, match=r"a\.txt: No such file"):
        store.read("generate", "key")


def test_a_damaged_artifact_says_which_and_what_comes_next(store):
    store.write("generate", "0123456789abcdef", {}, fill)
    flip(store.folder("generate", "0123456789abcdef") / "a.txt", 0)
    with pytest.raises(CorruptArtifactError) as error:
        store.read("generate", "0123456789abcdef")
    expected = "artifact 0123456789ab is damaged (the content of a.txt has changed); it is made again when it is needed"
    assert expected == str(error.value)


def test_a_discarded_artifact_is_absent_and_kept_aside(store):
    store.write("generate", "key", {}, fill)
    store.write("quantize", "other", {}, fill)
    store.discard("key")
    aside = [path.name[:12] for path in (store.home / "damaged").iterdir()]
    assert (list(store.artifacts()), aside) == ([("quantize", "other")], ["generate-key"])


def test_a_discarded_artifact_can_be_written_and_discarded_again(store):
    for _ in range(2):
        store.write("generate", "key", {}, fill)
        store.discard("key")
    assert (len(list((store.home / "damaged").iterdir())), store.has("generate", "key")) == (2, False)


def test_an_artifact_is_found_by_its_key_alone(store):
    store.write("generate", "key", {}, fill)
    assert (store.kind_of("key"), store.kind_of("other")) == ("generate", None)


def test_what_is_not_there_is_nothing_to_discard(store):
    store.discard("key")
    assert not store.home.exists()


def test_a_store_that_does_not_exist_yet_is_empty(store):
    assert (set(), [], False) == (store.keys("generate"), list(store.artifacts()), store.has("generate", "key"))


def test_a_text_is_the_old_or_the_new_one_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert ("old", [path]) == (path.read_text(), list(tmp_path.iterdir()))


def digest_again(store, path):
    """The digest that a new process would find: from memory, or read."""
    digests = FileDigests(store)
    digest = digests.file(path)
    digests.save()
    return digest


def test_a_file_of_the_same_size_and_time_is_not_read_again(store, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("content")
    before = digest_again(store, path)
    monkeypatch.setattr(store_module, "file_digest", lambda _: "read again")
    assert before == digest_again(store, path)


def test_a_file_of_another_time_is_read_again(store, tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    before = digest_again(store, path)
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert before != digest_again(store, path) == file_digest(path)


def test_a_file_of_another_size_is_read_again(store, tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    time = path.stat().st_mtime_ns
    before = digest_again(store, path)
    path.write_text("three")
    os.utime(path, ns=(time, time))
    assert before != digest_again(store, path) == file_digest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 1}', "\udcff"])
def test_a_damaged_memory_of_digests_is_only_slower(store, tmp_path, content):
    path = tmp_path / "file"
    path.write_text("content")
    store.home.mkdir()
    (store.home / "digests.json").write_text(content.replace("x", str(path)), errors="surrogateescape")
    assert file_digest(path) == digest_again(store, path)


def test_the_memory_of_digests_is_written_only_where_something_was_learnt(store, tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    digest_again(store, path)
    time = (store.home / "digests.json").stat().st_mtime_ns
    digest_again(store, path)
    assert time == (store.home / "digests.json").stat().st_mtime_ns
