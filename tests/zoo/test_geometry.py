import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.geometry import Geometry, mean_colour, side
from zsqbench.zoo.images import PixelCache, Sample, normalize, pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(50, 40), (40, 50), (33, 33), (20, 90), (64, 43), (9, 11)]


def picture(width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def applied(image, input_size, **fields):
    """uint8 [C, H, W]."""
    full = {"resize": None, "crop": None, "interpolation": "bilinear", "channels": "rgb"} | fields
    return pixels([Sample("key", 0, lambda: image)], Geometry(input_size, **full), PixelCache(0))[0]


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 33), (20, 90), (64, 43), (55, 36)])
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (32, 32), (20, 32), (None, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_are_torchvisions(size, resize, crop, interpolation):
    image = picture(*size)
    found = applied(image, (3, 32, 32), resize=resize, crop=crop, interpolation=interpolation)
    if resize is not None:
        image = functional.resize(image, [resize], functional.InterpolationMode(interpolation))
    assert torch.equal(found, functional.pil_to_tensor(functional.center_crop(image, [crop])))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_each_crop_mode_is_timms_own_transform(mode):
    transforms = pytest.importorskip("timm.data", reason="timm is not installed, so there is nothing to compare with")
    fill = mean_colour(MEAN, (0.0, 1.0), "rgb") if mode == "border" else ()
    for size, target, percent in itertools.product(SIZES, [(32, 32), (32, 24), (16, 40)], [1.0, 0.9, 0.875]):
        theirs = transforms.create_transform(
            (3, *target), interpolation="bicubic", mean=MEAN, std=STD, crop_pct=percent, crop_mode=mode
        )
        resize = side(*(math.floor(length / percent) for length in target))
        fields = {"resize": resize, "crop": side(*target), "interpolation": "bicubic", "crop_mode": mode, "fill": fill}
        ours = applied(picture(*size), (3, *target), **fields)
        found = normalize(ours[None], MEAN, STD, (0.0, 1.0))[0]
        assert torch.equal(found, theirs(picture(*size))), (size, target, percent)


RAMP = Image.fromarray(np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10))
"""Ten pixels wide and six high: 0, 4, ... 36; 40, ... 76; and so on."""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"resize": 6, "crop": 4, "crop_mode": "squash"},
            [[48, 55, 61, 68], [88, 95, 101, 108], [128, 135, 141, 148], [168, 175, 181, 188]],
        ),
        (
            {"resize": (8, 4), "crop": (4, 2), "crop_mode": "squash"},
            [[68, 78], [98, 108], [128, 138], [158, 168]],
        ),
        (
            {"resize": 4, "crop": 4, "crop_mode": "border", "fill": (64,)},
            [[64, 64, 64, 64], [48, 58, 68, 78], [158, 168, 178, 188], [64, 64, 64, 64]],
        ),
        (
            {"resize": (3, 5), "crop": (3, 5), "crop_mode": "border", "fill": (64,)},
            [[24, 32, 40, 48, 56], [102, 110, 118, 126, 134], [180, 188, 196, 204, 212]],
        ),
        (
            {"resize": (8, 4), "crop": (6, 3), "crop_mode": "center"},
            [[37, 40, 43], [70, 73, 76], [100, 103, 106], [130, 133, 136], [160, 163, 166], [193, 196, 199]],
        ),
    ],
)
def test_each_crop_mode_gives_the_numbers_that_timm_1_0_gave(fields, expected):
    """The values are those of timm 1.0.31's own transforms, for those who do not have it installed."""
    found = applied(RAMP, (1, len(expected), len(expected[0])), interpolation="bicubic", **fields)[0]
    assert found.tolist() == expected


def test_the_border_has_the_colour_that_becomes_zero_whatever_range_and_channel_order():
    assert mean_colour(MEAN, (0.0, 1.0), "rgb") == (124, 116, 104)
    assert mean_colour(MEAN, (0.0, 1.0), "bgr") == (104, 116, 124)
    assert mean_colour((127.5,), (0.0, 255.0), "rgb") == (128,)
    assert mean_colour((0.0, -2.0, 2.0), (-1.0, 1.0), "rgb") == (128, 0, 255)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_border_of_a_picture_is_about_zero_for_the_network(channels):
    fill = mean_colour(MEAN, (0.0, 1.0), channels)
    fields = {"resize": 8, "crop": 8, "crop_mode": "border", "fill": fill, "channels": channels}
    found = normalize(applied(picture(8, 2), (3, 8, 8), **fields)[None], MEAN, STD, (0.0, 1.0))
    assert found[0, :, :3].abs().max() < 0.01


def test_a_picture_of_one_line_keeps_a_line():
    assert applied(picture(200, 1), (3, 8, 8), resize=8, crop=8, crop_mode="border").shape == (3, 8, 8)


def test_an_image_of_another_size_is_told_with_what_to_set():
    with pytest.raises(ZSQBenchError, match=r"9 x 8 pixels became 9 x 8 .* takes 8 x 8; set the model's resize"):
        applied(picture(9, 8), (3, 8, 8))
    with pytest.raises(ZSQBenchError, match=r"became 6 x 4 \(resize: 4 high, 6 wide, crop: none\), but .* takes 4 x 6"):
        applied(picture(9, 8), (3, 6, 4), resize=(4, 6), crop_mode="squash")
