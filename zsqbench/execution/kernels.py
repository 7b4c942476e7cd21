"""The home keeps kernels: what torch compiled for a network is taken up by all later steps, workers and runs.

torch has a folder of its own for that, which all processes share. It loads whatever stands there, so a library over
which a compiler was killed would fail each later step. Here a step compiles in a folder that nobody else sees. It
begins with what the home keeps, and what a finished step added is kept as one archive, whose name is its checksum.
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
"""Variables that tell torch where it finds and leaves compiled kernels; the second follows from the first."""

_OWN = "zsqbench-compiled-"
"""Begins the names of the folders of single steps, in the system's folder for temporary files."""

_OF_NO_USE = frozenset({".lock", ".o", ".tmp"})
"""Suffixes of files that no other process reads."""


def archives(home: Path) -> list[Path]:
    """The archives of kernels in a home, sorted."""
    return sorted(home.glob("compiled/*/*/*.zip"))


def is_sound(archive: Path) -> bool:
    """True if an archive can be read, and is what was written."""
    with contextlib.suppress(OSError):
        return file_digest(archive) == archive.stem
    return False


@contextlib.contextmanager
def kept_kernels(home: Path, network: str) -> Iterator[None]:
    """Let a step compile with what the home keeps for its network, and keep what it adds.

    Of a step that fails, nothing is kept. An archive that is damaged is removed, and what was in it compiled anew.
    Where nothing can be written, nothing is kept. A folder that the user names (TORCHINDUCTOR_CACHE_DIR) is left to
    torch alone.
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
    """A folder that is locked, and gone afterwards; those that nobody has locked any more are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_OWN}*"):
        with contextlib.suppress(OSError):  # somebody else's, or locked
            if time.time() - left.stat().st_mtime > SECONDS:  # a younger one may not be locked yet
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_OWN, ignore_cleanup_errors=True) as name, _locked(Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder until the block or this process ends. Raises OSError where another has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_torchs(folder: Path) -> bool:
    """True if it is what torch itself puts into the variable where nobody has set it."""
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
    """A name that processors share which run each other's kernels, under one version of torch."""
    import torch

    processor = platform.processor()
    with contextlib.suppress(OSError):  # Linux names all that a processor can do, for which compilers write
        found = re.search(
            r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
        processor = found[1] if found else processor
    return digest_of([platform.machine(), processor, torch.__version__])[:16]


def _take(archive: Path, folder: Path) -> None:
    """Unpack an archive where it is sound, and remove it where it is not."""
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
