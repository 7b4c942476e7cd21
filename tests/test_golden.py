"""The golden vectors in tests/golden are described, small, and read by the tests that their description names."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "golden"
ROWS = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_each_file_is_described_once():
    assert sorted(name for name, _ in ROWS) == sorted(file.stem for file in FOLDER.glob("*.npz"))


@pytest.mark.parametrize(("name", "readers"), ROWS, ids=[name for name, _ in ROWS])
def test_a_file_is_read_by_the_tests_that_its_description_names(name, readers):
    for reader in re.findall(r"`([^`]+)`", readers):
        strings = re.findall(r'"([\w{}]+)"', (TESTS / reader).read_text(encoding="utf-8"))
        patterns = [re.sub(r"\{\w+\}", r"\\w+", string) for string in strings]
        assert any(re.fullmatch(pattern, name) for pattern in patterns), f"{reader} does not read {name}"


def test_they_stay_small():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.npz")) < 8_000_000
