"""The home keeps kernels that torch compiled for a network. All later steps, workers and runs use them.

torch has its own folder for kernels, which all processes share. torch loads any file there. If a compiler was killed
while it wrote a library, each later step would fail. So a step of zsqbench compiles in a private folder. The folder
begins with the kernels of the home. Kernels that a finished step added are kept as one archive, named by its checksum.
"""

import contextlib
import fcntl
import os
import platform
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from zsqbench.hashing import digest_of, file_digest
from zsqbench.leases import SECONDS
from zsqbench.leftovers import remove
from zsqbench.store import temporary_beside

FOLDER, TRITONS_FOLDER = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
"""Variables that tell torch where compiled kernels are. The second follows from the first."""

_OWN = "zsqbench-compiled-"
"""The prefix of the folders of single steps, in the system's folder for temporary files."""

_OF_NO_USE = frozenset({".lock", ".o", ".tmp"})
"""Suffixes of files that no other process reads."""


def archives(home: Path) -> list[Path]:
    """The archives of kernels in a home, sorted."""
    return sorted(home.glob("compiled/*/*/*.zip"))


def is_sound(archive: Path) -> bool:
    """True if an archive can be read and its content has not changed."""
    with contextlib.suppress(OSError):
        return file_digest(archive) == archive.stem
    return False


@contextlib.contextmanager
def kept_kernels(home: Path, network: str) -> Iterator[None]:
    """Let a step compile with the kernels that the home has for its network, and keep the kernels that it adds.

    Kernels of a failed step are not kept. A damaged archive is removed, and its kernels are compiled again. If the home
    cannot be written to, no kernels are kept. If the user names a folder (TORCHINDUCTOR_CACHE_DIR), only torch manages
    it.
    """
    named = os.environ.get(FOLDER)
    if named is not None and not _is_torchs(Path(named)):
        yield
        return
    place = home / "compiled" / _machine() / network
    with _own_folder() as folder:
        for archive in sorted(place.glob("*.zip")):
            _take(archive, folder)
        known = _files(folder)
        with _environment():
            os.environ[FOLDER] = str(folder)
            yield
        added = _files(folder) - known
        if added:
            with contextlib.suppress(OSError):  # the next step compiles it again
                _keep(folder, added, place)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A locked folder that is removed afterwards. Folders without a lock are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_OWN}*"):
        with contextlib.suppress(OSError):  # of another user, or locked
            if time.time() - left.stat().st_mtime > SECONDS:  # a newer folder may not be locked yet
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_OWN, ignore_cleanup_errors=True) as name, _locked(Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder until the block or this process ends. Raises OSError if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_torchs(folder: Path) -> bool:
    """True for the value that torch itself gives the variable if the user has not set it."""
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the variables back afterwards."""
    before = {name: os.environ.get(name) for name in (FOLDER, TRITONS_FOLDER)}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@cache
def _machine() -> str:
    """A name for a version of torch and a type of processor. Processors with the same name can share kernels."""
    import torch

    processor = platform.processor()
    with contextlib.suppress(OSError):  # Linux lists the features of a processor, which compilers use
        found = re.search(
            r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
        processor = found[1] if found else processor
    return digest_of([platform.machine(), processor, torch.__version__])[:16]


def _take(archive: Path, folder: Path) -> None:
    """Unpack an archive if it is sound, or else remove it."""
    with contextlib.suppress(OSError):
        if is_sound(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            remove(archive)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix not in _OF_NO_USE}


def _keep(folder: Path, added: set[Path], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(place / "kernels.zip")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(added):
                file.write(path, path.relative_to(folder))
        temporary.replace(place / f"{file_digest(temporary)}.zip")
    finally:
        temporary.unlink(missing_ok=True)
