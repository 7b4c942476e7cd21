from pathlib import Path

import pytest
from rows import NAN_IMAGES, method, seen

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.reports.comparison.selected import Selected
from zsqbench.reports.tables.axes import Column
from zsqbench.store import Store
from zsqbench.suite import Cell

FOLDER = Path("results")
W4, W8 = Column("digits", "resnet20", "hw/w4a4"), Column("digits", "resnet20", "hw/w8a8")
ROWS = [
    *(seen(range(9), generator=generator, seed=seed) for generator in ("dgh", "real") for seed in (0, 1)),
    seen(range(9), scheme="hw/w8a8"),
    seen(range(9), seed=10),
]


def select(text, rows=ROWS, without_row=(), name="A"):
    return Selected.of(name, text, FOLDER, rows, without_row, Store(Path("nowhere")))


def cells(text, **changes):
    return {column: [row.cell for row in group] for column, group in select(text, **changes).groups.items()}


def waiting(scheme="hw/w8a8", generator="real"):
    return Cell("digits", "resnet20", generator, "rtn", scheme, 0, Settings())


def test_the_seeds_of_a_method_are_together_in_each_column():
    found = {W4: [f"digits:resnet20:dgh:rtn:hw/w4a4:{seed}" for seed in (0, 1, 10)]}
    assert cells("dgh") == {**found, W8: ["digits:resnet20:dgh:rtn:hw/w8a8:0"]}
    assert cells("dgh and not w8a8") == cells("dgh:rtn:hw/w4") == found


def test_the_name_of_a_cell_selects_it_and_no_cell_whose_name_is_longer():
    assert cells("digits:resnet20:dgh:rtn:hw/w4a4:1") == {W4: ["digits:resnet20:dgh:rtn:hw/w4a4:1"]}


def test_the_name_of_a_cell_may_be_no_expression():
    odd = seen(range(9)).model_copy(update={"cell": "not (an expression"})
    assert cells("not (an expression", rows=[*ROWS, odd]) == {W4: ["not (an expression"]}


def test_several_methods_in_a_column_are_refused_and_listed():
    with pytest.raises(ZSQBenchError) as error:
        select("w4a4")
    assert str(error.value) == (
        "A selects 2 methods in digits resnet20 hw/w4a4, expected one: dgh with rtn; real with rtn"
    )


def test_one_method_with_other_options_is_another():
    other = seen(range(9), seed=1, methods={"generator": method("dgh", images=8), "quantizer": method("rtn")})
    with pytest.raises(ZSQBenchError, match=r"dgh with rtn; dgh \(8 images\) with rtn$"):
        select("dgh", rows=[seen(range(9)), other])


def test_mixed_precision_stands_beside_what_has_the_bits_of_the_scheme():
    methods = {"generator": method("dgh"), "quantizer": {**method("mixed"), "over": method("rtn")}}
    mixed = seen(range(9), quantizer="mixed", methods=methods, tensors={"mean_weight_bits": 5.0, "size_mb": 1.0})
    assert list(cells("mixed", rows=[mixed])) == [W4]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rael", "none of 6 rows in results matches B, 'rael'; did you mean 'real'?"),
        (
            "real and w2",
            "none of 6 rows in results matches B, 'real and w2'; expected a cell, a part of its name, or an expression",
        ),
        (
            "real and",
            "cannot read B 'real and'; expected words joined by and, or, not, with parentheses, such as",
        ),
        ("real:rtn:hw/w8a8", "B selects 1 cell without a row: digits:resnet20:real:rtn:hw/w8a8:0; run the suite"),
        (
            "digits:resnet20:real:rtn:hw/w8a8:0",
            "B selects 1 cell without a row: digits:resnet20:real:rtn:hw/w8a8:0; run the suite",
        ),
    ],
)
def test_what_selects_no_row_is_refused(text, why):
    with pytest.raises(ZSQBenchError) as error:
        select(text, without_row=[waiting()], name="B")
    assert str(error.value).startswith(why)


def test_columns_that_a_suite_has_and_no_row_are_known():
    found = select("real", without_row=[waiting(), waiting("hw/w4a4"), waiting("hw/w2a2", "dgh")])
    assert (set(found.groups), found.waiting, found.columns) == ({W4}, {W8}, {W4, W8})


def test_a_cell_that_failed_is_selected():
    failed = seen(range(9), **NAN_IMAGES)
    assert cells("dgh", rows=[failed]) == {W4: [failed.cell]}
