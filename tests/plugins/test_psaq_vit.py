from dataclasses import replace

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from networks import GoldenViT, stored_tensor
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from zsqbench_plugins.psaq_vit import PSAQViT, psaq_loss
from zsqbench_plugins.shared.attending import RELEASED_BATCH, strength
from zsqbench_plugins.shared.jittered import BETAS, jittered

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import open_attention
from zsqbench.quant import also_returning, capture, find_attention
from zsqbench.synthesis import WarmedCosine, diagnose, total_variation
from zsqbench.testing import MemoryReporter, check_generator, context, tiny_teacher, tiny_transformer
from zsqbench.testing.networks import _Block, tiny_transformers

SHORT = {"images": 6, "batch_size": 4, "iterations": 3, "warmup": 2}


@pytest.fixture
def vectors(shared):
    return lambda name: np.load(shared / "golden" / "vit" / f"{name}.npz")


@pytest.fixture
def golden_teacher(vectors):
    """The network of the golden vectors, in float64, with the normalisation that the release clips by."""
    stored, feeding = vectors("tinyvit_a"), vectors("psaq_tv_a")
    module = GoldenViT(stored).double().eval().requires_grad_(requires_grad=False)
    size = int(stored["_img_size"])
    mean, std = (tuple(feeding[name].tolist()) for name in ("mean", "std"))
    return zsqbench.Pretrained(module, (3, size, size), mean, std, classes=10)


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("options", [{"phases": 1, "points": 5, "lr": 0.1}, {}], 1)
def test_it_is_a_generator(options):
    for teacher in tiny_transformers().values():
        check_generator(PSAQViT(**SHORT, **options), teacher)


def first_step(vectors, teacher, dtype):
    """The loss of the first of the golden steps, its parts and its gradient by images."""
    stored = vectors("psaq_step_a")
    captured = capture(teacher.module.to(dtype), teacher.input_size)
    network = also_returning(captured, [each.context for each in find_attention(captured)])
    images = stored_tensor(stored, "start_images").to(dtype).requires_grad_()
    shift = int(stored["jitter"][0])
    seen = jittered(images, (shift, shift), flip=bool(stored["flip"][0]))
    outputs, contexts = network(seen)
    for layer, each in enumerate(contexts):
        expected = stored_tensor(stored, f"features_first_{layer}_f64")
        torch.testing.assert_close(each.detach().double().view_as(expected), expected, rtol=1e-4, atol=1e-5)
    labels, target = torch.from_numpy(stored["labels"]), float(stored["tv_target"])
    loss, parts = psaq_loss(PSAQViT(), seen, outputs, contexts, labels, target, drop_first=True)
    loss.backward()
    departure = images.grad.double() - stored_tensor(stored, "grad_images_first_f64")
    return loss, parts, (departure.norm() / stored_tensor(stored, "grad_images_first_f64").norm()).item()


def test_diagnostics_measure_the_entropies_of_the_release(vectors, golden_teacher):
    stored = vectors("psaq_step_a")
    shift = int(stored["jitter"][0])
    seen = jittered(stored_tensor(stored, "start_images"), (shift, shift), flip=bool(stored["flip"][0]))
    found = diagnose(golden_teacher, zsqbench.CalibrationSet(seen), None, "", open_attention(golden_teacher)).set
    entropies = [block.entropy for block in found.patch_similarities]
    assert -sum(entropies) == pytest.approx(stored["loss_entropy_f64"][0], rel=1e-10)
    assert entropies == pytest.approx(stored["entropy_per_layer_f64"][0].tolist(), rel=1e-10)
    assert (found.attention_maps.grid, found.diversity.layer) == ((4, 4), "head")


STORED = {"entropy_loss": "loss_entropy", "inception_loss": "loss_one_hot", "variation_loss": "loss_tv"}


def test_a_step_in_double_precision_is_that_of_the_release(vectors, golden_teacher):
    loss, parts, departure = first_step(vectors, golden_teacher, torch.float64)
    stored = vectors("psaq_step_a")
    for name, theirs in STORED.items():
        assert parts[name].item() == pytest.approx(stored[f"{theirs}_f64"][0], rel=1e-10, abs=1e-10), name
    assert loss.item() == pytest.approx(stored["total_f64"][0], rel=1e-10)
    assert departure < 1e-6


def test_a_step_in_single_precision_is_that_of_the_release(vectors, golden_teacher):
    loss, parts, departure = first_step(vectors, golden_teacher, torch.float32)
    stored = vectors("psaq_step_a")
    assert parts["entropy_loss"].item() == pytest.approx(stored["loss_entropy_f64"][0], abs=1e-4)
    for found, theirs in ((parts["inception_loss"], "one_hot"), (parts["variation_loss"], "tv")):
        assert found.item() == pytest.approx(stored[f"loss_{theirs}_f64"][0], rel=2e-5)
    assert loss.item() == pytest.approx(stored["total_f64"][0], rel=2e-5)
    assert departure < 1e-3


class Stops(MemoryReporter):
    """Ends a run after so many steps, and keeps the last state."""

    def __init__(self, steps, resume_from):
        super().__init__(resume_from)
        self.left = steps

    def checkpoint(self, state):
        self.last = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def golden_run(vectors, teacher, steps):
    """Pixels and curves of a run that begins as the golden one, after so many steps."""
    stored = vectors("psaq_step_a")
    scale = strength((2, 3, 64, 64)) / strength(RELEASED_BATCH)
    shifts = torch.from_numpy(stored["jitter"])[:, None].expand(-1, 2)
    begun = {
        "labels": torch.from_numpy(stored["labels"]),
        "shifts": shifts,
        "flips": torch.from_numpy(stored["flip"]).bool(),
        "variation_target": float(stored["tv_target"]) / scale,
        "0.pixels": stored_tensor(stored, "start_images"),
    }
    ctx = context()
    ctx.reporter = reporter = Stops(steps, begun)
    with pytest.raises(KeyboardInterrupt):
        PSAQViT(images=2).generate(teacher, ctx)
    return reporter.last["0.pixels"], {name: [each for _, each in points] for name, points in reporter.curves.items()}


@pytest.mark.parametrize(("steps", "expected"), [(1, "images_after_1_f64"), (3, "images_after_3_first_image_f64")])
def test_pixels_move_as_in_the_release(vectors, golden_teacher, steps, expected):
    stored = vectors("psaq_step_a")
    pixels, curves = golden_run(vectors, golden_teacher, steps)
    after, start = stored_tensor(stored, expected), stored_tensor(stored, "start_images")
    pixels, start = pixels[: len(after)], start[: len(after)]
    low, high = golden_teacher.valid_range()
    inner = (start > low + 0.05) & (start < high - 0.05)
    moved, should = (each[inner] - start[inner] for each in (pixels, after))
    assert (moved - should).norm() / should.norm() < 1e-4
    assert (pixels - after).norm() / after.norm() < 1e-6
    for name, theirs in STORED.items():
        assert curves[name] == pytest.approx(stored[f"{theirs}_f64"][:steps].tolist(), rel=1e-6)
    assert curves["entropy_loss"][0] != curves["entropy_loss"][-1] or steps == 1


def test_total_variation_and_its_target_are_those_of_the_release(vectors):
    stored = vectors("psaq_tv_a")
    for case in range(2):
        images = stored_tensor(stored, f"images_{case}").requires_grad_()
        loss = (total_variation(images) - float(stored[f"target_{case}"])).abs()
        loss.backward()
        assert total_variation(images).item() == pytest.approx(float(stored[f"tv_{case}_f64"]), rel=1e-12)
        assert loss.item() == pytest.approx(float(stored[f"loss_tv_{case}_f64"]), rel=1e-12)
        torch.testing.assert_close(images.grad, stored_tensor(stored, f"grad_{case}_f64"), rtol=1e-10, atol=1e-12)


def test_valid_pixels_are_those_of_the_release(vectors, golden_teacher):
    stored, (low, high) = vectors("psaq_tv_a"), golden_teacher.valid_range()
    for case in range(2):
        clipped = stored_tensor(stored, f"images_{case}").clamp(low, high)
        torch.testing.assert_close(clipped, stored_tensor(stored, f"clipped_{case}"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rates", "highest"), [("lr_deit", 0.20), ("lr_swin", 0.25)])
def test_rates_are_those_of_the_release_in_both_phases(vectors, rates, highest):
    options, found = PSAQViT(), []
    schedule = WarmedCosine(highest, options.iterations, warmup=options.warmup)
    for _ in range(options.phases * options.iterations):
        found.append(schedule.lr)
        schedule.step(0.0)
    assert found == pytest.approx(2 * vectors("psaq_tv_a")[rates].tolist())
    step = vectors("psaq_step_a")
    assert step["betas"].tolist() == list(BETAS)
    assert (options.class_weight, options.variation_weight) == (step["weight_one_hot"], step["weight_tv"])
    if highest == step["base_lr"]:
        assert found[:3] == pytest.approx(step["lr"].tolist())


@pytest.mark.parametrize(
    ("shape", "target"),
    [((32, 3, 64, 64), 708), ((32, 3, 32, 32), 350), ((16, 3, 224, 224), 1768), (RELEASED_BATCH, 2500)],
)
def test_the_target_is_in_proportion_to_the_differences(shape, target):
    assert 2500 * strength(shape) / strength(RELEASED_BATCH) == pytest.approx(target, abs=0.6)
    small = torch.randn(4, 3, 9, 7)
    assert total_variation(small).item() == pytest.approx(2**0.5 * strength(small.shape), rel=0.1)


def generated(teacher, **options):
    ctx = context()
    ctx.reporter = reporter = MemoryReporter(rng=ctx.rng)
    made = PSAQViT(**{**SHORT, **options}).generate(teacher, ctx)
    return made, reporter


def test_networks_with_windows_have_another_rate_and_lose_the_first_token_of_each_window():
    teachers = tiny_transformers()
    made, reporter = generated(teachers["windows"])
    assert made.provenance["lr"] == 0.25
    assert "the first token of each" in " ".join(reporter.notes)
    made, reporter = generated(teachers["a class token"])
    assert made.provenance["lr"] == 0.20
    assert reporter.notes == []
    made, _ = generated(teachers["windows"], lr=0.1)
    assert made.provenance["lr"] == 0.1


def test_a_network_without_a_class_token_keeps_all_its_tokens():
    class WithoutToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.block, self.head = nn.Conv2d(3, 8, 4, 4), _Block(8, 2), nn.Linear(8, 10)

        def forward(self, images):
            return self.head(self.block(self.patches(images).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    teacher = replace(tiny_transformer(), module=WithoutToken().eval().requires_grad_(requires_grad=False))
    _, reporter = generated(teacher)
    assert reporter.notes == ["there is no class token: similarities are those of all 4 tokens"]


@parametrize_briefly("class_weight,name", [(0.0, "entropy_loss"), (50.0, "inception_loss")], 1)
def test_images_become_more_diverse_or_of_their_classes(class_weight, name):
    options = {"iterations": 60, "warmup": 10, "variation_weight": 0.0, "jitter": 0, "images": 4}
    _, reporter = generated(tiny_transformer(), class_weight=class_weight, **options)
    values = [value for _, value in reporter.curves[name]]
    assert sum(values[-10:]) / 10 < sum(values[:10]) / 10 - 0.1


@pytest.mark.slow("it makes images of several batches")
def test_each_batch_has_the_target_of_its_size():
    teacher = tiny_transformer()
    ctx = context()
    ctx.reporter = reporter = MemoryReporter(rng=ctx.rng)
    options = {"class_weight": 0.0, "least_variation": 1000, "most_variation": 1000, "iterations": 60, "warmup": 5}
    made = PSAQViT(images=6, batch_size=4, variation_weight=10.0, **options).generate(teacher, ctx)
    for images in (made.images[:4], made.images[4:]):
        aimed = 1000 * strength(images.shape) / strength(RELEASED_BATCH)
        assert total_variation(images).item() == pytest.approx(aimed, rel=0.15)
    assert len(reporter.curves["variation_loss"]) == 2 * 120


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (
            tiny_teacher(),
            "needs attention that capture takes apart, softmax and product with the values, and _TinyNet has",
        ),
        (
            replace(tiny_transformer(), input_size=(3, 9, 8)),
            "needs patches that fill the image, and _TokenNet cuts 9 x 8 pixels into patches of 2 x 2",
        ),
    ],
)
def test_networks_that_it_cannot_look_at_are_one_clear_line(teacher, reason):
    with pytest.raises(ZSQBenchError, match=rf"^generator 'psaq_vit' {reason}[^\n]*$"):
        PSAQViT(**SHORT).generate(teacher, context())


def test_targets_are_an_interval():
    with pytest.raises(ValidationError, match="least_variation 5 is above most_variation 4"):
        PSAQViT(least_variation=5, most_variation=4)


def test_attention_of_timm_is_found_where_it_is_not_fused():
    timm = pytest.importorskip("timm")
    from timm.layers import set_fused_attn

    set_fused_attn(enable=False)
    try:
        vit = timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, mlp_ratio=1, num_classes=10
        )
        swin = timm.models.swin_transformer.SwinTransformer(
            img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=10
        )
    finally:
        set_fused_attn(enable=True)
    for module, lr in ((vit, 0.20), (swin, 0.25)):
        module.eval().requires_grad_(requires_grad=False)
        teacher = zsqbench.Pretrained(module, (3, 16, 16), (0.5,) * 3, (0.5,) * 3, classes=10)
        made, reporter = generated(teacher, images=2)
        assert made.provenance["lr"] == lr
        entropies = [value for _, value in reporter.curves["entropy_loss"]]
        assert all(np.isfinite(entropies))


def test_the_golden_network_computes_what_cross_entropy_expects(golden_teacher, vectors):
    stored = vectors("psaq_step_a")
    shift = int(stored["jitter"][0])
    images = jittered(stored_tensor(stored, "start_images"), (shift, shift), flip=bool(stored["flip"][0]))
    logits = golden_teacher.module(images)
    torch.testing.assert_close(logits, stored_tensor(stored, "logits_first_f64"), rtol=1e-10, atol=1e-10)
    loss = functional.cross_entropy(logits, torch.from_numpy(stored["labels"]))
    assert loss.item() == pytest.approx(stored["loss_one_hot_f64"][0])
