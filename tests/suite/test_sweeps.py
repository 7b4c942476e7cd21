import json

import pytest
import yaml
from rows import result

from zsqbench.errors import ZSQBenchError
from zsqbench.suite import DeclaredCells, shipped_suites
from zsqbench.suite.files import parse_suite
from zsqbench.suite.schema import SuiteFile

BLOCK = "  - {task: toytask, model: a, generator: %s, quantizer: %s, scheme: hw/w4a4}\n"


def text(generators="", quantizers="", names=("toy", "toyq"), rest="", plugins="toy.py"):
    """A suite with these generators and quantizers, and one block of these names."""
    head = f"name: toysuite\nplugins: [{plugins}]\n"
    return f"{head}generators: {{{generators}}}\nquantizers: {{{quantizers}}}\nmatrix:\n{BLOCK % names}{rest}"


@pytest.fixture
def parsed(tmp_path):
    """A suite as far as it is read without plugins."""

    def parsed(text, *overrides):
        (tmp_path / "toy.yaml").write_text(text)
        return parse_suite(tmp_path / "toy.yaml", overrides)[1]

    return parsed


def test_each_value_of_an_option_makes_a_variant(parsed):
    file = parsed(text("toy: {images: {each: [16, 2, 8]}, scale: 3.0}", names=("[other, toy]", "toyq")))
    assert file.generators == {
        f"toy-images-{images}": {"method": "toy", "images": images, "scale": 3.0} for images in (16, 2, 8)
    }
    assert file.matrix[0].generator == ["other", "toy-images-16", "toy-images-2", "toy-images-8"]
    assert file.matrix[0].quantizer == ["toyq"]


def test_several_options_make_their_product_in_the_order_of_the_file(parsed):
    suite = parsed(text("few: {method: toy, scale: {each: [0.5, 1.0e-05]}, images: {each: [2, null]}}"))
    assert suite.generators == {
        "few-scale-0.5-images-2": {"method": "toy", "scale": 0.5, "images": 2},
        "few-scale-0.5-images-none": {"method": "toy", "scale": 0.5, "images": None},
        "few-scale-1e-05-images-2": {"method": "toy", "scale": 1e-05, "images": 2},
        "few-scale-1e-05-images-none": {"method": "toy", "scale": 1e-05, "images": None},
    }
    assert list(suite.generators)[1] == "few-scale-0.5-images-none"


def test_methods_can_be_swept_as_options_are(parsed):
    file = parsed(text("few: {method: {each: [toy, toyreal]}, images: 2}", names=("few", "toyq")))
    assert file.generators["few-method-toyreal"] == {"method": "toyreal", "images": 2}
    assert file.matrix[0].generator == ["few-method-toy", "few-method-toyreal"]


def test_a_suite_without_a_sweep_is_as_it_was(parsed):
    given = text("few: {method: toy, images: 2}, odd: {option: {each: [1], of: 2}}", names=("[toy, few]", "toyq"))
    assert parsed(given) == SuiteFile.model_validate(yaml.safe_load(given))


def test_exclusions_of_a_sweep_mean_all_of_its_variants(parsed):
    rules = "exclude: [{generator: [toy, other, 't*'], because: x}, {quantizer: toyq, because: x}]\n"
    file = parsed(text("toy: {images: {each: [2, 4]}}", "toyq: {shift: {each: [true]}}", rest=rules))
    assert file.exclude[0].generator == ["toy-images-2", "toy-images-4", "other", "t*"]
    assert (file.exclude[0].quantizer, file.exclude[1].quantizer) == (["*"], ["toyq-shift-true"])


@pytest.mark.parametrize(
    ("override", "labels"),
    [
        ("generators.toy.images=3", ["toy"]),
        ("generators.toy.images={each: [3, 5]}", ["toy-images-3", "toy-images-5"]),
        ("generators.toy.images.each.0=7", ["toy-images-7", "toy-images-4"]),
        ("generators.toy.scale=2.0", ["toy-images-2", "toy-images-4"]),
    ],
)
def test_overrides_change_the_file_before_it_is_expanded(parsed, override, labels):
    assert parsed(text("toy: {images: {each: [2, 4]}}"), override).matrix[0].generator == labels


def test_a_quantizer_that_starts_from_a_sweep_is_one_itself(parsed):
    tuned = "tuned: {method: ste, start: q, lr: {each: [1, 2]}}, q: {shift: {each: [3, 4]}}"
    suite = parsed(text("", f"{tuned}, over: {{method: mixed, over: {{each: [q, rtn]}}}}", ("toy", "tuned")))
    assert suite.matrix[0].quantizer == [
        "tuned-start-q-shift-3-lr-1",
        "tuned-start-q-shift-3-lr-2",
        "tuned-start-q-shift-4-lr-1",
        "tuned-start-q-shift-4-lr-2",
    ]
    overs = [options["over"] for label, options in suite.quantizers.items() if label.startswith("over")]
    assert overs == ["q-shift-3", "q-shift-4", "rtn"]


def test_circles_are_left_to_the_reader_unless_a_sweep_is_in_them(parsed):
    circle = "first: {method: ste, start: second}, second: {method: ste, start: first%s}"
    assert [*parsed(text("", circle % "")).quantizers] == ["first", "second"]
    with pytest.raises(ZSQBenchError, match=r"toy\.yaml:4: .* lead to itself: first, second, first$"):
        parsed(text("", circle % ", lr: {each: [1.0, 2.0]}"))


def test_rows_of_variants_are_those_of_the_suite(tmp_path, parsed):
    parsed(text("toy: {images: {each: [2, 4]}}"))
    declared = DeclaredCells.read(tmp_path / "toy.yaml")
    names = [f"toytask:a:toy-images-{images}:toyq:hw/w4a4:0" for images in (2, 4)]
    row = result(cell=names[1], task="toytask", model="a", generator="toy-images-4", quantizer="toyq", seed=0)
    assert declared.have(row)
    assert [cell.name for cell in declared.without([row.cell])] == names[:1]


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ("toy: {images: {each: []}}", "generators.toy.images.each is empty; expected at least one value"),
        ("toy: {images: {each: 16}}", "generators.toy.images.each: expected a list of values, got 16"),
        ("toy: {images: {each: [1, 2, 1]}}", "generators.toy.images.each has 1 twice"),
        ("toy: {scale: {each: [1, 1.0]}}", "generators.toy.scale.each has 1.0 twice"),
        ("toy: {images: {each: [[1]]}}", "generators.toy.images.each.0: expected numbers, true, false, null, or texts"),
        ("toy: {path: {each: ['a:b']}}", "generators.toy.path.each.0: expected numbers, true, false, null, or texts"),
        (
            "toy: {images: {each: [1]}}, toy-images-1: {method: toy}",
            "the sweep toy makes a generator 'toy-images-1'; the suite already has a generator of this name",
        ),
        ("toy: {images: {each: [1, '1']}}", "the sweep toy makes a generator 'toy-images-1'; so does another value"),
        (
            "toy: {a: {each: [1-b-2]}}, toy-a-1: {b: {each: [2]}}",
            "the sweep toy-a-1 makes a generator 'toy-a-1-b-2'; so does another value",
        ),
        (
            f"toy: {{a: {{each: {list(range(40))}}}, b: {{each: {list(range(40))}}}}}",
            "generators.toy makes 1600 variants; at most 1000 are possible",
        ),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_one_line_with_its_place(parsed, generators, message):
    with pytest.raises(ZSQBenchError) as error:
        parsed(text(generators))
    assert str(error.value).partition("toy.yaml:3: ")[2].startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ("toy: {imagse: {each: [1]}}", "unknown option of toy 'imagse'; did you mean 'images'?"),
        ("toy: {images: {each: [1, 0]}}", "generators.toy-images-0.images: expected greater than 0, got 0"),
        ("tyo: {images: {each: [1, 2]}}", "unknown generator 'tyo'"),
    ],
)
def test_an_error_of_a_variant_has_the_place_of_its_value(load, generators, message):
    lines = generators.replace("{each: [", "\n    {each: [").replace("0]", "\n      0]")
    with pytest.raises(ZSQBenchError, match=message) as error:
        load(text(lines, names=("[toy]", "toyq")))
    place = {"toy: {imagse": 4, "toy: {images": 5, "tyo: {images": 3}[generators[:12]]
    assert f"toy.yaml:{place}" in str(error.value)


def test_an_error_of_an_overridden_value_says_so(load):
    with pytest.raises(ZSQBenchError, match=r"^--set 'generators.toy.images.each.1=-2': .*images: expected greater"):
        load(text("toy: {images: {each: [1, 2]}}"), "generators.toy.images.each.1=-2")


def test_variants_are_what_they_would_be_if_written_by_hand(load):
    swept = load(text("toy: {images: {each: [2, 8]}}", "toyq: {shift: {each: [0.0, -1.5]}}"))
    by_hand = load(
        text(
            "toy-images-2: {method: toy, images: 2}, toy-images-8: {method: toy, images: 8}",
            "toyq-shift-0.0: {method: toyq}, toyq-shift--1.5: {method: toyq, shift: -1.5}",
            ("[toy-images-2, toy-images-8]", "[toyq-shift-0.0, toyq-shift--1.5]"),
        )
    )
    assert len(swept.cells) == 4
    assert swept.cells == by_hand.cells
    for cell in swept.cells:
        assert swept.definition(cell) == by_hand.definition(cell)
        for axis, variant in swept.methods(cell).items():
            other = by_hand.methods(cell)[axis]
            assert (variant.digest, variant.describe()) == (other.digest, other.describe())


def test_steps_of_variants_are_those_of_variants_written_by_hand(bench):
    bench.suite(text("toy: {images: {each: [2, 3]}}"))
    bench.run()
    keys = [row["keys"]["evaluate"] for row in bench.rows().values()]
    bench.suite(text("x: {method: toy, images: 2}, y: {method: toy, images: 3}", names=("[x, y]", "toyq")))
    assert [step["key"] for step in bench.planned("evaluate").values()] == keys


def test_the_schema_tells_of_sweeps_and_the_shipped_one_has_all_of_its_variants():
    assert "each: [a, b]" in json.dumps(SuiteFile.model_json_schema())
    file = parse_suite(shipped_suites()["number_of_images"])[1]
    assert [len(file.matrix[0].generator), *file.matrix[0].generator[3:5]] == [9, "dgh-images-16", "dgh-images-64"]
