import json

import numpy as np
import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.coco import FIGURES, Detections, Instances, coco_figures


def content(**changed):
    return {
        "images": [{"id": 7, "file_name": "b.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    } | changed


def write(folder, text):
    path = folder / "instances.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


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


ANNOTATION = content()["annotations"][0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(content())[:100], r"instances.json \(100 bytes\) are no JSON: .* copy the file again"),
        ("[]", "have no list 'images'; expected COCO's instances format"),
        ({name: value for name, value in content().items() if name != "categories"}, "have no list 'categories'"),
        (content(images=[]), "lists no images"),
        (content(categories=[]), "lists no categories"),
        (content(images=[{"id": 7}]), "needs numbers 'id', 'width' and 'height' and a 'file_name'"),
        (content(images=[{"id": 7, "file_name": "../b.png", "width": 1, "height": 1}]), "leaves the folder"),
        (content(images=2 * content()["images"]), "image 7 is there twice"),
        (
            content(annotations=[{"id": 1}]),
            "annotation .* needs numbers 'id', 'image_id' and",
        ),
        (content(annotations=[ANNOTATION | {"image_id": 8}]), "annotation 1 is of image 8, which is not in the list"),
        (content(annotations=[ANNOTATION | {"category_id": 4}]), "annotation 1 is of category 4, which is not in"),
        (content(annotations=[ANNOTATION | {"bbox": [1, 2, 30, 6]}]), "outside of image 7, which is 20 x 10 pixels"),
        (content(annotations=[ANNOTATION | {"bbox": [-5, 2, 6, 6]}]), "outside of image 7"),
        (content(annotations=[ANNOTATION | {"bbox": [1, 2, -1, 6]}]), "outside of image 7"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path, text, complaint):
    with pytest.raises(ZSQBenchError, match=complaint) as raised:
        Instances.read(write(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert "instances.json" in str(raised.value)
