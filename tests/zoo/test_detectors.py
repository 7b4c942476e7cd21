import copy
import functools

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from PIL import Image
from torchvision.ops import FrozenBatchNorm2d, box_iou

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_minmax,
    calibrate_weights,
    capture,
    find_units,
    output_layers,
    prepare,
)
from zsqbench.scheme import parse_scheme
from zsqbench.zoo.detectors import SIDES, torchvision_detector, user_detector
from zsqbench.zoo.models import Feeding

SIZE = (3, 64, 64)


def image(width=50, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run_by_hand(detector, images):
    """torchvision's own model around the same network."""
    from torchvision.transforms.functional import pil_to_tensor

    decoder = detector.postprocess._model
    model = copy.copy(decoder)
    model._modules = {**decoder._modules, "backbone": detector.module.backbone, "head": detector.module.head}
    return model([pil_to_tensor(each).float() / 255 for each in images])


NAMES = ("ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2")


@functools.cache
def untrained(name):
    """A detector that no test changes, but for statistics of BatchNorm."""
    return torchvision_detector(name, "none", SIZE)


def test_these_are_the_detectors_of_torchvision():
    assert set(NAMES) == set(SIDES)


@pytest.fixture(scope="module")
def ssdlite():
    return torchvision_detector("ssdlite320_mobilenet_v3_large", "none", None)


@pytest.mark.slow("it builds a detector of torchvision")
@torch.no_grad()
def test_boxes_are_those_of_the_whole_model(ssdlite):
    images = [image(), image(20, 90)]
    raw = ssdlite.module(torch.stack([ssdlite.preprocess(each) for each in images]))
    found = ssdlite.postprocess(raw, images)
    for mine, other in zip(found, run_by_hand(ssdlite, images), strict=True):
        assert len(mine["boxes"])
        assert all(torch.equal(mine[name], other[name]) for name in ("boxes", "scores", "labels"))


@torch.no_grad()
def test_levels_of_a_pyramid_have_the_sizes_that_the_backbone_gives_them():
    detector = torchvision_detector("retinanet_resnet50_fpn", "none", SIZE)
    detector.postprocess._model.transform.min_size = (64,)
    detector.module.head.classification_head.cls_logits.bias.zero_()  # else no score is above the threshold
    raw = detector.module(detector.preprocess(image())[None])
    (mine,), (other,) = detector.postprocess(raw, [image()]), run_by_hand(detector, [image()])
    assert len(mine["boxes"])
    assert all(torch.equal(mine[name], other[name]) for name in ("boxes", "scores", "labels"))


def test_an_image_is_made_fit_as_it_is_fed(ssdlite):
    square = image(320, 320)
    assert torch.allclose(ssdlite.fit(square), ssdlite.preprocess(square), atol=1e-5)
    assert ssdlite.fit(image(1, 1)).shape == (3, 320, 320)


@parametrize_briefly("name,eps", [("retinanet_resnet50_fpn", 0.0), ("fcos_resnet50_fpn", 1e-5)], 1)
def test_backbones_are_normalised_as_those_of_the_published_weights(name, eps):
    norms = [m for m in untrained(name).module.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {eps}


HEADS = {
    "ssdlite320_mobilenet_v3_large": 12,
    "retinanet_resnet50_fpn": 2,
    "retinanet_resnet50_fpn_v2": 2,
    "fcos_resnet50_fpn": 3,
}


@pytest.mark.slow("it builds detectors of torchvision; the test of a shared head folds one, too")
@torch.no_grad()
@parametrize_briefly("name", NAMES, 1)
def test_they_are_folded_and_quantized_up_to_their_raw_outputs(name):
    detector = untrained(name)
    for module in detector.module.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    assert len(output_layers(capture(detector.module, SIZE))) == HEADS[name]
    student = prepare(detector.module, parse_scheme("hw_strict/w8a8"), SIZE)
    images = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))
    expected, found = detector.module(images), student(images)
    for output in expected:
        torch.testing.assert_close(found[output], expected[output], rtol=1e-4, atol=1e-4)
    names = [name for name, _ in activation_quantizers(student)]
    assert len(set(names)) == len(names)
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [images])
    assert all(quantizer.enabled for _, quantizer in activation_quantizers(student))
    assert all(output.isfinite().all() for output in student(images).values())


def test_a_shared_head_is_folded_and_one_unit_for_each_of_its_layers_with_all_levels():
    detector = untrained("retinanet_resnet50_fpn")
    student = prepare(detector.module, parse_scheme("hw/w4a8"), SIZE)
    units = {unit.name: unit for unit in find_units(student)}
    last = units["head.classification_head.cls_logits"]
    assert (len(last.layers), len(last.quantizers), len(last.targets)) == (1, 1, 5)
    images = torch.randn(2, *SIZE)
    values = {next(iter(units.values())).inputs[0]: images}
    with torch.no_grad():
        for unit in units.values():
            values |= unit.run(*(values[name] for name in unit.inputs))
        expected = student(images)
        plain = detector.module(images)
    for output in plain:
        torch.testing.assert_close(expected[output], plain[output], rtol=1e-4, atol=1e-4)
    found = [values[name] for name in list(units.values())[-1].targets]
    assert all(torch.equal(one, other) for one, other in zip(found, expected.values(), strict=True))


def test_an_unknown_name_is_one_clear_line():
    with pytest.raises(ZSQBenchError, match="unknown torchvision detector 'fcos_resnet50'; did you mean"):
        torchvision_detector("fcos_resnet50", "none", None)


def targets(labels=(3, 18)):
    boxes = torch.tensor([[5.0, 8.0, 50.0, 40.0], [30.0, 2.0, 60.0, 62.0]])
    return [{"boxes": boxes, "labels": torch.tensor(labels)}, {"boxes": boxes[:0], "labels": torch.empty(0).long()}]


def whole_model(detector):
    """torchvision's own model around the same network, which takes images as they are, but for norms and dropout."""
    shell = detector.detection.training_loss.__self__._model
    model = copy.copy(shell)
    model._modules = {**shell._modules, "backbone": detector.module.backbone, "head": detector.module.head}
    return model


@parametrize_briefly("name", NAMES, 1)
def test_the_training_loss_is_that_of_the_whole_model_with_norms_in_eval_mode(name):
    detector = untrained(name)
    images = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(detector.module.state_dict())
    raw = {key: value.requires_grad_() for key, value in detector.module(images).items()}
    loss = detector.detection.training_loss(raw, SIZE[1:], targets())
    model = whole_model(detector)
    model.training = True  # and none of its modules
    expected = sum(model(images, targets()).values())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert raw["cls_logits"].grad.abs().max() > 0
    assert raw["bbox_regression"].grad.abs().max() > 0
    assert not any(part.training for part in detector.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in detector.module.state_dict().items())


def most_overlap(found):
    """The largest intersection over union of two boxes with one label."""
    same = found["labels"][:, None] == found["labels"]
    return (box_iou(found["boxes"], found["boxes"]).nan_to_num() * same).fill_diagonal_(0).max()


@parametrize_briefly("name", NAMES, 3)
def test_boxes_are_decoded_in_pixels_of_the_images_and_with_the_thresholds_given(name):
    detector = untrained(name)
    raw = detector.module(torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0)))
    raw["cls_logits"] = 3 * torch.randn(raw["cls_logits"].shape, generator=torch.Generator().manual_seed(1))
    raw["bbox_regression"] = torch.ones_like(raw["bbox_regression"])  # so that neighbours overlap
    many, few = (detector.detection.decode(raw, SIZE[1:], 0.05, overlap) for overlap in (0.9, 0.1))
    for found in (many, few):
        assert all((each["boxes"] >= 0).all() and (each["boxes"] <= 64).all() for each in found)
        assert all((each["scores"] > 0.05).all() for each in found)
    assert most_overlap(many[0]) > 0.1 >= most_overlap(few[0])
    assert not len(detector.detection.decode(raw, SIZE[1:], 1.0, 0.5)[0]["boxes"])


def test_labels_are_those_of_cocos_categories(ssdlite):
    assert len(ssdlite.detection.labels) == 80
    assert not {0, 12, 26, 91} & set(ssdlite.detection.labels)
    assert {1, 90} <= set(ssdlite.detection.labels)


FILE = """
import torch
from torch import nn

LABELS = [2, 5]

def build():
    return nn.Conv2d(3, 5, 4, stride=4)

def preprocess(image):
    return torch.zeros(3, 16, 16)

def postprocess(raw, sizes):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    scores = torch.tensor([0.9, 0.1])
    return [{"boxes": boxes * size[1], "scores": scores, "labels": torch.tensor([2, 5])} for size in sizes]

def training_loss(raw, targets, size):
    return raw.square().mean() + sum(len(each["labels"]) for each in targets)
"""


def user(tmp_path, text):
    (tmp_path / "net.py").write_text(text)
    return user_detector(tmp_path / "net.py", "build", "none", Feeding((3, 16, 16), (0.0,) * 3, (1.0,) * 3))


def test_a_file_of_ones_own_may_hand_out_its_training_loss(tmp_path):
    detection = user(tmp_path, FILE).detection
    assert detection.labels == (2, 5)
    assert detection.training_loss(torch.ones(2, 5, 4, 4), (16, 16), targets()).item() == 3
    found = detection.decode(torch.ones(2, 5, 4, 4), (16, 16), 0.5, 0.6)
    assert [each["boxes"].tolist() for each in found] == [[[0, 0, 16, 16]]] * 2
    assert user(tmp_path, FILE.replace("def training_loss", "def other")).detection is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("LABELS = [2, 5]", "", r"has training_loss\(\), for which it must list the labels of boxes: LABELS"),
        ("LABELS = [2, 5]", "LABELS = ['dog']", "must list the labels of boxes"),
        ("raw.square().mean()", "raw", r"training_loss\(\) of .*net.py returned \[2, 5, 4, 4\]; expected one number"),
    ],
)
def test_a_training_loss_that_is_none_is_one_clear_line(tmp_path, old, new, complaint):
    with pytest.raises(ZSQBenchError, match=complaint):
        user(tmp_path, FILE.replace(old, new)).detection.training_loss(torch.ones(2, 5, 4, 4), (16, 16), targets())
