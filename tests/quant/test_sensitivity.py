import math

import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.nn import functional

from tests.networks import called_twice, from_forward
from zsqbench import ZSQBenchError
from zsqbench.quant import calibrate_weights, prepare, rank_weights, weight_quantizers
from zsqbench.quant.student import Grids
from zsqbench.scheme import FLOAT_BITS, Scheme, parse_scheme
from zsqbench.testing.networks import tiny_teachers

SCHEME = parse_scheme("hw/w3a4")


def images(size, count=11):
    """More than one batch, of which the last is smaller."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def by_brute_force(module, scheme, size, given, grid="affine"):
    """The errors by whole passes of copies in which one weight was replaced."""
    with torch.no_grad():
        expected, errors = module(given), {}
        for name, _ in weight_quantizers(prepare(module, scheme, size)):
            student = prepare(module, scheme, size, Grids(weights=grid)).eval()
            calibrate_weights(student, "mse")
            for other, quantizer in weight_quantizers(student):
                quantizer.enabled = other == name
            errors[name] = float((student(given) - expected).square().sum() / expected.square().sum())
    return errors


@parametrize_briefly("network", tiny_teachers(), 1)
def test_the_ranking_is_that_of_whole_passes_with_one_weight_quantized(network):
    teacher = tiny_teachers()[network]
    given = images(teacher.input_size)

    ranked = rank_weights(teacher.module, SCHEME, teacher.input_size, given)

    expected = by_brute_force(teacher.module, SCHEME, teacher.input_size, given)
    assert [weight.name for weight in ranked] == sorted(expected, key=expected.get, reverse=True)
    assert {weight.name: weight.error for weight in ranked} == pytest.approx(expected, rel=1e-3)
    assert min(expected.values()) > 0
    assert {weight.bits for weight in ranked} == {3}


def test_the_network_stays_as_it_is_and_elements_are_counted():
    teacher = tiny_teachers()["plain BN"]
    before = teacher.digest()

    ranked = rank_weights(teacher.module, SCHEME, teacher.input_size, images(teacher.input_size))

    assert teacher.digest() == before
    for weight in ranked:
        assert weight.elements == teacher.module.get_submodule(weight.name).weight.numel()


def test_a_weight_on_its_grid_does_nothing_and_a_hard_one_comes_first():
    good, bad = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    good.weight.data = torch.arange(4.0).repeat(4, 1)
    bad.weight.data = torch.tensor([[100.0, 1.4, 1.3, 1.2]] * 4)
    net = from_forward(lambda net, x: net.bad(net.good(x)), good=good, bad=bad)

    worst, best = rank_weights(net, parse_scheme("hw/w2a8"), (4,), torch.randn(3, 4))

    assert (worst.name, best.name) == ("bad", "good")
    assert best.error == pytest.approx(0.0, abs=1e-9)


def test_a_layer_that_is_called_twice_is_quantized_in_both_calls():
    net, size = called_twice(), (3, 8, 8)
    expected = by_brute_force(net, SCHEME, size, images(size))
    (found,) = rank_weights(net, SCHEME, size, images(size))
    assert found.error == pytest.approx(expected["conv"], rel=1e-3)


def test_outputs_count_alike_whatever_their_size_and_before_they_are_decoded():
    large, small = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    large.weight.data *= 1e4
    net = from_forward(lambda net, x: [net.large(x), net.small(x).sigmoid()], large=large, small=small)
    size = (3, 4, 4)

    ranked = rank_weights(net, SCHEME, size, images(size))

    alone = {
        "large": by_brute_force(from_forward(lambda n, x: n.large(x), large=large), SCHEME, size, images(size)),
        "small": by_brute_force(from_forward(lambda n, x: n.small(x), small=small), SCHEME, size, images(size)),
    }
    for weight in ranked:
        assert weight.error == pytest.approx(alone[weight.name][weight.name] / 2, rel=1e-3)


def test_weights_that_stay_float_come_last_without_an_error():
    teacher = tiny_teachers()["plain BN"]
    placement = SCHEME.placement.model_copy(update={"first_weight": "float"})
    scheme = SCHEME.model_copy(update={"placement": placement})

    ranked = rank_weights(teacher.module, scheme, teacher.input_size, images(teacher.input_size))

    assert (ranked[-1].role, ranked[-1].bits, ranked[-1].error) == ("first_weight", FLOAT_BITS, None)
    assert all(weight.error is not None for weight in ranked[:-1])


def test_the_grid_is_the_one_that_the_scheme_demands():
    teacher, scheme = tiny_teachers()["plain BN"], parse_scheme("pot/w4a8")
    given = images(teacher.input_size)
    ranked = rank_weights(teacher.module, scheme, teacher.input_size, given)
    expected = by_brute_force(teacher.module, scheme, teacher.input_size, given, "power_of_two")
    assert {weight.name: weight.error for weight in ranked} == pytest.approx(expected, rel=1e-3)


def test_what_makes_outputs_infinite_is_the_most_sensitive():
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(1, 3, bias=False)
    first.weight.data = torch.tensor([[0.1, 10.0]])  # whose first value is 0 at two bits
    net = from_forward(lambda net, x: net.second(1.0 / net.first(x)), first=first, second=second)
    ranked = rank_weights(net, parse_scheme("hw/w2a8"), (2,), torch.tensor([[1.0, 0.0]]))
    assert (ranked[0].name, ranked[0].error) == ("first", math.inf)
    assert math.isfinite(ranked[1].error)


def test_progress_goes_to_the_number_of_passes():
    teacher, seen = tiny_teachers()["plain BN"], []
    ranked = rank_weights(
        teacher.module, SCHEME, teacher.input_size, images(teacher.input_size), lambda *step: seen.append(step)
    )
    total = 2 * (len(ranked) + 1)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_network_that_cannot_be_traced_is_refused():
    net = from_forward(lambda net, x: functional.relu(x) if x.sum() > 0 else net.conv(x), conv=nn.Conv2d(3, 3, 1))
    with pytest.raises(ZSQBenchError):
        rank_weights(net, Scheme(**vars(SCHEME)), (3, 4, 4), images((3, 4, 4)))
