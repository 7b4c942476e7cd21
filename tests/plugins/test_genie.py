import sys
from dataclasses import replace

import pytest
import torch
from brief import parametrize_briefly
from torch import nn

from zsqbench import Pretrained, ZSQBenchError, synthesis
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import BNLoss, SwingConvolutions
from zsqbench.testing import check_generator, context, tiny_teacher
from zsqbench.zoo.resnet import CifarResNet

GENIE = load_plugins().find("generator", "genie").method
genie = sys.modules[GENIE.__module__]


@pytest.fixture
def resnet20(golden):
    """The network that the golden vectors were made with."""
    weights = golden("resnet20_weights")
    network = CifarResNet(20).eval()
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
    return Pretrained(network.requires_grad_(False), (3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=10)


class Given(nn.Module):
    """Makes the same images of any latents."""

    def __init__(self, images):
        super().__init__()
        self.made = nn.Parameter(images)

    def forward(self, latents):
        return self.made + 0 * latents.sum()


def run(teacher=None, **options):
    """The images of a few steps, and all that was reported."""
    ctx = context()
    made = GENIE(**({"images": 4, "iterations": 3} | options)).generate(teacher or tiny_teacher(), ctx)
    return made.images, ctx.reporter


def values(reporter, name):
    return [value for _, value in reporter.curves[name]]


@pytest.mark.parametrize("swing", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_release(golden, resnet20, monkeypatch, swing):
    vectors = golden("bns_genie_swing_a" if swing else "bns_genie_a")
    images = torch.from_numpy(vectors["images"])
    given = Given(images.clone())
    monkeypatch.setattr(genie, "image_network", lambda *_: nn.Sequential(given, nn.Identity()))
    monkeypatch.setattr(genie, "offsets", lambda *_: torch.from_numpy(vectors["swing_offsets_xy"]).long())
    made, reporter = run(resnet20, images=8, iterations=1, swing=swing)
    assert values(reporter, "bn_loss")[0] == pytest.approx(float(vectors["total_loss"]), rel=1e-5)
    gradient = torch.from_numpy(vectors["grad_images_f64"])
    assert (given.made.grad - gradient).norm() <= 1e-5 * gradient.norm()
    assert torch.equal(made, images)


@parametrize_briefly(
    "options, size",
    [
        ({"swing": False, "decay_interval": 1, "latent": 3}, (3, 4, 3)),
        ({"images": 1}, (1, 9, 6)),
        ({}, (3, 8, 8)),
        ({"swing": False}, (3, 8, 8)),
        ({"decay_interval": 1, "latent": 3}, (3, 8, 8)),
        ({}, (3, 4, 3)),
    ],
    1,
    ids=str,
)
def test_genie_keeps_the_contract_of_generators_also_when_interrupted(options, size):
    generator = GENIE(**({"images": 5, "batch_size": 2, "iterations": 4, "patience": 0} | options))
    check_generator(generator, tiny_teacher(size))


def test_a_run_that_was_interrupted_after_any_step_goes_on_as_if_it_had_not_been():
    options = {"images": 3, "batch_size": 2, "iterations": 4, "patience": 0, "decay_interval": 2}
    made, reporter = run(**options)
    assert "0.network.0.2.running_mean" in reporter.states[0]
    for done, state in enumerate(reporter.states, 1):
        ctx = context(resume_from=state)
        resumed = GENIE(**options).generate(tiny_teacher(), ctx).images
        assert torch.equal(resumed, made)
        for name, curve in reporter.curves.items():
            assert ctx.reporter.curves.get(name, []) == curve[done:]
    assert done == 8


def test_the_defaults_are_those_of_the_release():
    assert GENIE().options() == {
        "images": 1024,
        "batch_size": 128,
        "iterations": 4000,
        "latent": 256,
        "latent_lr": 0.1,
        "factor": 0.1,
        "patience": 100,
        "min_lr": 1e-4,
        "generator_lr": 0.01,
        "decay": 0.95,
        "decay_interval": 100,
        "swing": True,
    }


def test_the_first_step_of_adam_moves_latents_and_network_each_by_its_learning_rate():
    _, reporter = run(iterations=2)
    rng = context().rng
    latents = torch.randn(4, 256, generator=rng)
    network = genie.image_network(256, (3, 8, 8), rng)
    after = reporter.states[0]
    moved = (after["0.latents.pixels"] - latents).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=1e-3)
    for name in ("0.0.weight", "0.4.weight", "0.8.weight"):
        moved = (after[f"0.network.{name}"] - network.state_dict()[name]).abs()
        assert moved.median().item() == pytest.approx(0.01, rel=1e-3)
        assert moved.max().item() == pytest.approx(0.01, rel=1e-3)


def test_a_whole_run_is_what_the_algorithm_gives_with_the_schedulers_of_torch():
    made, reporter = run(iterations=12, patience=1, decay_interval=3, latent_lr=1.0, min_lr=0.02)
    ctx, teacher = context(), tiny_teacher()
    latents = ctx.randn(4, 256).requires_grad_()
    network = genie.image_network(256, (3, 8, 8), ctx.rng)
    for_latents = torch.optim.Adam([latents], lr=1.0)
    for_network = torch.optim.Adam(network.parameters(), lr=0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(for_latents, patience=1, min_lr=0.02)
    decay = torch.optim.lr_scheduler.ExponentialLR(for_network, 0.95)
    with (
        BNLoss(teacher.module, synthesis.GENIE) as bn_loss,
        SwingConvolutions(teacher.module, lambda n: genie.offsets(n, ctx)),
    ):
        for iteration in range(12):
            for_latents.zero_grad()
            for_network.zero_grad()
            maps, finish = network
            images = finish(maps(latents))
            loss = bn_loss(images).total
            loss.backward()
            for_latents.step()
            for_network.step()
            plateau.step(loss.item())
            if (iteration + 1) % 3 == 0:
                decay.step()
    assert values(reporter, "lr")[-1] < 1
    assert values(reporter, "bn_loss")[-1] == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(made, images.detach(), rtol=1e-4, atol=1e-4)


def test_the_learning_rate_of_the_network_falls_after_each_hundred_iterations():
    rates = [GENIE().generator_lr_at(iteration) for iteration in (0, 99, 100, 199, 200)]
    assert rates == pytest.approx([0.01, 0.01, 0.0095, 0.0095, 0.009025], rel=1e-12)


def test_each_batch_starts_with_the_first_learning_rates():
    _, reporter = run(batch_size=2, iterations=5, decay_interval=2, patience=0, latent_lr=30)
    rates = values(reporter, "generator_lr")
    assert rates[:5] == pytest.approx([0.01, 0.01, 0.0095, 0.0095, 0.009025])
    assert rates[5:] == rates[:5]
    rates = values(reporter, "lr")
    assert rates[4] < rates[5] == 30


def test_each_channel_of_a_batch_has_mean_0_and_deviation_1():
    made, _ = run(tiny_teacher((3, 9, 11)), images=7, batch_size=4)
    for batch in made.split(4):
        variance, mean = torch.var_mean(batch, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones(3), atol=1e-2, rtol=0)


def test_images_that_fill_no_batch_are_made_in_a_smaller_one():
    made, reporter = run(images=5, batch_size=4)
    assert len(made) == 5
    assert reporter.states[3]["1.latents.pixels"].shape == (1, 256)
    assert torch.equal(made[:4], run(images=4, batch_size=4)[0])


def test_images_are_those_of_the_last_pass_before_the_last_update():
    made, _ = run(iterations=1)
    rng = context().rng
    latents = torch.randn(4, 256, generator=rng)
    maps, finish = genie.image_network(256, (3, 8, 8), rng)
    assert torch.equal(made, finish(maps(latents)))


def test_the_network_is_that_of_the_release_with_the_weights_that_torch_would_draw():
    rng = torch.Generator().manual_seed(5)
    state = genie.image_network(256, (3, 32, 32), rng).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        layers = nn.Linear(256, 128 * 64), nn.Conv2d(128, 64, 3), nn.Conv2d(64, 3, 3)
    for place, layer in zip((0, 4, 8), layers, strict=True):
        torch.testing.assert_close(state[f"0.{place}.weight"], layer.weight.detach())
        torch.testing.assert_close(state[f"0.{place}.bias"], layer.bias.detach())
    maps, finish = genie.image_network(256, (3, 32, 32), rng)
    assert maps(torch.zeros(2, 256)).shape == (2, 3, 32, 32)
    assert (finish[1].affine, finish.training) == (False, True)
    assert torch.equal(maps[2].weight, torch.ones(128))
    assert [layer.negative_slope for layer in maps if isinstance(layer, nn.LeakyReLU)] == [0.2]


def test_offsets_are_all_nine():
    drawn = genie.offsets(500, context())
    assert drawn.unique(dim=0).tolist() == [[x, y] for x in range(3) for y in range(3)]


def test_swinging_changes_what_is_made_only_where_something_has_strides():
    teacher = tiny_teacher()
    assert not torch.equal(run(teacher)[0], run(teacher, swing=False)[0])
    plain = replace(teacher, module=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    assert torch.equal(run(plain)[0], run(plain, swing=False)[0])


def test_the_loss_falls():
    _, reporter = run(iterations=30, latent=16)
    curve = values(reporter, "bn_loss")
    assert curve[-1] < curve[0] / 3


def test_a_loss_that_is_not_finite_is_one_clear_error_that_names_the_options():
    teacher = tiny_teacher()
    teacher.module.stem[0].weight[0] = float("inf")
    with pytest.raises(ZSQBenchError, match=r"loss is (nan|inf) at iteration 1 of 3.*'latent_lr' or 'generator_lr'"):
        run(teacher)


def test_a_network_without_batch_normalisation_is_one_clear_error():
    teacher = replace(tiny_teacher(), module=nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ZSQBenchError, match="has no batch normalisation"):
        run(teacher)
    assert GENIE.needs_bn


def test_images_stay_exact_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        made, reporter = run()
    assert made.dtype == torch.float32
    assert made.unique().numel() > made.bfloat16().unique().numel()
    _, exact = run()
    assert values(reporter, "bn_loss")[0] == pytest.approx(values(exact, "bn_loss")[0], rel=0.02)
