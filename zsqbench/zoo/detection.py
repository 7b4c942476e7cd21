"""The training loss and the boxes of a detector. Its task hands them out for methods that train on boxes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""Height and width of the network's input images, in pixels."""


@dataclass(frozen=True)
class Detection:
    """The training loss of a detector, and the reading of boxes from its outputs.

    Both functions read raw outputs on any device, of the network or its student, for images of any size. All other data
    is an argument. So a network stays in eval mode for its loss.
    """

    labels: tuple[int, ...]
    """All labels that a box may have."""
    training_loss: "Callable[[Any, Size, Sequence[Mapping[str, Tensor]]], Tensor]"
    """The training loss of the detector, a scalar. Arguments: raw outputs, the size of their images, and for each image
    `boxes` [K, 4] (left, top, right, bottom in pixels of that size, wider and higher than 0) and `labels` [K] (int64).
    K may be 0. It is differentiable once with respect to the outputs."""
    decode: "Callable[[Any, Size, float, float], Sequence[Mapping[str, Tensor]]]"
    """For each image `boxes` [K, 4] in pixels of that size, `scores` [K] and `labels` [K]. Scores are above the first
    number. Boxes of one label with an intersection over union above the second number are suppressed. A detector whose
    own suppression cannot be changed keeps its own number."""
