"""A small one-stage detector without anchors, like FCOS (Tian et al., 2019), for the embedded scenes.

It has a residual backbone, a pyramid that ends in one level of stride 4, and two heads. Each convolution except the
last of each head has a batch normalisation behind it that can be folded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from zsqbench.zoo.detection import Size
from zsqbench.zoo.digits import CLASSES
from zsqbench.zoo.resnet import BasicBlock
from zsqbench.zoo.scenes import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.136, 0.136, 0.136)
STD = (0.131, 0.131, 0.131)
"""About the mean and deviation of the pixels of calibration scenes, in 0..1."""

STRIDE = 4
"""Distance between neighbouring places in pixels of the network's input, in both directions."""

WIDTHS = (12, 24, 48)
"""Channels of the backbone's stages, of strides 4, 8 and 16."""

PYRAMID = 24
"""Channels of the pyramid and the heads."""

PRIOR = 0.01
"""Probability of a digit at a place before training, as recommended for the focal loss (Lin et al., 2017)."""

EXTENT = 2.5
"""Distance to the sides of a box before training, in strides."""

BOX_WEIGHT = 2.0
"""Weight of the boxes' loss in training, relative to the digits' loss."""

RADIUS = 1.5 * STRIDE
"""Places of a digit are in its box, and less than so many pixels from its centre in both directions."""

THRESHOLD = 0.05
"""The least score of a detected box."""

OVERLAP = 0.5
"""From this intersection over union on, the better of two boxes of a digit suppresses the other."""

MOST = 100
"""The most boxes of an image."""


class SceneDetector(nn.Module):
    """The tensor part. `cls_logits` give the digit at a place, `bbox_regression` the distances to the sides of its box.

    Distances are to the left, the top, the right and the bottom, in strides. Places are ordered row by row.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.stem = _convolution(3, first, 3, stride=2)
        self.layer1 = _stage(first, first)
        self.layer2 = _stage(first, second)
        self.layer3 = _stage(second, third)
        self.lateral1, self.lateral2, self.lateral3 = (_projection(width) for width in WIDTHS)
        self.upsample = nn.Upsample(scale_factor=2)
        self.smooth = _convolution(PYRAMID, PYRAMID, 3)
        self.cls_tower = nn.Sequential(_convolution(PYRAMID, PYRAMID, 3), _convolution(PYRAMID, PYRAMID, 3))
        self.bbox_tower = nn.Sequential(_convolution(PYRAMID, PYRAMID, 3), _convolution(PYRAMID, PYRAMID, 3))
        self.cls_logits = _output(CLASSES, bias=math.log(PRIOR / (1 - PRIOR)))
        self.bbox_regression = _output(4, bias=EXTENT)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[N, 3, 96, 96] to `cls_logits` [N, places, 10] and `bbox_regression` [N, places, 4]."""
        fine = self.layer1(self.stem(images))
        middle = self.layer2(fine)
        coarse = self.layer3(middle)
        merged = self.lateral2(middle) + self.upsample(self.lateral3(coarse))
        merged = self.smooth(self.lateral1(fine) + self.upsample(merged))
        logits = self.cls_logits(self.cls_tower(merged))
        distances = self.bbox_regression(self.bbox_tower(merged))
        return {
            "cls_logits": logits.flatten(2).transpose(1, 2),
            "bbox_regression": distances.flatten(2).transpose(1, 2),
        }


def preprocess(image: "Image") -> Tensor:
    """The image, resized without keeping its proportions, and normalised: [3, 96, 96]."""
    from torchvision.transforms.functional import normalize, pil_to_tensor, resize

    pixels = resize(pil_to_tensor(image.convert("RGB")).float() / 255, [SIDE, SIDE])
    normalised: Tensor = normalize(pixels, MEAN, STD)
    return normalised


def postprocess(raw: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """For each image its `boxes` [K, 4], `scores` [K] and `labels` [K], the best first.

    Boxes are left, top, right, bottom in pixels of an image of this height and width. A label is the digit + 1.
    """
    boxes, scores = decode(raw["bbox_regression"]), raw["cls_logits"].sigmoid()
    return [_found(*each, (SIDE, SIDE)) for each in zip(boxes, scores, sizes, strict=True)]


def detect(raw: Mapping[str, Tensor], size: Size, score: float, overlap: float) -> list[dict[str, Tensor]]:
    """Boxes in pixels of the network's input images, with this height and width, and with other thresholds."""
    raw = {name: output.float() for name, output in raw.items()}
    boxes, scores = decode(raw["bbox_regression"], size), raw["cls_logits"].sigmoid()
    return [_found(*each, size, size, score, overlap) for each in zip(boxes, scores, strict=True)]


def decode(distances: Tensor, size: Size = (SIDE, SIDE)) -> Tensor:
    """Boxes [N, places, 4] in pixels of the network's input, from its output `bbox_regression`."""
    x, y = places(size).to(distances.device).unbind(1)
    left, top, right, bottom = (distances.relu() * STRIDE).unbind(2)
    return torch.stack([x - left, y - top, x + right, y + bottom], 2)


def places(size: Size = (SIDE, SIDE)) -> Tensor:
    """X and y of the centre of each place, [places, 2], in pixels of the network's input."""
    rows, columns = ((torch.arange(side // STRIDE) + 0.5) * STRIDE for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def assign(digits: Tensor, boxes: Tensor, size: Size = (SIDE, SIDE)) -> tuple[Tensor, Tensor]:
    """The target digit (or -1) and box of each place, [N, places] and [N, places, 4]. Smaller boxes win.

    Digits are [N, M], -1 if an image has fewer than M. Boxes are [N, M, 4], in pixels of the network's input.
    """
    points, corners = places(size).to(boxes.device)[None, :, None], boxes[:, None]  # [1, places, 1, 2], [N, 1, M, 4]
    inside = ((points > corners[..., :2]) & (points < corners[..., 2:])).all(3)
    near = ((points - (corners[..., :2] + corners[..., 2:]) / 2).abs() < RADIUS).all(3)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(2)
    area, chosen = areas[:, None].where(inside & near & (digits >= 0)[:, None], torch.inf).min(2)
    found = digits.gather(1, chosen).where(area < torch.inf, -1)
    return found, boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


def detection_loss(raw: Mapping[str, Tensor], digits: Tensor, boxes: Tensor, size: Size = (SIDE, SIDE)) -> Tensor:
    """Focal loss of the digits and generalised IoU loss of the boxes, per place with a target."""
    wanted, targets = assign(digits, boxes, size)
    positive = wanted >= 0
    labels = functional.one_hot(wanted + 1, CLASSES + 1)[..., 1:].float()
    classes = sigmoid_focal_loss(raw["cls_logits"], labels, reduction="sum")
    predicted = decode(raw["bbox_regression"], size)[positive]
    extents = generalized_box_iou_loss(predicted, targets[positive], reduction="sum")
    loss: Tensor = (classes + BOX_WEIGHT * extents) / positive.sum().clamp_min(1)
    return loss


def training_loss(raw: Mapping[str, Tensor], size: Size, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The loss for targets in the form of `Detection.training_loss`. A label is the digit + 1."""
    raw = {name: output.float() for name, output in raw.items()}
    like = raw["bbox_regression"]
    most = max(1, *(len(each["labels"]) for each in targets))
    digits = torch.full((len(targets), most), -1, device=like.device)
    boxes = like.new_zeros(len(targets), most, 4)
    for number, each in enumerate(targets):
        count = len(each["labels"])
        digits[number, :count], boxes[number, :count] = each["labels"] - 1, each["boxes"].to(like)
    return detection_loss(raw, digits, boxes, size)


def _found(
    boxes: Tensor, scores: Tensor, size: Size, given: Size, score: float = THRESHOLD, overlap: float = OVERLAP
) -> dict[str, Tensor]:
    """Boxes in pixels of an image of this size, from boxes in pixels of the network's input."""
    from torchvision.ops import batched_nms, clip_boxes_to_image

    (height, width), (high, wide) = size, given
    place, digit = (scores > score).nonzero().unbind(1)
    boxes = boxes[place] * boxes.new_tensor([width, height, width, height]) / boxes.new_tensor([wide, high, wide, high])
    boxes = clip_boxes_to_image(boxes, size)
    kept = batched_nms(boxes, scores[place, digit], digit, overlap)[:MOST]
    return {"boxes": boxes[kept], "scores": scores[place, digit][kept], "labels": digit[kept] + 1}


def _convolution(channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _projection(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, PYRAMID, 1, bias=False), nn.BatchNorm2d(PYRAMID))


def _output(channels: int, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(PYRAMID, channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    layer.bias = nn.Parameter(torch.full((channels,), bias))
    return layer


def _stage(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(channels, out_channels, 2), BasicBlock(out_channels, out_channels, 1))
