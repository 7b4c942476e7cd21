import numpy as np
import pytest
from PIL import Image

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.imagefiles import eight_bit, is_turned, open_image

GREY = np.array([[0, 1, 100, 128], [129, 200, 254, 255]], np.uint8)
WIDE = GREY.astype(np.uint16) * 257
"""The same shades in 16 bits: 255 becomes 65535."""

TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 262, 339
ORIENTATION = 274


def saved(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def shades(path):
    return np.asarray(open_image(path))


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"not a picture")
    with pytest.raises(ZSQBenchError, match=r"image .*x\.jpg cannot be read"):
        open_image(tmp_path / "x.jpg")


def test_a_truncated_image_is_named(tmp_path):
    saved(tmp_path / "x.png", picture(64, 64))
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    with pytest.raises(ZSQBenchError, match=r"image .*x\.png cannot be read"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.png", {}), ("x.tif", {}), ("x.tif", {"compression": "tiff_lzw"}), ("x.pgm", {})],
)
def test_16_bits_are_scaled_to_8_in_every_format(tmp_path, name, options):
    assert np.array_equal(shades(saved(tmp_path / name, WIDE, **options)), GREY)


def test_16_bits_of_the_other_byte_order_are_scaled(tmp_path):
    image = Image.frombytes("I;16B", (4, 2), WIDE.astype(">u2").tobytes())
    with Image.open(saved(tmp_path / "x.tif", image)) as read:
        assert read.mode == "I;16B"
    assert np.array_equal(shades(tmp_path / "x.tif"), GREY)


def test_16_bits_in_32_are_scaled(tmp_path):
    assert np.array_equal(shades(saved(tmp_path / "x.tif", WIDE.astype(np.int32))), GREY)


def test_a_shade_between_two_becomes_the_nearer_one():
    wide = np.array([[128, 129, 385, 386]], np.uint16)  # 257 is one step
    assert np.asarray(eight_bit(Image.fromarray(wide))).tolist() == [[0, 1, 1, 2]]


def test_white_may_be_zero_and_12_bits_are_scaled_by_theirs(tmp_path):
    assert np.array_equal(shades(saved(tmp_path / "x.tif", WIDE, tiffinfo={TIFF_PHOTOMETRIC: 0})), 255 - GREY)
    image = Image.fromarray(np.array([[0, 16, 2048, 4095]], np.uint16))
    image.tag_v2 = {258: (12,)}  # Pillow reads such files, but writes none
    assert np.asarray(eight_bit(image)).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P", "CMYK", "1"])
def test_images_of_8_bits_stay_as_they_are(mode):
    image = Image.fromarray(GREY).convert(mode)
    assert eight_bit(image) is image


def test_the_colour_below_transparent_pixels_is_taken_as_it_is(tmp_path):
    pixels = np.stack([GREY, GREY, GREY, np.zeros_like(GREY)], -1)
    image = open_image(saved(tmp_path / "x.png", Image.fromarray(pixels, "RGBA")))
    assert np.array_equal(np.asarray(image.convert("L")), GREY)


@pytest.mark.parametrize(
    ("array", "options", "complaint"),
    [
        (GREY.astype(np.float32) / 255, {}, "has floating-point pixels, and the file does not say which is white"),
        (WIDE.astype(np.int32) + 1, {}, r"has pixels from 1 to 65536; expected 0 to 65535"),
        (WIDE.astype(np.int32) - 1, {}, r"has pixels from -1 to 65534; expected 0 to 65535"),
        (GREY.astype(np.int32), {}, r"has 32-bit pixels of 255 at most, so white may be 255 or 65535"),
        (WIDE // 2, {"tiffinfo": {TIFF_SAMPLE_FORMAT: 2}}, "has signed 16-bit pixels"),
    ],
)
def test_pixels_whose_white_nobody_knows_are_refused_in_one_line(tmp_path, array, options, complaint):
    path = saved(tmp_path / "x.tif", array, **options)
    with pytest.raises(ZSQBenchError, match=rf"image .*x\.tif {complaint}.* save it with 8 bits") as raised:
        open_image(path)
    assert "\n" not in str(raised.value)


def with_orientation(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_turns_no_image_and_what_it_says_is_known(tmp_path, suffix):
    for value, turned in ((6, True), (3, True), (1, False)):
        image = open_image(saved(tmp_path / f"{value}.{suffix}", picture(6, 4), exif=with_orientation(value)))
        assert (image.size, is_turned(image)) == ((6, 4), turned)


def test_pillow_turns_tiff_files_as_torchvision_and_timm_see_them(tmp_path):
    image = open_image(saved(tmp_path / "x.tif", picture(6, 4), exif=with_orientation(6)))
    assert (image.size, is_turned(image)) == ((4, 6), False)


def test_16_bits_keep_what_exif_says(tmp_path):
    assert is_turned(open_image(saved(tmp_path / "x.png", WIDE, exif=with_orientation(6))))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_exif_that_is_broken_turns_nothing_and_stops_nothing(tmp_path, exif):
    assert not is_turned(open_image(saved(tmp_path / "x.png", picture(6, 4), exif=exif)))
