import numpy as np
import pytest

from zsqbench.zoo import matches
from zsqbench.zoo.coco import Detections, coco_evaluation

CATEGORIES, IMAGES = (3, 5, 9), 6


def drawn(seed):
    """Random boxes to be found, some of them crowds, and boxes found, with scores that tie between images; by image."""
    draws = np.random.default_rng(seed)
    truth, found = {}, {}
    for image in range(IMAGES):
        corners = draws.integers(0, 60, size=(draws.integers(0, 6), 2))
        truth[image] = [
            {
                "category_id": int(draws.choice(CATEGORIES[:2])),
                "bbox": [*map(int, corner), 20, 20],
                "iscrowd": int(crowd),
            }
            for corner, crowd in zip(corners, draws.random(len(corners)) < 0.2, strict=True)
        ]
        near = [np.add(each["bbox"][:2], draws.integers(-4, 5, size=2)) for each in truth[image] for _ in range(2)]
        places = [*near, *draws.integers(0, 60, size=(3, 2))]
        found[image] = [
            (int(draws.choice(CATEGORIES)), [*map(float, place), 20.0, 20.0], (score + 1) / 16)
            for place, score in zip(places, draws.permutation(16), strict=False)
        ]
    return truth, found


def evaluated(truth, found, images):
    """COCOeval's figures and matches of these images, each as often as it is named."""
    boxes = [{**each, "image_id": at, "area": 400} for at, image in enumerate(images) for each in truth[image]]
    rows = [(at, *each) for at, image in enumerate(images) for each in found[image]]
    numbers, categories, places, scores = zip(*rows, strict=True)
    return coco_evaluation(
        {
            "images": [{"id": at, "width": 80, "height": 80} for at in range(len(images))],
            "categories": [{"id": number, "name": str(number)} for number in CATEGORIES],
            "annotations": [{"id": number, **each} for number, each in enumerate(boxes, start=1)],
        },
        Detections(np.array(numbers), np.array(categories), np.float32(places), np.float32(scores)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_images_that_count_once_give_cocoevals_figures(seed):
    figures, found = evaluated(*drawn(seed), range(IMAGES))
    again = found.average_precisions(np.ones((2, IMAGES), dtype=np.int32))
    assert figures["mAP"] > 1
    for name in ("mAP", "mAP50"):
        assert again[name] == pytest.approx([figures[name]] * 2, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_images_that_count_several_times_give_the_figures_of_their_copies(seed, monkeypatch):
    monkeypatch.setattr(matches, "BLOCK", 50)  # so that rows are computed in several blocks
    data = drawn(seed)
    _, found = evaluated(*data, range(IMAGES))
    weights = np.random.default_rng(seed).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=5)
    again = found.average_precisions(weights)
    for at, row in enumerate(weights):
        figures, _ = evaluated(*data, np.repeat(np.arange(IMAGES), row))
        assert again["mAP"][at] == pytest.approx(figures["mAP"], abs=1e-9)
        assert again["mAP50"][at] == pytest.approx(figures["mAP50"], abs=1e-9)


def test_a_category_that_the_drawn_images_do_not_have_does_not_count():
    box = {"bbox": [0, 0, 20, 20], "iscrowd": 0}
    truth = {0: [box | {"category_id": 3}], 1: [box | {"category_id": 5}]}
    found = {0: [(3, [0.0, 0.0, 20.0, 20.0], 0.9)], 1: [(3, [0.0, 0.0, 20.0, 20.0], 0.8)]}
    _, both = evaluated(truth, found, (0, 1))
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    assert both.average_precisions(weights)["mAP"] == pytest.approx([50, 100, 0])


def test_without_a_box_to_be_found_there_is_no_figure():
    found = {0: [(3, [0.0, 0.0, 20.0, 20.0], 0.9)]}
    figures, none = evaluated({0: []}, found, (0,))
    assert "mAP" not in figures
    assert np.isnan(none.average_precisions(np.ones((1, 1), dtype=np.int32))["mAP"]).all()
