from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from zsqbench_plugins import task_boxes
from zsqbench_plugins.shared.boxes import corners, rows, targets
from zsqbench_plugins.task_boxes import TaskBoxes, one_label, random_boxes, refined, smaller

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import DATA_SETS
from zsqbench.methods.base import NetworkTraits
from zsqbench.synthesis import DEEP_INVERSION, BNLoss, total_variation
from zsqbench.testing import check_generator, context, tiny_teacher
from zsqbench.zoo.detectors import scene_detector

SHORT = {"images": 6, "batch_size": 4, "iterations": 6}


@pytest.fixture(scope="module")
def scenes():
    """The embedded detector."""
    detector = scene_detector(None)
    feeding = detector.feeding
    return zsqbench.Pretrained(
        detector.module, feeding.input_size, feeding.mean, feeding.std, detection=detector.detection
    )


def vectors(shared, name):
    return np.load(shared / "golden" / "2025" / f"{name}.npz")


def values(stored, *names):
    return [torch.from_numpy(np.asarray(stored[name])) for name in names]


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@parametrize_briefly(
    "options", [{"preset": "paper", "clamp": True}, {"refine": False}, {}, {"preset": "paper"}, {"clamp": True}], 2
)
def test_it_is_a_generator(options):
    check_generator(TaskBoxes(**SHORT, **options), tiny_teacher())


def test_boxes_are_added_and_dropped_as_in_the_release(shared):
    stored = vectors(shared, "det_addrop_a")
    boxes, predictions, expected = values(stored, "targets", "predictions", "labels_after")
    side = int(stored["image_size"])
    found = []
    for image in range(10):
        mine = predictions[predictions[:, 0] == image]
        found.append({"boxes": mine[:, 1:5], "scores": mine[:, 5], "labels": mine[:, 6].long()})
    proposed = rows(found, float(stored["conf"]), (side, side))
    area = float(stored["min_area"]), float(stored["max_area"])
    after = refined(boxes, proposed, float(stored["overlap_iou"]), area)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)  # those that stay first, in their order
    assert len(boxes) != len(after)


def test_looks_begin_and_end_as_in_the_release(shared):
    stored, options = vectors(shared, "det_addrop_a"), TaskBoxes().resolved(DATA_SETS["imagenet"])
    assert (options.refine_from, options.refine_until) == (int(stored["warmup"]), int(stored["early_exit"]))
    assert options.refine_every == 100
    known = {"score": "conf", "overlap": "overlap_iou", "smallest_area": "min_area", "largest_area": "max_area"}
    assert {name: getattr(options, name) for name in known} == {name: float(stored[key]) for name, key in known.items()}
    assert (stored["nms_conf"], stored["nms_iou"]) == (task_boxes.NMS_SCORE, task_boxes.NMS_OVERLAP)
    run = SimpleNamespace(options=options, order=[0] * options.iterations, _refines=lambda _: True)
    found = [task_boxes._Run._looks(run, step) for step in (799, 800, 2800, 2801)]
    unchanged = [bool(stored[f"labels_at_{step}_unchanged"]) for step in ("warmup_minus_1", "exit_plus_1")]
    changed = [bool(stored[f"labels_at_{step}_changed"]) for step in ("warmup", "exit")]
    assert found == [not unchanged[0], *changed, not unchanged[1]]


def test_random_boxes_are_those_of_the_release_and_stay_inside(shared):
    stored = vectors(shared, "det_boxsampler_a")
    draws, expected = values(stored, "draws_w_h_xu_xsign_yu_ysign_class", "labels_cls_cx_cy_w_h")
    sides = task_boxes.SMALLEST_BOX, task_boxes.LARGEST_BOX
    assert sides == (stored["min_side"], stored["max_side"])
    places = torch.stack([draws[:, 2] * draws[:, 3], draws[:, 4] * draws[:, 5]], 1)
    torch.testing.assert_close(random_boxes(draws[:, :2], places), expected[:, 1:], rtol=0, atol=1e-6)
    many = random_boxes(torch.rand(999, 2), 2 * torch.rand(999, 2) - 1)
    ends = corners(torch.cat([torch.zeros(999, 2), many], 1))
    assert ends.min() >= -1e-6
    assert ends.max() <= 1 + 1e-6


class Given(nn.Module):
    """Norms that see what is given, whatever the image."""

    def __init__(self, stored, dtype):
        super().__init__()
        self.inputs = [torch.from_numpy(stored[f"bn_input_{i}"]).to(dtype).requires_grad_() for i in range(3)]
        self.norms = nn.ModuleList()
        for i in range(3):
            mean, variance = (torch.from_numpy(stored[f"bn_running_{what}_{i}"]) for what in ("mean", "var"))
            norm = nn.BatchNorm2d(len(mean)).to(dtype).eval().requires_grad_(False)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            self.norms.append(norm)

    def forward(self, images):
        return images.mean((2, 3)) + sum(norm(x).mean() for norm, x in zip(self.norms, self.inputs, strict=True))


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-6)])
def test_the_loss_of_images_is_the_releases(shared, dtype, suffix, tolerance):
    from zsqbench_plugins.task_boxes import image_loss

    stored = vectors(shared, "det_imageloss_a")
    module, pixels = Given(stored, dtype), torch.from_numpy(stored["images"]).to(dtype).requires_grad_()
    given = {"det_weight": "main", "variation_weight": "tv_l2", "bn_weight": "r_feature", "first_bn_weight": "first_bn"}
    options = TaskBoxes(**{name: float(stored[key]) for name, key in given.items()}).resolved(DATA_SETS["imagenet"])
    with BNLoss(module, DEEP_INVERSION) as bn_loss:
        gap = bn_loss(pixels, outputs=True)
        loss, parts = image_loss(options, pixels, gap, torch.tensor(float(stored["loss_main"]), dtype=dtype))
        loss.backward()
    expected = float(stored[f"total_loss{suffix}"])
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    per_layer = (gap.means.sqrt() + gap.moments.sqrt()).detach()
    torch.testing.assert_close(per_layer, torch.from_numpy(stored[f"r_feature_per_layer{suffix}"]), rtol=1e-5, atol=0)
    for found, name in ((per_layer.sum(), "loss_r_feature"), (per_layer[0], "loss_first_bn")):
        assert found.item() == pytest.approx(float(stored[f"{name}{suffix}"]), rel=tolerance)
    assert total_variation(pixels).item() == pytest.approx(float(stored[f"loss_var_l2{suffix}"]), rel=tolerance)
    torch.testing.assert_close(
        pixels.grad, torch.from_numpy(stored[f"grad_images{suffix}"]), rtol=1e-4, atol=10 * tolerance * 1e-2
    )
    for i, given_input in enumerate(module.inputs):
        wanted = torch.from_numpy(stored[f"grad_bn_input_{i}{suffix}"])
        torch.testing.assert_close(given_input.grad, wanted, rtol=1e-4, atol=tolerance)
    assert set(parts) == {"det_loss", "bn_loss", "loss"}


def test_of_one_box_none_is_dropped_and_of_several_the_best_stays():
    one = torch.tensor([[0, 1, 0.2, 0.2, 0.2, 0.2]])
    two = torch.cat([one, torch.tensor([[0, 2, 0.25, 0.25, 0.2, 0.2]])])
    far = torch.tensor([[0, 3, 0.7, 0.7, 0.3, 0.3]])
    near = torch.tensor([[0, 3, 0.36, 0.36, 0.2, 0.2]])  # a little of the second, and nothing of the first
    other = torch.tensor([[5, 3, 0.2, 0.2, 0.2, 0.2]])
    limits = 0.35, (0.01, 0.85)
    assert torch.equal(refined(one, far, *limits), torch.cat([one, far]))
    assert torch.equal(refined(two, near, *limits), torch.cat([two[1:], near]))
    assert torch.equal(refined(two, other, *limits), two)  # of an image without a box
    assert torch.equal(refined(two, far[:0], *limits), two)
    large = torch.tensor([[0, 3, 0.5, 0.5, 0.95, 0.95]])
    assert torch.equal(refined(one, large, *limits), one)


def test_of_boxes_at_one_place_the_best_alone_is_proposed():
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 8]]),
        "scores": torch.tensor([0.3, 0.9, 0.5, 0.4]),
        "labels": torch.tensor([1, 2, 1, 2]),
    }
    best = one_label(found)
    assert best["labels"].tolist() == [2, 1]
    assert torch.equal(best["boxes"], found["boxes"][[1, 2]])


def test_the_training_loss_counts_for_each_image_of_a_batch(scenes):
    """As that of the release's YOLO11, which is multiplied by their number."""
    ctx = context()
    options = {"bn_weight": 0, "first_bn_weight": 0, "variation_weight": 0, "det_weight": 0.25}
    made(scenes, ctx, refine=False, iterations=1, images=3, batch_size=3, **options)
    found = {name: ctx.reporter.curves[name][0][1] for name in ("loss", "det_loss")}
    assert found["loss"] == pytest.approx(0.25 * 3 * found["det_loss"], rel=1e-5)


def test_targets_and_rows_are_each_others_reverse():
    boxes = torch.tensor([[1, 7, 0.5, 0.4, 0.2, 0.6], [0, 3, 0.3, 0.3, 0.2, 0.2], [1, 2, 0.6, 0.6, 0.4, 0.4]])
    found = [each | {"scores": torch.ones(len(each["labels"]))} for each in targets(boxes, [0, 1], (50, 100))]
    assert found[1]["boxes"][0].tolist() == pytest.approx([40, 5, 60, 35])
    torch.testing.assert_close(rows(found, 0.5, (50, 100)), boxes[[1, 0, 2]])
    assert not len(rows(found, 1.0, (50, 100)))


def made(teacher, ctx=None, **options):
    return TaskBoxes(**{"images": 4, "batch_size": 4, "iterations": 60, "lr": 0.05, **options}).generate(
        teacher, ctx or context()
    )


@pytest.mark.slow("it learns many images of boxes")
def test_a_detector_finds_more_of_what_it_is_to_find(scenes):
    ctx = context()
    found = made(scenes, ctx, det_weight=5.0, iterations=20)
    assert found.images.shape == (4, 3, 96, 96)
    curve = [value for _, value in ctx.reporter.curves["det_loss"]]
    assert curve[-1] < 0.7 * curve[20]  # the second stage begins anew
    owners = found.boxes[:, 0].tolist()
    assert set(owners) == {0, 1, 2, 3}
    raw = scenes.module(found.images)
    loss = scenes.detection.training_loss(raw, (96, 96), targets(found.boxes, range(4), (96, 96)))
    assert loss.item() == pytest.approx(ctx.reporter.curves["lowest_det_loss"][-1][1], rel=1e-4)
    assert not any(part.training for part in scenes.module.modules())


def test_boxes_of_images_in_which_nothing_is_proposed_stay_random_and_are_counted(scenes):
    ctx = context()
    found = made(scenes, ctx, score=1.0, iterations=4)
    assert len(found.boxes) == 4
    note = "4 of 4 images keep their random box, at which the detector never found anything"
    assert ctx.reporter.footnotes == [note]
    assert found.provenance["random_boxes_kept"] == 4
    silent = context()
    made(scenes, silent, refine=False, iterations=2)
    assert silent.reporter.notes == []


def test_proposals_replace_random_boxes(scenes):
    """Where the detector proposes one and the same box in all images, that is what images have in the end."""
    box = {"boxes": torch.tensor([[4.0, 4, 12, 12]]), "scores": torch.ones(1), "labels": torch.tensor([3])}
    detection = replace(scenes.detection, decode=lambda *_: [box] * 4)
    ctx = context()
    found = made(replace(scenes, detection=detection), ctx, iterations=8, label_scale=0.25)
    expected = torch.tensor([[3, 0.25, 0.25, 0.25, 0.25]]).expand(4, 5)
    assert torch.equal(found.boxes[:, 1:], expected)
    assert found.boxes[:, 0].tolist() == [0, 1, 2, 3]


def test_going_on_from_a_checkpoint_gives_the_same_set(scenes):
    options = {"images": 3, "batch_size": 2, "iterations": 6}
    ctx = context()
    expected = made(scenes, ctx, **options)
    for state in ctx.reporter.states[3::7]:
        found = made(scenes, context(resume_from=state), **options)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.boxes, expected.boxes)


def test_the_lowest_training_loss_is_given_away_and_not_the_last(scenes):
    losses = iter([9.0, 1.0, 5.0, 2.0])
    seen = []

    def loss(raw, size, wanted):
        found = scenes.detection.training_loss(raw, size, wanted)
        if torch.is_grad_enabled():
            return found
        seen.append(raw["cls_logits"].clone())
        return found * 0 + next(losses)

    teacher = replace(scenes, detection=replace(scenes.detection, training_loss=loss))
    found = made(teacher, refine=False, iterations=4, refine_every=1)
    assert torch.allclose(scenes.module(found.images)["cls_logits"], seen[1], atol=1e-4)


@pytest.mark.parametrize(("side", "scale", "expected"), [(640, 0.25, 160), (96, 0.25, 32), (800, 0.25, 224), (8, 1, 8)])
def test_small_images_have_sides_that_strides_divide(side, scale, expected):
    assert smaller(side, scale) == expected


@pytest.mark.parametrize(("side", "expected"), [(640, 160), (800, 224), (320, 160), (160, 160), (96, 96)])
def test_first_images_have_160_pixels_or_a_quarter_of_more(side, expected):
    options = TaskBoxes().resolved(NetworkTraits((3, side, side)))
    assert smaller(side, options.label_scale) == expected


def test_pixels_start_and_are_normalised_as_valid_ones(scenes):
    low, high = scenes.valid_range()
    images = made(scenes, refine=False, iterations=1, lr=1e-9, preset="released").images
    assert (images >= low - 1e-5).all()
    assert (images <= high + 1e-5).all()
    steps = (images - low) / (high - low) * 255
    assert (steps - steps.round()).abs().max() < 1e-3
    clamped = made(scenes, refine=False, iterations=3, lr=5.0, clamp=True).images
    assert (clamped >= low - 1e-5).all()


def test_what_it_cannot_do_is_one_clear_line(scenes):
    with pytest.raises(ZSQBenchError, match="needs a detector whose task hands out its training loss, and Scene"):
        made(replace(scenes, detection=None))
    with pytest.raises(ValueError, match=r"no area is above smallest_area 0.9 and below largest_area 0.85"):
        TaskBoxes(smallest_area=0.9)

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 62 * 62, 10)

        def forward(self, x):
            return self.fc(self.norm(self.conv(x)).flatten(1))

    teacher = replace(tiny_teacher((3, 64, 64)), module=Fixed().eval().requires_grad_(False))
    with pytest.raises(ZSQBenchError, match=r"does not take images of 32 x 32 pixels, .*raise label_scale \(0.25\)"):
        made(teacher, label_scale=0.25)
