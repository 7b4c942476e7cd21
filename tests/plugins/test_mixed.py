import pytest
from zsqbench_plugins.mixed import Mixed
from zsqbench_plugins.rtn import RTN
from zsqbench_plugins.squant import SQuant

from zsqbench import CalibrationSet, ZSQBenchError
from zsqbench.quant import effective_map, finalize, rank_weights
from zsqbench.scheme import FLOAT_BITS, Placement, RankedWeight, Scheme, parse_scheme
from zsqbench.testing import context, tiny_teacher

SCHEME = parse_scheme("hw/w4a8")


def ranked(*sizes, bits=4):
    """Weights a, b, c ... with these numbers of values, the most sensitive first."""
    names = "abcdefgh"
    return [
        RankedWeight("weight", names[place], "weight", bits, size, 1.0 / (place + 1))
        for place, size in enumerate(sizes)
    ]


def chosen(weights, scheme=SCHEME, **options):
    return [weight.name for weight in Mixed(over="rtn", **options).chosen(scheme, weights)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_most_sensitive_layers_get_more_bits(count):
    assert chosen(ranked(5, 6, 7), layers=count) == ["a", "b", "c"][:count]


@pytest.mark.parametrize(("part", "expected"), [(0.1, []), (1 / 3, ["a"]), (0.5, ["a", "b"]), (0.99, ["a", "b", "c"])])
def test_a_part_of_the_layers_is_rounded_to_the_nearest_number(part, expected):
    assert chosen(ranked(5, 6, 7), layers=part) == expected


@pytest.mark.parametrize("layers", [-1, -0.5, 0.0, 1.0, 1.5])
def test_layers_are_a_number_or_a_part(layers):
    with pytest.raises(ValueError, match="expected a number of weights, or a part of all weights between 0 and 1"):
        Mixed(over="rtn", layers=layers)


def test_weights_that_have_these_bits_already_are_left_out():
    weights = [*ranked(5, bits=8), *ranked(6, 7)[1:]]
    assert chosen(weights, layers=1) == ["b"]
    with pytest.raises(
        ZSQBenchError, match=r"^mixed: layers is 2, and 1 weights of the network have less than 8 bits "
    ):
        chosen(weights, layers=2)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (4.5, []),  # what all have at 4 bits
        (4.9, []),
        (5.0, ["b"]),  # a does not fit, and b does
        (6.5, ["a"]),
        (7.0, ["a", "b"]),
        (8.9, ["a", "b"]),
        (9.0, ["a", "b", "c"]),
    ],
)
def test_a_budget_is_spent_from_the_most_sensitive_on_where_each_fits(budget, expected):
    million = 1_000_000
    assert chosen(ranked(4 * million, million, 4 * million), budget=budget) == expected


def test_a_budget_counts_weights_that_stay_as_they_are():
    weights = [*ranked(1_000_000), RankedWeight("weight", "z", "last_weight", FLOAT_BITS, 1_000_000, None)]
    assert (chosen(weights, budget=4.9), chosen(weights, budget=5)) == ([], ["a"])
    with pytest.raises(ZSQBenchError) as raised:
        chosen(weights, budget=4.4)
    assert str(raised.value) == (
        "mixed: budget is 4.4 MB, and the weights have 4.5 MB at hw/w4a8 already; give more, or a scheme with fewer "
        "bits"
    )


@pytest.mark.parametrize(("options", "given"), [({}, "neither"), ({"layers": 1, "budget": 1.0}, "both")])
def test_layers_or_budget_say_how_many(options, given):
    with pytest.raises(ValueError, match=f"expected exactly one of layers and budget, got {given}"):
        Mixed(over="rtn", **options)


@pytest.mark.parametrize(("scheme", "bits"), [("hw/w8a8", 8), ("hw/w4a8", 4), ("hw/w32a8", 8)])
def test_bits_have_to_be_more_than_those_of_the_scheme(scheme, bits):
    assert "and the scheme's weights have" in Mixed(over="rtn", layers=1, bits=bits).rejects(parse_scheme(scheme))
    assert Mixed(over="rtn", layers=1, bits=16).rejects(parse_scheme("pot/w8a8")) is None
    assert "leaves nothing to quantize" in Mixed(over="rtn", layers=1).rejects(parse_scheme("float"))


def test_each_weight_that_is_chosen_has_its_bits_and_all_else_keeps_its_own():
    teacher = tiny_teacher()
    given = CalibrationSet(context().randn(8, *teacher.input_size))
    weights = rank_weights(teacher.module, SCHEME, teacher.input_size, given.images)
    mixed = Mixed(over="rtn", layers=2)
    scheme, ctx = mixed.adapted(SCHEME, weights), context()
    ctx.scheme, ctx.over = scheme, RTN()

    student = RTN().prepare(teacher, scheme)
    mixed.quantize(student, teacher, given, ctx)
    finalize(student)

    uniform = {(each.kind, each.name): each.bits for each in effective_map(RTN().prepare(teacher, SCHEME))}
    expected = uniform | {("weight", weight.name): 8 for weight in weights[:2]}
    assert {(each.kind, each.name): each.bits for each in effective_map(student)} == expected
    assert uniform != expected


def test_patterns_of_the_scheme_keep_their_place_and_what_they_say_of_activations():
    tensors = {"b": {"weight": 3, "activation": 6}, "*": {"activation": 5}}
    scheme = Scheme(name="own/w4a8", placement=Placement(tensors=tensors), weight_bits=4, activation_bits=8)
    adapted = Mixed(over="rtn", layers=2).adapted(scheme, ranked(5, 6, 7))
    assert [adapted.bits_of("weight", name, "weight") for name in "abc"] == [8, 8, 4]
    assert [adapted.bits_of("activation", name, "relu") for name in "abc"] == [5, 5, 5]


def test_names_that_look_like_patterns_are_taken_literally():
    weights = [RankedWeight("weight", name, "weight", 4, 1, 1.0) for name in ("a*", "a[0]", "ab", "a0")]
    adapted = Mixed(over="rtn", layers=2).adapted(SCHEME, weights)
    assert [adapted.bits_of("weight", weight.name, "weight") for weight in weights] == [8, 8, 4, 4]


@pytest.mark.parametrize(
    ("over", "images", "read"),
    [
        (RTN(search_images=4), 6, 6),
        (RTN(search_images=7), 6, 7),
        (RTN(activation_range="minmax"), 6, 8),
        (SQuant(noise_images=2), 6, 6),
        (SQuant(noise_images=2), 20, 8),
    ],
    ids=["rtn reads fewer", "rtn reads more", "rtn reads all", "squant reads none", "there are fewer"],
)
def test_images_that_either_of_them_read_are_counted(over, images, read):
    teacher, ctx = tiny_teacher(), context(scheme=SCHEME)
    given = CalibrationSet(ctx.randn(8, *teacher.input_size))
    ctx.over = over
    student = over.prepare(teacher, SCHEME)
    Mixed(over="x", layers=1, images=images).quantize(student, teacher, given, ctx)
    assert (len(given) if ctx.read is None else ctx.read) == read


def test_without_the_other_quantizer_it_says_so():
    teacher = tiny_teacher()
    with pytest.raises(ZSQBenchError, match="'mixed' needs 'rtn', which does the work"):
        Mixed(over="rtn", layers=1).quantize(teacher.module, teacher, None, context())
