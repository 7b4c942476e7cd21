import json
import re

import pytest

SOUND = """
import torch, zsqbench

class Mine(zsqbench.Generator):
    name = "mine"

    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(ctx.randn(self.images, *teacher.input_size))

@zsqbench.hookimpl
def register_generators():
    return [Mine]
"""


def test_a_plugin_file_that_keeps_the_contract_is_checked_line_by_line(bench):
    path = bench.write("mine.py", SOUND)
    said = bench.zsqbench("plugins", "check", path)
    head, *lines, summary = said.out.splitlines()
    assert (said.code, head) == (0, "generator mine  (set for the check: images=8)")
    assert {line[4:16].strip() for line in lines} == {"ok", "not checked"}
    assert re.fullmatch(r"    \d+ ok, 1 not checked, in \d+ s", summary)


@pytest.mark.usefixtures("briefly")
def test_a_plugin_file_that_breaks_the_contract_fails_with_the_reason(bench):
    path = bench.write("mine.py", SOUND.replace("ctx.randn", "torch.randn"))
    said = bench.zsqbench("plugins", "check", path)
    assert (said.code, "FAILED      one seed gives one set of images, another seed another: " in said.out) == (1, True)


def test_checks_are_given_as_json(bench):
    path = bench.write("mine.py", SOUND)
    (checked,) = json.loads(bench.zsqbench("plugins", "check", path, "--set", "images=5", "--format", "json").out)
    assert [checked[key] for key in ("kind", "name", "passed", "set")] == ["generator", "mine", True, {}]
    assert {"check": "works on FrozenBN", "outcome": "ok", "reason": ""} in checked["checks"]


@pytest.mark.usefixtures("briefly")
def test_every_method_of_a_file_is_checked_with_the_options_that_it_has(bench):
    arguments = ["--set", "scale=1e-1", "--set", "samples=10", "--model", "a", "--format", "json"]
    checked = json.loads(bench.zsqbench("plugins", "check", bench.folder / "toy.py", *arguments).out)
    names = {(each["kind"], each["name"]) for each in checked}
    assert {("generator", "toy"), ("generator", "toyreal"), ("quantizer", "toyq"), ("task", "toytask")} <= names


@pytest.mark.usefixtures("briefly")
def test_an_installed_method_is_checked_by_name(bench):
    said = bench.zsqbench("plugins", "check", "noise", "--set", "clamp=false")
    assert (said.code, said.out.splitlines()[0]) == (0, "generator noise  (set for the check: images=8)")


def test_a_file_that_does_not_load_is_one_line_that_says_how_to_see_more(bench, broken):
    said = bench.zsqbench("plugins", "check", broken)
    hint = f"`zsqbench plugins list broken --plugin {broken}` prints the traceback"
    assert (said.code, said.err) == (2, f"error: plugin broken did not load: RuntimeError: no luck; {hint}\n")


def test_a_file_without_methods_is_one_line(bench):
    said = bench.zsqbench("plugins", "check", bench.write("empty.py", ""))
    assert (said.code, "provides no generator, quantizer or task" in said.err) == (2, True)
