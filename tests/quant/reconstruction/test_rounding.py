"""A parametrization of one's own, as FlexRound's (Lee et al., ICML 2023), goes through the reconstruction."""

import pytest
import torch
from networks import same, state_of
from torch import nn

from zsqbench.quant import Reconstruction, Stage, finalize, prepare, quantized_layers
from zsqbench.quant.grids.affine import levels
from zsqbench.quant.reconstruction.rounding import LearnedRounding, ParameterGroup
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context

BITS, ZERO_POINT = 3, 4.0


class Division(LearnedRounding):
    """FlexRound without its scales of channels: W^ = s (clip(round(W / (s S)) + z) - z), S = exp(logs) of W's shape."""

    def __init__(self, quantizer, weight, lr, scale_lr=None):
        super().__init__(quantizer)
        self.logs = nn.Parameter(torch.zeros_like(weight))
        self.rates = lr, scale_lr
        if scale_lr:
            self.scale.requires_grad_()

    def parameter_groups(self):
        lr, scale_lr = self.rates
        return [ParameterGroup([self.logs], lr)] + [ParameterGroup([self.scale], scale_lr, is_annealed=True)] * bool(
            scale_lr
        )

    def codes(self, weight):
        steps = weight / (self.scale * self.logs.exp())
        rounded = steps.round().detach() + self.zero_point
        inside = (rounded >= 0) & (rounded <= levels(self.bits))
        return rounded.clamp(0, levels(self.bits)) + inside * (steps - steps.detach())

    def forward(self, weight):
        return self.scale * (self.codes(weight) - self.zero_point)


def convolution(*values):
    """A student of one output, a sum of inputs with these weights, that rounds them to -4 .. 3."""
    module = nn.Sequential(nn.Conv2d(len(values), 1, 1, bias=False)).eval().requires_grad_(False)
    module[0].weight.data = torch.tensor(values).view(1, -1, 1, 1)
    student = prepare(module, parse_scheme("hw/w3a32"), (len(values), 2, 2))
    quantizer = dict(quantized_layers(student))["0"].weight_quantizer
    quantizer.set_parameters(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), ZERO_POINT))
    return student


def learn(student, stage, ctx=None):
    """Reconstruct a student on images of ones."""
    channels = student.get_submodule("0").in_channels
    Reconstruction(student, torch.ones(4, channels, 2, 2), ctx or context(), {"weights": stage}).run("weights")


def values_of(student):
    return student.get_submodule("0").quantized_weight().flatten().tolist()


def test_what_is_divided_is_rounded_so_that_the_sum_stays():
    student, ctx = convolution(0.55, 0.52), context()
    learn(student, Stage(6, 4, rounding=lambda *layer: Division(*layer, lr=0.01)), ctx)
    # Rounded up, both give 2 instead of 1.07. S grows by about 1 % a step; beyond 1.04 the smaller weight is 0, and the
    # larger one would be from 1.1 on.
    assert values_of(student) == [1, 0]
    (_, before), (_, after) = ctx.reporter.curves["reconstruction/weights/0"]
    assert (before, after) == (pytest.approx(0.93**2, rel=1e-5), pytest.approx(0.07**2, rel=1e-4))


def test_a_weight_may_land_several_points_away_and_is_kept_though_it_is_worse_where_the_stage_says_so():
    # d loss / d log S = 2 (1 - 1.4) * (-1.4) > 0, so Adam's first step is log S = -0.7, and 1.4 / exp(-0.7) = 2.8
    for keep_better, value in ((False, 3), (True, 1)):
        student, ctx = convolution(1.4), context()
        stage = Stage(1, 4, rounding=lambda *layer: Division(*layer, lr=0.7), keep_better=keep_better)
        learn(student, stage, ctx)
        assert values_of(student) == [value]
        assert any("the earlier values are kept" in note for note in ctx.reporter.notes) is keep_better


def test_a_scale_that_was_learned_is_in_the_artifact():
    student = convolution(1.4)
    learn(student, Stage(1, 4, rounding=lambda *layer: Division(*layer, lr=1e-6, scale_lr=0.1), keep_better=False))
    finalize(student)
    layer = student.get_submodule("0")
    # d loss / d s = 2 (1 - 1.4) * (1 - 1.4) > 0, so s is 0.9 after a step, and 1.4 / 0.9 rounds to 2
    assert layer.weight_quantizer.scale.item() == pytest.approx(0.9)
    assert layer.weight_codes.item() == 2 + ZERO_POINT


def test_regulariser_and_bounds_are_called_at_each_step_and_gradients_of_the_former_count():
    seen, kept = [], []

    class Pulled(Division):
        def regularize(self, iteration, iterations):
            seen.append((iteration, iterations))
            self.logs.grad.fill_(-1.0)

        def constrain(self):
            assert not torch.is_grad_enabled()
            self.logs.clamp_(max=0.25)

    student = convolution(1.4)
    layer = dict(quantized_layers(student))["0"]
    learn(student, Stage(3, 4, rounding=lambda *each: kept.append(Pulled(*each, lr=0.1)) or kept[-1]))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert kept[0].logs.item() == 0.25
    assert layer.weight_quantizer is not kept[0]


def test_it_goes_on_from_a_checkpoint():
    def run(ctx):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval().requires_grad_(False)
        student = prepare(module, parse_scheme("hw/w3a32"), (2, 2, 2))
        for _, layer in quantized_layers(student):
            layer.weight_quantizer.set_range(*layer.weight.flatten(1).aminmax(dim=1))
        stage = Stage(5, 4, rounding=lambda *each: Division(*each, lr=0.05, scale_lr=0.01), keep_better=False)
        images = torch.randn(8, 2, 2, 2, generator=torch.Generator().manual_seed(1))
        Reconstruction(student, images, ctx, {"weights": stage}).run("weights")
        return state_of(student)

    ctx = context()
    expected = run(ctx)
    assert len(ctx.reporter.states) == 2
    assert same(run(context(resume_from=ctx.reporter.states[0])), expected)
