from dataclasses import replace

import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.nn import functional
from zsqbench_plugins.detect_kd import DetectKD
from zsqbench_plugins.shared.boxes import targets

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import DATA_SETS
from zsqbench.quant import activation_quantizers, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher
from zsqbench.zoo.detectors import scene_detector, torchvision_detector

SHORT = {"epochs": 1, "updates_per_epoch": 3, "batch_size": 4}


def teacher_of(detector):
    """The network of a detector as the task hands it out."""
    from zsqbench.quant import capture, output_layers

    feeding = detector.feeding
    layers = tuple(output_layers(capture(detector.module, feeding.input_size)))
    return zsqbench.Pretrained(
        detector.module, feeding.input_size, feeding.mean, feeding.std, output_layers=layers,
        detection=detector.detection,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    return teacher_of(scene_detector(None))


def data(count=8, *, boxes=True, side=96):
    rng = torch.Generator().manual_seed(0)
    rows = torch.tensor([[image, 1 + image, 0.5, 0.4, 0.3, 0.5] for image in range(count - 1)])
    images = torch.randn(count, 3, side, side, generator=rng)
    return zsqbench.CalibrationSet(images, boxes=rows if boxes else None)  # the last image has none


def quantized(teacher, images, ctx=None, scheme="hw/w4a4", **options):
    quantizer, ctx = DetectKD(**{**SHORT, **options}), ctx or context()
    ctx.scheme = parse_scheme(scheme)
    student = quantizer.make_student(teacher, ctx.scheme)
    quantizer.quantize(student, teacher, images, ctx)
    return student


def curves(ctx):
    return {name: [value for _, value in points] for name, points in ctx.reporter.curves.items()}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "qdq/w8a8", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(DetectKD(**SHORT), scheme, tiny_teacher())


@pytest.mark.parametrize(("preset", "expected"), [("paper", (1e-4, 0.04)), ("released", (1e-5, 0.01))])
def test_presets_differ_in_rate_and_weight(preset, expected):
    found = DetectKD(preset=preset).resolved(DATA_SETS["imagenet"], parse_scheme("hw/w4a4"))
    assert (found.lr, found.alpha) == expected
    assert (found.epochs, found.batch_size, found.temperature) == (100, 16, 4)


def test_the_loss_is_the_weighted_sum_of_its_parts(scenes):
    ctx = context()
    quantized(scenes, data(4), ctx, alpha=2.0, feature_weight=3.0, det_weight=5.0)
    found = curves(ctx)
    for loss, kl, features, det in zip(*(found[name] for name in ("loss", "kl", "features", "det_loss")), strict=True):
        assert loss == pytest.approx(2 * kl + 3 * features + 5 * det, rel=1e-5)


def test_its_parts_are_those_of_the_formula(scenes):
    """By hand, of a student that is not trained: one level, both heads; the features are all layers' outputs."""
    ctx, images = context(), data(4)
    student = quantized(scenes, images, ctx, lr=0.0, updates_per_epoch=1)
    seen = {}
    for name, network in (("ours", student), ("theirs", scenes.module)):
        paths = [path for path, _ in quantized_layers(student)]
        outputs = seen[name] = {}
        hooks = [
            network.get_submodule(path).register_forward_hook(
                lambda _, __, given, outputs=outputs, path=path: outputs.update({path: given}) or None
            )
            for path in paths
        ]
        with torch.no_grad():
            seen[f"{name} raw"] = network(images.images)
        [hook.remove() for hook in hooks]
    heads = scenes.output_layers
    ours, theirs = (
        torch.cat([output.flatten(1) for output in seen[f"{name} raw"].values()], 1) / 4 for name in ("ours", "theirs")
    )
    expected = (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
    found = curves(ctx)
    assert found["kl"] == [pytest.approx(expected.item(), rel=1e-4)]
    wanted = targets(images.boxes, range(4), (96, 96))
    det = scenes.detection.training_loss(seen["ours raw"], (96, 96), wanted)
    assert found["det_loss"] == [pytest.approx(det.item(), rel=1e-4)]
    # the float network's normalisations are folded into what the student is compared with
    folded = {head: functional.mse_loss(seen["ours"][head], seen["theirs"][head]).item() for head in heads}
    assert all(value > 0 for value in folded.values())
    assert found["features"][0] > sum(folded.values()) / len(quantized_layers(student))


WEIGHTS = {"kl": "alpha", "features": "feature_weight", "det_loss": "det_weight"}


@parametrize_briefly("part", WEIGHTS, 1)
def test_weights_and_step_sizes_learn_and_the_loss_falls(scenes, part):
    ctx, weights = context(), {**dict.fromkeys(WEIGHTS.values(), 0.0), WEIGHTS[part]: 1.0}
    before = quantized(scenes, data(4), scheme="hast/w4a4" if part == "kl" else "hw/w4a4", epochs=0)
    after = quantized(scenes, data(4), ctx, "hast/w4a4" if part == "kl" else "hw/w4a4", epochs=4, lr=1e-3, **weights)
    pairs = zip(activation_quantizers(before), activation_quantizers(after), strict=True)
    stayed = [name for (name, one), (_, other) in pairs if torch.equal(one.scale, other.scale)]
    # features are what layers give, before the quantizers of the outputs
    assert all(name in scenes.output_layers for name in stayed) if part == "features" else not stayed, stayed
    assert curves(ctx)[part][-1] < 0.9 * curves(ctx)[part][0]
    assert not any(part.training for part in after.modules() if isinstance(part, nn.BatchNorm2d | nn.Dropout))


@pytest.mark.slow("it builds a detector of torchvision")
def test_without_boxes_the_float_network_finds_them_and_a_note_says_so(scenes):
    ctx, other, plain = context(), context(), data(4, boxes=False)
    quantized(scenes, plain, ctx, score=0.1)
    notes = ctx.reporter.notes
    assert notes[0] == "boxes are those that the float network finds, because the calibration set has none"
    assert notes[1].startswith("the float network finds ")
    quantized(scenes, data(4), other, boxes="teacher", score=0.1)
    assert ctx.reporter.curves == other.reporter.curves
    alone = context()
    quantized(scenes, plain, alone, det_weight=0.0)
    assert "det_loss" not in curves(alone)


@pytest.mark.slow("it builds a detector of torchvision")
@parametrize_briefly(
    "name, levels",
    [("ssdlite320_mobilenet_v3_large", 2), ("retinanet_resnet50_fpn", 5), ("fcos_resnet50_fpn", 5)],
    1,
)
def test_levels_of_a_pyramid_are_told_by_the_sizes_of_their_maps(name, levels):
    from zsqbench_plugins.detect_kd import _Learned

    side = 128
    teacher = teacher_of(torchvision_detector(name, "none", (3, side, side)))
    student = DetectKD().prepare(teacher, parse_scheme("hw/w4a4"))
    learned = _Learned.of(student, teacher.output_layers)
    sizes = [{tuple(learned.nodes[place].meta["shape"][2:]) for place in level} for level in learned.levels]
    assert all(len(each) == 1 for each in sizes)
    assert len(sizes) >= levels
    values = sum(
        int(torch.tensor(learned.nodes[place].meta["shape"][1:]).prod()) for level in learned.levels for place in level
    )
    with torch.no_grad():
        raw = teacher.module(torch.zeros(1, 3, side, side))
    assert values == sum(output.numel() for output in raw.values())


def test_what_it_cannot_do_is_one_clear_line(scenes):
    with pytest.raises(ZSQBenchError, match="needs a detector whose task hands out its training loss, and SceneDet"):
        quantized(replace(scenes, detection=None), data())
    with pytest.raises(ZSQBenchError, match=r"needs boxes of the calibration set, which has none: take"):
        quantized(scenes, data(boxes=False), boxes="set")
    with pytest.raises(ZSQBenchError, match=r"augment crops images but not boxes: set augment: false"):
        quantized(scenes, data(), augment=True)
