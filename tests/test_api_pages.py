"""The pages of docs/api name all that is public, with the directive of its kind, and their examples run."""

import ast
import doctest
import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path

import pytest

import zsqbench

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "zsqbench": "zsqbench.md",
    "zsqbench.quant": "quant.md",
    "zsqbench.synthesis": "synthesis.md",
    "zsqbench.testing": "testing.md",
}


def text_of(page):
    return (ROOT / "docs" / "api" / page).read_text(encoding="utf-8")


def entries(page):
    """Directive, module and name of each entry of a page, in its order."""
    module = ""
    for kind, name in re.findall(r"^\.\. (currentmodule|auto\w+):: ([\w.]+)$", text_of(page), re.MULTILINE):
        if kind == "currentmodule":
            module = name
        else:
            yield kind, module, name


def directive(value):
    """The directive that Sphinx needs for a value."""
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"


def is_described(value, name):
    """True if a text stands below an assignment of this name, in a module where it is this value."""
    homes = [module for path, module in sys.modules.items() if path.startswith("zsqbench.")]
    for home in homes:
        if vars(home).get(name) is value:
            body = ast.parse(Path(home.__file__).read_text(encoding="utf-8")).body
            for assignment, below in itertools.pairwise(body):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if is_text and re.match(rf"{name}\b.* = ", ast.unparse(assignment)):
                    return True
    return False


@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_has_an_entry_and_a_docstring(module):
    public = importlib.import_module(module)
    listed = [(kind, name) for kind, of, name in entries(PAGES[module]) if of == module]
    assert sorted(name for _, name in listed) == sorted(public.__all__)
    for kind, name in listed:
        value = getattr(public, name)
        assert kind == directive(value), name
        assert is_described(value, name) if kind == "autodata" else value.__doc__, name


def test_the_bases_and_the_words_of_methods_have_an_entry():
    named = {name for _, of, name in entries("zsqbench.md") if of in ("zsqbench", "zsqbench.methods")}
    assert set(importlib.import_module("zsqbench.methods").__all__) <= named


@pytest.mark.parametrize("page", PAGES.values())
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    assert run_examples(page) == text_of(page).count("\n## ")


def test_the_examples_of_larger_methods_run():
    assert run_examples("../your-method.md")


def run_examples(page):
    """Run the examples of a page, and say how many there are."""
    examples = re.findall(r"^```pycon\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    said = []
    for example in examples:
        test = doctest.DocTestParser().get_doctest(example, {}, page, page, 0)
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)
    return len(examples)


def test_the_docstring_of_zsqbench_names_all_that_is_public():
    named = set(re.findall(r"`(\w+)`", zsqbench.__doc__)) - {"zsqbench"}
    assert named == set(zsqbench.__all__)


def test_dir_shows_public_names_before_they_are_used(python):
    done = python("import zsqbench; print({*zsqbench.__all__} <= {*dir(zsqbench)}, 'run' in vars(zsqbench))")
    assert done.stdout == "True False\n", done.stderr


def test_help_describes_public_names(python):
    done = python("import zsqbench; help(zsqbench)")
    assert "class Generator(" in done.stdout, done.stderr
    assert "Plan what a run of a suite would do" in done.stdout
