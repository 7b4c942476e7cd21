import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from pydantic import ValidationError
from torch import nn

from zsqbench import ModelSpec, Pretrained, ZSQBenchError, synthesis
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import BNLoss, RawOutputs, stretching
from zsqbench.testing import check_generator, context, tiny_teacher

DGH = load_plugins().find("generator", "dgh").method
dgh = sys.modules[DGH.__module__]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def resnet20(resnet20):
    return Pretrained(resnet20, (3, 32, 32), classes=10, **IMAGENET)


def relative(result, expected):
    return (np.linalg.norm(result.detach().numpy() - expected) / np.linalg.norm(expected)).item()


def run_of(options, teacher, ctx, bn_loss):
    return dgh._Run(options.resolved(teacher), teacher, ctx, bn_loss, RawOutputs(teacher.module), {})


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float64, "_f64", 1e-6), (torch.float32, "", 1e-5)])
def test_the_loss_of_a_batch_among_others_is_that_of_the_release(
    golden, resnet20, monkeypatch, dtype, suffix, tolerance
):
    vectors = golden("dgh_loss_a")
    batches = torch.from_numpy(vectors["batches"]).to(dtype)
    count, size = batches.shape[:2]
    chosen = int(vectors["batch_index"])
    top, left = vectors["crop_top_left"].tolist()
    monkeypatch.setattr(dgh, "draw_visits", lambda *_: torch.tensor([[chosen, 0, top, left]]))
    upcoming = iter(batches)
    monkeypatch.setattr(dgh, "initial_pixels", lambda *_: next(upcoming))
    options = DGH(images=count * size, batch_size=size, extra_pixels=8, output_weight=count / 8)
    assert (options.extra_pixels, options.std_weight) == (int(vectors["padding"]), float(vectors["std_factor"]))
    assert (options.filter_size, options.filter_sigma) == (int(vectors["filter_size"]), float(vectors["filter_sigma"]))
    with BNLoss(resnet20.module.to(dtype), synthesis.DGH) as bn_loss:
        run = run_of(options, resnet20, context(), bn_loss)
        pixels = [run.begin(batch, None).pixels for batch in range(count)][chosen]
        columns = bn_loss_columns(vectors)
        for layer, of in columns.items():
            assert relative(run.store.mean[:, of], vectors[f"stored_mean_{layer:02}"]) <= 1e-5
            assert relative(run.store.second_moment[:, of], vectors[f"stored_m2_{layer:02}"]) <= 1e-5
        images = run.pipeline.augment(pixels, flip=False, top=top, left=left)
        assert relative(images, vectors["manipulated"]) <= 1e-6
        gap = bn_loss(images, run.store, chosen)
        kept, together = gap.batch, run.store.join(chosen, gap.batch, "all")[:2]
        for layer, of in columns.items():
            for what, found in (("batch_mean", kept[0]), ("agg_mean", together[0]), ("agg_var", together[1])):
                assert relative(found[of], vectors[f"{what}_{layer:02}"]) <= 1e-5
            assert relative(kept[1][of] + kept[0][of] ** 2, vectors[f"batch_m2_{layer:02}"]) <= 1e-5
        assert relative(run.raw.of(run.bn_loss(images, outputs=True).seen.outputs)[0], vectors["logits"]) <= 1e-5
        seen = []

        def noted(*given, **options):
            seen.append(given)
            return stretching(*given, **options)

        monkeypatch.setattr(synthesis, "stretching", noted)
        total, losses = run.losses(pixels, 0)
        bn_gradient = torch.autograd.grad(losses["bn_loss"], pixels, retain_graph=True)[0]
        output_gradient = torch.autograd.grad(losses["output_loss"], pixels, retain_graph=True)[0]
    ((_, moments, target, _),) = seen
    for kind, found in (("input_", moments), ("", target)):
        for what, each in zip(("mean", "std"), found, strict=True):
            assert relative(each, vectors[f"last_bn_{kind}{what}"]) <= 1e-5
    assert relative(gap.means.roll(1), vectors[f"mean_terms{suffix}"]) <= tolerance
    assert relative(gap.moments.roll(1), vectors[f"std_terms{suffix}"]) <= tolerance
    assert losses["bn_loss"].item() == pytest.approx(float(vectors[f"bn_loss{suffix}"]), rel=tolerance)
    assert losses["output_loss"].item() == pytest.approx(float(vectors[f"output_loss{suffix}"]), rel=tolerance)
    assert total.item() == pytest.approx(losses["bn_loss"].item() + losses["output_loss"].item())
    assert relative(bn_gradient, vectors["grad_bn_f64"]) <= 10 * tolerance
    assert relative(output_gradient, vectors["grad_output_f64"]) <= 10 * tolerance


def bn_loss_columns(vectors):
    """Where the vectors' layers, of which the first is the input, lie in a store, where the input is the last."""
    widths = [vectors[f"bn_mean_{layer:02}"].shape[-1] for layer in range(20)]
    starts = np.cumsum([0, *widths[1:]])
    return {layer: slice(starts[(layer - 1) % 20], starts[(layer - 1) % 20] + widths[layer]) for layer in range(20)}


@pytest.mark.parametrize(
    ("dtype", "suffix", "log_tolerance", "tolerance"),
    [(torch.float64, "_f64", 1e-6, 1e-5), (torch.float32, "_f32", 1e-4, 1e-4)],
)
def test_whole_runs_are_those_of_the_release(golden, resnet20, monkeypatch, dtype, suffix, log_tolerance, tolerance):
    vectors = golden("dgh_e2e_a")
    batches = torch.from_numpy(vectors["init_batches"]).to(dtype)
    count, size = batches.shape[:2]
    crops = vectors["crops"].tolist()
    visits = torch.tensor([[visit % count, 0, *corner] for visit, corner in enumerate(crops)])
    monkeypatch.setattr(dgh, "draw_visits", lambda *_: visits)
    upcoming = iter(batches)
    monkeypatch.setattr(dgh, "initial_pixels", lambda *_: next(upcoming))
    options = DGH(
        images=count * size,
        batch_size=size,
        iterations=int(vectors["n_iter"]),
        extra_pixels=int(vectors["padding"]),
        output_weight=float(vectors["output_loss_factor"]) * count / 8,
    )
    assert (options.lr, options.std_weight) == (vectors["initial_lr"], vectors["std_factor"])
    teacher = replace(resnet20, module=resnet20.module.to(dtype))
    ctx = context()
    made = options.generate(teacher, ctx)
    curves = ctx.reporter.curves
    log = np.array([[value for _, value in curves[name]] for name in ("bn_loss", "output_loss", "lr")]).T
    np.testing.assert_allclose(log, vectors[f"log{suffix}"][:, :3], rtol=log_tolerance)
    assert relative(made.images, vectors[f"final_images{suffix}"]) <= tolerance
    if dtype == torch.float64:
        final = ctx.reporter.states[-1]
        names = [name for name, layer in teacher.module.named_modules() if isinstance(layer, nn.BatchNorm2d)]
        second = final["store.variance"] + final["store.mean"] ** 2
        places = {"image_input": slice(-3, None), "bn1": slice(0, 16), "layer3_2_bn2": slice(-67, -3)}
        assert names[-1] == "layer3.2.bn2"
        for name, of in places.items():
            assert relative(final["store.mean"][:, of], vectors[f"final_stored_mean_{name}"]) <= 1e-6
            assert relative(second[:, of], vectors[f"final_stored_second_moment_{name}"]) <= 1e-6


@parametrize_briefly(
    "options",
    [
        {"scope": "batch", "output_weight": 0.0},
        {"scope": 4, "image_pipeline": False},
        {"images": 1, "batch_size": 1},
        {},
        {"scope": "batch"},
        {"scope": "image"},
        {"scope": 1},
        {"scope": 4},
        {"image_pipeline": False},
        {"output_weight": 0.0},
        {"batch_size": 100},
    ],
    1,
    ids=str,
)
def test_dgh_keeps_the_contract_of_generators_also_when_interrupted(options):
    made = check_generator(
        DGH(**({"images": 5, "batch_size": 2, "iterations": 4, "patience": 0} | options)), tiny_teacher()
    )
    low, high = tiny_teacher().valid_range()
    assert (made.images >= low).all()
    assert (made.images <= high).all()


def test_the_defaults_are_those_of_the_release():
    assert DGH().options() == {
        "images": 1024,
        "batch_size": 128,
        "iterations": 1000,
        "lr": 16.0,
        "scope": "all",
        "image_pipeline": True,
        "output_weight": None,
        "std_weight": 10.0,
        "slack": 0.5,
        "extra_pixels": None,
        "filter_size": 3,
        "filter_sigma": 1.25,
        "factor": 0.5,
        "patience": None,
        "min_lr": 1e-4,
    }


@pytest.mark.parametrize(
    ("architecture", "weight"),
    [
        ("torchvision/resnet18", 3e-7),
        ("timm/resnet50.a1_in1k", 1e-7),
        ("timm/mobilenetv2_100.ra_in1k", 3e-5),
        ("pytorchcv/mobilenetv2_w1", 3e-5),
        ("torchvision/mobilenet_v2", 3e-5),
        ("torchvision/resnet34", 1e-5),
        (None, 1e-5),
    ],
)
def test_the_output_weight_is_the_published_one_and_keeps_its_balance_with_any_number_of_batches(architecture, weight):
    teacher = replace(tiny_teacher(), architecture=architecture)
    assert DGH().resolved(teacher).output_weight == weight
    assert DGH().resolved(teacher).output_weight_of(share=1 / 8) == weight
    assert DGH().resolved(teacher).output_weight_of(share=1 / 2) == 4 * weight
    assert DGH(output_weight=0.5).resolved(teacher).output_weight_of(share=1 / 16) == 0.25


def test_a_network_of_a_library_says_which_it_is_and_that_is_part_of_its_identity():
    task = load_plugins().find("task", "classification").method(data="cifar10")
    specs = {
        "torchvision/resnet18": ModelSpec(name="x", base="torchvision/resnet18", weights="none"),
        None: ModelSpec(name="x", base="cifar_resnet20", weights="none"),
    }
    for architecture, spec in specs.items():
        assert task.load(spec, context()).architecture == architecture
    assert tiny_teacher().digest() != replace(tiny_teacher(), architecture="torchvision/resnet18").digest()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"images": 8, "batch_size": 2, "scope": "all"}, [2.0] * 4),
        ({"images": 8, "batch_size": 2, "scope": "batch"}, [8.0] * 4),
        ({"images": 8, "batch_size": 2, "scope": 1}, [8.0] * 4),
        ({"images": 8, "batch_size": 2, "scope": 4}, [4.0] * 4),
        ({"images": 5, "batch_size": 4, "scope": "all"}, [6.4, 1.6]),
    ],
)
def test_the_balance_counts_the_batches_that_are_matched_together(options, weights):
    teacher, options = tiny_teacher(), DGH(iterations=1, output_weight=1.0, **options)
    with BNLoss(teacher.module, replace(synthesis.DGH, scope=options.scope)) as bn_loss:
        assert run_of(options, teacher, context(), bn_loss).output_weights == pytest.approx(weights)


def test_the_effective_output_weight_is_noted_with_the_images():
    made = DGH(images=4, batch_size=1, iterations=1).generate(tiny_teacher(), context())
    assert made.provenance == {"output_weight": 2e-5, "memory_batches": 4}


def test_the_room_for_crops_is_in_proportion_to_the_image():
    sizes = [replace(tiny_teacher(), input_size=(3, side, side)) for side in (224, 32, 8)]
    assert [DGH().resolved(teacher).room for teacher in sizes] == [32, 5, 1]
    assert DGH(extra_pixels=9).resolved(sizes[0]).room == 9
    assert DGH(image_pipeline=False).resolved(sizes[0]).extra_pixels == 0
    assert DGH(extra_pixels=9, image_pipeline=False).resolved(sizes[0]).room == 0


def test_a_plateau_is_a_fiftieth_of_the_iterations_unless_its_length_is_given():
    assert DGH(iterations=200).resolved(tiny_teacher()).patience == 4
    assert DGH(iterations=200, patience=7).resolved(tiny_teacher()).patience == 7


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="scope 3 does not fit batch_size 8: one must be a multiple"):
        DGH(scope=3, batch_size=8)
    with pytest.raises(ValidationError, match="filter_size 4 is even"):
        DGH(filter_size=4)
    assert DGH(scope=4, batch_size=8)
    assert DGH(scope=16, batch_size=8)


def test_a_visit_of_each_batch_in_each_iteration_and_every_crop_and_flip_is_drawn():
    visits = dgh.draw_visits(200, 3, 2, 0.5, context())
    assert visits.shape == (600, 4)
    orders = visits[:, 0].view(200, 3)
    assert torch.equal(orders.sort(1).values, torch.arange(3).expand(200, 3))
    assert len(orders.unique(dim=0)) == 6
    assert abs(visits[:, 1].float().mean() - 0.5) < 0.1
    assert visits[:, 2].unique().tolist() == visits[:, 3].unique().tolist() == [0, 1, 2]
    assert not dgh.draw_visits(20, 2, 0, 0.0, context())[:, 1:].any()


def test_half_of_the_batches_are_flipped():
    teacher = tiny_teacher()
    with BNLoss(teacher.module, synthesis.DGH) as bn_loss:
        visits = run_of(DGH(images=2, iterations=2000), teacher, context(), bn_loss).visits
    assert torch.tensor(visits)[:, 1].float().mean().item() == pytest.approx(0.5, abs=0.05)


def batch_statistics_of(teacher, images):
    """The gap of these images from the stored statistics, as one batch."""
    with BNLoss(teacher.module, replace(synthesis.DGH, scope="batch")) as loss:
        return loss(images).total.item()


@pytest.mark.slow("it learns long enough to see it")
def test_all_images_together_have_the_statistics_where_batches_alone_need_not():
    teacher = tiny_teacher()
    options = {"images": 8, "batch_size": 2, "iterations": 20, "output_weight": 0, "image_pipeline": False, "lr": 0.5}
    made = {
        scope: DGH(scope=scope, **options).generate(teacher, context()).images for scope in ("all", "batch", "image")
    }
    together = {scope: batch_statistics_of(teacher, images) for scope, images in made.items()}
    alone = {
        scope: np.mean([batch_statistics_of(teacher, part) for part in images.split(2)])
        for scope, images in made.items()
    }
    assert together["all"] < alone["all"]
    assert alone["batch"] < alone["all"]
    assert together["all"] < together["image"]


def test_without_the_pipeline_the_network_sees_the_clamped_pixels_themselves():
    teacher = tiny_teacher()
    options = DGH(images=2, iterations=1, image_pipeline=False)
    with BNLoss(teacher.module, synthesis.DGH) as bn_loss:
        run = run_of(options, teacher, context(), bn_loss)
        pixels = 3 * torch.randn(2, *teacher.input_size, generator=torch.Generator().manual_seed(0))
        low, high = teacher.valid_range()
        assert torch.equal(run.pipeline.augment(pixels, flip=False, top=0, left=0), pixels.clamp(low, high))
        assert torch.equal(run.pipeline.finalize(pixels), pixels.clamp(low, high))
    assert not torch.tensor(run.visits)[:, 1:].any()


def test_the_output_loss_stretches_the_outputs():
    teacher = tiny_teacher()
    spread = {}
    for weight in (0.0, 1.0):
        ctx = context()
        images = DGH(images=8, iterations=60, lr=1.0, output_weight=weight).generate(teacher, ctx).images
        outputs = teacher.module(images)
        spread[weight] = (outputs.amax(1) - outputs.amin(1)).mean()
        assert ("output_loss" in ctx.reporter.curves) == (weight > 0)
    assert spread[1.0] > 1.5 * spread[0.0]


def test_the_loss_falls():
    ctx = context()
    DGH(images=8, batch_size=4, iterations=30, lr=1.0).generate(tiny_teacher(), ctx)
    curve = [value for _, value in ctx.reporter.curves["bn_loss"]]
    assert curve[-1] < curve[0] / 3


def test_a_smaller_last_batch_counts_by_its_images():
    teacher = tiny_teacher()
    options = DGH(images=5, batch_size=4, image_pipeline=False, output_weight=0)
    with BNLoss(teacher.module, synthesis.DGH) as bn_loss:
        run = run_of(options, teacher, context(), bn_loss)
        batches = [run.begin(batch, None).pixels for batch in range(2)]
        visit = next(number for number, (batch, *_) in enumerate(run.visits) if batch == 1)
        loss, _ = run.losses(batches[1], visit)
    assert loss.item() == pytest.approx(batch_statistics_of(teacher, torch.cat(batches)), rel=1e-5)


class TwoOutputs(nn.Module):
    """A BN that is called twice, one that sees 1x1 maps, and two outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 6, 1)
        self.last = nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = self.norm(torch.relu(x[:, :, ::2, ::2]))
        boxes = self.last(self.head(x.mean((2, 3), keepdim=True)))
        return {"boxes": boxes, "maps": [x]}


def test_any_outputs_repeated_norms_and_maps_of_one_pixel_are_no_obstacle():
    teacher = replace(tiny_teacher(), module=TwoOutputs().eval().requires_grad_(False), classes=None)
    made = check_generator(DGH(images=3, batch_size=2, iterations=3), teacher)
    assert made.images.isfinite().all()


def test_a_network_whose_maps_are_all_of_one_pixel_has_no_constraint():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Unflatten(1, (4, 1, 1)), nn.BatchNorm2d(4)).eval()
    teacher = replace(tiny_teacher(), module=module.requires_grad_(False))
    check_generator(DGH(images=3, batch_size=2, iterations=3), teacher)


def test_a_loss_that_becomes_nan_is_one_clear_error():
    teacher = tiny_teacher()
    teacher.module.stem[0].weight[0] = float("inf")
    with pytest.raises(ZSQBenchError, match=r"loss is (nan|inf) at iteration 1 of 5"):
        DGH(images=2, iterations=5).generate(teacher, context())


def test_a_network_without_batch_normalisation_is_one_clear_error():
    teacher = replace(tiny_teacher(), module=nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ZSQBenchError, match="has no batch normalisation"):
        DGH(images=2, iterations=1).generate(teacher, context())
    assert DGH.needs_bn


def test_images_stay_exact_under_autocast():
    teacher = tiny_teacher()
    with torch.autocast("cpu", torch.bfloat16):
        ctx = context()
        made = DGH(images=4, batch_size=2, iterations=3).generate(teacher, ctx)
    assert made.images.dtype == torch.float32
    assert made.images.unique().numel() > made.images.bfloat16().unique().numel()
    curve = [value for _, value in ctx.reporter.curves["bn_loss"]]
    ctx = context()
    DGH(images=4, batch_size=2, iterations=3).generate(teacher, ctx)
    assert curve[0] == pytest.approx(ctx.reporter.curves["bn_loss"][0][1], rel=0.02)
