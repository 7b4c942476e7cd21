"""The embedded data: scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits, its test set).

1,797 grey images of 8x8 pixels in 17 levels. The file fixes the split: 897 images for training and calibration, 900 for
evaluation. Both have about the same number of each digit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

FILE = Path(__file__).with_name("digits.safetensors")
"""uint8 `train_images` and `test_images` [N, 8, 8] with values 0..16, uint8 `train_labels` and `test_labels` [N]."""

CLASSES = 10
IMAGES = {"train": 897, "test": 900}
"""Number of images of each part."""
WHITE = 16
"""The largest pixel value of the file."""


def load_digits(part: Literal["train", "test"]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Images, float32 [N, 1, 8, 8] in 0..1, and labels, int64 [N]."""
    from safetensors.torch import load

    tensors = load(FILE.read_bytes())  # with Python's open, which the harness watches while a method runs
    return tensors[f"{part}_images"].float().div(WHITE).unsqueeze(1), tensors[f"{part}_labels"].long()
