"""The store: content-addressed artifacts on disk, each a folder that is complete or absent."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsqbench.errors import CorruptArtifactError
from zsqbench.hashing import digest_of, file_digest

MANIFEST = "manifest.json"
SCHEMA = 2
"""Of a manifest: raise it when a reader of another version would misunderstand it."""

FAILURE = "failure.txt"
"""Why a background step failed, beside where its checkpoint would be."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the new one, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Artifact:
    """A step leaves an artifact: a folder with a manifest, and the files that it names."""

    kind: str
    key: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        """The findings of its step, as plain data."""
        content: dict[str, Any] = self.manifest["content"]
        return content

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The curves that were logged: points of step and value, by name."""
        return {name: [(step, value) for step, value in points] for name, points in self.manifest["curves"].items()}

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        return list(self.manifest["notes"])


@dataclass(frozen=True)
class Store:
    """Everything that a run keeps between invocations, below one folder (`--home`, ZSQBENCH_HOME)."""

    home: Path

    def folder(self, kind: str, key: str) -> Path:
        """Where this artifact is, or would be."""
        return self.home / "store" / kind / key

    def partial(self, key: str) -> Path:
        """Where a running step keeps its progress and checkpoint; gone when the step is done."""
        return self.home / "partial" / key

    def keys(self, kind: str) -> set[str]:
        """Keys of all artifacts of a kind, in one look."""
        try:
            with os.scandir(self.home / "store" / kind) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def has(self, kind: str, key: str) -> bool:
        """True if the artifact is there. That it is undamaged shows when it is read."""
        return self.folder(kind, key).is_dir()

    def write(
        self, kind: str, key: str, manifest: Mapping[str, Any], fill: Callable[[Path], None] = lambda _: None
    ) -> None:
        """Add an artifact: a manifest of plain data, which has its own checksum and those of the other files.

        `fill` writes these into a folder, which is then moved into place. Where another process was faster, its
        artifact stays.
        """
        place = self.folder(kind, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
        try:
            fill(temporary)
            files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
            plain = json.loads(json.dumps({"schema": SCHEMA, **manifest, "files": files}))
            write_atomically(temporary / MANIFEST, json.dumps({"checksum": digest_of(plain), **plain}))
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """The manifest of an artifact. Raises CorruptArtifactError where it is not what was written."""
        try:
            manifest: dict[str, Any] = json.loads((self.folder(kind, key) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(key, f"{MANIFEST}: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema", "none") if isinstance(manifest, dict) else "none"
            raise CorruptArtifactError(key, f"its schema is {found}, and this zsqbench reads {SCHEMA}")
        content = {name: value for name, value in manifest.items() if name != "checksum"}
        if digest_of(content) != manifest.get("checksum"):
            raise CorruptArtifactError(key, f"the content of {MANIFEST} has changed")
        return manifest

    def look(self, kind: str, key: str) -> Artifact:
        """An artifact with its verified manifest; its other files are not looked at, which may be gigabytes."""
        return Artifact(kind, key, self.folder(kind, key), self.manifest(kind, key))

    def read(self, kind: str, key: str) -> Artifact:
        """An artifact whose files were just verified. Raises CorruptArtifactError where one differs."""
        artifact = self.look(kind, key)
        for name, expected in artifact.manifest["files"].items():
            try:
                found = file_digest(artifact.folder / name)
            except OSError as error:
                raise CorruptArtifactError(key, f"{name}: {error.strerror}") from error
            if found != expected:
                raise CorruptArtifactError(key, f"the content of {name} has changed")
        return artifact

    def kind_of(self, key: str) -> str | None:
        """The kind of the artifact that has this key, if it is there."""
        kinds = (self.home / "store").glob("*/")
        return next((folder.name for folder in kinds if (folder / key).is_dir()), None)

    def note_failure(self, key: str, error: str) -> None:
        """Remember why a background step failed. The step itself clears it when it is done."""
        write_atomically(self.partial(key) / FAILURE, error)

    def failures(self, key_begins: str) -> list[str]:
        """Why background steps failed, by how their keys begin, sorted by key."""
        notes = sorted(path for path in (self.home / "partial").glob(f"{key_begins}*/{FAILURE}") if path.is_file())
        return [note.read_text(encoding="utf-8").strip() for note in notes]

    def discard(self, key: str) -> None:
        """Take a damaged artifact out of use; it is moved aside, so that a look at it stays possible."""
        for kind, found in self.artifacts():
            if found == key:
                aside = self.home / "damaged" / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                self.folder(kind, key).rename(aside)

    def leftovers(self) -> list[Path]:
        """What killed writers, interrupted steps and damaged artifacts left; nothing that a run would miss."""
        asides = [self.home / "partial", self.home / "damaged"]
        return [*sorted((self.home / "store").glob("*/.*")), *(path for path in asides if path.is_dir())]

    def clear_temporary(self) -> None:
        """Remove what killed writers left."""

    def artifacts(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of all artifacts, sorted."""
        root = self.home / "store"
        for kind in sorted(path.name for path in root.iterdir()) if root.is_dir() else ():
            for key in sorted(self.keys(kind)):
                yield kind, key


class FileDigests:
    """Content hashes of files, remembered by path, size and modification time across invocations."""

    def __init__(self, store: Store) -> None:
        self._path = store.home / "digests.json"
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError):  # a memory that cannot be read is only slower
            remembered = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(remembered, dict):
                self._known = {path: entry for path, entry in remembered.items() if isinstance(entry, list)}

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
        """Keep what was learnt."""
        if self._changed:
            write_atomically(self._path, json.dumps(self._known))
            self._changed = False
