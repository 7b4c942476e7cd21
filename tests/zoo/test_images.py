import numpy as np
import pytest
import torch
from PIL import Image

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.images import PixelCache, Sample, list_classes, list_images, normalize, pixels


def picture(width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def decode(image, **geometry):
    full = {"resize": None, "crop": None, "interpolation": "bilinear", "channels": "rgb"} | geometry
    return pixels([Sample("key", 0, lambda: image)], Geometry(**full), PixelCache(0))[0]


def test_all_images_of_a_folder_are_listed_with_the_folder_at_the_top_as_their_class(tmp_path):
    for name in ("b/deep/2.png", "b/1.png", "a/1.JPG", "0.png", ".hidden/1.png", "a/text.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(file.name, file.class_name) for file in list_images(tmp_path)]
    assert found == [("0.png", ""), ("a/1.JPG", "a"), ("b/1.png", "b"), ("b/deep/2.png", "b")]


def test_bgr_reverses_the_channels():
    image = picture(8, 8)
    rgb, bgr = (decode(image, input_size=(3, 8, 8), channels=order) for order in ("rgb", "bgr"))
    assert torch.equal(bgr, rgb.flip(0))


def test_one_channel_is_grey_and_three_are_colour_whatever_the_file_holds():
    assert decode(picture(8, 8), input_size=(1, 8, 8)).shape == (1, 8, 8)
    assert decode(picture(8, 8, "L"), input_size=(3, 8, 8)).shape == (3, 8, 8)


def test_black_and_white_become_the_value_range_before_mean_and_deviation():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert normalize(images, (1.0,), (2.0,), (-1.0, 1.0)).flatten().tolist() == [-1.0, 0.0]


def test_classes_are_listed_by_name_without_hidden_and_other_files(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a/x.jpg", "a/.hidden.png", "a/notes.txt", ".git/y.png", "loose.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in list_classes(tmp_path)] == ["a/x.jpg", "b/10.PNG", "b/2.png"]


TREE = (
    "b/2.png",
    "b/10.PNG",
    "a/x.jpg",
    "a/sub/y.jpg",
    "a/sub/deep/z.png",
    "a/sub-2/y.jpg",
    "a/sub.jpg",
    "c/only/w.bmp",
)


@pytest.mark.parametrize("tree", [TREE[:3], TREE])
def test_images_are_found_in_the_order_of_torchvision_at_any_depth(tmp_path, tree):
    from torchvision.datasets import ImageFolder

    for name in tree:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, theirs = list_classes(tmp_path), ImageFolder(str(tmp_path))
    assert [(str(file.path), file.class_name) for file in found] == [
        (path, theirs.classes[label]) for path, label in theirs.samples
    ]
    assert {file.name for file in found} == set(tree)
    assert len(found) == len(tree)


def test_hidden_folders_in_a_class_are_passed_over(tmp_path):
    for name in ("a/.thumbnails/x.png", "a/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in list_classes(tmp_path)] == ["a/y.png"]


def test_what_lies_below_a_linked_folder_is_listed_as_what_it_means(tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/x.png").touch()
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/link").symlink_to(tmp_path / "elsewhere")
    (file,) = list_classes(tmp_path / "root")
    assert file.name == "a/link/deep/x.png"
    assert file.path == (tmp_path / "elsewhere/deep/x.png").resolve()


def test_a_link_that_leads_back_is_one_clear_line(tmp_path):
    (tmp_path / "a/sub").mkdir(parents=True)
    (tmp_path / "a/sub/again").symlink_to(tmp_path / "a")
    with pytest.raises(ZSQBenchError, match=r"a link in .*/a leads back to this folder; remove the link"):
        list_classes(tmp_path)


def test_a_link_is_listed_as_the_file_that_it_means(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").symlink_to(tmp_path / "real")
    assert list_classes(tmp_path / "root")[0].path == (tmp_path / "real/x.png").resolve()


def test_the_images_that_exif_turns_are_remembered_though_their_pixels_are_not():
    plain, turned = picture(4, 4), picture(4, 4)
    turned.getexif()[274] = 6
    cache = PixelCache(0)
    samples = [Sample("plain", 0, lambda: plain), Sample("turned", 0, lambda: turned)]
    pixels(samples, Geometry((3, 4, 4), None, None, "bilinear", "rgb"), cache)
    assert cache.turned == {"turned"}


def test_the_cache_makes_each_image_once():
    calls = []
    cache = PixelCache(limit=100)
    for _ in range(2):
        cache.get("a", lambda: calls.append(1) or torch.zeros(10, dtype=torch.uint8))
    assert len(calls) == 1


def test_the_cache_forgets_the_longest_unused_when_it_is_full():
    calls = []
    cache = PixelCache(limit=25)

    def get(key):
        cache.get(key, lambda: calls.append(key) or torch.zeros(10, dtype=torch.uint8))

    for key in "abacab":
        get(key)
    assert calls == ["a", "b", "c", "b"]
    assert cache.bytes == 20
