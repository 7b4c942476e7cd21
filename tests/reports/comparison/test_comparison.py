import base64
from pathlib import Path

import numpy as np
import pytest
from rows import NAN_IMAGES, row, seen

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.reports.comparison.comparison import Comparison, Flips, compare_selected
from zsqbench.reports.comparison.page import render
from zsqbench.reports.comparison.selected import Selected
from zsqbench.reports.results import Result
from zsqbench.statistics import Samples, unpacked
from zsqbench.statistics import compare as compare_samples
from zsqbench.store import Store
from zsqbench.suite import Cell

COMMITTED = Path(__file__).resolve().parents[3] / "results" / "hw_friendly.jsonl"
NOWHERE = Store(Path("nowhere"))
FOLDER = Path("results")


def compared(rows, a="dgh", b="real", margin=None, others=None, waiting=()):
    in_a = Selected.of("A", a, FOLDER, rows, waiting, NOWHERE)
    folder = FOLDER if others is None else Path("others")
    in_b = Selected.of("B", b, folder, rows if others is None else others, waiting, NOWHERE)
    return compare_selected("demo", in_a, in_b, NOWHERE, margin)


def only(*arguments, **named):
    (pair,) = compared(*arguments, **named).pairs
    return pair


def refusal(*arguments, **named):
    with pytest.raises(ZSQBenchError) as error:
        compared(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


def both(right_a, right_b, **changes):
    return [seen(right_a, generator="dgh", **changes), seen(right_b, generator="real", **changes)]


def test_a_difference_is_b_less_a_and_flips_go_from_a_to_b():
    pair = only(both(range(60), range(5, 80)))
    assert (pair.a.mean, pair.b.mean, pair.difference.points) == (60.0, 75.0, pytest.approx(15.0))
    assert pair.flips == (Flips(0, right_to_wrong=5, wrong_to_right=20),)
    assert (pair.verdict, pair.place) == ("B is better, for these seeds", "digits resnet20 hw/w4a4")
    assert only(both(range(5, 80), range(60))).verdict == "B is worse, for these seeds"


def test_seeds_are_compared_one_by_one_and_those_of_one_side_are_named():
    rows = [
        *both(range(50), range(40), seed=0),
        *both(range(54), range(50), seed=1),
        seen(range(100), generator="real", seed=2),
        seen(range(100), generator="real", seed=3),
    ]
    pair = only(rows)
    assert pair.seeds == (0, 1)
    assert pair.flips == (Flips(0, 10, 0), Flips(1, 4, 0))
    assert (pair.right_to_wrong, pair.wrong_to_right) == (14, 0)
    assert (pair.a.mean, pair.b.mean) == (52.0, 45.0)
    assert (pair.a.deviation, pair.b.deviation) == (pytest.approx(8**0.5), pytest.approx(50**0.5))
    assert pair.notes == ("only B has seeds 2, 3; not compared",)
    assert pair.difference.scope == "for these seeds"


def test_a_method_without_seeds_is_compared_with_each_seed_of_the_other():
    rows = [seen(range(50), generator=None, seed=None, quantizer="squant")]
    rows += [seen(range(40 + seed), generator="real", seed=seed) for seed in range(3)]
    pair = only(rows, "squant", "real")
    assert (pair.seeds, pair.difference.scope) == ((0, 1, 2), "over seeds")
    assert (pair.a.cells, pair.a.deviation) == (("digits:resnet20:none:squant:hw/w4a4:-",), None)
    assert pair.right_to_wrong == 10 + 9 + 8


def test_methods_without_seeds_have_flips_without_a_seed():
    rows = [seen(range(9), generator=None, seed=None, quantizer=name) for name in ("squant", "dfq")]
    pair = only(rows, "squant", "dfq")
    assert (pair.seeds, pair.flips, pair.verdict) == (
        (),
        (Flips(None, 0, 0),),
        "The difference cannot be told with 100 images; no difference is seen",
    )


def test_seconds_and_size_are_means_over_the_seeds():
    costs = [
        {
            "seed": seed,
            "seconds": {"generate": 1.0 + seed, "quantize": 2.0, "evaluate": 50.0},
            "tensors": {"size_mb": 0.5},
        }
        for seed in (0, 1)
    ]
    pair = only([row for cost in costs for row in both(range(9), range(9), **cost)])
    assert (pair.a.seconds, pair.a.size_mb) == (3.5, 0.5)
    assert (only(both(range(9), range(8))).a.seconds, only(both(range(9), range(8))).a.size_mb) == (None, None)


def test_one_column_of_each_may_be_another_scheme_of_the_same_images():
    rows = [seen(range(60)), seen(range(90), scheme="hw/w8a8")]
    pair = only(rows, "w4a4", "w8a8")
    assert pair.place == "digits resnet20 hw/w4a4 (A), digits resnet20 hw/w8a8 (B)"
    assert [each.name for each in pair.options] == ["scheme"]


def test_each_column_in_common_is_compared_and_others_are_named():
    rows = [*both(range(60), range(70)), *both(range(60), range(70), scheme="hw/w8a8")]
    rows += [seen(range(9), scheme="hw/w2a2"), seen(range(9), scheme="hw/w3a3", generator="real")]
    found = compared(rows)
    assert [pair.a.column.scheme for pair in found.pairs] == ["hw/w4a4", "hw/w8a8"]
    assert list(map(str, found.left_out)) == [
        "digits resnet20 hw/w2a2: only A selects it",
        "digits resnet20 hw/w3a3: only B selects it",
    ]


def test_columns_of_the_suite_that_have_no_row_are_named():
    waiting = [Cell("digits", "resnet20", name, "rtn", "hw/w8a8", 0, Settings()) for name in ("dgh", "real")]
    rows = both(range(60), range(70))
    assert list(map(str, compared(rows, waiting=waiting[1:]).left_out)) == [
        "digits resnet20 hw/w8a8: only B selects it"
    ]
    assert list(map(str, compared(rows, waiting=waiting).left_out)) == [
        "digits resnet20 hw/w8a8: A has no row there yet; run the suite"
    ]
    rows += [seen(range(9), scheme="hw/w8a8")]
    assert list(map(str, compared(rows, waiting=waiting[1:]).left_out)) == [
        "digits resnet20 hw/w8a8: B has no row there yet; run the suite"
    ]


def test_a_pair_that_cannot_be_compared_does_not_hide_others():
    failed = seen(range(9), scheme="hw/w8a8", generator="real", **NAN_IMAGES)
    found = compared([*both(range(60), range(70)), seen(range(9), scheme="hw/w8a8"), failed])
    assert len(found.pairs) == 1
    assert list(map(str, found.left_out)) == [
        "digits resnet20 hw/w8a8: B's cell digits:resnet20:real:rtn:hw/w8a8:0 is failed: generate: images are NaN"
    ]


AT = "nothing can be compared: digits resnet20 hw/w4a4: "


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (NAN_IMAGES, "B's cell digits:resnet20:real:rtn:hw/w4a4:0 is failed: generate: images are NaN"),
        (
            {"status": "interrupted", "reason": None},
            "B's cell digits:resnet20:real:rtn:hw/w4a4:0 is interrupted: no reason was given",
        ),
        ({"correct": None}, "B, digits:resnet20:real:rtn:hw/w4a4:0: its task keeps no value for each image"),
        (
            {"data": {"evaluated": 100, "digest": "others"}},
            "B, digits:resnet20:real:rtn:hw/w4a4:0: it was evaluated on other images",
        ),
        ({"metric": "top5", "metrics": {"top5": 9.0}}, "A was measured by top1, and B by top5; expected the same"),
        (
            {"methods": {"task": {"method": "digits", "version": 2}}},
            "A was evaluated by digits, version unknown, and B by digits, version 2; expected the same",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(changes, why):
    assert refusal([seen(range(9)), seen(range(9), generator="real", **changes)]) == AT + why


def test_rows_of_another_version_of_evaluation_are_refused():
    """Its version is part of the key of the float network's measurement, and so are threads."""
    same = {"model_facts": {"digest": "f" * 64}, "settings": {"threads": 1}}
    rows = [
        seen(range(9), keys={"baseline": "a"}, **same),
        seen(range(9), generator="real", keys={"baseline": "b"}, **same),
    ]
    assert refusal(rows).startswith(f"{AT}the same float network was measured differently for A and for B")
    for other in ({"model_facts": {"digest": "e" * 64}}, {"settings": {"threads": 2}}):
        assert only([rows[0], rows[1].model_copy(update=other)])


def test_seeds_must_be_in_common():
    rows = [seen(range(9), seed=0), seen(range(9), generator="real", seed=1)]
    assert refusal(rows) == f"{AT}no common seeds: one has 0, the other 1; run both with the same seed"


def test_the_same_rows_are_refused_unless_they_are_of_another_folder():
    rows = [seen(range(9)), seen(range(9), seed=1)]
    assert refusal(rows, "dgh", "resnet20") == (
        "A and B both select digits:resnet20:dgh:rtn:hw/w4a4:0, digits:resnet20:dgh:rtn:hw/w4a4:1; expected different "
        "rows"
    )
    pair = only(rows, "dgh", "dgh", others=[seen(range(1, 9)), seen(range(9), seed=1)])
    assert (pair.flips, pair.options) == ((Flips(0, 1, 0), Flips(1, 0, 0)), ())


def test_different_columns_are_refused_where_a_side_has_several():
    rows = [seen(range(9), scheme=scheme) for scheme in ("a", "b")]
    rows += [seen(range(9), generator="real", scheme=scheme) for scheme in ("c", "d")]
    assert refusal(rows) == (
        "A has digits resnet20 a, digits resnet20 b and B has digits resnet20 c, digits resnet20 d; two columns that "
        "differ are compared only where each side has just one"
    )


def test_the_gate_opens_where_b_is_surely_not_worse_by_the_margin():
    rows = both(range(900), range(899), images=1000)
    assert only(rows).passes is None
    found = compared(rows, margin=1)
    assert (found.failing, found.pairs[0].passes, found.pairs[0].verdict) == (
        (),
        True,
        "B is equivalent within 1, for these seeds",
    )
    found = compared(rows, margin=0.3)
    assert [pair.passes for pair in found.failing] == [False]


def test_the_gate_is_one_sided_at_5_percent():
    """The lower end of the 90 % interval decides, and how much better B may be does not."""
    rows = both(range(500), range(10, 600), images=1000)
    low = only(rows).difference.narrow[0]
    assert low > 0
    assert only(rows, margin=0.001).passes
    rows = both(range(500), range(30, 510), images=1000)
    low = only(rows).difference.narrow[0]
    assert low < 0
    assert only(rows, margin=-low + 1e-6).passes
    assert not only(rows, margin=-low - 1e-6).passes


@pytest.mark.parametrize("margin", [0, -1, float("nan"), float("inf")])
def test_a_margin_is_a_number_above_0(margin):
    assert refusal(both([1], [1]), margin=margin) == f"a margin of {margin:g} points; expected a number above 0"


def test_a_gate_does_not_open_because_a_result_is_missing():
    rows = [*both(range(60), range(70)), seen(range(9), scheme="hw/w8a8")]
    assert refusal(rows, margin=50) == (
        "with a margin every column must be compared; leave out what cannot be: digits resnet20 hw/w8a8: only A "
        "selects it"
    )


def test_only_the_first_of_many_reasons_are_told():
    rows = [row for scheme in "abcde" for row in both([1], [1], scheme=scheme, correct=None)]
    said = refusal(rows)
    assert said.count("keeps no value") == 3
    assert said.endswith("; and 2 more")


def test_committed_rows_are_compared_by_their_bits():
    rows = [Result.model_validate_json(line) for line in COMMITTED.read_text().splitlines()]
    pair = only(rows, "dgh and rtn and resnet20 and hw/w4a4", "real and rtn and resnet20 and hw/w4a4")
    bits = {row.cell: unpacked(row.correct, 900) for row in rows if row.correct}
    of_a, of_b = ([bits[cell] for cell in side.cells] for side in (pair.a, pair.b))
    assert [(flips.right_to_wrong, flips.wrong_to_right) for flips in pair.flips] == [
        (int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(of_a, of_b, strict=True)
    ]
    assert pair.difference == compare_samples(Samples(np.stack(of_b), (0, 1)), Samples(np.stack(of_a), (0, 1)))


def test_detectors_are_compared_by_their_metric_without_each_image():
    def detector(generator, reached, shift):
        values = (reached + shift * np.linspace(-1, 1, 60)).astype("<f4")
        given = {"mAP": base64.b64encode(values.tobytes()).decode()}
        data = {"evaluated": 60, "digest": "photos"}
        metrics = {"metric": "mAP", "metrics": {"mAP": reached}, "correct": None, "resampled": given}
        return row(reached, generator=generator, cell=generator, data=data, **metrics)

    pair = only([detector("dgh", 40.0, 0.2), detector("real", 45.0, 0.21)])
    assert (pair.difference.points, pair.verdict) == (pytest.approx(5), "B is better, for these seeds")
    assert (pair.flips, pair.no_classes) == ((), "its task does not say which images are right")
    assert "right to wrong" not in render(Comparison("demo", "a", "b", (pair,), ()), "text")
