import copy

import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins import ait
from zsqbench_plugins.ait import AIT, inundation

from zsqbench.quant import affine_parameters, finalize, quantize, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"epochs": 2, "updates_per_epoch": 3, "batch_size": 8, "range_updates": 3, "warmup": 3, "lr": 1e-4}


def codes(weight, bits):
    low, high = torch.aminmax(weight.flatten(1), dim=1, keepdim=True)
    return quantize(weight.flatten(1), *affine_parameters(low, high, bits), bits)


def layers(*shapes, scale=1e-4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=rng) for shape in shapes]
    return weights, [scale * torch.randn(shape, generator=rng) for shape in shapes]


def quantized(ctx=None, **options):
    teacher, quantizer = tiny_teacher(), AIT(**{**SHORT, **options})
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    quantizer.quantize(student, teacher, None, ctx or context())
    return student


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("host", ["qimera", "gdfq"], 1)
def test_it_is_a_quantizer_with_either_host(host):
    check_quantizer(AIT(**SHORT, host=host), "hast/w3a3", tiny_teacher())


def test_shares_of_changed_integers_are_those_of_each_layer():
    weights, steps = layers((6, 4, 3, 3), (5, 20), scale=0.05)
    packed = ait._Packed(weights, [(3, "affine"), (4, "affine")]).take(weights, steps)
    for factors in ([1.0, 1.0], [2.0, 0.5]):
        expected = [
            (codes(weight - factor * step, bits) != codes(weight, bits)).float().mean()
            for weight, step, factor, bits in zip(weights, steps, factors, [3, 4], strict=True)
        ]
        torch.testing.assert_close(packed.changed(torch.tensor(factors)), torch.stack(expected))


@pytest.mark.parametrize("threshold", [0.01, 0.1])
def test_enlarged_steps_change_about_the_wanted_share(threshold):
    weights, steps = layers((64, 32, 3, 3), (100, 300))
    for weight, step in zip(weights, steps, strict=True):  # ends stay: where a grid moves, all of a channel may change
        for end in (weight.flatten(1).argmin(1), weight.flatten(1).argmax(1)):
            step.flatten(1).scatter_(1, end[:, None], 0)
    packed = ait._Packed(weights, [(3, "affine")] * 2).take(weights, steps)
    factors = inundation(packed, threshold)
    shares = packed.changed(factors)
    assert (factors > 1).all()
    assert (shares >= 0.98 * threshold).all()
    assert (shares <= 1.1 * threshold).all()


def test_a_step_that_does_already_stays_and_one_without_a_gradient_too():
    weights, steps = layers((20, 30), (20, 30))
    steps = [100 * steps[0] / steps[0].abs().max(), torch.zeros_like(steps[1])]
    factors = inundation(ait._Packed(weights, [(3, "affine")] * 2).take(weights, steps), 0.01)
    assert factors.tolist() == [1, 1]


def test_without_a_threshold_it_is_plain_descent(monkeypatch):
    plain, enlarged = quantized(threshold=0.0), quantized(threshold=0.3)
    monkeypatch.setattr(AIT, "adjustment", lambda *_: lambda _: None)
    states = [dict(each.named_parameters()) for each in (plain, enlarged, quantized(threshold=0.3))]
    assert all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier.weight"], states[1]["classifier.weight"])


def test_a_step_changes_at_least_the_threshold():
    student = quantized(epochs=0)
    before = {path: codes(layer.weight, 3) for path, layer in quantized_layers(student)}
    student = quantized(epochs=1, updates_per_epoch=1, threshold=0.05)
    for path, layer in quantized_layers(student):
        assert (codes(layer.weight, 3) != before[path]).float().mean() >= 0.04


def test_the_loss_is_the_divergence_alone():
    ctx = context()
    quantized(ctx)
    assert [value for _, value in ctx.reporter.curves["loss"]] == pytest.approx(
        [value for _, value in ctx.reporter.curves["kl"]]
    )


@pytest.mark.usefixtures("briefly")
def test_float_weights_have_no_integers_to_change():
    check_quantizer(AIT(**SHORT), "hast/w32a4", tiny_teacher())


def test_interrupted_it_ends_as_undisturbed():
    ctx = context()
    expected = copy.deepcopy(quantized(ctx, threshold=0.05))
    finalize(expected)
    state = next(state for state in ctx.reporter.states if state.get("updates") == 4)
    found = quantized(context(resume_from=state), threshold=0.05)
    finalize(found)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())
