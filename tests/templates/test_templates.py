import ast
from pathlib import Path

import pytest
from written import run_tests

from zsqbench import templates
from zsqbench.errors import ZSQBenchError
from zsqbench.templates import KINDS, class_name, write_template

FOLDER = Path(templates.__file__).parent


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_takes_the_place_of_every_placeholder(tmp_path, kind):
    method, test = write_template(kind, "brand_new", tmp_path / "deep" / "folder")
    texts = [path.read_text(encoding="utf-8") for path in (method, test)]
    assert [path.name for path in (method, test)] == ["brand_new.py", "test_brand_new.py"]
    assert all("brand_new" in text and "my_method" not in text and "MyMethod" not in text for text in texts)
    assert "BrandNew" in {node.name for node in ast.walk(ast.parse(texts[0])) if isinstance(node, ast.ClassDef)}


def test_the_generator_is_short():
    lines = (FOLDER / "generator" / "my_method.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line) for line in lines) <= 40


def test_the_tests_that_are_written_for_a_task_pass(tmp_path, monkeypatch):
    _, test = write_template("task", "brand_new", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_tests(test) == 2


@pytest.mark.slow("all checks, in a process of its own")
@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_that_are_written_pass(tmp_path, python, kind):
    write_template(kind, "brand_new", tmp_path)
    done = python("import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '.']))")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("there", ["brand_new.py", "test_brand_new.py"])
def test_a_file_that_is_there_stays(tmp_path, there):
    (tmp_path / there).write_text("mine", encoding="utf-8")
    with pytest.raises(ZSQBenchError, match="is there already, and is left as it is"):
        write_template("generator", "brand_new", tmp_path)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize("name", ["Mine", "my-method", "1st", "class", "", "a.b", "../up"])
def test_a_name_that_no_module_can_have_is_refused(tmp_path, name):
    with pytest.raises(ZSQBenchError, match="is no name for a module"):
        write_template("generator", name, tmp_path)


@pytest.mark.parametrize("name", ["json", "torch"])
def test_the_name_of_a_module_that_there_is_is_refused(tmp_path, name):
    with pytest.raises(ZSQBenchError, match="there is a Python module named"):
        write_template("generator", name, tmp_path)


def test_the_name_of_a_method_that_there_is_is_refused(tmp_path):
    with pytest.raises(ZSQBenchError, match="there is a generator named 'zeroq' already"):
        write_template("generator", "zeroq", tmp_path, taken=["zeroq"])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ZSQBenchError, match="cannot write into"):
        write_template("generator", "brand_new", tmp_path / "file" / "sub")


def test_a_class_is_named_after_the_module():
    assert class_name("bn_match_2") == "BnMatch2"
