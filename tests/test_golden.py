"""The golden vectors in tests/golden are described, small, and read by the tests that their description names."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "golden"
HERE, _, UNCOMPARED = re.split(
    "^## .* repository|^## .* compares", (FOLDER / "README.md").read_text("utf-8"), flags=re.MULTILINE
)
ROWS = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", HERE, re.MULTILINE)
REASONS = re.findall(r"^\| (`[^|]+) \| (`[^|]+) \| [^|]+ \|$", UNCOMPARED, re.MULTILINE)


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def test_each_file_is_described_once():
    assert sorted(name for name, _ in ROWS) == sorted(file.stem for file in FOLDER.glob("*.npz"))


@pytest.mark.parametrize(("name", "readers"), ROWS, ids=[name for name, _ in ROWS])
def test_a_file_is_read_by_the_tests_that_its_description_names(name, readers):
    for reader in quoted(readers):
        strings = re.findall(r'"([\w{}]+)"', (TESTS / reader).read_text(encoding="utf-8"))
        patterns = [re.sub(r"\{\w+\}", r"\\w+", string) for string in strings]
        assert any(re.fullmatch(pattern, name) for pattern in patterns), f"{reader} does not read {name}"


def test_an_array_that_is_left_out_has_a_reason(shared):
    stored = {file.stem: set(np.load(file)) for file in (shared / "golden").rglob("*.npz")}
    here = {file.stem: set(np.load(file)) for file in FOLDER.glob("*.npz")}
    explained = {name: set() for name in stored}
    for files, arrays in REASONS:
        for name in quoted(files):
            for pattern in quoted(arrays):
                found = {array for array in stored[name] if fnmatchcase(array, pattern)}
                assert found, f"{name} has no {pattern}"
                explained[name] |= found
    for name, arrays in here.items():
        assert stored[name] - arrays == explained[name], name


def test_they_stay_small():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.npz")) < 8_000_000
