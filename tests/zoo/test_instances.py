import json

import pytest
from annotations import content, write

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.instances import Instances

ANNOTATION, IMAGE = content()["annotations"][0], content()["images"][0]
BEYOND = 2**63


def with_annotation(**changed):
    return content(annotations=[ANNOTATION | changed])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(content())[:100], r"instances.json \(100 bytes\) are not JSON: .* copy the file again"),
        ("[]", "have no list 'images'; expected COCO's instances format"),
        ({name: value for name, value in content().items() if name != "categories"}, "have no list 'categories'"),
        (content(images=[]), "lists no images"),
        (content(categories=[]), "lists no categories"),
        (content(images=[{"id": 7}]), "image 7 has no 'file_name'"),
        (content(images=[IMAGE | {"file_name": None}]), "'file_name' of image 7 is null; expected a text"),
        (content(images=[IMAGE | {"width": None}]), "'width' of image 7 is null; expected a whole number"),
        (content(images=[IMAGE | {"height": "tall"}]), "'height' of image 7 is \"tall\"; expected a whole number"),
        (content(images=[7]), "image 7 is not an object with fields"),
        (content(images=[IMAGE | {"file_name": "../b.png"}]), "leaves the folder"),
        (content(images=2 * content()["images"]), "image 7 is there twice"),
        (content(images=[IMAGE | {"id": BEYOND}]), f"'id' of image {BEYOND} is {BEYOND}; expected a number that int64"),
        (
            content(categories=[{"id": -BEYOND}]),
            "'id' of category .* expected a number that int64 can hold, 9223372036",
        ),
        (content(categories=[{"name": "cat"}]), r"category \{'name': 'cat'\} has no 'id'"),
        (with_annotation(id=BEYOND), f"'id' of annotation {BEYOND} is {BEYOND}; expected a number that int64 can hold"),
        (with_annotation(image_id=BEYOND), f"'image_id' of annotation 1 is {BEYOND}; expected a number that int64"),
        (with_annotation(category_id=BEYOND), f"'category_id' of annotation 1 is {BEYOND}; expected a number that"),
        (with_annotation(id=None), r"'id' of annotation \{.*\.\.\. is null; expected a whole number"),
        (with_annotation(id=1.5), "'id' of annotation .* is 1.5; expected a whole number"),
        (json.dumps(with_annotation(id=0)).replace('"id": 0', '"id": Infinity'), "is Infinity; expected a whole"),
        (content(annotations=[{"id": 1}]), "annotation 1 has no 'image_id'"),
        (with_annotation(image_id=8), "annotation 1 is of image 8, which is not in the list"),
        (with_annotation(category_id=4), "annotation 1 is of category 4, which is not in"),
        (with_annotation(area=None), "'area' of annotation 1 is null; expected a number, 0 or more"),
        (with_annotation(area=-1), "'area' of annotation 1 is -1; expected a number, 0 or more"),
        (with_annotation(area=float("nan")), "'area' of annotation 1 is NaN; expected a number"),
        (with_annotation(iscrowd=None), "'iscrowd' of annotation 1 is null; expected 0 or 1"),
        (with_annotation(iscrowd=2), "'iscrowd' of annotation 1 is 2; expected 0 or 1"),
        (
            with_annotation(bbox=None),
            r"'bbox' of annotation 1 is null; expected \[left, top, width, height\] in pixels",
        ),
        (with_annotation(bbox=[1, 2, 3]), r"'bbox' of annotation 1 is \[1, 2, 3\]; expected \[left, top"),
        (with_annotation(bbox=[1, 2, 3, None]), r"'bbox' of annotation 1 is \[1, 2, 3, null\]; expected"),
        (with_annotation(bbox=[1, 2, float("nan"), 3]), r"'bbox' of annotation 1 is \[1, 2, NaN, 3\]; expected"),
        (with_annotation(bbox=[1, 2, 30, 6]), "outside of image 7, which is 20 x 10 pixels; .* 10 outside at most"),
        (with_annotation(bbox=[-11, 2, 6, 6]), "outside of image 7"),
        (with_annotation(bbox=[1, 2, -1, 6]), "outside of image 7"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path, text, complaint):
    with pytest.raises(ZSQBenchError, match=complaint) as raised:
        Instances.read(write(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert "instances.json" in str(raised.value)


@pytest.mark.parametrize("largest", [2**63 - 1, 1 - 2**63])
def test_numbers_may_be_as_large_as_int64_holds(tmp_path, largest):
    found = Instances.read(write(tmp_path, content(images=[IMAGE | {"id": largest}], annotations=[])))
    assert found.images[0].id == largest


def test_fields_that_may_be_left_out_have_cocos_meaning(tmp_path):
    bare = {name: ANNOTATION[name] for name in ("id", "image_id", "category_id", "bbox")}
    (found,) = Instances.read(write(tmp_path, content(annotations=[bare]))).annotations
    assert (found.area, found.iscrowd) == (30, 0)


@pytest.mark.parametrize("box", [[-1, 2, 6, 6], [16, 2, 5, 6], [1, 5, 5, 5.9]])
def test_a_box_that_ends_outside_by_rounding_is_no_matter(tmp_path, box):
    assert Instances.read(write(tmp_path, with_annotation(bbox=box))).notes == ()


def test_boxes_a_few_pixels_outside_are_taken_as_they_are_with_a_note(tmp_path):
    boxes = [[-5, 2, 6, 6], [18, 2, 6.5, 6], [1, 2, 5, 6]]
    given = [ANNOTATION | {"id": number, "bbox": box} for number, box in enumerate(boxes, start=1)]
    found = Instances.read(write(tmp_path, content(annotations=given)))
    assert [each.bbox for each in found.annotations] == boxes
    (note,) = found.notes
    assert note == (
        "2 of 3 boxes of instances.json end outside of their images, that of annotation 1 by 5 pixels; they are taken "
        "as they are"
    )


def test_a_few_pixels_are_more_of_a_large_image(tmp_path):
    image = IMAGE | {"width": 1000, "height": 500}
    found = Instances.read(write(tmp_path, with_annotation(bbox=[-50, 2, 100, 6]) | {"images": [image]}))
    assert len(found.notes) == 1
    with pytest.raises(ZSQBenchError, match="50 outside at most"):
        Instances.read(write(tmp_path, with_annotation(bbox=[-51, 2, 100, 6]) | {"images": [image]}))
