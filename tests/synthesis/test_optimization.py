import math

import pytest
import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis import PixelBatch, Plateau, RectifiedAdam, WarmedCosine, optimize
from zsqbench.testing import context


def begin(lr=0.5, **options):
    """Batches of one pixel that start at their number plus one."""

    def make(batch, pixels):
        start = torch.full((1, 1, 1, 1), batch + 1.0) if pixels is None else pixels
        return PixelBatch(start, torch.optim.Adam, Plateau(lr, 0.5, 1, 0.01, **options), iterations=10)

    return make


def squared(pixels, _):
    loss = pixels.square().sum()
    return loss, {"loss": loss}


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("beta", [0.999, 0.6])
def test_rectified_adam_is_that_of_torch(fused, beta):
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=rng, dtype=torch.float64)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    optimizers = [
        RectifiedAdam([ours], lr=0.1, betas=(0.9, beta), fused=fused),
        torch.optim.RAdam([theirs], lr=0.1, betas=(0.9, beta)),
    ]
    for step in range(30):
        gradient = torch.randn(50, generator=rng, dtype=torch.float64) * 10.0 ** (step % 7 - 5)
        for pixels, optimizer in zip((ours, theirs), optimizers, strict=True):
            pixels.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 0.1 * 0.9**step
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert optimizers[0].param_groups[0]["eps"] == 1e-8


def test_a_plateau_without_reset_is_that_of_torch():
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0)).cumsum(0).sin() - 0.5
    for patience, factor, least in ((0, 0.5, 1e-3), (3, 0.1, 0.0), (10, 0.9, 0.3)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor, patience, min_lr=least)
        ours = Plateau(1.0, factor, patience, least)
        for loss in losses.tolist():
            theirs.step(loss)
            ours.step(loss)
            assert ours.lr == optimizer.param_groups[0]["lr"]


def test_a_plateau_with_reset_forgets_its_best_loss_when_it_cuts():
    plain, forgetful = Plateau(1.0, 0.5, 1, 0.0), Plateau(1.0, 0.5, 1, 0.0, reset=True)
    for loss in (1.0, 2.0, 2.0, 3.0, 3.0, 3.0):
        plain.step(loss)
        forgetful.step(loss)
    assert plain.lr == 0.25
    assert forgetful.lr == 0.25
    assert (plain.best, forgetful.best) == (1.0, math.inf)
    forgetful.step(9.0)
    assert (forgetful.best, forgetful.bad) == (9.0, 0)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.lr)
        schedule.step(0.0)
    return found


def test_a_warmed_rate_rises_falls_and_begins_anew():
    found = rates(WarmedCosine(2.0, steps=8, warmup=4), 18)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4:8] == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    assert found[8:16] == found[:8]
    assert found[16:] == found[:2]


def test_a_warmed_rate_of_few_steps_only_rises():
    assert rates(WarmedCosine(1.0, steps=3, warmup=10), 4) == pytest.approx([0.1, 0.2, 0.3, 0.1])


def test_a_warmed_rate_goes_on_from_its_state():
    whole = rates(WarmedCosine(1.0, steps=5, warmup=2), 9)
    begun, again = WarmedCosine(1.0, steps=5, warmup=2), WarmedCosine(1.0, steps=5, warmup=2)
    rates(begun, 6)
    again.load(begun.state())
    assert rates(again, 3) == whole[6:]


def test_adam_has_the_given_betas():
    pixels = torch.ones(2, 3)
    batch = PixelBatch(pixels.clone(), torch.optim.Adam, Plateau(0.1, 0.5, 9, 0.0), 2, betas=(0.5, 0.9))
    expected = pixels.clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=0.1, betas=(0.5, 0.9))
    for factor in (1.0, -3.0, 0.5):
        batch.step(factor * batch.images().square().sum())
        adam.zero_grad()
        (factor * expected.square().sum()).backward()
        adam.step()
    torch.testing.assert_close(batch.pixels.detach(), expected.detach())


def test_batches_are_visited_in_the_given_order_each_with_its_own_optimiser():
    ctx = context()
    visited = []
    order = [1, 0, 0, 1, 2]
    made = optimize(order, begin(), lambda p, step: (visited.append((step, p.item())), squared(p, step))[1], ctx, {})
    assert [round(value, 3) for _, value in visited] == [2, 1, 0.5, 1.5, 3]
    assert [round(each.item(), 1) for each in made] == [0.0, 1.0, 2.5]
    assert [step for step, _ in ctx.reporter.curves["loss"]] == [0, 1, 2, 3, 4]
    assert [value for _, value in ctx.reporter.curves["lr"]] == [0.5] * 5


@pytest.mark.parametrize("at_once", [True, False])
def test_a_run_that_was_interrupted_anywhere_goes_on_as_if_it_had_not_been(at_once):
    order = [0, 1, 0, 2, 1, 0, 0, 2]

    def noisy(ctx):
        def losses(pixels, step):
            loss = (pixels - ctx.rand(1)).square().sum()
            return loss, {"loss": loss}

        return losses

    ctx = context()
    made = optimize(order, begin(reset=True), noisy(ctx), ctx, {}, at_once=at_once)
    states = ctx.reporter.states
    assert [state["steps"] for state in states] == list(range(1, 9))
    for state in states:
        again = context(resume_from=state)
        resumed = optimize(order, begin(reset=True), noisy(again), again, again.resume(), at_once=at_once)
        assert all(torch.equal(*pair) for pair in zip(made, resumed, strict=True))
        rates = [value for _, value in again.reporter.curves.get("lr", [])]
        assert rates == [value for _, value in ctx.reporter.curves["lr"]][state["steps"] :]


def test_finished_batches_keep_no_optimiser():
    ctx = context()
    optimize([0, 0, 1, 1], begin(), squared, ctx, {})
    assert "0.exp_avg" in ctx.reporter.states[0]
    assert not any(name.startswith("1.") for name in ctx.reporter.states[1])
    assert "0.exp_avg" not in ctx.reporter.states[2]
    assert "0.pixels" in ctx.reporter.states[3]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("when", [2, 4])
def test_a_loss_that_is_not_finite_is_one_clear_error(broken, when):
    def losses(pixels, step):
        loss = pixels.sum() * (broken if step == when else 1.0)
        return loss, {"loss": loss}

    with pytest.raises(ZSQBenchError, match=rf"loss is -?{broken} at iteration {when + 1} of 10.*smaller 'lr'"):
        optimize([0] * 5, begin(), losses, context(), {})


def test_a_step_of_many_batches_makes_them_all_first_if_asked():
    made = []

    def note(batch, pixels):
        made.append(batch)
        return begin()(batch, pixels)

    seen = []
    optimize([1, 0], note, lambda p, step: (seen.append(list(made)), squared(p, step))[1], context(), {}, at_once=True)
    assert seen == [[0, 1], [0, 1]]


def test_a_batch_may_make_its_images_anew_for_each_step_and_gives_the_last_ones_away():
    class Doubled:
        """Twice what is optimised."""

        def __init__(self, batch, pixels):
            self.half, self.pixels = begin()(batch, pixels), pixels
            self.plateau, self.step, self.settle = self.half.plateau, self.half.step, self.half.settle

        def images(self):
            images = 2 * self.half.pixels
            self.pixels = images.detach()
            return images

        def state(self):
            return self.half.state() | {"half": self.half.pixels.detach(), "pixels": self.pixels}

        def load(self, state):
            self.half.pixels.data.copy_(state["half"])
            self.half.load(state)

    ctx = context()
    order = [0, 0, 1, 0]
    made = optimize(order, Doubled, squared, ctx, {})
    values = [each.item() for each in made]
    assert values == pytest.approx([0.0, 4.0], abs=0.1)  # after the last step they would be -0.8 and 3
    for state in ctx.reporter.states:
        resumed = optimize(order, Doubled, squared, context(), state)
        assert [each.item() for each in resumed] == values
