import copy
import math

import pytest
import torch
from brief import parametrize_briefly
from networks import called_twice, same, state_of
from torch.nn import functional

from zsqbench.errors import DivergedError
from zsqbench.quant import (
    FineTuning,
    Grids,
    LearnedWeight,
    Schedule,
    TrainedActivation,
    TrainedWeight,
    activation_quantizers,
    affine_parameters,
    begin_steps,
    calibrate_activations_minmax,
    calibrate_weights,
    dequantize,
    finalize,
    hold_image,
    pass_gradients,
    prepare,
    quantize,
    quantized_layers,
    restore,
    take_over,
)
from zsqbench.quant.grids.affine import fake_quantize_identity, rectify_and_quantize
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, WeightQuantizer
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context, tiny_teacher, tiny_teachers

SIZE = (3, 8, 8)


def images(count=16, seed=1):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def calibrated(scheme="hast/w3a3", module=None):
    student = prepare(module or tiny_teacher().module, parse_scheme(scheme), SIZE)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [images()])
    return student


def by_number(update):
    """What an update learns from, where that is its number."""
    return [update], {}


def trained(student, schedule, ctx=None, state=None, loss_of=None, **options):
    """The student after all updates towards zero logits, and the engine."""
    engine = FineTuning(student, ctx or context(), schedule, state or {}, **options)

    def gradients(update):
        loss = (loss_of or (lambda logits, _: logits.square().mean()))(engine.network(images(seed=update)), update)
        loss.backward()
        return {"loss": loss}

    with engine:
        engine.run(by_number, gradients)
    return student, engine


def test_a_trained_weight_passes_its_gradient_on_where_it_is_clamped_too():
    quantizer = WeightQuantizer("w", "weight", 2, axis=None, shape=())
    weight = torch.tensor([-3.0, -0.2, 0.3, 9.0])
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    trained_weight = TrainedWeight(quantizer, weight, follows=False)
    trained_weight.renew(weight)
    (trained_weight(weight) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert trained_weight.values.tolist() == [-1, 0, 0, 2]
    assert trained_weight.values.grad.tolist() == [1, 2, 3, 4]


def test_a_grid_that_follows_spans_each_channel_without_zero():
    weight = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.0, 2.0]])
    quantizer = WeightQuantizer("w", "weight", 2, axis=0, shape=(2, 1))
    quantizer.set_range(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    trained_weight = TrainedWeight(quantizer, weight, follows=True)
    trained_weight.renew(weight)
    scale, zero_point = affine_parameters(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), 2)
    assert torch.equal(trained_weight.scale, scale)
    assert torch.equal(trained_weight.values, dequantize(quantize(weight, scale, zero_point, 2), scale, zero_point))


@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_a_symmetric_grid_follows_with_its_zero_point_in_the_middle(grid):
    weight = torch.tensor([[0.5, 1.0], [-2.0, 0.25]])
    quantizer = WeightQuantizer("fc", "weight", 4, grid=grid, axis=0, shape=(2, 1))
    quantizer.set_range(*torch.aminmax(weight, dim=1))
    trained = TrainedWeight(quantizer, weight, follows=True)
    trained.renew(2 * weight)
    if grid == "affine":
        assert (trained.zero_point != 8).all()
        return
    assert trained.zero_point.flatten().tolist() == [8, 8]
    assert trained.scale.flatten().tolist() == pytest.approx([2 / 7, 4 / 8])  # the ends are codes 15 and 0
    assert trained.values[0, 1].item() == pytest.approx(2.0)
    assert trained.values[1, 0].item() == pytest.approx(-4.0)


def test_a_trained_activation_passes_its_gradient_on_and_rounds_half_precision_in_float32():
    plain = ActivationQuantizer("a", "relu", 2, axis=None, shape=())
    plain.set_range(torch.tensor(0.0), torch.tensor(3.0))
    quantizer = TrainedActivation(**plain.description())
    quantizer.adopt(plain)
    values = torch.tensor([-5.0, 0.4, 1.6, 50.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert quantizer(values).tolist() == [0, 0, 2, 3]
    assert values.grad.tolist() == [1, 1, 1, 1]
    assert quantizer(torch.tensor([0.4], dtype=torch.bfloat16)).dtype == torch.float32


def test_gradients_may_pass_activations_before_a_student_is_trained():
    student = prepare(tiny_teacher().module, parse_scheme("qdq/w3a3"), SIZE)
    hold_image(student, torch.tensor(-2.0), torch.tensor(2.0))
    before = dict(activation_quantizers(student))
    replaced = pass_gradients(student)
    assert [quantizer for _, quantizer in activation_quantizers(student)] == replaced
    assert [each.enabled for each in replaced] == [False] * len(before)  # as long as no range is set
    assert [each.is_held for each in replaced] == [each.is_held for each in before.values()]
    assert any(each.is_held for each in replaced)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [images()])
    expected = calibrated("qdq/w3a3")
    hold_image(expected, torch.tensor(-2.0), torch.tensor(2.0))
    calibrate_activations_minmax(expected, [images()])
    inputs = (9 * images()).requires_grad_()
    with torch.no_grad():
        assert torch.equal(student(inputs), expected(inputs))
    (gradient,) = torch.autograd.grad(student(inputs).sum(), inputs)
    assert (gradient != 0).float().mean() > 0.9  # also where the image is clipped


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("function", "ceiling"), [(torch.relu, math.inf), (functional.relu6, 6.0)])
def test_a_quantizer_that_rectifies_does_what_both_would(function, ceiling, dtype, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    values = (4 * images(8, seed=3)).to(dtype)
    values.view(-1)[:2] = torch.tensor([0.0, 6.0])
    scale, zero_point = affine_parameters(torch.tensor(0.0), torch.tensor(5.0), 3)
    weights = images(8, seed=4)
    found = []
    for fused in (True, False):
        leaf = values.clone().requires_grad_()
        x = 1 * leaf  # what is overwritten may be no leaf
        if fused:
            rounded = rectify_and_quantize(x, scale, zero_point, 3, ceiling)
        else:
            rounded = fake_quantize_identity(function(x).float(), scale, zero_point, 3)
        (rounded * weights).sum().backward()
        found.append((rounded.detach(), leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("scheme", ["hast/w3a3", "hw/w4a4"])
def test_the_network_that_is_trained_computes_what_the_student_does(scheme):
    student = calibrated(scheme)
    nodes = [node.name for node in student.graph.nodes if node.name.startswith("inner")]
    engine = FineTuning(student, context(), Schedule(1, 1, 0.0), {}, features=nodes[-1:])
    with engine, torch.no_grad():
        outputs, (feature,) = engine.network(images())
        torch.testing.assert_close(outputs, student(images()), rtol=0, atol=0)
    assert len(feature) == 16
    names = [str(node.target) for node in engine.network.graph.nodes]
    assert "stem.2" not in names  # the ReLU there is its quantizer's work
    assert (feature < 0).any()  # and what is handed out was not rectified


def test_the_gradient_of_a_float_student_reaches_the_latent_weights():
    student = calibrated("hast/w16a16")  # so fine a grid that rounding hardly changes the gradient
    plain = copy.deepcopy(tiny_teacher().module).requires_grad_(True)
    plain(images(seed=0)).square().mean().backward()
    found = {}
    engine = FineTuning(student, context(), Schedule(1, 1, 0.0), {})

    def gradients(_):
        loss = engine.network(images(seed=0)).square().mean()
        loss.backward()
        return {"loss": loss}

    def look(_):
        found.update((name, parameter.grad.clone()) for name, parameter in student.named_parameters())

    with engine:
        engine.run(by_number, gradients, adjust=look)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.02, atol=2e-4)


def test_without_a_learning_rate_nothing_changes():
    student = calibrated()
    before = state_of(student)
    assert same(state_of(trained(student, Schedule(1, 5, 0.0, weight_decay=0))[0]), before)


def test_weights_biases_and_norms_learn_and_running_statistics_stay():
    student = calibrated()
    before = copy.deepcopy(student.state_dict())
    trained(student, Schedule(1, 5, 0.01))
    after = student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"stem.0.weight", "stem.1.weight", "stem.1.bias", "classifier.bias", "classifier.weight"} <= changed
    assert not any("running" in name or name.startswith("activation_quantizers") for name in changed)


def test_under_a_folding_scheme_folded_weights_and_biases_learn():
    student = calibrated("hw/w4a4")
    assert not any("running" in name for name in student.state_dict())
    before = copy.deepcopy(student.state_dict())
    trained(student, Schedule(1, 5, 0.01))
    changed = {name for name, value in student.state_dict().items() if not torch.equal(before[name], value)}
    assert {"stem.0.weight", "stem.0.bias"} <= changed


def test_one_learning_rate_moves_a_folded_network_otherwise():
    """A folded weight is gain times weight, and its gradient the weight's divided by the gain."""
    schedule = Schedule(1, 1, 0.05, momentum=0, weight_decay=0)
    students = [trained(calibrated(f"{scheme}/w16a32"), schedule)[0] for scheme in ("hast", "hw")]
    with torch.no_grad():
        assert not torch.allclose(*(student(images()) for student in students), atol=1e-3)


def test_one_update_is_nesterovs_step_with_weight_decay():
    student = calibrated("hast/w4a4")
    weight = dict(quantized_layers(student))["classifier"].weight
    start, gradient = weight.detach().clone(), {}
    engine = FineTuning(student, context(), Schedule(1, 2, 0.1, momentum=0.5, weight_decay=0.2), {})

    def gradients(update):
        loss = engine.network(images()).square().mean()
        loss.backward()
        return {"loss": loss}

    def look(update):
        gradient[update] = weight.grad.clone()

    with engine:
        engine.run(by_number, gradients, adjust=look)
    expected, velocity = start, torch.zeros_like(start)
    for update in range(2):
        step = gradient[update] + 0.2 * expected
        velocity = 0.5 * velocity + step if update else step
        expected = expected - 0.1 * (step + 0.5 * velocity)
    torch.testing.assert_close(weight.detach(), expected)


def test_the_learning_rate_is_cut_at_milestones():
    schedule = Schedule(4, 2, 1.0, milestones=[1, 3], factor=0.1)
    assert [schedule.lr_at(update) for update in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_what_was_learned_is_the_last_update_and_loads_as_an_artifact():
    student, _ = trained(calibrated(), Schedule(2, 3, 0.01))
    state = state_of(student)
    fresh = prepare(tiny_teacher().module, parse_scheme("hast/w3a3"), SIZE)
    restore(fresh, state)
    with torch.no_grad():
        assert torch.equal(fresh(images()), student(images()))


@parametrize_briefly("updates", [4, 5, 1, 7], 2)
def test_an_interrupted_run_ends_as_an_undisturbed_one(updates):
    ctx = context()
    expected, _ = trained(calibrated(), Schedule(2, 5, 0.02, milestones=[1]), ctx)
    state = next(state for state in ctx.reporter.states if state["updates"] == updates)
    student = prepare(tiny_teacher().module, parse_scheme("hast/w3a3"), SIZE)  # not calibrated: the state has it all
    found, _ = trained(student, Schedule(2, 5, 0.02, milestones=[1]), state=state)
    assert same(state_of(found), state_of(expected))


@parametrize_briefly("points", [3, 2], 1)
def test_between_the_points_of_a_curve_nothing_is_offered_and_resuming_is_the_same(points, monkeypatch):
    monkeypatch.setattr("zsqbench.quant.training.finetuning.POINTS", points)
    ctx = context()
    expected, _ = trained(calibrated(), Schedule(1, 7, 0.02), ctx)
    offered = [state["updates"] for state in ctx.reporter.states]
    assert offered == {2: [1, 3, 6, 7], 3: [1, 2, 4, 6, 7]}[points]
    assert [step for step, _ in ctx.reporter.curves["loss"]] == offered
    found, _ = trained(calibrated(), Schedule(1, 7, 0.02), state=ctx.reporter.states[1])
    assert same(state_of(found), state_of(expected))


def test_students_of_epochs_are_kept_where_that_is_asked_for():
    ctx = context()
    student, _ = trained(calibrated(), Schedule(4, 2, 0.01, keep_every=2), ctx)
    assert list(ctx.reporter.epochs) == [2, 4]
    other = context()
    trained(calibrated(), Schedule(3, 2, 0.01, keep_every=2), other)
    assert list(other.reporter.epochs) == [2, 3]  # the last is always one of them
    assert same(ctx.reporter.epochs[4].state_dict(), state_of(student))
    assert not same(ctx.reporter.epochs[2].state_dict(), state_of(student))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_state():
    ctx = context()

    def loss_of(logits, update):
        return logits.square().mean() * (math.nan if update == 5 else 1)

    with pytest.raises(
        DivergedError, match=r"nan at update 6 of 8, with a learning rate of 0.01; try a smaller 'lr'"
    ) as raised:
        trained(calibrated(), Schedule(4, 2, 0.01), ctx, loss_of=loss_of)
    assert raised.value.state["updates"] == 4
    assert all(torch.isfinite(value).all() for value in raised.value.state.values() if isinstance(value, torch.Tensor))


def test_weights_that_are_not_finite_are_no_good_state_either():
    """The loss of an update is of the weights before it: after the last one nothing would notice."""
    student = calibrated()
    engine = FineTuning(student, context(), Schedule(2, 1, 0.01), {})

    def gradients(update):
        loss = engine.network(images()).square().mean()
        loss.backward()
        if update == 1:
            engine.parameters[0].grad.fill_(math.inf)
        return {"loss": loss}

    with engine, pytest.raises(DivergedError, match=r"a weight is not finite at update 2 of 2") as raised:
        engine.run(by_number, gradients)
    assert raised.value.state["updates"] == 1


def test_a_scalar_that_is_not_finite_is_named_with_what_to_lower():
    engine = FineTuning(calibrated(), context(), Schedule(1, 1, 0.5), {}, rates="'generator_lr' or 'lr'")
    curves = {"generator_ce": torch.tensor(math.inf), "loss": torch.tensor(math.nan)}
    with (
        engine,
        pytest.raises(DivergedError, match=r"generator_ce is inf at .* 0.5; try a smaller 'generator_lr' or 'lr'"),
    ):
        engine.run(by_number, lambda _: curves)


def test_half_precision_trains_the_weights_as_they_are_now():
    """Autocast would keep the bf16 copy that it made of a weight first."""
    curves = []
    for enabled in (False, True):
        ctx = context()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
            trained(calibrated("hast/w8a8"), Schedule(1, 20, 0.05), ctx)
        curves.append([value for _, value in ctx.reporter.curves["loss"]])
    assert curves[1] == pytest.approx(curves[0], rel=0.2)
    assert curves[1][-1] < 0.6 * curves[1][0]


def test_a_layer_that_is_called_twice_gets_the_gradient_of_both_calls():
    module = called_twice()
    plain = copy.deepcopy(module).requires_grad_(True)
    plain(images(seed=0)).square().mean().backward()
    student = calibrated("hast/w16a16", module)
    weight = dict(quantized_layers(student))["conv"].weight
    before = weight.detach().clone()
    trained(student, Schedule(1, 1, 1.0, momentum=0, weight_decay=0))
    expected = plain.conv.weight.grad
    # ranges are of other images, so that a few values are clamped; one call alone would be off by 0.3 of the largest
    torch.testing.assert_close(before - weight, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_what_starts_from_another_student_computes_what_that_does():
    other, _ = trained(calibrated(), Schedule(1, 5, 0.02))
    finalize(other)
    student = prepare(tiny_teacher().module, parse_scheme("hast/w3a3"), SIZE)
    take_over(student, other)
    with torch.no_grad():
        torch.testing.assert_close(student(images()), other(images()), rtol=0, atol=1e-6)
    kept, _ = trained(student, Schedule(1, 3, 0.0, weight_decay=0), follow_weights=False)
    codes = {path: layer.weight_codes for path, layer in quantized_layers(other)}
    finalize(kept)
    assert all(torch.equal(layer.weight_codes, codes[path]) for path, layer in quantized_layers(kept))


def test_afterwards_nothing_requires_a_gradient():
    student, _ = trained(calibrated(), Schedule(1, 2, 0.01))
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert not student(images()).requires_grad
    assert all(isinstance(quantizer, TrainedActivation) for _, quantizer in activation_quantizers(student))


def test_frozen_batch_normalisation_is_left_alone():
    module = tiny_teachers()["FrozenBN"].module
    student = calibrated("hast/w3a3", module)
    norms = {name: value.clone() for name, value in student.state_dict().items() if name.startswith("stem.1")}
    trained(student, Schedule(1, 3, 0.05))
    assert norms
    assert all(torch.equal(student.state_dict()[name], value) for name, value in norms.items())


def with_steps(per_channel=False, module=None):
    """A student on symmetric grids whose step sizes begin at LSQ's rule."""
    module = module or tiny_teacher().module
    student = prepare(module, parse_scheme("hw/w3a3"), SIZE, Grids("symmetric", "symmetric", per_channel))
    begin_steps(student, [images()])
    return student


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_of_weights_and_step_sizes_are_those_of_lsq(per_channel):
    """Eq. 3 and 5 of the paper, element by element, on a signed grid of 3 bits: Q_N = 4 and Q_P = 3."""
    rng = torch.Generator().manual_seed(3)
    student = with_steps(per_channel)
    layer = quantized_layers(student)[1][1]
    layer.weight.data = torch.randn(layer.weight.shape, generator=rng)
    gradient = torch.randn(layer.weight.shape, generator=rng)
    engine = FineTuning(student, context(), Schedule(1, 1, 0.0, momentum=0, weight_decay=0), {}, learn_steps=True)
    rounded = layer.weight_quantizer
    step = rounded.scale.clone()
    with engine:
        engine.run(by_number, lambda _: {"loss": (rounded.values * gradient).sum().backward() or torch.zeros(())})
        found = layer.weight.grad.clone(), rounded.scale.grad.clone()
    steps = layer.weight.detach() / step
    inside = (steps > -4) & (steps < 3)
    slope = torch.where(inside, steps.round() - steps, steps.clamp(-4, 3))
    expected = (gradient * slope).sum_to_size(step.shape)
    count = layer.weight.numel() / step.numel()
    torch.testing.assert_close(found[0], gradient * inside)
    torch.testing.assert_close(found[1], expected / math.sqrt(count * 3), rtol=1e-4, atol=1e-6)
    assert not inside.all()


def test_gradients_of_activations_and_their_step_sizes_are_those_of_lsq():
    student = with_steps()
    relu = next(each for _, each in activation_quantizers(student) if not each.zero_point)
    engine = FineTuning(student, context(), Schedule(1, 1, 0.0, momentum=0, weight_decay=0), {}, learn_steps=True)
    seen = {}
    relu.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], given=output) or None)

    def gradients(update):
        logits = engine.network(images(seed=update))
        seen["given"].retain_grad()
        loss = logits.square().sum()
        loss.backward()
        return {"loss": loss}

    step = relu.scale.clone()
    with engine:
        engine.run(by_number, gradients)
        found = relu.scale.grad.clone()
    steps = seen["x"].detach() / step
    slope = torch.where(steps < 7, steps.round() - steps, 7.0)  # 3 bits without a sign: Q_N = 0 and Q_P = 7
    expected = (seen["given"].grad * slope).sum() / math.sqrt(steps[0].numel() * 7)  # features of an image
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (steps > 7).any()


def test_step_sizes_begin_at_lsqs_rule_and_signs_follow_what_was_seen():
    student = with_steps()
    _, layer = quantized_layers(student)[0]
    assert layer.weight_quantizer.scale.item() == pytest.approx(2 * layer.weight.abs().mean().item() / 3**0.5, rel=1e-6)
    assert layer.weight_quantizer.zero_point.item() == 4
    seen, by_name = {}, dict(activation_quantizers(student))
    for name, quantizer in by_name.items():
        quantizer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}) or None)
    student(images())
    for name, quantizer in by_name.items():
        signed = bool((seen[name] < 0).any())
        largest = 3 if signed else 7
        assert quantizer.scale.item() == pytest.approx(2 * seen[name].abs().mean().item() / largest**0.5, rel=1e-5)
        assert quantizer.zero_point.item() == (4 if signed else 0)
    assert len({float(quantizer.zero_point) for quantizer in by_name.values()}) == 2


def test_step_sizes_of_several_batches_are_of_their_average():
    first, second, both = with_steps(), with_steps(), with_steps()
    begin_steps(second, [images(seed=2)])
    begin_steps(both, [images(), images(seed=2)])
    (_, one), (_, other), (_, average) = (activation_quantizers(student)[0] for student in (first, second, both))
    assert average.scale.item() == pytest.approx((one.scale.item() + other.scale.item()) / 2, rel=1e-6)


def test_lsq_has_no_affine_grid_to_begin_on():
    with pytest.raises(ValueError, match="is affine; expected symmetric"):
        begin_steps(prepare(tiny_teacher().module, parse_scheme("hw/w4a4"), SIZE), [images()])


def test_step_sizes_do_not_decay_and_stay_above_a_thousandth():
    student, idle = with_steps(), with_steps()
    before = {name: step.scale.clone() for name, step in activation_quantizers(student)}
    trained(idle, Schedule(1, 3, 0.1, momentum=0, weight_decay=0.9), learn_steps=True, loss_of=lambda y, _: 0 * y.sum())
    assert all(torch.equal(step.scale, before[name]) for name, step in activation_quantizers(idle))
    trained(student, Schedule(1, 3, 1e3, momentum=0), learn_steps=True, loss_of=lambda y, _: -1e3 * y.square().mean())
    ratios = [step.scale / before[name] for name, step in activation_quantizers(student)]
    assert min(ratios) == pytest.approx(1e-3, rel=1e-4)


@parametrize_briefly("optimizer", ["adam", "sgd"], 1)
def test_training_step_sizes_goes_on_from_a_checkpoint_as_if_nothing_had_happened(optimizer):
    schedule, ctx = Schedule(2, 4, 1e-3, optimizer=optimizer, annealing="cosine"), context()
    expected, engine = trained(with_steps(), schedule, ctx, learn_steps=True)
    fresh = prepare(tiny_teacher().module, parse_scheme("hw/w3a3"), SIZE, Grids("symmetric", "symmetric", False))
    found, _ = trained(fresh, schedule, state=ctx.reporter.states[2], learn_steps=True)
    assert same(state_of(found), state_of(expected))
    assert not same(state_of(expected), state_of(with_steps()))
    assert not any(value.requires_grad for value in [*expected.buffers(), *expected.parameters()])
    assert isinstance(engine.weights[0][1], LearnedWeight)


def test_a_held_grid_stays_where_others_learn():
    student = with_steps()
    name, image = activation_quantizers(student)[0]
    image.hold(torch.tensor(0.5), torch.tensor(4.0))
    image.enabled = True
    trained(student, Schedule(1, 3, 0.05), learn_steps=True)
    assert dict(activation_quantizers(student))[name].scale.item() == 0.5


def test_a_cosine_falls_from_epoch_to_epoch():
    schedule = Schedule(4, 2, 1.0, annealing="cosine")
    rates = [schedule.lr_at(update) for update in range(8)]
    assert rates[::2] == rates[1::2] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], rel=1e-5)


def test_learned_step_sizes_are_what_the_artifact_keeps():
    student, _ = trained(with_steps(), Schedule(1, 3, 0.01), learn_steps=True)
    expected = student(images())
    finalize(student)
    torch.testing.assert_close(student(images()), expected)
