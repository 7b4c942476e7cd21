"""Conversion of boxes between calibration sets and detectors' losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench.zoo.detection import Size


def corners(boxes: "Tensor") -> "Tensor":
    """Left, top, right, bottom [M, 4] of a calibration set's boxes [M, 6], in parts of the image."""
    import torch

    centre, half = boxes[:, 2:4], boxes[:, 4:6] / 2
    return torch.cat([centre - half, centre + half], 1)


def targets(boxes: "Tensor", images: Sequence[int], size: "Size") -> "list[dict[str, Tensor]]":
    """For each of these images the targets of `Detection.training_loss`, in pixels of images of this size."""
    height, width = size
    pixels = corners(boxes) * boxes.new_tensor([width, height, width, height])
    of = [(boxes[:, 0] == image).nonzero().flatten() for image in images]
    return [{"boxes": pixels[rows], "labels": boxes[rows, 1].long()} for rows in of]


def rows(found: "Sequence[Mapping[str, Tensor]]", score: float, size: "Size") -> "Tensor":
    """Boxes [M, 6] with a score above this number, from the results of `Detection.decode` for images 0, 1, ...

    Corners are clamped at 0, but not at the right and the bottom, as in the release of Li et al.
    """
    import torch

    height, width = size
    parts = []
    for number, each in enumerate(found):
        kept = each["scores"] > score
        box = each["boxes"][kept].clamp(min=0) / each["boxes"].new_tensor([width, height, width, height])
        owner = torch.full_like(box[:, :1], number)
        label = each["labels"][kept, None].to(box)
        parts.append(torch.cat([owner, label, (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1))
    return torch.cat(parts)
