import errno
import json
import multiprocessing
import os
import threading

import pytest
from faults import flip, no_space, rewrite_manifest

from zsqbench import store as store_module
from zsqbench.errors import CorruptArtifactError, ZSQBenchError
from zsqbench.hashing import digest_of, file_digest
from zsqbench.store import FileDigests, Store, write_atomically

KEY, OTHER = "a" * 64, "b" * 64


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
    store.write("generate", KEY, {"label": "x"}, fill)
    artifact = store.read("generate", KEY)
    assert ((artifact.folder / "a.txt").read_text(), artifact.manifest["label"]) == ("content of a", "x")
    assert artifact.manifest == store.manifest("generate", KEY)


def test_an_artifact_tells_what_its_step_found_its_curves_and_its_notes(store):
    found = {"content": {"bn": 3}, "curves": {"loss": [(0, 0.5), (1, float("inf"))]}, "notes": ["one", "two"]}
    store.write("generate", KEY, found)
    artifact = store.read("generate", KEY)
    assert {name: getattr(artifact, name) for name in found} == found
    assert [path.name for path in artifact.folder.iterdir()] == ["manifest.json"]


def test_a_look_at_an_artifact_reads_its_manifest_alone(store):
    store.write("generate", KEY, {"curves": {"loss": [(0, 0.5)]}}, fill)
    flip(store.folder("generate", KEY) / "b.bin")
    assert store.look("generate", KEY).curves == {"loss": [(0, 0.5)]}
    flip(store.folder("generate", KEY) / "manifest.json")
    with pytest.raises(CorruptArtifactError):
        store.look("generate", KEY)


def test_an_artifact_lists_its_files_with_their_checksums(store):
    store.write("generate", KEY, {}, fill)
    folder = store.folder("generate", KEY)
    expected = {name: file_digest(folder / name) for name in ("a.txt", "b.bin")}
    assert expected == store.manifest("generate", KEY)["files"]


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_crash_while_an_artifact_is_filled_leaves_nothing(store, error):
    def crash(folder):
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        store.write("generate", KEY, {}, crash)
    assert list((store.home / "store" / "generate").iterdir()) == []


def test_a_disk_that_is_full_when_the_manifest_is_written_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(store_module, "_write_synced", no_space)
    with pytest.raises(OSError, match="No space left"):
        store.write("generate", KEY, {}, fill)
    assert (store.has("generate", KEY), list((store.home / "store" / "generate").iterdir())) == (False, [])


def test_an_artifact_whose_writer_was_killed_is_absent(store):
    def killed(folder):
        fill(folder)
        os._exit(9)

    def write():
        store.write("generate", KEY, {}, killed)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert (9, False, set(), []) == (
        process.exitcode,
        store.has("generate", KEY),
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
            store.write("generate", KEY, {"writer": number}, fill_slowly)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.read("generate", KEY)
    assert ([], {KEY}) == (errors, {path.name for path in (store.home / "store" / "generate").iterdir()})


@pytest.mark.parametrize("name", ["a.txt", "b.bin"])
def test_a_flipped_byte_in_a_file_is_found(store, name):
    store.write("generate", KEY, {}, fill)
    flip(store.folder("generate", KEY) / name, 5)
    with pytest.raises(CorruptArtifactError, match=f"the content of {name} has changed"):
        store.read("generate", KEY)


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(store):
    store.write("generate", KEY, {"seconds": 1.5, "label": "x"}, fill)
    manifest = store.folder("generate", KEY) / "manifest.json"
    content = manifest.read_bytes()
    unnoticed = []
    for position in range(len(content)):
        flip(manifest, position)
        try:
            store.read("generate", KEY)
        except CorruptArtifactError:
            pass
        else:
            unnoticed.append(position)
        manifest.write_bytes(content)
    assert unnoticed == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"files": null}'])
def test_a_manifest_that_is_none_is_a_damaged_artifact(store, content):
    store.write("generate", KEY, {}, fill)
    (store.folder("generate", KEY) / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        store.read("generate", KEY)


@pytest.mark.parametrize("schema", [1, 4, "3", None])
def test_a_manifest_of_another_schema_is_a_damaged_artifact(store, schema):
    store.write("generate", KEY, {}, fill)
    rewrite_manifest(store.folder("generate", KEY), schema=schema)
    with pytest.raises(CorruptArtifactError, match=f"its schema is {schema}, and this zsqbench reads 2 and 3"):
        store.read("generate", KEY)


def as_older(path):
    """A manifest as zsqbench wrote it before."""
    content = json.loads(path.read_text()) | {"schema": 2}
    del content["checksum"]
    path.write_text(json.dumps({"checksum": digest_of(content), **content}))


def test_a_manifest_of_the_schema_before_is_read_and_verified(store):
    store.write("generate", KEY, {"label": "images"}, fill)
    path = store.folder("generate", KEY) / "manifest.json"
    as_older(path)
    assert store.read("generate", KEY).label == "images"
    path.write_text(path.read_text().replace("images", "others"))
    with pytest.raises(CorruptArtifactError, match=r"the content of manifest\.json has changed"):
        store.read("generate", KEY)


def test_a_manifest_without_its_checksum_is_a_damaged_artifact(store):
    store.write("generate", KEY, {}, fill)
    path = store.folder("generate", KEY) / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "checksum"}))
    with pytest.raises(CorruptArtifactError, match=r"the content of manifest\.json has changed"):
        store.read("generate", KEY)


def test_a_missing_file_is_a_damaged_artifact(store):
    store.write("generate", KEY, {}, fill)
    (store.folder("generate", KEY) / "a.txt").unlink()
    with pytest.raises(CorruptArtifactError, match=r"a\.txt: No such file"):
        store.read("generate", KEY)


def test_a_damaged_artifact_says_which_and_what_comes_next(store):
    store.write("generate", KEY, {}, fill)
    flip(store.folder("generate", KEY) / "a.txt", 0)
    with pytest.raises(CorruptArtifactError) as error:
        store.read("generate", KEY)
    expected = "artifact aaaaaaaaaaaa is damaged (the content of a.txt has changed); it is made again when it is needed"
    assert expected == str(error.value)


def test_a_discarded_artifact_is_absent_and_kept_aside(store):
    store.write("generate", KEY, {}, fill)
    store.write("quantize", OTHER, {}, fill)
    store.discard(KEY)
    aside = [path.name[:12] for path in (store.home / "damaged").iterdir()]
    assert (list(store.artifacts()), aside) == ([("quantize", OTHER)], ["generate-aaa"])


def test_a_discarded_artifact_can_be_written_and_discarded_again(store):
    for _ in range(2):
        store.write("generate", KEY, {}, fill)
        store.discard(KEY)
    assert (len(list((store.home / "damaged").iterdir())), store.has("generate", KEY)) == (2, False)


def test_an_artifact_is_found_by_its_key_alone(store):
    store.write("generate", KEY, {}, fill)
    assert (store.kind_of(KEY), store.kind_of(OTHER)) == ("generate", None)


def test_what_is_not_there_is_nothing_to_discard(store):
    store.discard(KEY)
    assert not store.home.exists()


def test_a_store_that_does_not_exist_yet_is_empty(store):
    assert (set(), [], False) == (store.keys("generate"), list(store.artifacts()), store.has("generate", KEY))


def stray(store, place):
    """A path in the store, whose folder is there."""
    path = store.home / "store" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_no_artifact_is_none(store):
    store.write("generate", KEY, {}, fill)
    for file in (".DS_Store", "README", "generate/.DS_Store", f"generate/{OTHER}"):
        stray(store, file).write_text("not ours")
    stray(store, "generate/a folder").mkdir()
    stray(store, f"generate/{'c' * 64}").symlink_to(store.folder("generate", KEY))
    stray(store, "nowhere").symlink_to("nowhere")
    stray(store, "round").symlink_to("round")
    assert (list(store.artifacts()), store.keys("generate")) == ([("generate", KEY)], {KEY})
    assert (store.kind_of(OTHER), store.keys("README")) == (None, set())
    assert [store.has("generate", key) for key in (KEY, OTHER, "c" * 64, "a folder", "..")] == [True, *[False] * 4]


def test_what_is_no_artifact_is_named(store):
    store.write("generate", KEY, {}, fill)
    stray(store, "README").write_text("not ours")
    stray(store, "generate/a folder").mkdir()
    stray(store, f"generate/.{KEY}.0123abcd").mkdir()
    assert store.strays() == [store.home / "store" / "README", store.home / "store" / "generate" / "a folder"]
    assert store.unfinished() == [store.home / "store" / "generate" / f".{KEY}.0123abcd"]


def test_a_folder_that_cannot_be_read_is_one_clear_line(store, monkeypatch):
    def refused(folder):
        raise PermissionError(errno.EACCES, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ZSQBenchError, match=r"cannot read .*/store: Permission denied"):
        list(store.artifacts())


def put(path, what):
    """Something that stands where an artifact's folder should be."""
    path.parent.mkdir(parents=True)
    if what == "a file":
        path.write_text("not ours")
    elif what == "a link":
        path.symlink_to(path.parent)
    elif what == "a link to nowhere":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
        (path / "file").write_text("not ours")


@pytest.mark.parametrize("what", ["a file", "a link", "a link to nowhere", "a folder without a manifest"])
def test_what_stands_in_the_way_of_an_artifact_is_put_aside(store, what):
    put(store.folder("generate", KEY), what)
    store.write("generate", KEY, {"label": "x"}, fill)
    assert store.read("generate", KEY).label == "x"
    assert len(list((store.home / "damaged").iterdir())) == 1


def test_a_file_in_place_of_a_kind_is_put_aside(store):
    stray(store, "generate").write_text("not ours")
    store.write("generate", KEY, {}, fill)
    (aside,) = (store.home / "damaged").iterdir()
    assert (store.keys("generate"), aside.read_text()) == ({KEY}, "not ours")


def test_an_artifact_that_is_damaged_gives_way_to_a_new_one(store):
    store.write("generate", KEY, {"label": "old"}, fill)
    flip(store.folder("generate", KEY) / "manifest.json")
    store.write("generate", KEY, {"label": "new"}, fill)
    assert store.read("generate", KEY).label == "new"


def test_an_artifact_whose_place_cannot_be_taken_is_an_error(store, monkeypatch):
    monkeypatch.setattr(Store, "_put_aside", lambda *_: None)
    put(store.folder("generate", KEY), "a file")
    with pytest.raises(NotADirectoryError):
        store.write("generate", KEY, {}, fill)
    assert store.unfinished() == []


def test_what_cannot_be_put_aside_is_one_clear_line(store):
    store.write("generate", KEY, {}, fill)
    (store.home / "damaged").write_text("not ours")
    with pytest.raises(ZSQBenchError, match=r"is in the way, and cannot be put aside into .*damaged: .*; move it away"):
        store.discard(KEY)


def test_what_another_process_has_put_aside_is_no_error(store, monkeypatch):
    monkeypatch.setattr(Store, "has", lambda *_: True)
    stray(store, "generate").mkdir()
    store.discard(KEY)
    assert list((store.home / "damaged").iterdir()) == []


def test_what_is_on_another_disk_is_put_aside_all_the_same(store, monkeypatch):
    store.write("generate", KEY, {}, fill)

    def other_disk(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(type(store.home), "rename", other_disk)
    store.discard(KEY)
    (aside,) = (store.home / "damaged").iterdir()
    assert (store.has("generate", KEY), (aside / "a.txt").read_text()) == (False, "content of a")


WRONG = [
    ("label", 5),
    ("content", ["x"]),
    ("curves", ["x"]),
    ("curves", {"loss": 5}),
    ("curves", {"loss": [[0]]}),
    ("curves", {"loss": [["x", 1.0]]}),
    ("curves", {"loss": [[0, None]]}),
    ("curves", {"loss": [[0, 10**400]]}),
    ("notes", "x"),
    ("seconds", "x"),
    ("peak_memory", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_of_a_manifest_that_is_of_another_type_is_damage(store, name, value):
    store.write("generate", KEY, {name: value}, fill)
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json is"):
        getattr(store.read("generate", KEY), name)


@pytest.mark.parametrize("name", sorted({name for name, _ in WRONG}))
def test_a_field_that_a_manifest_lacks_is_damage(store, name):
    store.write("generate", KEY, {}, fill)
    with pytest.raises(CorruptArtifactError, match=rf"{name} in manifest\.json is not there, expected"):
        getattr(store.read("generate", KEY), name)


@pytest.mark.parametrize(
    "files", [None, ["a.txt"], {"../a.txt": "x"}, {"\0": "x"}, {"\ud800": "x"}, {".": "x"}, {"a.txt": 5}]
)
def test_a_manifest_names_files_beside_it_alone(store, files):
    store.write("generate", KEY, {}, fill)
    rewrite_manifest(store.folder("generate", KEY), files=files)
    with pytest.raises(CorruptArtifactError) as error:
        store.read("generate", KEY)
    assert str(error.value).encode().count(b"\n") == 0


def test_a_file_that_the_manifest_does_not_tell_of_is_not_in_the_artifact(store):
    store.write("generate", KEY, {}, fill)
    (store.folder("generate", KEY) / "c.txt").write_text("not ours")
    artifact = store.read("generate", KEY)
    assert artifact.file("a.txt").read_text() == "content of a"
    with pytest.raises(CorruptArtifactError, match=r"there is no c\.txt in it"):
        artifact.file("c.txt")


def test_a_manifest_that_is_nested_too_deeply_is_a_damaged_artifact(store):
    store.write("generate", KEY, {}, fill)
    (store.folder("generate", KEY) / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CorruptArtifactError, match="nested too deeply"):
        store.read("generate", KEY)


def test_why_background_steps_failed_is_read_whatever_lies_beside_it(store):
    store.note_failure(KEY, "a story")
    (store.partial(OTHER)).mkdir()
    (store.partial(KEY[:-1] + "f")).mkdir()
    (store.partial(KEY[:-1] + "f") / "failure.txt").write_bytes(b"\xff")
    (store.home / "partial" / "file").write_text("not ours")
    assert (store.failures("a"), store.failures("/")) == (["a story", "\N{REPLACEMENT CHARACTER}"], [])


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


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 1}', "\udcff", "[" * 100_000])
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


@pytest.mark.parametrize("digest", [None, 5, ["x"], "x", "g" * 64, "a" * 63 + "\n"])
def test_a_digest_that_is_none_is_not_believed(store, tmp_path, digest):
    path = tmp_path / "file"
    path.write_text("content")
    status = path.stat()
    store.home.mkdir()
    entry = [status.st_size, status.st_mtime_ns, digest]
    (store.home / "digests.json").write_text(json.dumps({str(path): entry}))
    assert file_digest(path) == digest_again(store, path)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_digest_without_size_and_time_is_not_believed(store, tmp_path, cut):
    path = tmp_path / "file"
    path.write_text("content")
    store.home.mkdir()
    (store.home / "digests.json").write_text(json.dumps({str(path): [7, 7, "a" * 64][cut + 1 :]}))
    assert file_digest(path) == digest_again(store, path)


def test_a_folder_in_place_of_the_memory_of_digests_stops_nothing(store, tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    (store.home / "digests.json").mkdir(parents=True)
    assert file_digest(path) == digest_again(store, path)
    assert [entry.name for entry in store.home.iterdir()] == ["digests.json"]


@pytest.fixture
def other(tmp_path):
    """The store of another home, with an artifact."""
    other = Store(tmp_path / "other")
    other.write("generate", KEY, {"label": "x"}, fill)
    return other


def test_an_artifact_of_another_store_is_copied_as_it_is(store, other):
    assert store.take_from(other, "generate", KEY)
    assert store.read("generate", KEY).manifest == other.read("generate", KEY).manifest
    names = ["a.txt", "b.bin", "manifest.json"]
    assert sorted(path.name for path in store.folder("generate", KEY).iterdir()) == names


def test_an_artifact_that_is_there_stays(store, other):
    store.write("generate", KEY, {"label": "first"})
    assert not store.take_from(other, "generate", KEY)
    assert store.read("generate", KEY).label == "first"


def test_an_artifact_takes_the_place_of_one_with_a_damaged_manifest(store, other):
    store.write("generate", KEY, {"label": "first"})
    flip(store.folder("generate", KEY) / "manifest.json")
    assert store.take_from(other, "generate", KEY)
    assert (store.read("generate", KEY).label, len(list((store.home / "damaged").iterdir()))) == ("x", 1)


def test_what_lies_beside_the_files_of_an_artifact_is_not_copied(store, other):
    (other.folder("generate", KEY) / "notes").write_text("not ours")
    store.take_from(other, "generate", KEY)
    assert not (store.folder("generate", KEY) / "notes").exists()


@pytest.mark.parametrize("name", ["a.txt", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, os.unlink])
def test_a_damaged_artifact_of_another_store_leaves_nothing(store, other, name, damage):
    damage(other.folder("generate", KEY) / name)
    with pytest.raises(CorruptArtifactError, match=name):
        store.take_from(other, "generate", KEY)
    assert [list(store.artifacts()), store.unfinished()] == [[], []]


def test_a_copy_that_a_full_disk_ends_leaves_nothing(store, other, monkeypatch):
    monkeypatch.setattr("zsqbench.store.shutil.copyfile", no_space)
    with pytest.raises(OSError, match="No space left"):
        store.take_from(other, "generate", KEY)
    assert [list(store.artifacts()), store.unfinished()] == [[], []]
