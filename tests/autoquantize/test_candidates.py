import pytest

from zsqbench.autoquantize.candidates import ABOUT, CANDIDATES, LEVELS, Candidate, Costs, generators, quantizers
from zsqbench.plugins import load_plugins


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("relu6", [True, False])
def test_every_method_takes_the_options_that_it_is_given(level, relu6):
    catalog = load_plugins()
    for label, options in generators(level).items():
        catalog.find("generator", label).method.model_validate(options)
    for label, options in quantizers(level, relu6=relu6).items():
        catalog.find("quantizer", label).method.model_validate(options)


def test_dfq_moves_no_bound_of_relu6():
    plain = {"per_channel": True}
    assert quantizers(LEVELS[0], relu6=True)["dfq"] == {**plain, "equalization": False, "absorption": False}
    assert quantizers(LEVELS[0], relu6=False)["dfq"] == plain


def test_what_candidates_are_made_of_is_explained():
    assert {word for candidate in CANDIDATES for word in candidate.words} == set(ABOUT)


def test_images_are_judged_on_as_time_allows():
    costs = Costs(image=0.01, parameters=1, judged=0)
    assert costs.judged_in(0.38 * 100) == 100
    assert costs.delivery == Costs.DELIVERY + Costs.CHECK * 0.32


def test_levels_and_learning_cost_more_and_more():
    costs = Costs(image=0.01, parameters=1_000_000, judged=100)
    made = [costs.generate(level) for level in LEVELS]
    learnt = [costs.of("quantize", CANDIDATES[-1], level) for level in LEVELS]
    assert (made, learnt) == (sorted(made), sorted(learnt))
    assert costs.of("quantize", Candidate("brecq", "dgh"), LEVELS[2]) > costs.of(
        "quantize", Candidate("rtn", "dgh"), LEVELS[2]
    )
    assert costs.of("generate", Candidate("rtn", "noise"), LEVELS[4]) == Costs.START


def test_one_candidate_is_the_control():
    assert [candidate.name for candidate in CANDIDATES if candidate.control] == ["rtn on noise"]
