"""The store: content-addressed artifacts on disk, each a folder that is complete or absent."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zsqbench.errors import CorruptArtifactError, ZSQBenchError, one_line
from zsqbench.hashing import digest_of, file_digest

T = TypeVar("T")

KEY = re.compile(r"[0-9a-f]{64}")
"""The pattern of names of artifacts and of digests. Other files in the store are not of zsqbench."""

MANIFEST = "manifest.json"
SCHEMA = 3
"""The schema of a manifest. Raise it when a reader of another version would misunderstand a manifest."""

BY_VALUE = 2
"""The previous schema. Its checksum is the digest of the manifest as plain data. It can still be read."""

HEAD = b'{"checksum": "'
"""A manifest begins with this text and its checksum. The checksum covers all bytes behind it."""
DIGITS = 64
"""Hexadecimal digits of a checksum."""

FAILURE = "failure.txt"
"""The name of the file that says why a background step failed. It is beside the place of its checkpoint."""

TEMPORARY = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{8}")
"""The pattern of names of files and folders that are not complete yet."""

ATTEMPTS = 3
"""So many attempts to move an artifact into its place, while others move theirs or an obstacle is put aside."""


def temporary_beside(path: Path) -> Path:
    """A name for a file or folder that is incomplete or being removed."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file. At any time the file has either the old or the new content."""
    write_parts_atomically(path, [text])


def write_parts_atomically(path: Path, parts: Iterable[str]) -> None:
    """Write a text file as `write_atomically` does, from parts that are not all in memory at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        _write_synced(temporary, parts)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, parts: Iterable[str]) -> None:
    """Write a text file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.writelines(part.encode() for part in parts)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """The plain data of a file. Raises OSError or ValueError if it cannot be read or has no plain data."""
    return plain_data(path.read_bytes())  # a text file would take twice as long to open


def plain_data(content: bytes) -> Any:
    """The plain data of bytes of JSON. Raises ValueError if they are not JSON."""
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@dataclass(frozen=True)
class Artifact:
    """The result of a step: a folder with a manifest, and the files that the manifest names."""

    kind: str
    key: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The step in words."""
        return self.field("label", str)

    @property
    def content(self) -> dict[str, Any]:
        """The findings of its step, as plain data."""
        return self.field("content", dict)

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The curves that were logged: points of step and value, by name."""
        with self.reading():
            curves = self.field("curves", dict)
            return {name: [_point(*point) for point in points] for name, points in curves.items()}

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        return [str(line) for line in self.field("notes", list)]

    @property
    def footnotes(self) -> list[str]:
        """Lines that are footnotes of tables. Empty for an artifact of an older version."""
        return [str(line) for line in self.field("footnotes", list)] if "footnotes" in self.manifest else []

    @property
    def seconds(self) -> float:
        """The seconds that its step took."""
        return self.field("seconds", float)

    @property
    def peak_memory(self) -> int:
        """Peak memory of its step, in bytes."""
        return self.field("peak_memory", int)

    def file(self, name: str) -> Path:
        """A file that the manifest names. Raises CorruptArtifactError if it does not name the file."""
        if name not in self.field("files", dict):
            raise CorruptArtifactError(self.key, f"there is no {name} in it")
        return self.folder / name

    def field(self, name: str, expected: type[T]) -> T:
        """A field of the manifest. Raises CorruptArtifactError if it is missing or has another type."""
        value = self.manifest.get(name)
        if not isinstance(value, expected):
            found = type(value).__name__ if name in self.manifest else "not there"
            raise CorruptArtifactError(self.key, f"{name} in {MANIFEST} is {found}, expected {expected.__name__}")
        return value

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """See `reading`."""
        return reading(self.key)


@contextlib.contextmanager
def reading(key: str) -> Iterator[None]:
    """Raise CorruptArtifactError if code within reads a manifest and finds another shape than expected."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CorruptArtifactError(key, f"{MANIFEST} is not of its kind: {one_line(error)}") from error


def _point(step: Any, value: Any) -> tuple[int, float]:
    """A point of a curve. Raises TypeError, ValueError or OverflowError for other data."""
    int(step)
    return step, float(value)


@dataclass(frozen=True)
class NoArtifact:
    """Why an artifact cannot be described."""

    why: str
    damaged: bool = False
    """True if the artifact exists and is damaged."""


@dataclass(frozen=True)
class Store:
    """Everything that a run keeps between invocations, below one folder (`--home`, ZSQBENCH_HOME)."""

    home: Path

    def folder(self, kind: str, key: str) -> Path:
        """The folder of this artifact. It may not exist."""
        return self.home.joinpath("store", kind, key)

    def partial(self, key: str) -> Path:
        """The folder where a running step keeps its progress and checkpoint. It is removed when the step is done."""
        return self.home / "partial" / key

    def kinds(self) -> list[str]:
        """Names of the folders of artifacts, sorted."""
        return sorted(entry.name for entry in entries(self.home / "store") if _is_kind(entry))

    def keys(self, kind: str) -> set[str]:
        """Keys of all artifacts of a kind, read at once."""
        return {entry.name for entry in entries(self.home / "store" / kind) if _is_artifact(entry)}

    def keys_from(self, kind: str, start: str) -> list[str]:
        """Keys of the artifacts of a kind that begin with this text, sorted."""
        return sorted(key for key in self.keys(kind) if key.startswith(start))

    def artifacts(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of all artifacts, sorted."""
        for kind in self.kinds():
            for key in sorted(self.keys(kind)):
                yield kind, key

    def has(self, kind: str, key: str) -> bool:
        """True if the artifact exists. Damage is only found when it is read."""
        folder = self.folder(kind, key)
        return KEY.fullmatch(key) is not None and folder.is_dir() and not folder.is_symlink()

    def kind_of(self, key: str) -> str | None:
        """The kind of the artifact with this key. None: it does not exist."""
        return next((kind for kind in self.kinds() if self.has(kind, key)), None)

    def write(
        self, kind: str, key: str, manifest: Mapping[str, Any], fill: Callable[[Path], None] = lambda _: None
    ) -> None:
        """Add an artifact: a manifest of plain data, which has its own checksum and those of the other files.

        `fill` writes these files into a folder, which is then moved into place. If another process was faster, its
        artifact stays.
        """
        temporary = self._make_temporary(kind, key)
        try:
            fill(temporary)
            files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
            _write_synced(temporary / MANIFEST, [manifest_text({"schema": SCHEMA, **manifest, "files": files})])
            self._move_in(temporary, kind, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make_temporary(self, kind: str, key: str) -> Path:
        """Make a folder to write an artifact into."""
        temporary = temporary_beside(self.folder(kind, key))
        try:
            temporary.mkdir()
        except (FileNotFoundError, NotADirectoryError):  # this is the first artifact of its kind
            self._make_folder(kind)
            temporary.mkdir()
        return temporary

    def _make_folder(self, kind: str) -> None:
        """Make the folder of a kind; a file in its place is put aside."""
        folder = self.home / "store" / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            self._put_aside(folder, kind)
            folder.mkdir(exist_ok=True)

    def _move_in(self, temporary: Path, kind: str, key: str) -> None:
        """Move a complete artifact into its place, unless an artifact is there. Any other file there is put aside."""
        place = self.folder(kind, key)
        for attempt in range(ATTEMPTS):
            try:
                temporary.rename(place)
            except OSError:
                if self._is_sound(kind, key):
                    return  # another process was faster
                if attempt == ATTEMPTS - 1:
                    raise
                self._put_aside(place, f"{kind}-{key}")
            else:
                return

    def _is_sound(self, kind: str, key: str) -> bool:
        """True if an artifact exists, judged by its manifest. Its other files are not read."""
        with contextlib.suppress(CorruptArtifactError):
            return self.has(kind, key) and bool(self.manifest(kind, key))
        return False

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """The manifest of an artifact. Raises CorruptArtifactError if its content has changed."""
        return _manifest(self.folder(kind, key), key)

    def look(self, kind: str, key: str) -> Artifact:
        """An artifact with its verified manifest. Its other files are not read: they may be gigabytes."""
        return Artifact(kind, key, self.folder(kind, key), self.manifest(kind, key))

    def read(self, kind: str, key: str) -> Artifact:
        """An artifact whose files were just verified. Raises CorruptArtifactError if a file has changed."""
        artifact = self.look(kind, key)
        _verify(artifact)
        return artifact

    def take_from(self, other: "Store", kind: str, key: str) -> bool:
        """Copy an artifact of another store, unless this store has it with a sound manifest. True: it was copied.

        The copy is verified before it is moved into place, so an artifact is complete or absent. Raises
        CorruptArtifactError if the artifact of the other store has changed (if this store has it, only its manifest is
        read). Raises OSError if nothing can be written.
        """
        source = other.look(kind, key)
        if self._is_sound(kind, key):
            return False
        temporary = self._make_temporary(kind, key)
        try:
            for name in (MANIFEST, *_names(source)):
                if not (source.folder / name).is_file():
                    raise CorruptArtifactError(key, f"{name}: No such file or directory")
                shutil.copyfile(source.folder / name, temporary / name)
            _verify(Artifact(kind, key, temporary, _manifest(temporary, key)))
            self._move_in(temporary, kind, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

    def note_failure(self, key: str, error: str) -> None:
        """Remember why a background step failed. The step itself clears it when it is done."""
        write_atomically(self.partial(key) / FAILURE, error)

    def failures(self, key_begins: str) -> list[str]:
        """Why background steps failed, by how their keys begin, sorted by key."""
        keys = sorted(entry.name for entry in entries(self.home / "partial") if entry.name.startswith(key_begins))
        found = []
        for key in keys:
            with contextlib.suppress(OSError):  # most folders have no such file
                note = (self.partial(key) / FAILURE).read_text(encoding="utf-8", errors="replace")
                found.append(note.strip())
        return found

    def discard(self, key: str) -> None:
        """Take a damaged artifact out of use. It is moved aside and can still be inspected."""
        for kind in self.kinds():
            if self.has(kind, key):
                self._put_aside(self.folder(kind, key), f"{kind}-{key}")

    def unfinished(self) -> list[Path]:
        """Folders of artifacts that are being written. Their writer may be dead."""
        return self._others(_is_unfinished)

    def strays(self) -> list[Path]:
        """Entries of the store that are neither artifacts nor unfinished artifacts, sorted. They are left alone."""
        root = self.home / "store"
        beside = [root / entry.name for entry in entries(root) if not _is_kind(entry)]
        return sorted(beside + self._others(lambda entry: not _is_artifact(entry) and not _is_unfinished(entry)))

    def _others(self, wanted: Callable[["os.DirEntry[str]"], bool]) -> list[Path]:
        """The entries beside the artifacts."""
        return [Path(entry) for kind in self.kinds() for entry in entries(self.home / "store" / kind) if wanted(entry)]

    def _put_aside(self, path: Path, name: str) -> None:
        """Move an obstacle in the place of an artifact away, unless another process does. Raises ZSQBenchError."""
        aside = self.home / "damaged" / f"{name}-{uuid.uuid4().hex[:8]}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EXDEV:  # the folder of its kind is on another disk
                shutil.move(path, aside)
                return
            why = f"{path} is in the way, and cannot be put aside into {aside.parent}: {error.strerror}"
            raise ZSQBenchError(f"{why}; move it away") from error


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest file: its checksum, then the manifest."""
    behind = '", ' + json.dumps(manifest)[1:]
    return HEAD.decode() + hashlib.sha256(behind.encode()).hexdigest() + behind


def _manifest(folder: Path, key: str) -> dict[str, Any]:
    """The manifest in a folder. Raises CorruptArtifactError if its content has changed."""
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = plain_data(content)
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(key, f"{MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") not in (SCHEMA, BY_VALUE):
        found = manifest.get("schema", "none") if isinstance(manifest, dict) else "none"
        raise CorruptArtifactError(key, f"its schema is {found}, and this zsqbench reads {BY_VALUE} and {SCHEMA}")
    if not (_is_whole(content) if manifest["schema"] == SCHEMA else _is_same(manifest)):
        raise CorruptArtifactError(key, f"the content of {MANIFEST} has changed")
    return manifest


def _is_whole(content: bytes) -> bool:
    """True if the bytes of a manifest fit its checksum."""
    end = len(HEAD) + DIGITS
    return content.startswith(HEAD) and hashlib.sha256(content[end:]).hexdigest().encode() == content[len(HEAD) : end]


def _is_same(manifest: Mapping[str, Any]) -> bool:
    """True if the data of a manifest fits its checksum."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return digest_of(content) == manifest.get("checksum")


def _names(artifact: Artifact) -> list[str]:
    """The names of the files beside a manifest. Raises CorruptArtifactError for a name that leads elsewhere."""
    names = list(artifact.field("files", dict))
    for name in names:
        if Path(name).name != name:
            raise CorruptArtifactError(artifact.key, f"{name!a} in {MANIFEST} is not the name of a file beside it")
    return names


def _verify(artifact: Artifact) -> None:
    """Raise CorruptArtifactError if the content of a file beside the manifest has changed."""
    for name in _names(artifact):
        try:
            found = file_digest(artifact.folder / name)
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(artifact.key, f"{name}: {getattr(error, 'strerror', error)}") from error
        if found != artifact.field("files", dict)[name]:
            raise CorruptArtifactError(artifact.key, f"the content of {name} has changed")


def entries(folder: Path) -> "list[os.DirEntry[str]]":
    """The entries of a folder. Empty: there is no folder. Raises ZSQBenchError if the folder cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ZSQBenchError(f"cannot read {folder}: {error.strerror}") from error


def _is_artifact(entry: "os.DirEntry[str]") -> bool:
    return KEY.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _is_unfinished(entry: "os.DirEntry[str]") -> bool:
    match = TEMPORARY.fullmatch(entry.name)
    return match is not None and KEY.fullmatch(match["of"]) is not None and entry.is_dir(follow_symlinks=False)


def _is_kind(entry: "os.DirEntry[str]") -> bool:
    """True for the folder of a kind. It may be a link to another disk."""
    return not entry.name.startswith(".") and Path(entry).is_dir()  # entry.is_dir raises where a link leads to itself


class FileDigests:
    """Content hashes of files, remembered by path, size and modification time across invocations."""

    def __init__(self, store: Store) -> None:
        self._path = store.home / "digests.json"
        self._changed = False
        try:
            remembered = read_json(self._path)
        except (OSError, ValueError):
            remembered = None  # if it cannot be read, all files are hashed, which is only slower
        known = remembered.items() if isinstance(remembered, dict) else ()
        self._known = {path: entry for path, entry in known if _is_remembered(entry)}

    def file(self, path: Path) -> str:
        """sha256 of a file's content, from memory where size and time are unchanged."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        remembered = self._known.get(str(path))
        if remembered is not None and remembered[:-1] == stamp:
            return str(remembered[-1])
        digest = file_digest(path)
        self._known[str(path)] = [*stamp, digest]
        self._changed = True
        return digest

    def files(self, files: Mapping[str, Path]) -> str:
        """One hash for a set of named files: names and contents, not where they are."""
        return digest_of([[name, self.file(path)] for name, path in sorted(files.items())])

    def save(self) -> None:
        """Write the new hashes to the disk."""
        if self._changed:
            with contextlib.suppress(IsADirectoryError):  # a folder has this name, so all files are hashed each time
                write_atomically(self._path, json.dumps(self._known))
            self._changed = False


def _is_remembered(entry: Any) -> bool:
    """True for size, time and digest of a file."""
    if not isinstance(entry, list) or [type(part) for part in entry] != [int, int, str]:
        return False
    return KEY.fullmatch(entry[-1]) is not None
