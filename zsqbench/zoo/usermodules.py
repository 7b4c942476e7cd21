"""The user's modules that a file imports. They decide what the file builds, so they are part of its identity."""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from zsqbench.hashing import file_digest


def user_modules(file: Path) -> dict[str, Path]:
    """The modules that a file imports, also indirectly, and that do not belong to the environment.

    Only modules that were really imported count, so call this after the file has done its work. The result maps names
    of modules to their files, sorted.
    """
    found: dict[str, Path] = {}
    waiting = [(file, "")]
    while waiting:
        path, package = waiting.pop()
        for name in _imported(path, package):
            module = sys.modules.get(name)
            source = _source(module)
            if module is not None and source is not None and name not in found and source != file:
                found[name] = source
                waiting.append((source, module.__package__ or ""))
    return dict(sorted(found.items()))


def digests(file: Path) -> tuple[tuple[str, str], ...]:
    """Path and content hash of each file that `user_modules` finds."""
    return tuple((str(path), file_digest(path)) for path in user_modules(file).values())


def forget_changed(loaded: tuple[tuple[str, str], ...]) -> None:
    """Forget modules if one of these files has changed, so that they are imported again."""
    if any(not Path(path).is_file() or file_digest(Path(path)) != digest for path, digest in loaded):
        paths = {path for path, _ in loaded}
        for name, module in list(sys.modules.items()):
            if str(_source(module)) in paths:
                del sys.modules[name]


def _imported(file: Path, package: str) -> Iterator[str]:
    """The names that a file may import, and their parents: `a`, `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module or "") if part)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _source(module: ModuleType | None) -> Path | None:
    """The file of a module, if it is Python source outside the environment's packages."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    return None if any(path.is_relative_to(folder) for folder in _environment()) else path


@cache
def _environment() -> tuple[Path, ...]:
    """Folders of the standard library, of installed packages and of zsqbench itself."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {entry for entry in sys.path if "site-packages" in entry or "dist-packages" in entry}
    return (*tuple(Path(folder).resolve() for folder in folders), Path(__file__).resolve().parents[1])
