from fractions import Fraction

import pytest

from zsqbench.autoquantize.candidates import (
    ABOUT,
    CANDIDATES,
    LEVELS,
    WITHOUT_BN,
    Candidate,
    Costs,
    generators,
    on_images_of,
    quantizers,
)
from zsqbench.plugins import load_plugins


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("relu6", [True, False])
def test_every_method_takes_the_options_that_it_is_given(level, relu6):
    catalog = load_plugins()
    for label, options in generators(level).items():
        catalog.find("generator", label).method.model_validate(options)
    for target in CANDIDATES:
        for label, options in quantizers(level, target, relu6=relu6).items():
            named = dict(options)
            catalog.find("quantizer", named.pop("method", label)).method.model_validate(named)


def test_dfq_moves_no_bound_of_relu6():
    plain = {"per_channel": True}
    assert quantizers(LEVELS[0], "int8", relu6=True)["dfq"] == {**plain, "equalization": False, "absorption": False}
    assert quantizers(LEVELS[0], "int8", relu6=False)["dfq"] == plain


def test_what_candidates_are_made_of_is_explained():
    made = [*CANDIDATES.values(), *(on_images_of(WITHOUT_BN, each) for each in CANDIDATES.values())]
    assert {word for each in made for candidate in each for word in candidate.words} == set(ABOUT)


@pytest.mark.parametrize("target", CANDIDATES)
def test_candidates_of_a_network_with_batch_normalisation_are_those_that_are_listed(target):
    assert on_images_of(("dgh",), CANDIDATES[target]) == CANDIDATES[target]


def test_without_batch_normalisation_two_generators_stand_for_one():
    names = [candidate.name for candidate in on_images_of(WITHOUT_BN, CANDIDATES["int4"])]
    both = {over: [f"{over} on image_prior", f"{over} on psaq_vit"] for over in ("rtn", "hptq", "brecq")}
    mixed = [f"mixed {part} over {name}" for part in ("1/3", "1/2") for name in both["rtn"]]
    without = ["squant without images", "dfq without images"]
    assert names == [*without, *both["rtn"], *mixed, *both["hptq"], "rtn on noise", *both["brecq"]]


@pytest.mark.parametrize("level", LEVELS)
def test_all_generators_have_the_iterations_of_a_level(level):
    made = generators(level)
    assert made["dgh"]["iterations"] == made["image_prior"]["iterations"] == level.iterations
    assert 2 * made["psaq_vit"]["iterations"] in {level.iterations, level.iterations - 1}
    assert all(options["images"] == level.images for options in made.values())
    assert all(made[name]["warmup"] <= made[name]["iterations"] / 5 for name in WITHOUT_BN)


@pytest.mark.parametrize("generator", WITHOUT_BN)
def test_other_generators_cost_no_less_than_dgh(generator):
    costs = Costs(image=0.01, parameters=1, layers=1, judged=0)
    assert costs.generate(LEVELS[2], generator) >= costs.generate(LEVELS[2])


def test_images_are_judged_on_as_time_allows():
    costs = Costs(image=0.01, parameters=1, layers=1, judged=0)
    assert costs.judged_in(0.38 * 100, candidates=6) == 100


@pytest.mark.parametrize(("judged", "compared"), [(8, 8), (16, 16), (300, 16)])
def test_a_delivery_writes_layers_and_compares_some_of_the_images_that_are_judged_on(judged, compared):
    costs = Costs(image=0.01, parameters=1, layers=50, judged=judged)
    assert costs.delivery == pytest.approx(Costs.DELIVERY + 50 * Costs.WRITING + Costs.CHECK * 0.01 * compared)


def test_levels_and_learning_cost_more_and_more():
    costs = Costs(image=0.01, parameters=1_000_000, layers=50, judged=100)
    made = [costs.generate(level) for level in LEVELS]
    learnt = [costs.of("quantize", Candidate("brecq", "dgh"), level) for level in LEVELS]
    assert (made, learnt) == (sorted(made), sorted(learnt))
    assert costs.of("quantize", Candidate("brecq", "dgh"), LEVELS[2]) > costs.of(
        "quantize", Candidate("rtn", "dgh"), LEVELS[2]
    )
    assert costs.of("generate", Candidate("rtn", "noise"), LEVELS[4]) == Costs.START


def test_the_ranking_of_layers_costs_passes_for_each_of_them():
    mixed, costs = Candidate("rtn", "dgh", part=Fraction(1, 2)), Costs(0.01, 1_000_000, layers=50, judged=0)
    assert costs.of("sensitivity", mixed, LEVELS[0]) == pytest.approx(Costs.START + 0.01 * 16 * 31 + 1)
    assert costs.of("sensitivity", mixed, LEVELS[5]) == pytest.approx(Costs.START + 0.01 * 32 * 31 + 1)


@pytest.mark.parametrize("target", CANDIDATES)
def test_one_candidate_is_the_control(target):
    assert [candidate.name for candidate in CANDIDATES[target] if candidate.control] == ["rtn on noise"]


def test_at_4_bits_a_part_of_the_layers_may_have_8():
    mixed = {target: [candidate.name for candidate in each if candidate.part] for target, each in CANDIDATES.items()}
    assert mixed == {"int8": [], "int4": ["mixed 1/3 over rtn on dgh", "mixed 1/2 over rtn on dgh"]}
    given = quantizers(LEVELS[0], "int4", relu6=False)["mixed_1_2"]
    assert given == {"method": "mixed", "over": "rtn", "layers": 0.5, "images": 32}
