import pytest
from rows import row

from zsqbench.reports.site.paper import Absent
from zsqbench.reports.site.paper.diagnosed import Diagnosed
from zsqbench.reports.site.paper.sets import Sets, bn_gaps, class_balance, difficulty, output_ranges, patch_entropies
from zsqbench.store import Store

WHERE = "digits resnet20"


def statistics(counts, gap, ranges, images=4, **changes):
    """Diagnostics of some images, as far as figures read them."""
    return {
        "images": images,
        "difficulty": {"by": "label", "mean": 0.5, "counts": counts},
        "bn_gaps": [{"layer": "bn1", "gap": gap}, {"layer": "bn2", "gap": 2 * gap}],
        "patch_similarities": [{"layer": "block1", "entropy": -gap}, {"layer": "block2", "entropy": None}],
        "output_ranges": [{"output": "logits", "mean": 1.0, "quantiles": ranges}],
        "class_balance": {"predicted": counts},
        "absent": {},
    } | changes


def content(of_set, real=None):
    return {"set": of_set, "real": real}


def diagnosed(of_set, real=None):
    return Diagnosed.of(content(of_set, real))


REAL = statistics([4, 0], 0.5, [1.0, 2.0, 3.0, 4.0, 5.0])
DGH = [statistics([1, 3], 0.1, [0.0] * 5), statistics([3, 1], 0.3, [2.0] * 5)]


@pytest.fixture
def sets():
    return Sets({"dgh": [diagnosed(each, REAL) for each in DGH], "noise": [diagnosed(DGH[0])]}, "lost")


def records(figure):
    return figure.columns.records()


def test_difficulty_is_a_share_of_the_images_of_all_seeds_beside_that_of_real_ones(sets):
    (figure,) = difficulty(sets, WHERE)
    assert {(each["from"], each["middle"], each["to"]) for each in records(figure)} == {(0, 0.25, 0.5), (0.5, 0.75, 1)}
    shares = [(each["panel"], each["images"], each["from"], each["to"], each["share"]) for each in records(figure)]
    assert shares == [
        ("dgh, by the label", "dgh", 0.0, 0.5, 50.0),
        ("dgh, by the label", "dgh", 0.5, 1.0, 50.0),
        ("dgh, by the label", "real images", 0.0, 0.5, 100.0),
        ("dgh, by the label", "real images", 0.5, 1.0, 0.0),
        ("noise, by the label", "noise", 0.0, 0.5, 25.0),
        ("noise, by the label", "noise", 0.5, 1.0, 75.0),
    ]


def test_gaps_are_means_over_seeds_layer_by_layer(sets):
    (figure,) = bn_gaps(sets, WHERE)
    gaps = [(each["images"], each["place"], each["layer"], each["gap"]) for each in records(figure)]
    assert gaps[:2] == [("dgh", 1, "bn1", 0.2), ("dgh", 2, "bn2", 0.4)]
    assert gaps[-2:] == [("real images", 1, "bn1", 0.5), ("real images", 2, "bn2", 1.0)]


def test_entropies_are_means_over_seeds_block_by_block(sets):
    (figure,) = patch_entropies(sets, WHERE)
    found = [(each["images"], each["place"], each["layer"], each["entropy"]) for each in records(figure)]
    assert found == [("dgh", 1, "block1", -0.2), ("noise", 1, "block1", -0.1), ("real images", 1, "block1", -0.5)]


def test_quantiles_of_outputs_are_means_over_seeds(sets):
    (figure,) = output_ranges(sets, WHERE)
    found = {each["images"]: (each["p5"], each["median"], each["p95"]) for each in records(figure)}
    assert found == {"dgh": (1.0, 1.0, 1.0), "noise": (0.0, 0.0, 0.0), "real images": (1.0, 3.0, 5.0)}


def test_classes_are_shares_of_all_seeds(sets):
    (figure,) = class_balance(sets, WHERE)
    assert [(each["images"], each["share"]) for each in records(figure)] == [
        ("dgh", 50.0),
        ("dgh", 50.0),
        ("noise", 25.0),
        ("noise", 75.0),
        ("real images", 100.0),
        ("real images", 0.0),
    ]


def test_real_images_are_those_that_the_largest_set_is_compared_with():
    more = statistics([8, 0], 7.0, [1.0] * 5, images=8)
    sets = Sets({"a": [diagnosed(DGH[0], REAL)], "b": [diagnosed(DGH[0], more)]}, "")
    assert [(each["layer"], each["gap"]) for each in records(bn_gaps(sets, WHERE)[0])][-2:] == [
        ("bn1", 7.0),
        ("bn2", 14.0),
    ]


@pytest.mark.parametrize("make", [difficulty, bn_gaps, patch_entropies, output_ranges, class_balance])
def test_what_diagnostics_have_not_is_absent_with_their_reason(make):
    names = ("difficulty", "bn_gaps", "patch_similarities", "output_ranges", "class_balance")
    part = dict(zip((difficulty, bn_gaps, patch_entropies, output_ranges, class_balance), names, strict=True))[make]
    without = statistics([1, 0], 1.0, [0.0] * 5, **{part: None, "absent": {part: "it is no such network"}})
    (absent,) = make(Sets({"a": [diagnosed(without)]}, ""), WHERE)
    assert isinstance(absent, Absent)
    assert absent.why == "it is no such network"
    assert make(Sets({}, "nobody looked"), WHERE)[0].why == "nobody looked"


def keep(store, key, content):
    job = {"task": {"method": "classification", "options": {}}}
    manifest = {"job": job, "content": {"version": "1", **content}, "curves": {}, "notes": []}
    store.write("diagnose", key, manifest)


def test_sets_are_found_by_the_keys_of_rows_each_once(tmp_path):
    store, task = Store(tmp_path), {"task": {"method": "classification", "options": {}}}
    rows = [
        row(generator=name, keys={"generate": key * 64}, methods=task) for name, key in (("dgh", "a"), ("dgh", "b"))
    ]
    assert Sets.of([], store).why == "no cell has a calibration set"
    assert "no diagnostics in" in Sets.of(rows, store).why
    keep(store, "a" * 32 + "0" * 32, content(DGH[0], REAL))
    keep(store, "b" * 32 + "0" * 32, {"set": {"images": 4}})
    found = Sets.of([*rows, *rows], store)
    assert {name: len(each) for name, each in found.found.items()} == {"dgh": 1}
    assert "bbbb" in found.why


def test_a_figure_has_room_for_so_many_sets():
    sets = Sets({f"set {number}": [diagnosed(DGH[0])] for number in range(30)}, "")
    (figure,) = bn_gaps(sets, WHERE)
    assert len({each["images"] for each in records(figure)}) == 20
    assert figure.chart.title == "digits resnet20: BN gap by layer (the first 20 of 30 sets)"
