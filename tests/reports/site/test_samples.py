import pytest
from PIL import Image

from zsqbench.reports.site.flips import Flip, Flips
from zsqbench.reports.site.samples import SHOWN, SIDE, flip_pictures
from zsqbench.reports.site.source import Viewer

CLASSES = ("cat", "dog", "owl")


def viewer(size=(8, 8), mode="RGB", classes=CLASSES):
    return Viewer(lambda place: Image.new(mode, size, place), classes, "d" * 64)


def flips(lost=(), won=()):
    return Flips(tuple(lost), tuple(won), len(lost), len(won), 100)


@pytest.mark.parametrize(
    ("flip", "words"),
    [
        (Flip(7, 0, 0, 1), "7: cat, not dog"),
        (Flip(7, 0, 0, None), "7: cat"),
        (Flip(7, 0, 0, -1), "7: cat"),
        (Flip(7, None, None, None), "7"),
        (Flip(7, 5, 5, 6), "7: 5, not 6"),
    ],
)
def test_the_words_say_what_a_sample_is_and_for_what_it_is_taken(flip, words):
    (picture,) = flip_pictures(flips([flip]), viewer())
    assert picture.name == words


def test_a_sample_that_is_right_now_says_for_what_it_was_taken():
    (picture,) = flip_pictures(flips(won=[Flip(7, 0, 2, 0)]), viewer())
    assert picture.name == "7: cat, no longer owl"


def test_the_first_of_each_kind_have_a_picture_that_cells_share():
    found = flips([Flip(at, 0, 0, 1) for at in range(50)], [Flip(60, 0, 1, 0)])
    pictures = flip_pictures(found, viewer())
    assert [picture.file for picture in pictures] == [
        *(f"pictures/evaluated-{'d' * 12}-{at}.jpg" for at in range(SHOWN)),
        f"pictures/evaluated-{'d' * 12}-60.jpg",
    ]


@pytest.mark.parametrize(("size", "expected"), [((8, 4), (SIDE, SIDE // 2)), ((500, 1000), (SIDE // 2, SIDE))])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_picture_keeps_its_shape_at_a_size_that_can_be_seen(size, expected, mode, tmp_path):
    (picture,) = flip_pictures(flips([Flip(0, 0, 0, 1)]), viewer(size, mode))
    picture.save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as saved:
        assert (saved.size, saved.format) == (expected, "JPEG")
