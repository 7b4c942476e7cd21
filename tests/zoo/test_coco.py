import numpy as np
import pytest
from annotations import content, write

from zsqbench.zoo import coco
from zsqbench.zoo.coco import FIGURES, BoxesAlone, Detections, coco_figures
from zsqbench.zoo.instances import Instances


def detections(*rows):
    """Each row: image, category, box (left, top, width, height), score."""
    images, categories, boxes, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Detections(
        np.array(images, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
    )


def test_figures_are_those_of_pycocotools(golden):
    stored = golden("coco_eval_a")
    fields = {"image_id": "image_id", "category_id": "category_id", "bbox": "bbox_xywh", "area": "area"}
    columns = [stored[f"gt_{name}"].tolist() for name in (*fields.values(), "iscrowd")]
    truth = {
        "images": [{"id": int(number)} for number in stored["image_ids"]],
        "categories": [{"id": int(number), "name": str(number)} for number in stored["category_ids"]],
        "annotations": [
            {"id": number, **dict(zip((*fields, "iscrowd"), values, strict=True))}
            for number, values in enumerate(zip(*columns, strict=True), start=1)
        ],
    }
    found = Detections(stored["dt_image_id"], stored["dt_category_id"], stored["dt_bbox_xywh"], stored["dt_score"])
    expected = dict(zip(FIGURES, 100 * stored["stats"], strict=True))
    assert coco_figures(truth, found) == pytest.approx(expected, abs=1e-7)
    evaluation = coco._evaluated(truth, found, categories=True).eval
    precision = evaluation["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(precision, stored["precision_all_area_maxdet100"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(evaluation["recall"], stored["recall"], rtol=0, atol=1e-9)
    by_class = [precision.mean((0, 1)), precision[0].mean(0)]
    np.testing.assert_allclose(by_class, stored["per_class_ap_and_ap50"], rtol=0, atol=1e-9)


def test_a_perfect_detector_has_all_and_one_that_finds_nothing_none(tmp_path):
    instances = Instances.read(write(tmp_path, content()))
    truth = instances.of(instances.images)
    perfect = coco_figures(truth, detections((7, 3, (1, 2, 5, 6), 0.9)))
    assert perfect["mAP"] == pytest.approx(100)
    assert "mAP_large" not in perfect  # there is no such box
    assert coco_figures(truth, detections())["mAP"] == 0


def test_images_without_annotations_stay_in_and_cost_false_boxes(tmp_path):
    images = [*content()["images"], {"id": 8, "file_name": "a.png", "width": 20, "height": 10}]
    instances = Instances.read(write(tmp_path, content(images=images)))
    assert [image.id for image in instances.images] == [7, 8]
    right, wrong = (7, 3, (1, 2, 5, 6), 0.5), (8, 3, (1, 2, 5, 6), 0.9)
    assert coco_figures(instances.of(instances.images), detections(right, wrong))["mAP"] == pytest.approx(50)
    assert coco_figures(instances.of(instances.images[:1]), detections(right, wrong))["mAP"] == pytest.approx(100)


def test_annotations_may_be_numbered_from_0(tmp_path):
    first = content()["annotations"][0]
    two = [first | {"id": 0}, first | {"id": 1, "bbox": [10, 2, 5, 6]}]
    instances = Instances.read(write(tmp_path, content(annotations=two)))
    found = detections((7, 3, (1, 2, 5, 6), 0.9), (7, 3, (10, 2, 5, 6), 0.8))
    assert coco_figures(instances.of(instances.images), found)["mAP"] == pytest.approx(100)


def many(shift):
    """Ten images with two boxes each, of categories 3 and 4, and what a perfect detector with other labels finds."""
    images = [{"id": number, "width": 20, "height": 10} for number in range(1, 11)]
    boxes = [(image["id"], 3 + place, (1 + 9 * place, 2, 5, 6)) for image in images for place in (0, 1)]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": 30, "iscrowd": 0}
        for number, (image, category, box) in enumerate(boxes, start=1)
    ]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 3}, {"id": 4}, {"id": 5}]}
    return truth, [(image, category + shift, box, 0.9) for image, category, box in boxes]


@pytest.mark.parametrize(("shift", "right"), [(0, 20), (1, 0), (-1, 0)])
def test_labels_that_are_all_off_by_one_are_chance_and_boxes_alone_are_as_good_as_ever(shift, right):
    truth, rows = many(shift)
    alone = BoxesAlone.of(truth, detections(*rows))
    assert alone == BoxesAlone(pytest.approx(100), 20, right)
    assert alone.labels_are_chance == (right == 0)


def test_crowds_count_for_no_label():
    truth, rows = many(1)
    for annotation in truth["annotations"][:5]:
        annotation["iscrowd"] = 1
    assert BoxesAlone.of(truth, detections(*rows)).matched == 15


@pytest.mark.parametrize(
    ("alone", "chance"),
    [
        (BoxesAlone(35.2, 193, 142), False),
        (BoxesAlone(33.2, 182, 9), True),  # a real detector, with numbers that are one too large
        (BoxesAlone(50.0, 100, 10), True),
        (BoxesAlone(50.0, 100, 11), False),
        (BoxesAlone(50.0, 9, 0), False),  # too few to say so
        (BoxesAlone(4.9, 100, 0), False),  # it does not find boxes either
    ],
)
def test_labels_are_chance_where_boxes_are_found_and_a_tenth_of_the_labels_is_right_at_most(alone, chance):
    assert alone.labels_are_chance == chance


def test_a_detector_that_finds_nothing_has_no_labels():
    truth, _ = many(0)
    assert BoxesAlone.of(truth, detections()) == BoxesAlone(0, 0, 0)
