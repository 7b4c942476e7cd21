"""The training loss and the boxes of a detector, which its task hands out for methods that train on boxes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""Height and width of the images that a network was given, in pixels."""


@dataclass(frozen=True)
class Detection:
    """How a detector learns boxes and how they are read from its outputs, whoever computed these.

    Both read raw outputs on any device, of the network, of its student, or of images of another size than usual, and
    are handed what they need besides. So no network leaves eval mode for its loss.
    """

    labels: tuple[int, ...]
    """All labels that a box may have."""
    training_loss: "Callable[[Any, Size, Sequence[Mapping[str, Tensor]]], Tensor]"
    """The loss that the detector was trained with, a scalar: of raw outputs, the size of the images that they are of,
    and for each image `boxes` [K, 4] (left, top, right, bottom in pixels of that size, wider and higher than 0) and
    `labels` [K] (int64); K may be 0. Differentiable once with respect to the outputs."""
    decode: "Callable[[Any, Size, float, float], Sequence[Mapping[str, Tensor]]]"
    """For each image `boxes` [K, 4] in pixels of that size, `scores` [K] and `labels` [K]: those whose score is above
    the first number, after suppression of boxes of one label whose intersection over union is above the second. A
    detector whose own suppression cannot be told takes that."""
