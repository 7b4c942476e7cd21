import pytest

from zsqbench.reports.diagnosis import Diagnosis, render
from zsqbench.store import NoArtifact

NOTHING = {"bn_gaps": None, "output_ranges": None, "difficulty": None, "class_balance": None, "diversity": None}
REASONS = dict.fromkeys(("bn_gaps", "output_ranges", "difficulty", "class_balance", "diversity"), "no reason")


def part(**changes):
    return {"images": 2, "pixels": {"outside": 0.25}, **NOTHING, "absent": REASONS, **changes}


def data(of_set=None, real=None, ratio=None):
    absent = {} if real else {"real": "the task has none"}
    return {"set": of_set or part(), "real": real, "output_range_ratio": ratio, "absent": absent}


def gaps(*values):
    return [{"layer": f"bn{number}", "gap": value} for number, value in enumerate(values)]


def test_numbers_are_those_that_there_are():
    real = part(bn_gaps=gaps(0.5, 0.5))
    found = Diagnosis(data(part(bn_gaps=gaps(1.0, 3.0, None)), real, [0.5, None]), {})
    assert found.numbers() == {
        "bn_gap": 2.0,
        "bn_gap_worst": 3.0,
        "bn_gap_real": 0.5,
        "output_range_ratio": 0.5,
        "pixels_outside": 0.25,
    }


def rendered(content):
    paths = {name: name for name in ("diagnostics.png", "images.png")}
    return render(Diagnosis(content, paths)).splitlines()


def test_why_there_are_none_is_told():
    assert render(NoArtifact("nobody looked")) == "calibration set: nobody looked"


def test_what_is_absent_is_told_with_its_reason():
    first, *lines = rendered(data())
    assert first == "calibration set: 2 images, no real ones: the task has none"
    assert [line.split() for line in lines[1:3]] == [
        ["BN", "gap", "-", "-", "no", "reason"],
        ["output", "range", "-", "-", "no", "reason"],
    ]
    assert [line.endswith("no reason") for line in lines[3:8]] == [True] * 5
    assert lines[-2:] == ["images.png", "diagnostics.png"]


def test_the_worst_layer_stands_beside_that_of_real_images():
    lines = rendered(data(part(bn_gaps=gaps(1.0, 3.0)), part(bn_gaps=gaps(0.25, 0.5))))
    assert lines[2].split()[:4] == ["BN", "gap", "2", "0.375"]
    assert lines[3].split() == ["worst", "layer", "3", "0.5", "bn1"]


NO_MAPS = {"attention_maps": None, "absent": REASONS | {"attention_maps": "they are in windows"}}


def patches(*entropies):
    return [{"layer": f"block {at}", "entropy": value, "spread": 0.25} for at, value in enumerate(entropies)]


def test_a_transformer_has_patch_similarities_and_maps_below_its_missing_gaps():
    of_set = part(patch_similarities=patches(-1.0, -3.0), attention_maps={"by": "class token", "grid": [14, 14]})
    found = data(of_set, part(patch_similarities=patches(0.5, None), **NO_MAPS))
    lines = rendered(found)
    assert [lines[at].split()[:4] for at in (3, 4)] == [
        ["patch", "entropy", "-2", "0.5"],
        ["spread", "0.25", "0.25", "deviation"],
    ]
    assert lines[5].split(maxsplit=4)[-1] == "14 x 14 patches, last block, by the class token"
    assert lines[2].split()[:2] == ["BN", "gap"]
    numbers = Diagnosis(found, {}).numbers()
    assert [numbers[f"patch_{name}"] for name in ("entropy", "entropy_real", "spread", "spread_real")] == [
        -2.0,
        0.5,
        0.25,
        0.25,
    ]


def test_a_network_with_neither_says_why_of_each():
    absent = REASONS | dict.fromkeys(("patch_similarities", "attention_maps"), "it has no attention")
    lines = rendered(data(part(patch_similarities=None, attention_maps=None, absent=absent)))
    assert [line.split(maxsplit=4)[-1] for line in lines[3:5]] == ["it has no attention"] * 2
    assert [line.split()[:2] for line in lines[3:5]] == [["patch", "entropy"], ["attention", "maps"]]


def test_a_network_with_batch_normalisation_has_its_gaps_alone():
    lines = rendered(data(part(bn_gaps=gaps(1.0), patch_similarities=None, attention_maps=None)))
    assert not [line for line in lines if line.startswith(("patch", "attention"))]


@pytest.mark.parametrize(("energy", "told"), [(0.25, "of features to those"), (None, "one image has no pairs")])
def test_the_distance_of_features_is_told(energy, told):
    found = data(part(), part()) | {"feature_distance": {"cosine": 1.0, "euclidean": 2.0, "energy": energy}}
    found["absent"] = {"feature_distance.energy": "one image has no pairs"}
    (line,) = [each for each in rendered(found) if each.startswith("feature distance")]
    assert (line.split()[2], told in line) == ("-" if energy is None else "0.25", True)
    assert Diagnosis(found, {}).numbers().get("feature_distance") == energy


def test_the_picture_of_attention_is_named_where_there_is_one():
    paths = {name: name for name in ("diagnostics.png", "images.png", "attention.png")}
    assert render(Diagnosis(data(), paths)).splitlines()[-3:] == ["images.png", "attention.png", "diagnostics.png"]


@pytest.mark.parametrize(("ratio", "ending"), [([0.5], "; set / real 0.5"), (None, "smallest")])
def test_the_range_of_each_output_is_told(ratio, ending):
    ranges = [{"output": "logits", "mean": 2.0}]
    lines = rendered(data(part(output_ranges=ranges), part(output_ranges=[{"output": "logits", "mean": 4.0}]), ratio))
    assert lines[3].split()[:4] == ["output", "range", "2", "4"]
    assert lines[3].endswith(ending)
