from pathlib import Path

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.suite import find_suite, load_suite, shipped_suites, suite_name, suites_of_table


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_can_be_read(name, data_root):
    suite = load_suite(shipped_suites()[name], data_root=data_root)
    assert suite.name == Path(name).name
    assert suite.cells
    assert not [cell.name for cell in suite.cells if cell.reason]
    assert not suite.notes


def test_a_missing_suite_is_named_with_what_is_shipped():
    with pytest.raises(ZSQBenchError, match=r"there is no suite file zzzz; shipped: .*smoke"):
        find_suite("zzzz")


def test_a_misspelt_shipped_suite_is_refused_with_a_suggestion():
    with pytest.raises(ZSQBenchError, match=r"there is no suite file smok; did you mean 'smoke'. shipped: "):
        find_suite("smok")


def test_a_folder_is_no_suite(tmp_path):
    with pytest.raises(ZSQBenchError, match="is a folder; name a YAML file in it"):
        find_suite(str(tmp_path))


def test_a_shipped_suite_is_found_by_its_name():
    assert find_suite("smoke").name == "smoke.yaml"


@pytest.mark.parametrize("text", ["", "- a", "name: 5", "name: [a]", "nam: x"])
def test_a_file_without_a_name_is_no_suite(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ZSQBenchError, match="expected a suite with a name, got"):
        suite_name(tmp_path / "x.yaml")


def test_suites_of_a_table_are_those_that_ask_for_it():
    assert suites_of_table("hast", "1a") == ["paper/hast_table1a"]
    assert suites_of_table("hast", "3b") == ["paper/hast_table3"]
    assert suites_of_table("dgh", "2") == ["paper/dgh_table2"]
    assert suites_of_table("brecq", "README") == []
