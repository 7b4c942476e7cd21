"""A small one-stage detector without anchors, in the manner of FCOS (Tian et al., 2019), for the embedded scenes.

A residual backbone, a pyramid that ends in one level of stride 4, and two heads. Each convolution but the heads' last
ones has a batch normalisation behind it that can be folded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zsqbench.zoo.digits import CLASSES
from zsqbench.zoo.resnet import BasicBlock
from zsqbench.zoo.scenes import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.136, 0.136, 0.136)
STD = (0.131, 0.131, 0.131)
"""About those of the pixels of the scenes to calibrate on, in 0..1."""

STRIDE = 4
"""Pixels of the network's input from one place to the next, in both directions."""

WIDTHS = (12, 24, 48)
"""Channels of the backbone's stages, of strides 4, 8 and 16."""

PYRAMID = 24
"""Channels of the pyramid and the heads."""

PRIOR = 0.01
"""Probability of a digit at a place before training, as the focal loss wants it (Lin et al., 2017)."""

EXTENT = 2.5
"""Distance to the sides of a box before training, in strides."""

THRESHOLD = 0.05
"""Least score of a box that is found."""

OVERLAP = 0.5
"""Intersection over union from which on the better one of two boxes of a digit suppresses the other."""

MOST = 100
"""Boxes of an image at most."""


class SceneDetector(nn.Module):
    """The tensor part. `cls_logits` say which digit is at a place, `bbox_regression` how far its box extends from it.

    Distances go to the left, the top, the right and the bottom, in strides; places come row by row.
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
    """Resized, whatever its proportions, and normalised: [3, 96, 96]."""
    from torchvision.transforms.functional import normalize, pil_to_tensor, resize

    pixels = resize(pil_to_tensor(image.convert("RGB")).float() / 255, [SIDE, SIDE])
    normalised: Tensor = normalize(pixels, MEAN, STD)
    return normalised


def postprocess(raw: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """For each image its `boxes` [K, 4], `scores` [K] and `labels` [K], the best ones first.

    Boxes are left, top, right, bottom in pixels of an image of this height and width; a label is the digit + 1.
    """
    boxes, scores = decode(raw["bbox_regression"]), raw["cls_logits"].sigmoid()
    return [_found(*each) for each in zip(boxes, scores, sizes, strict=True)]


def decode(distances: Tensor) -> Tensor:
    """Boxes [N, places, 4] in pixels of the network's input, of what it gives as `bbox_regression`."""
    x, y = places().to(distances.device).unbind(1)
    left, top, right, bottom = (distances.relu() * STRIDE).unbind(2)
    return torch.stack([x - left, y - top, x + right, y + bottom], 2)


def places() -> Tensor:
    """X and y of the centre of each place, [places, 2], in pixels of the network's input."""
    centres = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _found(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    from torchvision.ops import batched_nms, clip_boxes_to_image

    height, width = size
    place, digit = (scores > THRESHOLD).nonzero().unbind(1)
    boxes = clip_boxes_to_image(boxes[place] * torch.tensor([width, height, width, height]) / SIDE, size)
    kept = batched_nms(boxes, scores[place, digit], digit, OVERLAP)[:MOST]
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
