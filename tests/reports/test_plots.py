import math

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn

from zsqbench import CalibrationSet, Pretrained
from zsqbench.methods import open_attention
from zsqbench.reports.plots import Looks, PixelSpace, attention_figure, diagnostics_figure, image_grid
from zsqbench.synthesis import diagnose
from zsqbench.testing import tiny_transformer


@pytest.mark.parametrize(
    ("shape", "size"),
    [((10, 3, 8, 8), (504, 378)), ((1, 1, 32, 32), (495, 495)), ((70, 3, 224, 224), (1024, 1024))],
)
def test_an_image_grid_has_a_size_that_can_be_looked_at(shape, size):
    channels = shape[1]
    grid = image_grid(np.zeros(shape, np.float32), PixelSpace([0.0] * channels, [1.0] * channels, (0.0, 1.0)))
    assert (grid.size, grid.mode) == (size, "RGB")


def test_images_are_shown_as_they_were_before_they_were_normalised():
    # (x - 0.5) / 0.25 of black, of half grey, of something brighter than white, and of what is no number
    images = np.array([-2.0, 0.0, 3.0, np.nan], np.float32).reshape(1, 1, 2, 2)
    grid = np.asarray(image_grid(images, PixelSpace([0.5], [0.25], (0.0, 1.0))))
    scale = len(grid) // 3  # a border on two sides
    assert grid[::scale, ::scale, 0][:2, :2].tolist() == [[0, 128], [255, 128]]


def test_a_value_range_may_be_another_one():
    grid = image_grid(np.array([-1.0], np.float32).reshape(1, 1, 1, 1), PixelSpace([0.0], [127.5], (-127.5, 127.5)))
    assert np.asarray(grid)[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("channels", "expected"), [("rgb", [255, 0, 0]), ("bgr", [0, 0, 255])])
def test_colours_are_those_of_the_networks_channels(channels, expected):
    images = np.array([1.0, 0.0, 0.0], np.float32).reshape(1, 3, 1, 1)
    assert (
        np.asarray(image_grid(images, PixelSpace([0.0] * 3, [1.0] * 3, (0.0, 1.0), channels)))[0, 0].tolist()
        == expected
    )


def network(classes):
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)]
    return Pretrained(nn.Sequential(*layers).eval(), (1, 4, 4), (0.0,), (1.0,), classes=classes)


@parametrize_briefly("classes", [3, 100], 2)
@pytest.mark.parametrize("real", [True, False])
def test_all_plots_are_drawn(classes, real, tmp_path):
    images = CalibrationSet(torch.randn(6, 1, 4, 4))
    data = diagnose(network(classes), images, images if real else None).as_data()
    figure = diagnostics_figure(data, "a set")
    figure.savefig(tmp_path / "plots.png")
    assert all(axes.has_data() and axes.get_ylabel() for axes in figure.axes)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["calibration set", "real images"][: 1 + real]


def test_what_is_absent_says_why_in_its_place(tmp_path):
    teacher = Pretrained(nn.Sequential(nn.Flatten()).eval(), (1, 4, 4), (0.0,), (1.0,))
    data = diagnose(teacher, CalibrationSet(torch.full((2, 1, 4, 4), torch.nan))).as_data()
    figure = diagnostics_figure(data, "a set")
    figure.savefig(tmp_path / "plots.png")
    texts = [" ".join(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert [texts[1], texts[2]] == ["the network is no classifier"] * 2
    assert "no batch\nnormalisation" in texts[3] or "no batch normalisation" in texts[3]


def transformed():
    """Diagnostics of a network without batch normalisation, and its maps."""
    teacher = tiny_transformer()
    images = CalibrationSet(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return diagnose(teacher, images, images, "", open_attention(teacher))


def test_a_network_without_batch_normalisation_has_entropies_in_the_place_of_gaps():
    data = transformed().as_data()
    axes = diagnostics_figure(data, "a set").axes[3]
    assert (axes.get_title(), axes.get_ylabel()) == ("patch similarity", "entropy of patch similarities")
    assert len(axes.lines) == 2
    assert axes.lines[0].get_ydata().tolist() == [each["entropy"] for each in data["set"]["patch_similarities"]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["blocks.0", "blocks.1"]


def looks(maps, heading="a set", side=8):
    return Looks(heading, np.full((len(maps), 3, side, side), 7, np.uint8), np.asarray(maps, np.float32))


def test_maps_lie_below_their_images_from_dark_to_bright(tmp_path):
    sides = [looks([[[0.0, 0.2], [0.1, 0.4]], [[1.0, 1.0], [1.0, 1.0]]]), looks([[[2.0, 1.0], [1.0, 1.0]]], "real")]
    figure = attention_figure(sides, "a title")
    figure.savefig(tmp_path / "attention.png")
    above, below, *_, last = figure.axes
    assert (above.get_title("left"), figure.axes[2].get_title("left")) == ("a set", "real")
    assert above.images[0].get_array().shape == (8, 16, 3)
    shown = below.images[0].get_array()
    assert (shown.shape, shown[0, 0], shown[7, 7]) == ((8, 16), 0.0, 1.0)
    assert shown[7, 0] == pytest.approx(0.25)
    assert (shown[:, 8:] == 0).all()  # a map that is the same everywhere
    blank = last.images[0].get_array()
    assert (blank[0, 0], np.ma.getmaskarray(blank)[:, 8:].all()) == (1.0, True)  # the set has one more image


def test_maps_that_are_not_finite_are_blank(tmp_path):
    figure = attention_figure([looks([[[math.nan, 1.0], [0.0, 1.0]]])], "a title")
    figure.savefig(tmp_path / "attention.png")
    assert np.ma.getmaskarray(figure.axes[1].images[0].get_array()).all()


def test_equal_diagnostics_are_equal_files(tmp_path):
    images = CalibrationSet(torch.randn(6, 1, 4, 4))
    data = diagnose(network(3), images).as_data()
    for name in ("one", "other"):
        diagnostics_figure(data, "a set").savefig(tmp_path / f"{name}.png", metadata={"Software": None})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_many_layers_are_thinned_and_long_names_cut():
    data = diagnose(network(3), CalibrationSet(torch.randn(6, 1, 4, 4))).as_data()
    data["set"]["bn_gaps"] = [{"layer": f"{'block.' * 9}{i}", "gap": 1.0, "mean": 1.0, "std": 0.0} for i in range(100)]
    *_, axes = diagnostics_figure(data, "a set").axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert (len(names), max(map(len, names))) == (34, 22)
