"""A loss on what the network predicts, as PD-Quant's (Liu et al., CVPR 2023), goes through the reconstruction."""

import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import Reconstruction, Rounding, Stage, prepare, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context

ONES = torch.ones(8, 2, 1, 1)


def divergence(batch):
    """How far the student's prediction is from the float network's: KL(float || quantized)."""
    expected, found = batch.float_prediction().log_softmax(1), batch.prediction().log_softmax(1)
    return functional.kl_div(found, expected, reduction="batchmean", log_target=True)


def by_hand(expected, found):
    """KL of the classes (a, -a) from the classes (b, -b)."""
    p, q = (torch.tensor([a, -a], dtype=torch.float64).softmax(0) for a in (expected, found))
    return (p * (p / q).log()).sum().item()


def classifier():
    """A student: two channels that are each 0.55 x + 0.52 y, of which the logits (a, -a) read the first only.

    On images of ones, nearest rounding makes 2 of 1.07, and the best rounding 1.
    """
    module = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 2)).requires_grad_(False).eval()
    module[0].weight.data = torch.tensor([[0.55, 0.52], [0.55, 0.52]]).view(2, 2, 1, 1)
    module[2].weight.data, module[2].bias.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2)
    student = prepare(module, parse_scheme("hw/w3a32"), (2, 1, 1))
    for path, layer in quantized_layers(student):
        scale = torch.full_like(layer.weight_quantizer.scale, 1.0 if path == "0" else 0.7)  # as which 1 would be 0.7
        layer.weight_quantizer.set_parameters(scale, torch.full_like(scale, 4.0))
    return student


def learn(student, stage, ctx=None, images=ONES):
    engine = Reconstruction(
        student, images, ctx or context(), {"weights": stage}, grain="layer", skip=lambda unit: unit.name != "0"
    )
    engine.run("weights")


def stage(iterations=400, **options):
    return Stage(iterations, 8, rounding=Rounding(lr=0.05, regularizer=0.02), **options)


def channels(student):
    """The outputs of each channel for ones."""
    return student.get_submodule("0").quantized_weight().sum((1, 2, 3)).tolist()


def test_only_what_the_prediction_depends_on_is_learned():
    student, ctx = classifier(), context()
    learn(student, stage(loss=divergence), ctx)
    assert channels(student) == [1, 2]
    (_, before), (_, after) = ctx.reporter.curves["reconstruction/weights/0"]
    assert before == pytest.approx(by_hand(1.07, 2.0), rel=1e-5)
    assert after == pytest.approx(by_hand(1.07, 1.0), rel=1e-3)


def test_it_adds_up_with_the_distance_of_the_units_outputs():
    student, ctx = classifier(), context()
    learn(student, stage(loss=lambda batch: batch.distance() + 10 * divergence(batch)), ctx)
    assert channels(student) == [1, 1]
    before = ctx.reporter.curves["reconstruction/weights/0"][0][1]
    assert before == pytest.approx(2 * 0.93**2 + 10 * by_hand(1.07, 2.0), rel=1e-5)


def test_a_loss_that_asks_for_no_prediction_is_the_default_one_bit_for_bit():
    states = []
    for options in ({"iterations": 40}, {"iterations": 40, "loss": lambda batch: batch.distance()}):
        student, ctx = classifier(), context()
        learn(student, stage(**options), ctx, torch.randn(32, 2, 1, 1, generator=torch.Generator().manual_seed(0)))
        states.append((ctx.reporter.curves, channels(student)))
    assert states[0] == states[1]


def test_the_float_prediction_is_that_of_the_network():
    seen = []
    images = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    learn(
        classifier(),
        stage(1, loss=lambda batch: seen.append(batch.float_prediction()) or batch.distance()),
        None,
        images,
    )
    expected = 0.55 * images[:, 0] + 0.52 * images[:, 1]
    torch.testing.assert_close(seen[0], torch.cat([expected, -expected], 1).flatten(1), rtol=1e-5, atol=1e-6)


def test_the_prediction_is_of_quantized_inputs_where_a_unit_learns_from_mixed_ones():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)]
    module = nn.Sequential(*layers).eval().requires_grad_(False)
    student = prepare(module, parse_scheme("hw/w2a32"), (2, 1, 1))
    for _, layer in quantized_layers(student):
        low, high = layer.weight.flatten(1).aminmax(dim=1)
        layer.weight_quantizer.set_range(low.clamp(max=0) * 2, high.clamp(min=0) * 2)
    first = student.get_submodule("0")
    seen = []

    def loss(batch):
        seen.append((batch.prediction().detach(), next(iter(batch.outputs.values())).detach()))
        return batch.distance()

    mixed = Stage(1, 8, rounding=Rounding(lr=1e-9), source="mixed", drop=0.5, loss=loss)
    engine = Reconstruction(
        student, ONES, context(), {"weights": mixed}, grain="layer", skip=lambda unit: unit.name != "2"
    )
    engine.run("weights")
    _, (prediction, outputs), _ = seen  # before, while learning, after
    assert len(outputs.unique(dim=0)) > 1
    # soft rounding starts at the float weight, so that only the first layer is quantized
    torch.testing.assert_close(prediction, module[2:](first(ONES).relu()), rtol=0, atol=1e-5)
    assert (prediction - module(ONES)).abs().max() > 0.01


def test_a_prediction_needs_a_classifier():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)).eval().requires_grad_(False)
    student = prepare(module, parse_scheme("hw/w3a32"), (2, 4, 4))
    for _, layer in quantized_layers(student):
        layer.weight_quantizer.set_range(*layer.weight.flatten(1).aminmax(dim=1))
    with pytest.raises(ZSQBenchError, match=r"^this loss needs a classifier, with one output \[N, classes\]"):
        learn(student, stage(loss=divergence), images=torch.ones(8, 2, 4, 4))


def test_what_works_in_place_behind_a_unit_does_not_reach_its_outputs():
    def curves(loss):
        torch.manual_seed(0)
        net = from_forward(
            lambda net, x: net.head(net.conv(x).add_(100).flatten(1)), conv=nn.Conv2d(2, 2, 1), head=nn.Linear(2, 2)
        )
        student, ctx = prepare(net, parse_scheme("hw/w3a32"), (2, 1, 1)), context()
        for _, layer in quantized_layers(student):
            layer.weight_quantizer.set_range(-torch.ones(2), torch.ones(2))
        stages = {"weights": Stage(3, 8, rounding=Rounding(), loss=loss)}
        engine = Reconstruction(student, ONES, ctx, stages, grain="layer", skip=lambda unit: unit.name != "conv")
        engine.run("weights")
        return ctx.reporter.curves

    asking = curves(lambda batch: (batch.prediction(), batch.distance())[1])
    assert asking == curves(lambda batch: batch.distance())
