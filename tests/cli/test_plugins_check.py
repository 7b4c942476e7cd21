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
    assert {"check": "works on FrozenBN", "outcome": "ok", "reason": "", "origin": None} in checked["checks"]


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


ROUNDS = """
import zsqbench

class Rounds(zsqbench.Quantizer):
    name = "rounds"

    def quantize(self, student, teacher, data, ctx):
        from zsqbench.quant import calibrate_activations_minmax, calibrate_weights

        calibrate_weights(student, "minmax")
        calibrate_activations_minmax(student, [data.images])

@zsqbench.hookimpl
def register_quantizers():
    return [Rounds]
"""


@pytest.mark.usefixtures("briefly")
def test_a_quantizer_is_checked_at_schemes_of_a_suite_and_at_shipped_ones(bench):
    path = bench.write("rounds.py", ROUNDS)
    bench.matrix("", head="schemes: {mine: {base: hw, pooled: 8}}")
    arguments = ["--scheme", "mine/w4a4", "--scheme", "hw_strict/w2a2", "--suite", bench.file]
    said = bench.zsqbench("plugins", "check", path, *arguments)
    assert said.code == 0, said.out
    works = [line.split(maxsplit=1)[1] for line in said.out.splitlines() if " works on " in line]
    assert works == [f"works on plain BN, {scheme}" for scheme in ("mine/w4a4", "hw_strict/w2a2")]


SCHEME_MISTAKES = {
    "unknown": (["--scheme", "hww/w4a4"], "unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'?"),
    "of another suite": (["--scheme", "mine/w4a4"], "unknown scheme 'mine' in 'mine/w4a4'"),
    "none": (["--suite", "smoke"], "--suite is where schemes are looked for; name one of them with --scheme"),
}


@pytest.mark.parametrize("mistake", SCHEME_MISTAKES)
def test_a_mistake_in_schemes_is_one_line(bench, mistake):
    arguments, expected = SCHEME_MISTAKES[mistake]
    said = bench.zsqbench("plugins", "check", bench.write("rounds.py", ROUNDS), *arguments)
    assert (said.code, said.err.startswith(f"error: {expected}"), said.err.count("\n")) == (2, True, 1), said.err


def test_a_scheme_for_a_generator_is_one_line(bench):
    said = bench.zsqbench("plugins", "check", bench.write("mine.py", SOUND), "--scheme", "hw/w4a4")
    assert (said.code, said.err) == (2, "error: --scheme is for quantizers, and there is only mine\n")


@pytest.mark.usefixtures("briefly")
def test_verbose_tells_the_line_of_an_error_and_its_traceback(bench):
    raising = SOUND.replace("        return zsq", "        raise KeyError('x')\n        return zsq")
    path = bench.write("mine.py", raising)
    line = raising.lstrip().splitlines().index("        raise KeyError('x')") + 1
    said = bench.zsqbench("plugins", "check", path, "--verbose")
    lines = said.out.splitlines()
    place = lines.index("    FAILED      works on plain BN: raised KeyError: 'x' (on plain BN)") + 1
    assert lines[place : place + 2] == [
        f"                {path}, line {line}, in generate: raise KeyError('x')",
        "                KeyError: 'x'",
    ]
    assert f"{path}, line" not in bench.zsqbench("plugins", "check", path).out
    said = bench.zsqbench("plugins", "check", path, "--format", "json")
    (checked,) = json.loads(said.out)
    origin = next(each["origin"] for each in checked["checks"] if each["check"] == "works on plain BN")
    assert (origin["file"], origin["line"], origin["traceback"][-1]) == (str(path), line, "KeyError: 'x'")


def test_a_file_that_does_not_load_is_one_line_that_says_how_to_see_more(bench, broken):
    said = bench.zsqbench("plugins", "check", broken)
    hint = f"`zsqbench plugins list broken --plugin {broken}` prints the traceback"
    assert (said.code, said.err) == (2, f"error: plugin broken did not load: RuntimeError: no luck; {hint}\n")


def test_a_file_without_methods_is_one_line(bench):
    said = bench.zsqbench("plugins", "check", bench.write("empty.py", ""))
    assert (said.code, "provides no generator, quantizer or task" in said.err) == (2, True)
