"""Tests that a document or a template has its reader write."""

import inspect
import sys
from pathlib import Path


def run_tests(file: Path) -> int:
    """Call the tests of a file, which take no arguments; the folder is on the path. Returns how many there are."""
    names: dict[str, object] = {}
    try:
        exec(compile(file.read_text(encoding="utf-8"), file, "exec"), names)  # noqa: S102 - our own file
        tests = [value for name, value in names.items() if name.startswith("test_") and inspect.isfunction(value)]
        for test in tests:
            test()
    finally:
        sys.modules.pop(file.stem.removeprefix("test_"), None)
    return len(tests)
