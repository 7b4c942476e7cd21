import json
from pathlib import Path

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.suite import find_suite, load_suite, select, shipped_suites, suite_name

HEAD = "name: toysuite\nplugins: [toy.py]\n"
BLOCK = "  - {task: toytask, model: a, generator: toy, quantizer: toyq, scheme: hw/w4a4}\n"
MATRIX = f"matrix:\n{BLOCK}"


@pytest.fixture
def load(bench):
    def load(text=None, *overrides, data_root=None):
        if text is not None:
            bench.suite(text)
        return load_suite(bench.file, without=["mlflow"], overrides=overrides, data_root=data_root)

    return load


def names(suite):
    return [cell.name for cell in suite.cells]


# --- what a suite means ---------------------------------------------------------------------------------------------


def test_a_block_is_the_full_product_of_its_axes(bench, load):
    bench.matrix("model: [a, b], generator: [toy, toyreal], scheme: [hw/w4a4, hw/w8a8], seed: [0, 1, 2]")
    assert len({*names(load())}) == 24


def test_a_suite_is_the_union_of_its_blocks_in_order(bench, load):
    bench.matrix("seed: 1", "seed: 0")
    assert names(load()) == ["toytask:a:toy:toyq:hw/w4a4:1", "toytask:a:toy:toyq:hw/w4a4:0"]


def test_settings_that_are_not_the_default_stand_in_the_name(bench, load):
    bench.matrix("settings: {precision: bf16, threads: 2}")
    assert names(load()) == ["toytask:a:toy:toyq:hw/w4a4:0:precision=bf16:threads=2"]


def test_a_block_overrides_the_settings_of_the_suite_one_by_one(bench, load):
    bench.matrix("settings: {precision: fp32}", head="settings: {precision: bf16, threads: 2}")
    (cell,) = load().cells
    assert (cell.settings.precision, cell.settings.threads) == ("fp32", 2)


def test_a_named_variant_has_its_options(bench, load):
    bench.matrix("generator: [toy, few]", head="generators: {few: {method: toy, images: 2}}")
    suite = load()
    assert [suite.generators[label].method.images for label in ("toy", "few")] == [4, 2]


def test_a_method_may_be_changed_under_its_own_name(bench, load):
    bench.matrix("", head="generators: {toy: {images: 2}}")
    assert load().generators["toy"].method.images == 2


def test_a_path_option_is_relative_to_the_suite(bench, load):
    bench.write("weights.txt", "3")
    bench.matrix("model: mine", head="models: {mine: {base: a, weights: weights.txt}}")
    assert str(bench.folder / "weights.txt") == load().models["mine"].weights


def test_a_path_option_may_lie_below_the_data_root(bench, load):
    bench.write("root/weights.txt", "3")
    bench.matrix("model: mine", head="models: {mine: {base: a, weights: weights.txt}}")
    suite = load(data_root=bench.folder / "root")
    assert str(bench.folder / "root" / "weights.txt") == suite.models["mine"].weights


def test_a_cell_that_stands_twice_is_noted(bench, load):
    bench.matrix("seed: [0, 1]", "seed: [1, 2]")
    suite = load()
    assert (3, [f"{bench.file}:6: 1 cell of block 2 already stood in block 1"]) == (len(suite.cells), suite.notes)


def test_a_cell_that_stands_twice_in_one_block_is_noted(bench, load):
    bench.matrix("seed: [0, 1, 1]")
    suite = load()
    assert (2, [f"{bench.file}:5: 1 cell of block 1 already stood in the same block"]) == (
        len(suite.cells),
        suite.notes,
    )


def test_seeds_that_make_no_difference_collapse_and_it_is_noted(bench, load):
    bench.matrix("generator: none, quantizer: datafree, seed: [0, 1, 2]")
    suite = load()
    note = "2 cells of none with datafree left out: neither uses the seed, so one cell stands for all seeds"
    assert (["toytask:a:none:datafree:hw/w4a4:-"], [note]) == (names(suite), suite.notes)


def test_an_unseeded_cell_that_stands_twice_is_not_blamed_on_its_seeds(bench, load):
    bench.matrix("generator: none, quantizer: [datafree, datafree], seed: 0")
    assert [f"{bench.file}:5: 1 cell of block 1 already stood in the same block"] == load().notes


def test_an_excluded_cell_stays_with_its_reason(bench, load):
    bench.matrix(
        "scheme: [hw/w4a4, hw/w8a8], seed: [0, 1]", head="exclude: [{scheme: hw/w8*, seed: 1, because: shown once}]"
    )
    assert [cell.reason for cell in load().cells] == [None, None, None, "shown once"]


def test_an_exclusion_that_matches_nothing_is_noted(bench, load):
    bench.matrix("", head="exclude:\n  - {generator: tyo, because: why not}")
    assert [f"{bench.file}:4: this exclusion matches no cell"] == load().notes


def test_an_exclusion_may_name_the_generator_none(bench, load):
    bench.matrix("generator: none, quantizer: datafree", head="exclude: [{generator: none, because: x}]")
    assert [cell.reason for cell in load().cells] == ["x"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("generator: none", "toyq needs calibration images, and the generator is none"),
        ("quantizer: datafree", "datafree reads no calibration images: its generator is none"),
        ("scheme: float", "toyq rejects float: it quantizes, and scheme float leaves nothing to quantize"),
        ("scheme: hw/w32a32", "toyq rejects hw/w32a32: it quantizes, and scheme float leaves nothing to quantize"),
    ],
)
def test_an_impossible_cell_says_why(bench, load, block, reason):
    bench.matrix(block)
    assert [reason] == [cell.reason for cell in load().cells]


STARTS = "class Starts(ToyQuantizer):\n    name = 'starts'\n    seeded = False\n    start: str | None = None\n"


@pytest.fixture
def starting(bench, load):
    """Load a suite whose quantizers may start from each other."""

    def starting(quantizers, block="quantizer: fine", plugin=""):
        bench.add_plugin(STARTS + plugin)
        bench.matrix(block, head=f"quantizers: {{{quantizers}}}")
        return load()

    return starting


@pytest.mark.parametrize("after", [False, True])
def test_a_quantizer_starts_from_one_that_the_suite_names_before_or_after(starting, after):
    named = ["first: {method: toyq, shift: 2.0}", "fine: {method: starts, start: first}"]
    suite = starting(", ".join(reversed(named) if after else named))
    assert [link.label for link in suite.quantizers["fine"].chain] == ["fine", "first"]
    assert suite.quantizers["fine"].start.method.shift == 2.0


def test_a_quantizer_may_start_from_a_method_that_the_suite_does_not_name(starting):
    assert starting("fine: {method: starts, start: toyq}").quantizers["fine"].start.method.name == "toyq"


def test_a_default_start_holds_for_a_quantizer_that_only_the_matrix_names(starting):
    plugin = "class Goes(ToyQuantizer):\n    name = 'goes'\n    start: str | None = 'toyq'\n"
    assert starting("", "quantizer: goes", plugin).quantizers["goes"].start.label == "toyq"


def test_seeds_count_where_what_a_quantizer_starts_from_is_seeded(starting):
    quantizers = "fine: {method: starts, start: seeded}, seeded: {method: toyq}"
    plugin = "class Same(Toy):\n    name = 'same'\n    seeded = False\n"
    suite = starting(quantizers, "generator: same, quantizer: [fine, starts], seed: [0, 1]", plugin)
    assert [cell.seed for cell in suite.cells] == [0, 1, None]


@pytest.mark.parametrize(
    ("quantizers", "block", "reason"),
    [
        (
            "fine: {method: starts, start: fp32}",
            "",
            (
                "fine starts from fp32, and fp32 rejects hw/w4a4: it leaves the network in floating point, so it runs "
                "at scheme float only"
            ),
        ),
        (
            "fine: {method: starts, start: middle}, middle: {method: starts, start: labels}",
            "",
            "fine starts from labels, and labels needs labels, and toy gives none",
        ),
        (
            "fine: {method: free, start: toyq}",
            "generator: none",
            "fine starts from toyq, and toyq needs calibration images, and the generator is none",
        ),
        ("fine: {method: starts, start: datafree}", "", None),
        ("fine: {method: free, start: datafree}", "generator: none", None),
    ],
)
def test_what_a_quantizer_starts_from_has_to_be_possible_too(starting, quantizers, block, reason):
    plugin = (
        "class Labels(ToyQuantizer):\n    name = 'labels'\n    needs_labels = True\n\n"
        "class Free(ToyQuantizer):\n    name = 'free'\n    needs_images = False\n    start: str | None = None\n"
    )
    suite = starting(quantizers, ", ".join(filter(None, [block, "quantizer: fine"])), plugin)
    assert [cell.reason for cell in suite.cells] == [reason]


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


def test_a_quantizer_that_needs_labels_cannot_take_images_without(bench, load):
    bench.add_plugin("class Labels(ToyQuantizer):\n    name = 'labels'\n    needs_labels = True\n")
    bench.matrix("quantizer: labels")
    assert [cell.reason for cell in load().cells] == ["labels needs labels, and toy gives none"]


def test_a_scheme_of_ones_own_changes_a_shipped_one(bench, load):
    bench.matrix("scheme: mine/w4a4", head="schemes: {mine: {base: hw, logits: float, first_weight: 8}}")
    scheme = load().schemes["mine/w4a4"]
    assert (scheme.bits("logits"), scheme.bits("first_weight"), scheme.bits("weight")) == (32, 8, 4)


def test_two_cells_never_share_a_name(bench):
    head = "models: {'a:x': {base: a}}\ngenerators: {'x:toy': {method: toy}}"
    bench.matrix("model: a, generator: 'x:toy'", "model: 'a:x', generator: toy", head=head)
    said = bench.zsqbench("plan", bench.file, "--no-plugin", "mlflow", *bench.places())
    refused = said.code == 2 and "':'" in said.err
    cells = [line.split()[2] for line in said.out.splitlines() if ":toyq:" in line]
    assert refused or len({*cells}) == 2, cells


def test_an_option_may_have_an_alias(bench):
    bench.add_plugin(
        "from pydantic import Field\n"
        "class A(Toy):\n    name = 'aliased'\n    lambda_: float = Field(1.0, alias='lambda')\n"
    )
    bench.matrix("generator: l", head="generators: {l: {method: aliased, lambda: 2.0}}")
    said = bench.run()
    assert list(bench.statuses().values()) == ["done"], said.err


# --- what cannot be meant: one line each, with file and line ----------------------------------------------------------

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
        "toy.yaml:3: key 'name' stands here a second time, first in line 1",
    ),
    "a duplicate variant": (
        f"{HEAD}generators:\n  x: {{method: toy}}\n  x: {{method: toy}}\n{MATRIX}",
        "toy.yaml:5: key 'x' stands here a second time, first in line 4",
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
        "5: unknown source of published values 'hasst'; did you mean 'hast'? known: brecq, dgh, hast, intraq",
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


PUBLISHED = """
name: toysuite
plugins: [toy.py]
models: {resnet18: {base: a}}
generators: {hast: {method: toy}, intraq: {method: toy}}
quantizers: {hast: {method: toyq}, ste: {method: toyq}}
matrix:
  - {task: toytask, model: resnet18, generator: [hast, intraq], quantizer: [hast, ste], scheme: [hw/w3a3, hast/w3a3]}
"""


def test_what_a_paper_says_of_a_cell_is_found_by_the_names_of_its_parts(load):
    suite = load(f"{PUBLISHED}published: {{source: hast, table: 2}}\n")
    told = {cell.name: suite.published_of(cell) for cell in suite.cells if suite.published_of(cell)}
    assert {name: value["value"] for name, value in told.items()} == {
        "toytask:resnet18:hast:hast:hast/w3a3:0": 51.15,
        "toytask:resnet18:intraq:ste:hast/w3a3:0": 45.51,
    }
    assert suite.notes == []


def test_the_table_that_is_named_first_counts(load):
    values = []
    for tables in ("[6, 2]", "2", "4"):
        suite = load(f"{PUBLISHED}published: [{{source: hast, table: {tables}}}, {{source: hast, table: 4}}]\n")
        values.append([suite.published_of(cell).get("source") for cell in suite.cells])
    two, four = "HAST, Table 2", "HAST, Table 4"
    assert values == [
        [None, two, None, four, None, None, None, two],
        [None, two, None, four, None, None, None, two],
        [None, four, None, four, None, None, None, None],
    ]


def test_tables_that_say_nothing_of_a_cell_are_noted(bench, load):
    suite = load(f"{HEAD}{MATRIX}published: {{source: hast, table: 2}}\n")
    assert suite.notes == [
        f"{bench.file}:5: these tables say nothing of a cell; parts of a cell must be called as there"
    ]


def test_what_a_paper_says_is_in_no_definition(load):
    definitions = []
    for table in ("2", "4"):
        suite = load(f"{PUBLISHED}published: {{source: hast, table: {table}}}\n")
        definitions.append([suite.definition(cell) for cell in suite.cells])
    assert definitions[0] == definitions[1]


@pytest.mark.parametrize("name", [name for name in shipped_suites() if name.startswith("paper/")])
def test_every_published_value_of_the_tables_of_a_shipped_suite_stands_beside_a_cell(name, tmp_path):
    for network in ("resnet18_imagenet.pth.tar", "resnet50_imagenet.pth.tar", "mobilenetv2.pth.tar"):
        (tmp_path / "brecq").mkdir(exist_ok=True)
        (tmp_path / "brecq" / network).touch()
    suite = load_suite(shipped_suites()[name], data_root=tmp_path)
    there = {
        (cell.model, cell.generator or "none", cell.quantizer, cell.scheme, suite.task(cell.task).metric)
        for cell in suite.cells
    }
    assert {place for place in suite.published if place[3] != "float"} <= there


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_can_be_read(name, tmp_path):
    networks = ["resnet18_imagenet.pth.tar", "resnet50_imagenet.pth.tar", "mobilenetv2.pth.tar"]
    files = ["models/resnet20_cifar10.safetensors", *(f"brecq/{network}" for network in networks)]
    for file in (*files, *(f"sets/{method}.safetensors" for method in ("zeroq", "intraq", "hast", "dgh"))):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()  # its content is read when it runs
    suite = load_suite(shipped_suites()[name], data_root=tmp_path)
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


# --- -k ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cells(bench, load):
    bench.matrix("model: [a, b], scheme: [hw/w4a4, hw/w8a8], seed: [0, 1]")
    return load().cells


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("w4a4", 4),
        ("hw/w4a4", 4),
        ("not w4a4", 4),
        ("w4a4 and :b:", 2),
        ("w4a4 or :b:", 6),
        ("not (w4a4 or :b:)", 2),
        ("not not w4a4", 4),
        ("w4a4:0 or w8a8:1", 4),
        ("nothing", 0),
        ("if", 0),
        ("None or True", 0),
        ("word0", 0),
        ("__import__", 0),
        ("w4a4\tand\n:b:", 2),
    ],
)
def test_an_expression_selects_the_cells_whose_names_match(cells, expression, count):
    assert count == len(select(cells, expression))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "a b",
        "and",
        "a and",
        "not",
        "(a",
        "a)",
        "()",
        "a (b)",
        "(a)(b)",
        "a or or b",
        "not " * 5000 + "a",
        "(" * 500 + "a" + ")" * 500,
    ],
)
def test_what_is_no_expression_is_refused_with_an_example(cells, expression):
    with pytest.raises(ZSQBenchError, match="expected words joined by and, or, not, with parentheses, such as"):
        select(cells, expression)


# --- --set ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "count"),
    [
        ("matrix.0.seed=[0, 1, 2]", 3),
        ("matrix.0.seed=5", 1),
        ("generators.toy.images=2", 2),
        ("description=2024-01-01", 2),
    ],
)
def test_a_value_can_be_overridden(load, override, count):
    assert count == len(load(None, override).cells)


def test_an_override_reaches_a_method_that_is_named_in_the_matrix_only(load):
    assert load(None, "generators.toy.images=2").generators["toy"].method.images == 2


def test_an_override_fills_a_section_that_is_empty(load):
    suite = load(f"{HEAD}generators:\n{MATRIX}", "generators.toy.images=2")
    assert suite.generators["toy"].method.images == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set 'seed': expected a.b=value, such as generators.zeroq.images=64"),
        ("=5", "--set '=5': expected a.b=value, such as generators.zeroq.images=64"),
        ("matrix.1.seed=0", "--set 'matrix.1.seed=0': '1' is no index of a list of 1; the first is 0"),
        ("matrix.x.seed=0", "--set 'matrix.x.seed=0': 'x' is no index of a list of 1; the first is 0"),
        ("matrix.-1.seed=0", "--set 'matrix.-1.seed=0': '-1' is no index"),
        ("matrix.².seed=0", "--set 'matrix.².seed=0': '²' is no index"),
        ("name.x=0", "--set 'name.x=0': name is a single value, there is no 'x' in it"),
        ("name.x.y=0", "--set 'name.x.y=0': name is a single value, there is no 'x' in it"),
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


def test_the_definition_of_a_cell_does_not_know_folders(bench, load):
    bench.write("weights.txt", "3")
    bench.matrix("model: mine", head="models: {mine: {base: a, weights: weights.txt}}")
    here = load()
    (bench.folder / "weights.txt").unlink()
    bench.write("root/weights.txt", "3")
    there = load(data_root=bench.folder / "root")
    assert here.definition(here.cells[0]) == there.definition(there.cells[0])


def test_the_definition_of_a_cell_says_which_float_accuracy_was_asked_for(bench, load):
    definitions = set()
    for said in ("", ", float_accuracy: null", ", float_accuracy: 71", ", float_accuracy: 71.08"):
        bench.matrix("model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        suite = load()
        definitions.add(suite.definition(suite.cells[0]))
    assert len(definitions) == 3


def test_the_schema_of_a_suite_is_json(bench):
    said = bench.zsqbench("schema")
    assert {"name", "matrix", "exclude"} <= set(json.loads(said.out)["properties"])
