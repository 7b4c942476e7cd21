import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.suite import load_suite

STARTS = "class Starts(ToyQuantizer):\n    name = 'starts'\n    seeded = False\n    start: str | None = None\n"


@pytest.fixture
def starting(bench, load):
    """Load a suite whose quantizers may start from each other."""

    def starting(quantizers, block="quantizer: fine", plugin=""):
        bench.add_plugin(STARTS + plugin)
        bench.matrix(block, head=f"quantizers: {{{quantizers}}}")
        return load()

    return starting


BLOCK = "  - {task: toytask, model: a, generator: toy, quantizer: toyq, scheme: hw/w4a4}\n"


MATRIX = f"matrix:\n{BLOCK}"


HEAD = "name: toysuite\nplugins: [toy.py]\n"


def names(suite):
    return [cell.name for cell in suite.cells]


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
    assert (3, [f"{bench.file}:6: 1 cell of block 2 already appeared in block 1"]) == (len(suite.cells), suite.notes)


def test_a_cell_that_stands_twice_in_one_block_is_noted(bench, load):
    bench.matrix("seed: [0, 1, 1]")
    suite = load()
    assert (2, [f"{bench.file}:5: 1 cell of block 1 already appeared in the same block"]) == (
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
    assert [f"{bench.file}:5: 1 cell of block 1 already appeared in the same block"] == load().notes


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
        ("generator: none", "toyq needs calibration images, but the generator is none"),
        ("quantizer: datafree", "datafree reads no calibration images, so its generator must be none"),
        ("scheme: float", "toyq rejects float: it quantizes, and scheme float leaves nothing to quantize"),
        ("scheme: hw/w32a32", "toyq rejects hw/w32a32: it quantizes, and scheme float leaves nothing to quantize"),
    ],
)
def test_an_impossible_cell_says_why(bench, load, block, reason):
    bench.matrix(block)
    assert [reason] == [cell.reason for cell in load().cells]


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
            "fine starts from labels, and labels needs labels, but toy gives no labels",
        ),
        (
            "fine: {method: free, start: toyq}",
            "generator: none",
            "fine starts from toyq, and toyq needs calibration images, but the generator is none",
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


def test_a_quantizer_whose_images_are_optional_has_cells_with_and_without(bench, load):
    plugin = "class Either(ToyQuantizer):\n    name = 'either'\n    seeded = False\n    needs_images = 'optional'\n"
    bench.add_plugin(plugin)
    bench.matrix("generator: [none, toy], quantizer: either")
    assert [cell.reason for cell in load().cells] == [None, None]
    said = bench.run()
    names = ["toytask:a:none:either:hw/w4a4:-", "toytask:a:toy:either:hw/w4a4:0"]
    assert bench.statuses() == dict.fromkeys(names, "done"), said.err


def test_a_quantizer_that_needs_labels_cannot_take_images_without(bench, load):
    bench.add_plugin("class Labels(ToyQuantizer):\n    name = 'labels'\n    needs_labels = True\n")
    bench.matrix("quantizer: labels")
    assert [cell.reason for cell in load().cells] == ["labels needs labels, but toy gives no labels"]


def test_a_scheme_of_ones_own_changes_a_shipped_one(bench, load):
    bench.matrix("scheme: mine/w4a4", head="schemes: {mine: {base: hw, logits: float, first_weight: 8}}")
    scheme = load().schemes["mine/w4a4"]
    assert (scheme.bits("logits"), scheme.bits("first_weight"), scheme.bits("weight")) == (32, 8, 4)


def test_a_scheme_of_the_suite_may_name_tensors_of_which_the_last_pattern_counts(bench, load):
    tensors = '{0.*: 8, "*": {weight: 3}, "4": {weight: w, activation: 16}}'
    bench.matrix("scheme: mixed/w5a6", head=f"schemes: {{mixed: {{base: hw, logits: float, tensors: {tensors}}}}}")
    scheme = load().schemes["mixed/w5a6"]
    assert [*scheme.placement.tensors] == ["0.*", "*", "4"]
    assert [scheme.bits_of("weight", name, "weight") for name in ("0.1", "4")] == [3, 5]
    assert [scheme.bits_of("activation", name, "logits") for name in ("0.1", "4", "5")] == [8, 16, 32]


def test_an_option_may_have_an_alias(bench):
    bench.add_plugin(
        "from pydantic import Field\n"
        "class A(Toy):\n    name = 'aliased'\n    lambda_: float = Field(1.0, alias='lambda')\n"
    )
    bench.matrix("generator: l", head="generators: {l: {method: aliased, lambda: 2.0}}")
    said = bench.run()
    assert list(bench.statuses().values()) == ["done"], said.err


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
    ("head", "first", "second", "expected"),
    [
        ("", "", "", [False, False]),
        ("analyze: true\n", "", "", [True, True]),
        ("analyze: true\n", "", ", analyze: false", [True, False]),
        ("", ", analyze: true", "", [True, False]),
    ],
)
def test_a_suite_or_a_block_asks_for_the_errors_of_tensors(load, head, first, second, expected):
    blocks = [BLOCK.replace("}", f"{more}}}") for more in (first, second)]
    plain = load(f"{HEAD}matrix:\n{blocks[0].replace(first, '')}{BLOCK.replace('w4a4', 'w8a8')}")
    suite = load(f"{HEAD}{head}matrix:\n{blocks[0]}{blocks[1].replace('w4a4', 'w8a8')}")
    assert [cell.analyze for cell in suite.cells] == expected
    assert names(suite) == names(plain)
    assert [*map(suite.definition, suite.cells)] == [*map(plain.definition, plain.cells)]


def test_a_cell_of_two_blocks_is_analyzed_where_either_asks_also_where_it_is_excluded(load):
    asks = BLOCK.replace("}", ", analyze: true}")
    rule = "exclude: [{because: too slow, scheme: hw/w4a4}]\n"
    for text in (BLOCK + asks, asks + BLOCK):
        (cell,) = load(f"{HEAD}{rule}matrix:\n{text}").cells
        assert (cell.analyze, cell.excluded) == (True, True)


def test_files_that_are_absent_are_no_error_where_nobody_looks_for_them(bench):
    bench.matrix("model: mine", head="models: {mine: {base: a, weights: nowhere.txt}}")
    with pytest.raises(ZSQBenchError, match="there is no file"):
        load_suite(bench.file)
    suite = load_suite(bench.file, find_files=False)
    assert suite.models["mine"].weights_from == bench.folder / "nowhere.txt"
