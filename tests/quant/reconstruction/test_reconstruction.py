import copy
import shutil
from dataclasses import replace
from functools import partial, partialmethod

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from networks import called_twice, from_forward, same, state_of
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    Annealing,
    Grids,
    Memory,
    Reconstruction,
    Rounding,
    Stage,
    StepSizes,
    affine_parameters,
    calibrate_activations,
    calibrate_activations_mse,
    calibrate_weights,
    memory_errors,
    mse80,
    prepare,
    quantized_layers,
)
from zsqbench.quant.reconstruction.draws import draw, keep_mask
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.prediction import Prediction
from zsqbench.quant.reconstruction.soft_rounding import SoftRounding, rectified_sigmoid
from zsqbench.quant.student import activation_quantizers
from zsqbench.scheme import Placement, parse_scheme
from zsqbench.testing import context

SIZE = (3, 8, 8)
ROUND = Stage(15, 8, rounding=Rounding(lr=0.04))
STEPS = Stage(10, 8, step_sizes=StepSizes(2e-3), quantize_activations=True, source="float", power=2.4)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return (self.conv2(self.conv1(x).relu()) + x).relu()


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Block(6), Block(6)]
        module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return module.eval().requires_grad_(False)


def images(count=32, seed=1):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def student_of(module, scheme="hw/w3a4"):
    student = prepare(module, parse_scheme(scheme), SIZE)
    calibrate_weights(student, "mse")
    return student


def reconstructed(module=None, stages=None, ctx=None, data=None, scheme="hw/w3a4", **options):
    """A student that went through both stages, as BRECQ does it."""
    student = student_of(module or network(), scheme)
    data = images() if data is None else data
    stages = stages or {"weights": ROUND, "activations": STEPS}
    engine = Reconstruction(student, data, ctx or context(), stages, **options)
    engine.run("weights")
    if "activations" in stages:
        calibrate_activations_mse(student, data)
        engine.run("activations")
    return student


def codes(student, path):
    layer = student.get_submodule(path)
    return layer.weight_quantizer.codes(layer.weight)


def losses(ctx, stage):
    curves = ctx.reporter.curves
    names = [name for name in curves if name.startswith(f"reconstruction/{stage}/")]
    return {name.rpartition("/")[2]: [value for _, value in curves[name]] for name in names}


@pytest.fixture(scope="module")
def finished():
    """The context of a run through both stages, and the state of its student; no test changes them."""
    ctx = context()
    return ctx, state_of(reconstructed(ctx=ctx))


@pytest.mark.parametrize("stage", ["weights", "activations"])
def test_no_unit_is_worse_than_before(stage, finished):
    ctx, _ = finished
    found = losses(ctx, stage)
    assert list(found) == ["0", "2", "3", "6"]
    assert all(after <= before for before, after in found.values())


def test_learning_lowers_the_loss_of_most_units(finished):
    ctx, _ = finished
    pairs = [*losses(ctx, "weights").values(), *losses(ctx, "activations").values()]
    assert sum(after < 0.97 * before for before, after in pairs) >= 6


def test_the_logged_loss_is_that_of_the_unit_on_all_images():
    ctx, module = context(), network()
    student = reconstructed(module, {"weights": ROUND}, ctx)
    with torch.no_grad():
        output, expected = student.get_submodule("0")(images()).relu(), module[:2](images())
    measured = (output - expected).square().sum(1).mean().item()
    assert losses(ctx, "weights")["0"][1] == pytest.approx(measured, rel=1e-5)


def test_what_learning_made_worse_is_not_kept_and_noted():
    ctx, module = context(), network()
    wild = Stage(5, 8, rounding=Rounding(lr=50.0))
    student = reconstructed(module, {"weights": wild}, ctx)
    assert torch.equal(codes(student, "0"), codes(student_of(module), "0"))
    assert any("the earlier values are kept" in note for note in ctx.reporter.notes)


def test_correlated_inputs_round_so_that_the_sum_stays():
    module = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False)).requires_grad_(False)
    module[0].weight.data = torch.tensor([0.55, 0.52]).view(1, 2, 1, 1)
    student = prepare(module.eval(), parse_scheme("hw/w3a32"), (2, 4, 4))
    quantizer = dict(quantized_layers(student))["0"].weight_quantizer
    quantizer.set_parameters(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4.0))
    single = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    stage = Stage(400, 8, rounding=Rounding(lr=0.05, regularizer=0.5))
    Reconstruction(student, single.expand(-1, 2, -1, -1).contiguous(), context(), {"weights": stage}).run("weights")
    weight = dict(quantized_layers(student))["0"].quantized_weight()
    assert sorted(weight.flatten().tolist()) == [0.0, 1.0]


def test_the_second_stage_leaves_weights_and_zero_points_alone():
    module, data = network(), images()
    student = student_of(module)
    engine = Reconstruction(student, data, context(), {"weights": ROUND, "activations": STEPS})
    engine.run("weights")
    calibrate_activations_mse(student, data)
    before = state_of(student)
    engine.run("activations")
    after = state_of(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("activation_quantizers") and name.endswith(".scale") for name in changed)


def test_the_float_weights_and_the_network_stay_as_they_are():
    module = network()
    before = copy.deepcopy(module.state_dict())
    student = reconstructed(module)
    assert same(before, module.state_dict())
    assert torch.equal(student.get_submodule("0").weight, module[0].weight)


def test_one_seed_gives_one_network_and_another_another(finished):
    _, first = finished
    again, other = (state_of(reconstructed(ctx=context(seed))) for seed in (0, 1))
    assert same(first, again)
    assert not same(first, other)


@parametrize_briefly("stage", [replace(ROUND, fisher="diag"), ROUND], 1)
def test_where_caches_are_kept_changes_nothing(stage):
    results = [
        state_of(reconstructed(stages={"weights": stage, "activations": STEPS}, memory=memory))
        for memory in (None, Memory(torch.device("cpu"), host_bytes=0))
    ]
    assert same(*results)


def test_there_is_a_checkpoint_behind_each_unit_of_each_stage(finished):
    ctx, _ = finished
    assert len(ctx.reporter.states) == 8


@parametrize_briefly("number", [1, 3, 6, 0, 2, 4, 5, 7], 3)
def test_going_on_from_any_checkpoint_gives_the_same_network(finished, number):
    ctx, expected = finished
    assert same(expected, state_of(reconstructed(ctx=context(resume_from=ctx.reporter.states[number]))))


def test_going_on_learns_only_what_is_left(finished):
    ctx, _ = finished
    resumed = context(resume_from=ctx.reporter.states[5])
    reconstructed(ctx=resumed)
    assert list(losses(resumed, "weights")) == []
    assert list(losses(resumed, "activations")) == ["3", "6"]


@pytest.mark.parametrize("kept", [None, 2])
def test_progress_ends_at_the_total(monkeypatch, finished, kept):
    states, steps = finished[0].reporter.states, []
    ctx = context(resume_from=None if kept is None else states[kept])
    monkeypatch.setattr(ctx.reporter, "progress", lambda *step: steps.append(step))
    reconstructed(ctx=ctx)
    assert steps[-1] == (4 * 15 + 4 * 10,) * 2


def test_a_stage_takes_one_float_pass_and_two_quantized_ones():
    module, data = network(), images()
    student = student_of(module)
    calls = []
    layer = student.get_submodule("3.conv2")
    layer.register_forward_pre_hook(lambda *_: calls.append((layer.weight_quantizer.enabled, torch.is_grad_enabled())))
    engine = Reconstruction(student, data, context(), {"weights": ROUND})
    calls.clear()  # of the few images of noise that show what passes between units
    engine.run("weights")
    without_gradient = [enabled for enabled, gradient in calls if not gradient]
    assert without_gradient.count(False) == len(data) // 8
    assert without_gradient.count(True) == 2 * len(data) // 8


def test_units_that_are_left_out_round_to_nearest_and_are_noted():
    ctx, module = context(), network()
    student = reconstructed(module, ctx=ctx, skip=lambda unit: unit.name == "0")
    assert torch.equal(codes(student, "0"), codes(student_of(module), "0"))
    assert "0" not in losses(ctx, "weights")
    assert "left out of reconstruction: 0" in ctx.reporter.notes


def test_no_iterations_round_to_nearest():
    module = network()
    nothing = {"weights": Stage(0, 8, rounding=Rounding()), "activations": Stage(0, 8, step_sizes=StepSizes())}
    student = reconstructed(module, nothing)
    expected = student_of(module)
    calibrate_activations_mse(expected, images())
    assert same(state_of(student), state_of(expected))


def test_the_units_are_noted(finished):
    ctx, _ = finished
    assert ctx.reporter.notes[0] == "4 units; 2 blocks (layers in each): 2 (2), 3 (2); 2 layers: 0, 6"


def test_dropped_quantization_is_drawn_in_learning_only():
    joint = Stage(
        10, 8, rounding=Rounding(), step_sizes=StepSizes(lsq=True), quantize_activations=True, source="mixed", drop=0.5
    )
    module, data = network(), images()
    student = student_of(module)
    calibrate_activations_mse(student, data)
    Reconstruction(student, data, context(), {"weights": joint}).run("weights")
    with torch.no_grad():
        assert torch.equal(student(data), student(data))


@pytest.mark.parametrize(
    ("grid", "signed", "largest"),
    [("affine", False, 2**4 - 1), ("symmetric", False, 2**4 - 1), ("symmetric", True, 2**3 - 1)],
)
def test_gradients_of_step_sizes_are_scaled_where_wanted(monkeypatch, grid, signed, largest):
    elements, found = 8 * 6 * 8 * 8, []
    for lsq in (False, True):
        student = prepare(network(), parse_scheme("hw/w3a4"), SIZE, Grids(activations=grid))
        calibrate_weights(student, "mse")
        calibrate_activations_mse(student, images())
        stem = activation_quantizers(student)[0][1]
        if signed:
            stem.set_threshold(stem.threshold(), signed=True)
        adjust = Learning._adjust_gradients

        def look(self, *arguments, adjust=adjust, stem=stem):
            adjust(self, *arguments)
            found.append(stem.scale.grad.item())

        monkeypatch.setattr(Learning, "_adjust_gradients", look)
        stage = Stage(1, 8, step_sizes=StepSizes(lsq=lsq), quantize_activations=True, source="float")
        engine = Reconstruction(student, images(), context(), {"s": stage}, skip=lambda unit: unit.name != "0")
        engine.run("s")
        monkeypatch.setattr(Learning, "_adjust_gradients", adjust)
    assert found[1] == pytest.approx(found[0] / (elements * largest) ** 0.5, rel=1e-5)


@parametrize_briefly("layout", [torch.channels_last, torch.contiguous_format], 1)
def test_codes_lie_in_memory_as_their_weights_do(layout):
    student = reconstructed(network().to(memory_format=layout))
    layer = student.get_submodule("2.conv1")
    assert layer.quantized_weight().stride() == layer.weight.stride()


def test_an_operator_that_works_in_place_does_not_reach_images_or_caches():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.pool, self.act = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.SiLU(inplace=True)
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.last(self.act(self.pool(self.first(x.mul_(0.5)))))

    module, data = InPlace().eval().requires_grad_(False), images()
    states = [
        state_of(reconstructed(module, data=data, memory=memory))
        for memory in (None, Memory(torch.device("cpu"), host_bytes=0))
    ]
    assert torch.equal(data, images())
    assert same(*states)


def test_all_outputs_of_a_unit_are_reconstructed():
    def forward(net, x):
        x = net.trunk(x).relu()
        return net.a(x), net.b(x)

    layers = {name: nn.Conv2d(3, 3, 3) for name in ("trunk", "a", "b")}
    network, ctx = from_forward(forward, **layers), context()
    stage = Stage(60, 8, rounding=ROUND.rounding)
    student, nearest = reconstructed(network, {"weights": stage}, ctx), student_of(network)
    assert list(losses(ctx, "weights")) == ["trunk", "a..b"]
    for path in "ab":
        assert not torch.equal(codes(student, path), codes(nearest, path))


def test_a_stage_says_how_many_images_it_reads_also_where_it_was_finished_before():
    ctx = context()
    reconstructed(stages={"weights": ROUND}, ctx=ctx, data=images(19))
    assert ctx.read == 19
    resumed = context(resume_from=ctx.reporter.states[-1])
    reconstructed(stages={"weights": ROUND}, ctx=resumed, data=images(19))
    assert resumed.read == 19
    unlearned = context()
    reconstructed(stages={"weights": Stage(0, 8, rounding=ROUND.rounding)}, ctx=unlearned, data=images(19))
    assert unlearned.read is None


def test_a_stage_that_learns_nothing_reads_the_batch_that_it_shows():
    ctx, stage = context(), Stage(0, 8, rounding=ROUND.rounding)
    reconstructed(stages={"weights": stage}, ctx=ctx, data=images(19), before_unit=lambda *_: None)
    assert ctx.read == 8


def test_what_nobody_reads_is_left_alone():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            self.aux(x)
            return self.main(x).relu()

    ctx = context()
    reconstructed(Unread().eval().requires_grad_(False), {"weights": ROUND}, ctx)
    assert list(losses(ctx, "weights")) == ["main"]


COMPILES_CPP = (
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++"),
    pytest.mark.slow("it compiles C++, which takes half a minute"),
)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("aot_eager", marks=pytest.mark.slow("it traces gradients, too")),
        pytest.param("inductor", marks=COMPILES_CPP),
    ],
)
def test_compiled_units_learn_the_same(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval().requires_grad_(False)
    joint = Stage(
        5, 8, rounding=Rounding(lr=0.02), step_sizes=StepSizes(), quantize_activations=True, source="mixed", drop=0.5
    )
    found = []
    for compiles in (False, True):
        student = student_of(module)
        calibrate_activations_mse(student, images())
        ctx = context()
        ctx.settings = ctx.settings.model_copy(update={"compile": compiles})
        Reconstruction(student, images(), ctx, {"joint": joint}).run("joint")
        found.append(losses(ctx, "joint")["0"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_elements_are_kept_with_their_probability_and_independently(probability):
    mask = keep_mask(torch.Size([201, 501]), probability, context())

    assert mask.dtype == torch.bool
    assert mask.float().mean().item() == pytest.approx(probability, abs=0.01)
    flat = mask.flatten().float() - probability
    for distance in (1, 2, 4, 8, 64):
        assert (flat[:-distance] * flat[distance:]).mean().abs() < 0.005


@pytest.mark.parametrize(
    ("how", "batches"),
    [("permutation", 1), ("epoch", 2), ("replacement", 1)],
)
def test_draws_are_as_they_are_called(how, batches):
    drawn = draw(9, 4, how, context(seed=1))
    together = torch.cat([next(drawn) for _ in range(batches)])

    assert len(together) == 4 * batches
    assert (len(together.unique()) == len(together)) == (how != "replacement")


def test_a_layer_that_is_called_twice_is_learned_at_its_first_call():
    ctx = context()
    reconstructed(called_twice(), {"weights": ROUND}, ctx)
    assert list(losses(ctx, "weights")) == ["conv"]


def test_a_layer_that_was_learned_is_not_learned_again_after_an_interruption():
    module, ctx = called_twice(), context()
    joint = Stage(10, 8, rounding=ROUND.rounding, step_sizes=StepSizes(), quantize_activations=True)

    def run(ctx):
        student = student_of(module)
        calibrate_activations_mse(student, images())
        Reconstruction(student, images(), ctx, {"joint": joint}).run("joint")
        return state_of(student)

    expected = run(ctx)
    assert len(ctx.reporter.states) == 2
    for state in ctx.reporter.states:
        assert same(run(context(resume_from=state)), expected)


def test_a_unit_without_calibrated_quantizers_has_nothing_to_learn():
    student = student_of(network())
    steps = Stage(5, 8, step_sizes=StepSizes(), source="float")
    Reconstruction(student, images(), context(), {"activations": steps}).run("activations")
    assert all(quantizer.scale == 0 for _, quantizer in activation_quantizers(student))


def test_step_sizes_stay_above_zero_whatever_the_learning_rate():
    wild = Stage(4, 8, step_sizes=StepSizes(lr=100.0), quantize_activations=True, source="float")
    student = student_of(network())
    calibrate_activations_mse(student, images())
    seen = []
    for _, quantizer in activation_quantizers(student):
        quantizer.register_forward_pre_hook(lambda quantizer, _: seen.append(quantizer.scale.item()))
    Reconstruction(student, images(), context(), {"activations": wild}).run("activations")
    assert min(seen) > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(32, 1, 8, 8), r"has images of shape \(32, 1, 8, 8\); expected \('N', 3, 8, 8\)"),
        (torch.zeros(32, 3, 9, 8), "of shape"),
        (torch.zeros(32, 3, 8, 8, dtype=torch.float16), r"torch.float16 images; expected torch.float32"),
        (torch.zeros(0, 3, 8, 8), r"images of shape \(0, 3, 8, 8\)"),
        (torch.zeros(7, 3, 8, 8), "7 calibration images are fewer than one batch: give at least 8"),
        (torch.full((8, 3, 8, 8), float("nan")), "NaN or infinite pixels in 8 of 8"),
    ],
)
def test_images_that_cannot_be_are_one_clear_line(data, message):
    with pytest.raises(ZSQBenchError, match=message):
        Reconstruction(student_of(network()), data, context(), {"weights": ROUND})


@pytest.mark.filterwarnings("error")
@parametrize_briefly(
    "spoil",
    [
        lambda module: module[2].conv1.bias.data.fill_(-1e3),
        lambda module: module[0].weight.data.fill_(0.3),
        lambda module: module[2].conv1.weight.data.zero_(),
        lambda module: module[6].weight.data[0].zero_(),
    ],
    2,
    ids=["dead activations", "constant weight", "constant output", "dead channel"],
)
def test_degenerate_layers_and_ranges_leave_finite_networks(spoil):
    module = network()
    spoil(module)
    student = reconstructed(module)
    state = state_of(student)
    assert all(tensor.isfinite().all() for tensor in state.values())
    with torch.no_grad():
        assert student(images()).isfinite().all()


def test_two_bits_on_a_depthwise_layer():
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    ctx = context()
    longer = {"weights": Stage(200, 8, rounding=ROUND.rounding)}
    student = reconstructed(module.eval().requires_grad_(False), longer, ctx, scheme="hw/w2a4")
    depthwise = student.get_submodule("2").quantized_weight().flatten(1)
    assert max(len(channel.unique()) for channel in depthwise) <= 4
    before, after = losses(ctx, "weights")["0..4"]
    assert after < before


def test_a_network_that_is_not_finite_is_one_clear_line():
    module = network()
    module[2].conv1.weight.data[0] = float("inf")
    student = prepare(module, parse_scheme("hw/w3a4"), SIZE)
    for _, layer in quantized_layers(student):
        layer.weight_quantizer.set_range(torch.full((len(layer.weight),), -1.0), torch.full((len(layer.weight),), 1.0))
    with pytest.raises(ZSQBenchError, match="weights/2: the loss is not finite"):
        Reconstruction(student, images(), context(), {"weights": ROUND}).run("weights")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_names_the_options(monkeypatch, error):
    def full(*_, **__):
        raise error

    engine = Reconstruction(student_of(network()), images(), context(), {"weights": ROUND})
    monkeypatch.setattr("zsqbench.quant.reconstruction.reconstruction.push", full)
    with pytest.raises(
        ZSQBenchError, match=r"ran out of memory: lower .* batch_size \(8\), device_memory \(4\), host_mem"
    ):
        engine.run("weights")


def test_another_runtime_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="something else"), memory_errors(torch.device("cpu"), {"batch_size": 8}):
        raise RuntimeError("something else")


def test_fisher_needs_a_classifier():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval().requires_grad_(False)
    with pytest.raises(ZSQBenchError, match=r"needs a classifier.*mse"):
        reconstructed(module, {"weights": Stage(3, 8, rounding=Rounding(), fisher="diag")})


def released_student(take, bits, activation_bits):
    """The network of BRECQ's vectors, folded and with its searched weights, which are compared."""
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    names = [name for name in module.state_dict() if "num_batches" not in name]
    module.load_state_dict({name: take(f"net.{name}") for name in names}, strict=False)
    module.eval().requires_grad_(False)
    torch.testing.assert_close(module(take("cali")), take("logits_fp"), rtol=0, atol=1e-5)
    placement = Placement(input="float", addend="float", pooled="float", logits="float")
    student = prepare(module, parse_scheme(f"own/w{bits}a{activation_bits}", {"own": placement}), SIZE)
    for (_, layer), name in zip(quantized_layers(student), ("conv0", "conv3", "fc"), strict=True):
        if name != "fc":
            torch.testing.assert_close(layer.weight, take(f"folded_w_{name}"), rtol=0, atol=1e-5)
            torch.testing.assert_close(layer.bias, take(f"folded_b_{name}"), rtol=0, atol=1e-5)
        quantizer = layer.weight_quantizer  # BRECQ does not widen ranges to hold zero
        quantizer.set_parameters(*affine_parameters(*mse80(layer.weight, bits, 0), bits))
        torch.testing.assert_close(quantizer.scale, take(f"delta_{name}"), rtol=1e-6, atol=0)
        assert torch.equal(quantizer.zero_point, take(f"zero_{name}"))
    return student


class Watched:
    """The tensors that units of a reconstruction read and are to give, and the parameters that learn."""

    def __init__(self, monkeypatch):
        self.inputs, self.targets, self.logits, self.regularizers, self.fisher = [], [], [], [], []
        for owner, name, watch in (
            (Learning, "run", self._watch_unit), (Learning, "_harden", self._watch_logits),
            (SoftRounding, "regularize", self._watch_regularizer), (Prediction, "fisher_weights", self._watch_weights),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, partialmethod(self._watched, watch, getattr(owner, name)))

    @staticmethod
    def _watched(owner, watch, original, *given):
        return watch(partial(original, owner), owner, *given)

    def _watch_unit(self, run, unit, needed):
        self.inputs.append(cached(unit.inputs))
        self.targets.append(cached(unit.targets))
        return run(needed)

    def _watch_logits(self, harden, _, learned):
        self.logits.extend(rounding.logits.detach().clone() for rounding in learned)
        harden(learned)

    def _watch_regularizer(self, regularize, rounding, step, steps):
        beta, soft = Annealing()(step, steps), rectified_sigmoid(rounding.logits.detach())
        self.regularizers.append(0.0 if beta is None else 0.01 * (1 - (2 * soft - 1).abs() ** beta).sum().item())
        regularize(step, steps)

    def _watch_weights(self, weigh, _, targets):
        weights = weigh(targets)
        self.fisher.append(cached(weights))
        return weights


def cached(caches):
    """The values of the only tensor."""
    (cache,) = caches.values()
    return cache.read(slice(0, cache.count))


def released_curve(ctx, stage, unit):
    return np.array([value for _, value in ctx.reporter.curves[f"{stage}/{unit}"]])


def check_released_rounding(take, ctx, student, watched, iterations):
    for place, (path, name) in enumerate((("0", "conv0"), ("3", "conv3"))):
        torch.testing.assert_close(watched.inputs[place], take(f"{name}_cached_in"), rtol=0, atol=1e-5)
        torch.testing.assert_close(watched.targets[place], take(f"{name}_cached_out"), rtol=0, atol=1e-5)
        if watched.fisher:
            torch.testing.assert_close(watched.fisher[place], take(f"{name}_cached_grad"), rtol=1e-6, atol=1e-6)
        added = watched.regularizers[place * iterations : (place + 1) * iterations]
        np.testing.assert_allclose(released_curve(ctx, "weights", path) + added, take(f"{name}_losses"), rtol=1e-4)
        torch.testing.assert_close(watched.logits[place], take(f"{name}_alpha_final"), rtol=0, atol=1e-4)
        weight = dict(quantized_layers(student))[path].quantized_weight()
        torch.testing.assert_close(weight, take(f"{name}_hard_w"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["mse", "fisher_diag"])
def test_released_brecq_comes_out(golden, monkeypatch, mode):
    stored = golden(f"brecq_e2e_{mode}_a")
    take = lambda name: torch.from_numpy(np.asarray(stored[name]))  # noqa: E731
    student = released_student(take, int(stored["w_bits"]), int(stored["a_bits"]))
    orders = iter(take("perms"))
    monkeypatch.setattr(
        "zsqbench.quant.reconstruction.learning.draw", lambda _, size, *__: (order[:size] for order in orders)
    )
    iterations, ctx, watched = int(stored["iters"]), context(), Watched(monkeypatch)
    # the release keeps what was learned also where it is worse, as a step size of the first of these networks is
    weights = Stage(iterations, 4, rounding=Rounding(), fisher=None if mode == "mse" else "diag", keep_better=False)
    activations = replace(
        weights,
        rounding=None,
        fisher=None,
        step_sizes=StepSizes(),
        quantize_activations=True,
        source="float",
        power=2.4,
    )
    stages = {"weights": weights, "activations": activations}
    engine = Reconstruction(student, take("cali"), ctx, stages, skip=lambda unit: unit.name == "8")
    engine.run("weights")
    assert len(watched.fisher) == (2 if mode == "fisher_diag" else 0)
    check_released_rounding(take, ctx, student, watched, iterations)

    def search(quantizer):
        return lambda seen: quantizer.set_parameters(*affine_parameters(*mse80(seen, quantizer.bits), quantizer.bits))

    def check_steps(which):
        for (_, quantizer), name in zip(activation_quantizers(student), ("conv0", "conv3"), strict=True):
            torch.testing.assert_close(quantizer.scale, take(f"{name}_act_delta_{which}"), rtol=1e-4, atol=0)
            assert torch.equal(quantizer.zero_point, take(f"{name}_act_zero"))

    calibrate_activations(student, [take("cali")], search)
    check_steps("init")
    engine.run("activations")
    for name, unit in (("conv0", "0"), ("conv3", "3")):
        np.testing.assert_allclose(released_curve(ctx, "activations", unit), take(f"{name}_act_losses"), rtol=1e-4)
    check_steps("final")
    torch.testing.assert_close(student(take("cali")), take("logits_quant"), rtol=0, atol=1e-4)


def picked_by_index(net, x):
    picked = functional.one_hot(net.first(x).mean((2, 3)).argmax(1), 4)
    return net.last(net.second(x).relu().mean((2, 3)) * picked)


def gated_by_mask(net, x):
    return net.last((net.second(x) * (net.first(x) > 0)).mean((2, 3)))


@parametrize_briefly("fisher", ["diag", None, "full"], 1)
@pytest.mark.parametrize("forward", [picked_by_index, gated_by_mask])
def test_what_only_an_index_or_a_mask_is_taken_of_is_learned_with_any_loss(forward, fisher):
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 4, 1), "second": nn.Conv2d(3, 4, 1), "last": nn.Linear(4, 5)}
    stages = {"weights": replace(ROUND, fisher=fisher), "activations": STEPS}
    ctx = context()
    student = reconstructed(from_forward(forward, **layers), stages, ctx, scheme="hw/w4a8", grain="layer")
    assert student(images()).isfinite().all()
    assert "reconstruction/weights/first" in ctx.reporter.curves


def test_fisher_needs_one_output_also_where_outputs_are_of_several_units():
    heads = {name: nn.Linear(8 * 8 * 3, 4) for name in "ab"}
    network = from_forward(lambda net, x: (net.a(x.flatten(1)), net.b(2 * x.flatten(1))), **heads)
    with pytest.raises(ZSQBenchError, match="needs a classifier, with one output"):
        reconstructed(network, {"weights": replace(ROUND, fisher="diag")})


def generalized_mean(net, x):
    x = net.first(x).relu().clamp(min=1e-6)
    return net.last(x.pow(net.p).mean((2, 3)).pow(1.0 / net.p))


def root_mean_square(net, x):
    return net.last((net.first(x).relu().square().mean((2, 3)) + 1e-8) ** 0.5)


@pytest.mark.parametrize("forward", [generalized_mean, root_mean_square])
@parametrize_briefly("fisher", ["diag", None], 1)
def test_roots_of_what_a_grid_rounds_to_zero_leave_learning_finite(forward, fisher):
    torch.manual_seed(0)
    net = from_forward(forward, first=nn.Conv2d(3, 6, 3), last=nn.Linear(6, 5))
    net.p = nn.Parameter(torch.full((1,), 3.0), requires_grad=False)
    net.first.bias.data[:2] = -9.0  # dead: ReLU gives zeros, and the network adds to them what no grid holds
    activations = replace(STEPS, step_sizes=StepSizes(1e-5))
    ctx = context()
    stages = {"weights": replace(ROUND, fisher=fisher), "activations": activations}
    student = reconstructed(net, stages, ctx, scheme="hw/w4a4")
    assert student(images()).isfinite().all()
    before, after = losses(ctx, "activations")["last"]
    assert after < before


def test_corrected_inputs_are_mixed_in_and_targets_are_what_the_float_unit_makes_of_them():
    module, ctx, asked = network(), context(), []

    def correct(unit, inputs):
        asked.append((unit.name, len(inputs[0])))
        return [values + 1 for values in inputs] if unit.name == "0" else None

    stage = replace(ROUND, source="mixed", drop=0.5, iterations=2, keep_better=False)
    student = reconstructed(module, {"weights": stage}, ctx, correct=correct)
    assert asked[:5] == [("0", 8)] * 4 + [("2", 8)]  # of the others one batch, for nothing came of it
    with torch.no_grad():
        output, wanted = student.get_submodule("0")(images()).relu(), module[:2](images() + 1)
    measured = (output - wanted).square().sum(1).mean().item()
    assert losses(ctx, "weights")["0"][1] == pytest.approx(measured, rel=1e-4)


def test_a_correction_that_leaves_inputs_as_they_are_changes_nothing():
    stage = replace(ROUND, source="mixed", drop=0.5, iterations=5)
    first = reconstructed(stages={"weights": stage})
    second = reconstructed(stages={"weights": stage}, correct=lambda _, inputs: list(inputs))
    assert all(torch.equal(codes(first, path), codes(second, path)) for path, _ in quantized_layers(first))


def test_a_unit_that_runs_once_on_twice_the_batch_learns_what_it_learns_in_two_runs():
    losses_of = []
    for doubled in (False, True):
        stage = replace(
            ROUND, source="mixed", drop=0.5, iterations=5, doubled=doubled, keep_better=False,
            loss=lambda batch: batch.distance() + (batch.prediction() - batch.float_prediction()).square().mean(),
        )  # fmt: skip
        ctx = context()
        reconstructed(stages={"weights": stage}, ctx=ctx)
        losses_of.append([value for values in losses(ctx, "weights").values() for value in values])
    assert losses_of[0] == pytest.approx(losses_of[1], rel=1e-4)


def test_more_images_than_a_batch_are_shown_before_a_unit_learns():
    seen = []
    reconstructed(
        stages={"weights": replace(ROUND, iterations=1)}, before_images=20,
        before_unit=lambda unit, inputs: seen.append((unit.name, len(inputs[0]))),
    )  # fmt: skip
    assert set(seen) == {(name, 20) for name in ("0", "2", "3", "6")}
