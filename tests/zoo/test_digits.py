import numpy as np
import torch
from safetensors.numpy import load_file

from zsqbench.zoo import digits


def test_images_are_in_0_to_1_and_labels_are_digits():
    images, labels = digits.load_digits("test")
    assert images.dtype == torch.float32
    assert images.shape == (900, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_the_two_parts_are_scikit_learns_digits_without_an_image_in_both():
    from sklearn.datasets import load_digits

    tensors = load_file(digits.FILE)
    images = np.concatenate([tensors["train_images"], tensors["test_images"]]).reshape(-1, 64)
    labels = np.concatenate([tensors["train_labels"], tensors["test_labels"]])
    original = load_digits()
    rows = sorted(map(tuple, np.column_stack([images, labels]).tolist()))
    assert rows == sorted(map(tuple, np.column_stack([original.data, original.target]).astype(int).tolist()))


def test_each_digit_is_about_as_frequent_in_both_parts():
    counts = [torch.bincount(digits.load_digits(part)[1]) for part in ("train", "test")]
    assert (counts[0] - counts[1]).abs().max() <= 3
