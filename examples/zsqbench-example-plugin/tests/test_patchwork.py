"""Tests of patchwork: that it keeps the contract, and its formula against values that were worked out by hand."""

import pytest
import torch

import zsqbench
from zsqbench.testing import check_generator, context, tiny_teacher
from zsqbench_example_plugin.patchwork import Patchwork, paste_windows


def test_it_keeps_the_contract():
    check_generator(Patchwork(images=6, batch_size=4, iterations=4))


def test_each_image_gets_the_window_of_the_one_before_it_and_its_share_of_the_label():
    images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).repeat(1, 1, 2, 4)
    labels = torch.eye(2)
    paste_windows(images, labels, torch.tensor([[0, 0], [1, 3]]), side=1)
    assert images[0, 0].tolist() == [[2, 1, 1, 1], [1, 1, 1, 1]]
    assert images[1, 0].tolist() == [[2, 2, 2, 2], [2, 2, 2, 1]]
    assert labels.tolist() == [[0.875, 0.125], [0.125, 0.875]]


def test_labels_are_probabilities_of_two_classes_at_most():
    made = Patchwork(images=8, iterations=2).generate(tiny_teacher(), context())
    assert made.labels is not None
    torch.testing.assert_close(made.labels.sum(1), torch.ones(8))
    assert (made.labels > 0).sum(1).max() <= 2


def test_the_side_of_windows_is_half_of_the_image_unless_it_is_given():
    ctx = context()
    teacher = tiny_teacher()
    assert (Patchwork().resolved(teacher).side, Patchwork(side=3).resolved(teacher).side) == (4, 3)
    Patchwork(images=2, iterations=1).generate(teacher, ctx)
    assert ctx.reporter.notes == ["windows of 4 x 4 pixels are 25 % of an image and of its label"]


def test_a_window_that_is_larger_than_the_image_is_refused():
    with pytest.raises(zsqbench.ZSQBenchError, match="windows of side 9, and images are 8 x 8 pixels"):
        Patchwork(side=9).generate(tiny_teacher(), context())


def test_images_come_nearer_to_the_statistics():
    ctx = context()
    Patchwork(images=8, iterations=30).generate(tiny_teacher(), ctx)
    curve = [value for _, value in ctx.reporter.curves["bn_loss"]]
    assert curve[-1] < curve[0] / 2
