import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.suite import select
from zsqbench.suite.selection import expression_for


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


NAMES = [
    f"t:m:{generator}:{quantizer}:hw:0" for generator in ("noise", "dgh") for quantizer in ("rtn", "brecq", "hptq")
]


@pytest.mark.parametrize(
    ("chosen", "expression"),
    [
        ([0, 2, 3, 5], "not brecq"),
        ([1, 4], "brecq"),
        ([0, 1, 2], "noise"),
        ([0, 3], "rtn"),
        ([0], "t:m:noise:rtn:hw:0"),
        ([0, 4], "t:m:noise:rtn:hw:0 or t:m:dgh:brecq:hw:0"),
        ([], None),
        (range(6), None),
    ],
)
def test_an_expression_is_found_for_a_choice(chosen, expression):
    assert expression_for(NAMES, [NAMES[place] for place in chosen]) == expression


def test_names_that_contain_others_are_told_apart_or_not_at_all():
    names = ["t:m:g:q:hw:1", "t:m:g:q:hw:10"]
    assert expression_for(names, names[1:]) == "10"
    assert expression_for(names, names[:1]) == "not 10"
