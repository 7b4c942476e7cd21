"""The files with which `zsqbench plugins new` starts a method. They are linted and tested like all other code."""

import importlib.util
import keyword
import re
import sys
from collections.abc import Collection
from pathlib import Path

from zsqbench.errors import ZSQBenchError

KINDS = ("generator", "quantizer", "task")
PLACEHOLDER, PLACEHOLDER_CLASS = "my_method", "MyMethod"
NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_template(kind: str, name: str, folder: Path, taken: Collection[str] = ()) -> list[Path]:
    """Write NAME.py and test_NAME.py into a folder. Returns their paths.

    Raises ZSQBenchError, and writes nothing, if the name is not a module's name or is taken, or if a file exists.
    """
    _check_name(kind, name, taken)
    source = Path(__file__).parent / kind
    texts = {
        folder / file.replace(PLACEHOLDER, name): _rename((source / file).read_text(encoding="utf-8"), name)
        for file in (f"{PLACEHOLDER}.py", f"test_{PLACEHOLDER}.py")
    }
    for path in texts:
        if path.exists():
            raise ZSQBenchError(f"{path} is there already, and is left as it is; take another name or folder")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ZSQBenchError(f"there is a Python module named {name!r} already, and the test would import that module")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ZSQBenchError(f"cannot write into {folder}: {error.strerror}") from error
    return list(texts)


def class_name(name: str) -> str:
    """The class name of a module: `FeatureMatch` for `feature_match`."""
    return "".join(part.capitalize() for part in name.split("_"))


def _rename(text: str, name: str) -> str:
    return text.replace(PLACEHOLDER, name).replace(PLACEHOLDER_CLASS, class_name(name))


def _check_name(kind: str, name: str, taken: Collection[str]) -> None:
    """Check that it is a valid name of a method, of a module that a test imports, and of a class."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ZSQBenchError(f"{name!r} is no name for a module; expected lower case, digits and _, such as my_{kind}")
    if name in taken:
        raise ZSQBenchError(f"there is a {kind} named {name!r} already; `zsqbench plugins list {name}` shows it")
