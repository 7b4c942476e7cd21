import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from zsqbench.zoo import scenes
from zsqbench.zoo.instances import Instances

PARTS = ("val", "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write_scenes(folder)
    return folder


@pytest.mark.slow("it draws all scenes")
def test_scenes_are_the_same_on_every_machine(folder):
    """Results stand on them: where this changes, raise VERSION and train anew."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".png":
            with Image.open(path) as image:
                digest.update(image.tobytes())
        else:
            digest.update(path.read_bytes())
    assert scenes.VERSION == 1
    assert digest.hexdigest()[:16] == "f43ca1d3c3e9dc4c"


@pytest.mark.parametrize(("name", "part"), [("val", "test"), ("train", "train")])
def test_evaluated_scenes_show_the_test_part_and_others_the_train_part(name, part, monkeypatch):
    asked, load = [], scenes.load_digits
    monkeypatch.setattr(scenes, "load_digits", lambda part: asked.append(part) or load(part))
    scenes._digits.cache_clear()
    next(scenes.fixed_scenes(name))
    assert asked == [part]


@pytest.mark.parametrize("name", PARTS)
def test_annotations_are_valid_and_of_the_images_that_are_there(folder, name):
    instances = Instances.read(folder / "annotations" / f"instances_{name}.json")
    assert [image.name for image in instances.images] == sorted(path.name for path in (folder / name).iterdir())
    assert len(instances.images) == 200
    assert [(each.id, each.name) for each in instances.categories] == [(n + 1, str(n)) for n in range(10)]
    assert {each.category_id for each in instances.annotations} == set(range(1, 11))
    counts = np.bincount([each.image_id for each in instances.annotations])[1:]
    assert (counts.min(), counts.max(), len(counts)) == (1, 6, 200)


def test_files_hold_the_scenes(folder):
    content = json.loads((folder / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    for number, (pixels, found) in zip(range(1, 4), scenes.fixed_scenes("val"), strict=False):
        with Image.open(folder / "val" / f"{number:04}.png") as image:
            assert (np.asarray(image) == pixels).all()
        written = [each for each in content["annotations"] if each["image_id"] == number]
        assert [each["category_id"] - 1 for each in written] == [digit for digit, _ in found]
        assert [each["bbox"] for each in written] == [[x, y, r - x, b - y] for _, (x, y, r, b) in found]


def test_boxes_are_inside_and_overlap_little():
    for pixels, found in scenes.fixed_scenes("val"):
        assert pixels.shape == (96, 96, 3)
        boxes = [box for _, box in found]
        assert all(0 <= x < r <= 96 and 0 <= y < b <= 96 for x, y, r, b in boxes)
        for place, one in enumerate(boxes):
            for other in boxes[:place]:
                assert scenes._common(one, other) <= 0.1 * min(scenes._area(one), scenes._area(other))


def test_boxes_are_tight_around_what_is_visible(monkeypatch):
    """On black, without noise and with white digits, the rim of each box has a pixel that is bright enough."""
    monkeypatch.setattr(scenes, "_background", lambda _: np.zeros((96, 96, 3)))
    monkeypatch.setattr(scenes, "_colour", lambda *_: np.ones(3))
    monkeypatch.setattr(scenes, "_NOISE", 0)
    monkeypatch.setattr(scenes, "OVERLAP", 0)
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        pixels, found = scenes.render_scene(rng, "train")
        for _, (left, top, right, bottom) in found:
            visible = pixels[top:bottom, left:right, 0] >= scenes.VISIBLE * 255 - 1
            assert all(rim.any() for rim in (visible[0], visible[-1], visible[:, 0], visible[:, -1]))
            pixels[top:bottom, left:right] = 0
        assert not pixels.any()


@pytest.fixture
def _few(monkeypatch):
    """Writing has one image of each part."""
    monkeypatch.setattr(scenes, "_NAMES", {name: (part, 1) for name, (part, _) in scenes._NAMES.items()})


@pytest.mark.usefixtures("_few")
def test_a_folder_that_is_there_already_stays_and_nothing_is_left_beside_it(folder):
    (folder / "mark").touch()
    scenes.write_scenes(folder)
    assert (folder / "mark").exists()
    (folder / "mark").unlink()
    assert [path.name for path in folder.parent.iterdir()] == ["scenes"]


@pytest.mark.usefixtures("_few")
def test_an_error_that_leaves_no_folder_is_told(tmp_path):
    (tmp_path / "scenes").touch()
    with pytest.raises(NotADirectoryError):
        scenes.write_scenes(tmp_path / "scenes")
