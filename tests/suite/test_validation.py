import pytest

HEAD = "name: toysuite\nplugins: [toy.py]\n"


BLOCK = "  - {task: toytask, model: a, generator: toy, quantizer: toyq, scheme: hw/w4a4}\n"


MATRIX = f"matrix:\n{BLOCK}"


SUGGESTIONS = {
    "an unknown key": (
        f"{HEAD}generatorz: {{}}\n{MATRIX}",
        "toy.yaml:3: unknown key 'generatorz'; did you mean 'generators'? known: ",
    ),
    "an unknown axis": (
        f"{HEAD}{MATRIX.replace('quantizer', 'quantiser')}",
        "toy.yaml:4: unknown key 'quantiser'; did you mean 'quantizer'? known: ",
    ),
    "a misspelt generator": (
        f"{HEAD}{MATRIX.replace('toy,', 'toyrael,')}",
        "toy.yaml:4; did you mean 'toyreal'? known: ",
    ),
    "a misspelt quantizer": (
        f"{HEAD}{MATRIX.replace('toyq', 'unseded')}",
        "unknown quantizer 'unseded' in toy.yaml:4; did you mean 'unseeded'? known: ",
    ),
    "a misspelt task": (
        f"{HEAD}{MATRIX.replace('toytask', 'toytsk')}",
        "unknown task 'toytsk' in toy.yaml:4; did you mean 'toytask'? known: ",
    ),
    "a misspelt method of a variant": (
        f"{HEAD}generators:\n  x:\n    method: toyrael\n{MATRIX}",
        "unknown generator 'toyrael' in toy.yaml:5; did you mean 'toyreal'? known: ",
    ),
    "a misspelt variant": (
        f"{HEAD}generators: {{few_images: {{method: toy}}}}\n{MATRIX.replace('toy,', 'few_image,')}",
        "toy.yaml:5: unknown generator 'few_image'; did you mean 'few_images'?",
    ),
    "a misspelt option": (
        f"{HEAD}generators:\n  x: {{method: toy,\n      imags: 3}}\n{MATRIX}",
        "toy.yaml:5: unknown option of toy 'imags'; did you mean 'images'? known: images, scale",
    ),
    "a misspelt setting": (
        f"{HEAD}settings: {{presicion: bf16}}\n{MATRIX}",
        "toy.yaml:3: unknown key 'presicion'; did you mean 'precision'? known: ",
    ),
    "a misspelt setting of a block": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, settings: {thread: 2}')}",
        "toy.yaml:4: unknown key 'thread'; did you mean 'threads'? known: ",
    ),
    "a misspelt key of a model": (
        f"{HEAD}models: {{m: {{base: a, weigths: none}}}}\n{MATRIX}",
        "toy.yaml:3: unknown key 'weigths'; did you mean 'weights'? known: ",
    ),
    "a misspelt role of a scheme": (
        f"{HEAD}schemes: {{s: {{base: hw, logit: float}}}}\n{MATRIX}",
        "toy.yaml:3: unknown key 'logit'; did you mean 'logits'? known: ",
    ),
    "a misspelt base of a scheme": (
        f"{HEAD}schemes: {{s: {{base: hww}}}}\n{MATRIX}",
        "toy.yaml:3: unknown scheme 'hww'; did you mean 'hw'? known: ",
    ),
    "a misspelt scheme": (
        f"{HEAD}{MATRIX.replace('hw/', 'hww/')}",
        "toy.yaml:4: unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'? known: ",
    ),
    "an unknown model": (
        f"{HEAD}{MATRIX.replace('model: a', 'model: without_nb')}",
        "toy.yaml:4: unknown model 'without_nb'; did you mean 'without_bn'? known: ",
    ),
    "a misspelt axis of an exclusion": (
        f"{HEAD}{MATRIX}exclude:\n  - {{because: x, sed: 1}}\n",
        "toy.yaml:6: unknown key 'sed'; did you mean 'seed'? known: ",
    ),
}


@pytest.mark.parametrize("what", SUGGESTIONS)
def test_what_is_misspelt_is_refused_in_one_line_with_its_place_and_a_suggestion(bench, what):
    text, expected = SUGGESTIONS[what]
    bench.suite(text)
    assert expected in bench.error()


REFUSALS = {
    "an empty file": ("", "toy.yaml: expected a suite with keys such as name and matrix, got nothing"),
    "a list": ("- a\n", 'toy.yaml: expected a suite with keys such as name and matrix, got ["a"]'),
    "no name": (f"plugins: [toy.py]\n{MATRIX}", "toy.yaml:1: key 'name' is missing"),
    "no matrix": (HEAD, "toy.yaml:1: key 'matrix' is missing"),
    "an empty matrix": (f"{HEAD}matrix: []\n", "toy.yaml:3: matrix is empty; expected at least one value"),
    "an empty axis": (
        f"{HEAD}{MATRIX.replace('model: a', 'model: []')}",
        "toy.yaml:4: matrix.0.model is empty; expected at least one value",
    ),
    "empty seeds": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, seed: []')}",
        "toy.yaml:4: matrix.0.seed is empty; expected at least one value",
    ),
    "a missing axis": (f"{HEAD}{MATRIX.replace('model: a, ', '')}", "toy.yaml:4: key 'model' is missing"),
    "a name with a slash": (f"name: a/b\n{MATRIX}", "toy.yaml:1: name: "),
    "a number as a name": (f"name: 5\n{MATRIX}", "toy.yaml:1: name: expected a valid string, got 5"),
    "a number as a generator": (
        f"{HEAD}{MATRIX.replace('toy,', '5,')}",
        "toy.yaml:4: matrix.0.generator: expected a valid string, got 5",
    ),
    "a number as a model": (
        f"{HEAD}{MATRIX.replace('model: a', 'model: 50')}",
        "toy.yaml:4: matrix.0.model: expected a valid string, got 50",
    ),
    "text as a seed": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, seed: one')}",
        'toy.yaml:4: matrix.0.seed: expected a valid integer, got "one"',
    ),
    "a negative seed": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, seed: -1')}",
        "toy.yaml:4: matrix.0.seed: expected greater than or equal to 0, got -1",
    ),
    "a truth value as a seed": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, seed: yes')}",
        "toy.yaml:4: matrix.0.seed: expected a valid integer, got true",
    ),
    "a fraction as a seed": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw/w4a4, seed: 0.5')}",
        "toy.yaml:4: matrix.0.seed: expected a valid integer, got 0.5",
    ),
    "a wrong type of an option": (
        f"{HEAD}generators:\n  x:\n    method: toy\n    images: many\n{MATRIX}",
        'toy.yaml:6: generators.x.images: expected a valid integer, got "many"',
    ),
    "an option out of range": (
        f"{HEAD}generators: {{x: {{method: toy, images: 0}}}}\n{MATRIX}",
        "toy.yaml:3: generators.x.images: expected greater than 0, got 0",
    ),
    "a wrong setting": (
        f"{HEAD}settings: {{precision: fp16}}\n{MATRIX}",
        "toy.yaml:3: settings.precision: expected 'fp32' or 'bf16', got \"fp16\"",
    ),
    "settings that are a list": (f"{HEAD}settings: [fp32]\n{MATRIX}", "toy.yaml:3: settings: expected"),
    "bits 0": (
        f"{HEAD}{MATRIX.replace('w4a4', 'w0a4')}",
        "toy.yaml:4: 0 weight bits in scheme 'hw/w0a4': expected 2 to 16, or 32 for float",
    ),
    "bits 33": (
        f"{HEAD}{MATRIX.replace('w4a4', 'w4a33')}",
        "toy.yaml:4: 33 activation bits in scheme 'hw/w4a33': expected 2 to 16, or 32 for float",
    ),
    "bits 33 of a role": (
        f"{HEAD}schemes: {{s: {{base: hw, logits: 33}}}}\n{MATRIX}",
        "toy.yaml:3: schemes.s.logits: expected 'w' (weight bits), 'a' (activation bits), 'float'",
    ),
    "a scheme without bits": (
        f"{HEAD}{MATRIX.replace('hw/w4a4', 'hw')}",
        "toy.yaml:4: scheme 'hw' is not a placement and bit-widths such as 'hw/w4a4', nor 'float'",
    ),
    "a scheme without a base": (f"{HEAD}schemes: {{s: {{logits: float}}}}\n{MATRIX}", "toy.yaml:3: expected 'base'"),
    "a model without an origin": (
        f"{HEAD}models: {{m: {{weights: none}}}}\n{MATRIX}",
        "toy.yaml:3: models.m: a model is either a variant",
    ),
    "weights that are not there": (
        f"{HEAD}models: {{m: {{base: a, weights: nothing.txt}}}}\n{MATRIX}",
        "toy.yaml:3: models.m.weights: there is no file nothing.txt",
    ),
    "a model file that is not there": (
        f"{HEAD}models: {{m: {{file: nothing.py, weights: none, input_size: [3, 8, 8]}}}}\n{MATRIX}",
        "toy.yaml:3: models.m.file: there is no file nothing.py",
    ),
    "an input size of two numbers": (
        f"{HEAD}models: {{m: {{base: a, input_size: [8, 8]}}}}\n{MATRIX}",
        "toy.yaml:3: models.m.input_size",
    ),
    "a resize that is a word": (
        f"{HEAD}models: {{m: {{base: a, resize: small}}}}\n{MATRIX}",
        "toy.yaml:3: models.m.resize: expected",
    ),
    "a model that is text": (f"{HEAD}models: {{m: a}}\n{MATRIX}", "toy.yaml:3: models.m: expected"),
    "a name of a model": (
        f"{HEAD}models: {{m: {{name: m, base: a}}}}\n{MATRIX}",
        "toy.yaml:3: the name of a model is its key",
    ),
    "an exclusion without a reason": (
        f"{HEAD}{MATRIX}exclude:\n  - {{seed: 0}}\n",
        "toy.yaml:6: key 'because' is missing",
    ),
    "an exclusion with an empty reason": (
        f"{HEAD}{MATRIX}exclude:\n  - {{seed: 0, because: ''}}\n",
        "toy.yaml:6: exclude.0.because",
    ),
    "a plugin file that is not there": (
        f"name: x\nplugins: [nothing.py]\n{MATRIX}",
        "toy.yaml:2: cannot read plugin file nothing.py: No such file or directory",
    ),
    "a tab": (f"{HEAD}matrix:\n\t- a\n", "toy.yaml:4: a tab; YAML is indented with spaces"),
    "a duplicate key": (
        f"{HEAD}name: again\n{MATRIX}",
        "toy.yaml:3: duplicate key 'name'; it is first in line 1",
    ),
    "a duplicate variant": (
        f"{HEAD}generators:\n  x: {{method: toy}}\n  x: {{method: toy}}\n{MATRIX}",
        "toy.yaml:5: duplicate key 'x'; it is first in line 4",
    ),
    "a date as a name": (
        f"name: 2024-01-01\nplugins: [2024-01-02]\n{MATRIX}",
        "toy.yaml:2: cannot read plugin file 2024-01-02: No such file or directory",
    ),
    "bytes": (f"{HEAD}description: !!binary aGVsbG8=\n{MATRIX}", "toy.yaml:3: "),
    "a method that is a number": (
        f"{HEAD}generators:\n  x: {{method: 5}}\n{MATRIX}",
        "toy.yaml:4: expected the name of a generator, got 5",
    ),
    "a variant that is empty": (f"{HEAD}generators:\n  toy:\n{MATRIX}", "toy.yaml:4: generators.toy: expected"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(bench, what):
    text, expected = REFUSALS[what]
    bench.suite(text)
    assert bench.error().startswith(expected)


def test_every_mistake_is_told_at_once_each_in_a_line_of_its_own(bench):
    bench.suite(f"{HEAD}typo: 1\n{MATRIX.replace('model: a', 'modle: a')}")
    said = bench.zsqbench("plan", bench.file, "--no-plugin", "mlflow", *bench.places())
    assert sorted(line.split("toy.yaml:")[1][0] for line in said.err.splitlines()) == ["3", "5"]


PUBLISHED_REFUSALS = {
    "a misspelt source": (
        "{source: hasst, table: 2}",
        "5: unknown source of published values 'hasst'; did you mean 'hast'? known: adadfq, brecq, comq, dgh, ",
    ),
    "a misspelt source in a list": (
        "[{source: hast, table: 2},\n  {source: hasst, table: 2}]",
        "6: unknown source of published values 'hasst'; did you mean 'hast'?",
    ),
    "a table that is not there": (
        "{source: hast,\n  table: [2, 3]}",
        "6: unknown table of hast '3'; did you mean '3b'? known: 1a, 1b, 2, 3a, 3b, 4, 5, 6, 7, 8",
    ),
    "no table": ("{source: hast,\n  table: []}", "6: published.table is empty; expected at least one value"),
    "a misspelt key": (
        "{source: hast,\n  tabel: 2}",
        "6: unknown key 'tabel'; did you mean 'table'? known: source, table",
    ),
    "a name alone": ("hast", '5: published: expected an object, got "hast"'),
}


@pytest.mark.parametrize("what", PUBLISHED_REFUSALS)
def test_published_tables_that_cannot_be_meant_are_refused_in_one_line_with_their_place(bench, what):
    given, expected = PUBLISHED_REFUSALS[what]
    bench.suite(f"{HEAD}{MATRIX}published: {given}\n")
    assert bench.error().startswith(f"toy.yaml:{expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set 'seed': expected a.b=value, such as generators.zeroq.images=64"),
        ("=5", "--set '=5': expected a.b=value, such as generators.zeroq.images=64"),
        ("matrix.1.seed=0", "--set 'matrix.1.seed=0': '1' is not an index of a list of 1; the first is 0"),
        ("matrix.x.seed=0", "--set 'matrix.x.seed=0': 'x' is not an index of a list of 1; the first is 0"),
        ("matrix.-1.seed=0", "--set 'matrix.-1.seed=0': '-1' is not an index"),
        ("matrix.².seed=0", "--set 'matrix.².seed=0': '²' is not an index"),
        ("name.x=0", "--set 'name.x=0': name is a single value and has no 'x'"),
        ("name.x.y=0", "--set 'name.x.y=0': name is a single value and has no 'x'"),
        ("description=[", "--set 'description=[': while parsing a flow node"),
        ("description=!!binary aGk=", "--set 'description=!!binary aGk=': "),
        ("description=&a [*a]", "--set 'description=&a [*a]': "),
        ("description=0x_", "--set 'description=0x_': "),
        ("..=1", "--set '..=1': "),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(bench, override, expected):
    assert bench.error("--set", override).startswith(expected)


@pytest.mark.parametrize(
    "override", ["generators.toy.imags=2", "generators.toy.images=0", "matrix.0.seed=-1", "sede=1"]
)
def test_an_override_that_makes_the_suite_wrong_is_named_and_not_the_file(bench, override):
    line = bench.error("--set", override)
    assert "--set" in line
    assert "toy.yaml:" not in line


STARTS = "class Starts(ToyQuantizer):\n    name = 'starts'\n    seeded = False\n    start: str | None = None\n"


@pytest.fixture
def starting(bench, load):
    """Load a suite whose quantizers may start from each other."""

    def starting(quantizers, block="quantizer: fine", plugin=""):
        bench.add_plugin(STARTS + plugin)
        bench.matrix(block, head=f"quantizers: {{{quantizers}}}")
        return load()

    return starting


@pytest.mark.parametrize(
    ("quantizers", "expected"),
    [
        (
            "{fine: {method: starts, start: fine}}",
            "3: a quantizer cannot start from its own result: fine starts from fine",
        ),
        (
            (
                "{a: {method: starts, start: b}, fine: {method: toyq},\n"
                " b: {method: starts, start: c}, c: {method: starts,\n start: a}}"
            ),
            "5: a quantizer cannot start from its own result: a starts from b, b starts from c, c starts from a",
        ),
        ("{fine: {method: starts,\n start: toyqq}}", "4: unknown quantizer"),
        (
            "{fine: {method: starts, start: frist}, first: {method: toyq}}",
            "3: unknown quantizer 'frist'; did you mean 'first'?",
        ),
        ("{fine: {method: starts, start: 5}}", "3: quantizers.fine.start: expected a valid string, got 5"),
    ],
)
def test_a_start_that_cannot_be_meant_is_refused_with_its_place(bench, quantizers, expected):
    bench.add_plugin(STARTS)
    bench.matrix("quantizer: fine", head=f"quantizers: {quantizers}")
    said = bench.error()
    if "toyqq" in quantizers:
        assert said.startswith("unknown quantizer 'toyqq' in toy.yaml:4; did you mean 'toyq'? known: ")
    else:
        assert said.startswith(f"toy.yaml:{expected}")
