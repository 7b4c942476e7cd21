import math

import pytest

from zsqbench.reports.site.paper.diagnosed import Diagnosed, Difficulty, OfLayer, OutputRange

NONE = {"images": 4, **dict.fromkeys(("difficulty", "bn_gaps", "output_ranges", "class_balance")), "absent": {}}
ALL = {
    "images": 4,
    "difficulty": {"by": "label", "mean": 0.5, "counts": [1, 3]},
    "bn_gaps": [{"layer": "bn1", "mean": 3.0, "std": 4.0, "gap": 5.0}, {"layer": "bn2", "gap": None}],
    "output_ranges": [{"output": "logits", "mean": None, "quantiles": [1, 2.0, 3.0, 4.0, None]}],
    "class_balance": {"predicted": [1, 3], "predicted_entropy": 0.8},
    "absent": {"diversity": "no features"},
}


def test_all_parts_are_read():
    images = Diagnosed.of({"set": ALL, "real": None}).of_set
    assert (images.count, images.class_balance, images.absent) == (4, (1, 3), {"diversity": "no features"})
    assert images.difficulty == Difficulty("label", (1, 3))
    assert images.bn_gaps == (OfLayer("bn1", 5.0), OfLayer("bn2", None))
    assert images.output_ranges == (OutputRange("logits", (1.0, 2.0, 3.0, 4.0, None)),)


def test_a_part_that_is_not_there_is_none():
    found = Diagnosed.of({"set": ALL, "real": NONE})
    parts = (found.real.difficulty, found.real.bn_gaps, found.real.output_ranges, found.real.class_balance)
    assert parts == (None, None, None, None)
    assert Diagnosed.of({"set": NONE, "real": None}).real is None


def test_patch_similarities_are_read_and_older_diagnostics_have_none():
    blocks = [{"layer": "a", "entropy": -1.0, "spread": 0.5}, {"layer": "b", "entropy": None, "spread": 0.5}]
    found = Diagnosed.of({"set": ALL | {"patch_similarities": blocks}, "real": ALL})
    assert found.of_set.patch_entropies == (OfLayer("a", -1.0), OfLayer("b", None))
    assert found.real.patch_entropies is None


@pytest.mark.parametrize(
    "other",
    [
        {"images": None},
        {"difficulty": {"by": "label"}},
        {"difficulty": {"by": "label", "counts": [math.inf]}},
        {"bn_gaps": [{"layer": "bn1"}]},
        {"bn_gaps": [{"layer": "bn1", "gap": "wide"}]},
        {"output_ranges": [{"output": "logits", "quantiles": [1.0]}]},
        {"class_balance": [1, 3]},
        {"absent": 7},
    ],
)
def test_other_data_is_refused(other):
    with pytest.raises((LookupError, TypeError, ValueError, ArithmeticError)):
        Diagnosed.of({"set": ALL, "real": ALL | other})
