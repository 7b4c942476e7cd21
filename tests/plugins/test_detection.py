import base64
import dataclasses
import json
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from PIL import Image
from safetensors.torch import load_file
from zsqbench_plugins.detection import COCODetection

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.testing import check_task, context
from zsqbench.zoo.coco import FIGURES
from zsqbench.zoo.matches import Matches

DETECTOR = '''
import torch
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, resize

class Net(nn.Module):
    """A grid of 4 x 4 places, each of which says where a bright box begins."""
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4))
        self.score, self.box = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.score(x).sigmoid(), self.box(x)], 1)

def build():
    return Net()

def preprocess(image):
    return pil_to_tensor(resize(image.convert("RGB"), [16, 16])).float() / 255

def postprocess(raw, sizes):
    found = []
    for each, (height, width) in zip(raw, sizes):
        scores, labels = each[:2].flatten(1).max(0)
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        corner = torch.stack([columns * width / 4, rows * height / 4], -1).view(-1, 2).float()
        boxes = torch.cat([corner, corner + torch.tensor([width / 4, height / 4])], 1)
        found.append({"boxes": boxes, "scores": scores, "labels": torch.tensor([2, 5])[labels]})
    return found
'''


SIDES = ("width", "height", "width", "height")


@pytest.fixture
def root(tmp_path):
    """Six images of different sizes, each with a box on the grid of the detector."""
    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate([(40, 20), (16, 16), (20, 40), (1, 1), (32, 32), (40, 40)], start=1):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        if number != 2:
            box = [0, 0, width / 4, height / 4]
            annotations.append({"id": number, "image_id": number, "category_id": 2, "bbox": box})
    write(tmp_path, {"images": images, "annotations": annotations, "categories": [{"id": 2}, {"id": 5}]})
    (tmp_path / "net.py").write_text(DETECTOR)
    return tmp_path


def write(root, content):
    path = root / "coco/annotations/instances_val2017.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def stored(root):
    return json.loads((root / "coco/annotations/instances_val2017.json").read_text())


def model(root, **fields):
    given = {"file": root / "net.py", "weights": "none", "input_size": (3, 16, 16), **fields}
    return zsqbench.ModelSpec.model_validate({"name": "mine", **given})


def evaluated(root, **options):
    task, ctx = COCODetection(**options), context(data_root=root)
    pretrained = task.load(model(root), ctx)
    return task.evaluate(pretrained.module, pretrained, ctx)


def test_it_is_a_task(root):
    check_task(COCODetection(holdout=2), model(root), root)


def test_it_has_the_figures_of_coco_and_keeps_all_boxes(root):
    found = evaluated(root)
    assert {"mAP", "samples"} <= found.metrics.keys() <= {*FIGURES, "samples"}
    assert found.metrics["samples"] == 6
    assert found.tensors["boxes"].shape == (96, 4)
    assert sorted(set(found.tensors["image_ids"].tolist())) == [1, 2, 3, 4, 5, 6]
    assert set(found.tensors["categories"].tolist()) <= {2, 5}


def test_its_precision_without_each_image_and_the_matches_that_give_it_are_kept(root):
    found = evaluated(root)
    matched = Matches(*(found.tensors[f"matches.{field.name}"].numpy() for field in dataclasses.fields(Matches)))
    assert len(matched.image) <= len(found.tensors["boxes"])
    every = np.ones((1, 6), dtype=np.int32)
    for name, values in found.resampled.items():
        assert matched.average_precisions(every)[name][0] == pytest.approx(found.metrics[name])
        assert values == pytest.approx(matched.average_precisions(zsqbench.resamples(6))[name])
    assert set(found.resampled) == {"mAP", "mAP50"}


def test_the_size_of_a_batch_changes_nothing(root):
    one, many = evaluated(root, batch_size=1), evaluated(root, batch_size=4)
    assert one.metrics == pytest.approx(many.metrics)


def test_raw_outputs_are_those_of_the_last_layers(root):
    pretrained = COCODetection().load(model(root), context())
    assert pretrained.outputs == pretrained.output_layers == ("score", "box")
    assert pretrained.classes is None
    assert pretrained.input_size == (3, 16, 16)


def test_what_is_held_out_is_calibrated_on_and_not_evaluated(root):
    task, ctx = COCODetection(holdout=2), context(data_root=root)
    files = task.find_data(root)
    assert len(files.calibration) == 2
    assert not files.calibration.keys() & files.evaluation.keys()
    pretrained = task.load(model(root), ctx)
    assert task.evaluate(pretrained.module, pretrained, ctx).metrics["samples"] == 4
    images = task.calibration_images(8, 0, pretrained, ctx)
    assert images.images.shape == (2, 3, 16, 16)
    assert images.labels is None


def test_another_folder_can_be_calibrated_on(root):
    (root / "train").mkdir()
    Image.new("RGB", (30, 20)).save(root / "train/a.jpg")
    task, ctx = COCODetection(calibration="train"), context(data_root=root)
    assert list(task.find_data(root).calibration) == ["a.jpg"]
    assert len(task.calibration_images(4, 0, task.load(model(root), ctx), ctx)) == 1
    with pytest.raises(ZSQBenchError, match="overlap; nothing may be in both"):
        COCODetection(calibration="coco/val2017").find_data(root)
    absent = COCODetection(calibration="elsewhere")
    assert (absent.find_data(root).absent or "").startswith("there is no folder")
    with pytest.raises(ZSQBenchError, match="there is no folder"):
        absent.calibration_images(4, 0, absent.load(model(root), ctx), ctx)
    (root / "train/b.png").symlink_to(root / "coco/val2017/3.png")
    with pytest.raises(ZSQBenchError, match=r"3\.png is evaluated and among the images to calibrate on"):
        evaluated(root, calibration="train")


def test_boxes_that_are_not_finite_are_none(root):
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)

    def broken(raw, images):
        boxes = torch.tensor([[0, 0, float("nan"), 1], [0, 0, 1, 1.0]])
        return [{"boxes": boxes, "scores": torch.ones(2), "labels": torch.tensor([2, 2])} for _ in images]

    pretrained = dataclasses.replace(pretrained, decoding=dataclasses.replace(pretrained.decoding, postprocess=broken))
    assert len(task.evaluate(pretrained.module, pretrained, ctx).tensors["boxes"]) == 6


def test_images_of_any_mode_are_colours(root):
    Image.new("CMYK", (32, 32)).save(root / "coco/val2017/5.png", format="TIFF")
    Image.new("L", (20, 40)).save(root / "coco/val2017/3.png")
    (root / "net.py").write_text(DETECTOR.replace('.convert("RGB")', ""))
    assert evaluated(root).metrics["samples"] == 6


def test_images_that_exif_turns_are_noted_and_not_turned(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 40)).save(root / "coco/val2017/3.png", exif=exif)
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)
    task.evaluate(pretrained.module, pretrained, ctx)
    assert "1 of 6 images have an EXIF orientation and are not turned" in ctx.reporter.notes[0]


def test_an_image_of_16_bits_is_seen_as_its_8_bit_twin(root):
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)]
    one, other = (task.preprocessor(pretrained)(image) for image in images)
    assert torch.equal(one, other)


def test_boxes_a_few_pixels_outside_do_not_stop_a_run_and_are_noted(root):
    content = stored(root)
    content["annotations"][0]["bbox"] = [-4, 0, 20, 10]
    write(root, content)
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)
    assert task.evaluate(pretrained.module, pretrained, ctx).metrics["samples"] == 6
    (note,) = ctx.reporter.notes
    assert note.startswith("1 of 5 boxes of instances_val2017.json end outside of their images")


@pytest.mark.parametrize(("labels", "notes"), [([2, 5], 0), ([5, 9], 1)])
def test_labels_that_are_off_by_one_are_noted(root, labels, notes):
    """A detector that finds each box: two in each of six images, with labels that are right or the next ones."""
    content = stored(root)
    boxes = [[0, 0, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]]
    content["categories"] = [{"id": 2}, {"id": 5}, {"id": 9}]
    content["annotations"] = [
        {"id": 10 * image["id"] + place, "image_id": image["id"], "category_id": (2, 5)[place], "bbox": box}
        for image in content["images"]
        for place, box in enumerate([[s * image[d] for s, d in zip(each, SIDES, strict=True)] for each in boxes])
    ]
    write(root, content)
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)

    def found(raw, images):
        corners = torch.tensor(boxes)
        corners[:, 2:] += corners[:, :2]
        return [
            {"boxes": corners * torch.tensor([*image.size, *image.size]), "scores": torch.ones(2), "labels": labels}
            for image in images
        ]

    labels = torch.tensor(labels)
    pretrained = dataclasses.replace(pretrained, decoding=dataclasses.replace(pretrained.decoding, postprocess=found))
    metrics = task.evaluate(pretrained.module, pretrained, ctx).metrics
    assert (metrics["mAP50"] > 99) == (notes == 0)
    assert len(ctx.reporter.notes) == notes
    for note in ctx.reporter.notes:
        assert (
            "labels are chance: of the 12 boxes that it finds, 0 have the right one, and mAP50 is 0.0, but 10" in note
        )
        assert "the numbers of categories as instances_val2017.json has them (are they off by one?)" in note


def test_no_boxes_at_all_are_a_result(root):
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)

    def nothing(raw, images):
        return [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()} for _ in images]

    pretrained = dataclasses.replace(pretrained, decoding=dataclasses.replace(pretrained.decoding, postprocess=nothing))
    assert task.evaluate(pretrained.module, pretrained, ctx).metrics["mAP"] == 0


def test_a_picture_has_both_networks_side_by_side(root):
    task, ctx = COCODetection(), context(data_root=root)
    pretrained = task.load(model(root), ctx)
    pixels = np.asarray(task.picture(pretrained.module, pretrained, ctx))
    assert pixels.shape[1] == 2 * 321
    assert np.array_equal(pixels[:, :321], pixels[:, 321:])
    assert (pixels == [255, 0, 0]).all(-1).any()  # a box


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda root: write(root, "{"), "are not JSON"),
        (lambda root: write(root, {**stored(root), "categories": []}), "lists no categories"),
        (lambda root: (root / "coco/val2017/3.png").unlink(), r"1 of the 6 images that .* lists are missing, such as"),
        (lambda root: write(root, {**stored(root), "annotations": []}), "annotates no box of the 6 evaluated images"),
        (lambda root: write(root, {**stored(root), "images": []}), "lists no images"),
        (
            lambda root: Image.new("L", (9, 9)).save(root / "coco/val2017/3.png"),
            "has 9 x 9 pixels, and its",
        ),
    ],
)
def test_damaged_data_is_found_without_harm_and_one_clear_line_when_it_is_evaluated(root, change, complaint):
    change(root)
    assert "instances_val2017.json" in COCODetection().find_data(root).evaluation
    with pytest.raises(ZSQBenchError, match=complaint):
        evaluated(root)


def test_labels_that_the_data_does_not_have_are_one_clear_line(root):
    (root / "net.py").write_text(DETECTOR.replace("torch.tensor([2, 5])", "torch.tensor([0, 1])"))
    with pytest.raises(ZSQBenchError, match=r"labels \(.*\) are not categories of .* \(2, 5\): postprocess must give"):
        evaluated(root)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("def postprocess", "def process", "has no function 'postprocess', which a detector needs"),
        ("return found", "return found[:0]", r"postprocess\(\) of .* returned 0 of them; expected 1 mappings"),
        ('"labels":', '"classes":', r"postprocess\(\) of .* returned .*'labels': None"),
        ("scores, labels = ", "scores, labels = 1 / 0, ", r"fails in postprocess\(\) \(line \d+\): ZeroDivisionError"),
        (".float() / 255", "", r"preprocess\(\) of .* returned torch.uint8 \(3, 16, 16\); expected a float"),
        (
            "[16, 16]",
            "[8, 8]",
            r"preprocess\(\) of .* returned \(3, 8, 8\), and the model's input_size is \(3, 16,",
        ),
        ("x = self.stem(x)", "x = self.stem(x) if x.sum() > -1 else self.stem(x)", r"cannot be traced at .*net.py:\d+"),
        ("self.box(x)], 1)", "self.box(x)], 1) * 2", "linear layer that is a module; what decodes"),
    ],
)
def test_a_file_that_is_no_detector_is_one_clear_line(root, old, new, complaint):
    assert old in DETECTOR
    (root / "net.py").write_text(DETECTOR.replace(old, new))
    with pytest.raises(ZSQBenchError, match=complaint):
        COCODetection().load(model(root), context())


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"base": "scenedetector", "input_size": (3, 64, 64)}, "input_size"),
        ({"base": "torchvision/fcos_resnet50_fpn", "mean": (0.5,) * 3}, "mean"),
        ({"base": None, "resize": 32}, "resize"),
        ({"base": None, "crop_mode": "squash"}, "crop_mode"),
    ],
)
def test_fields_that_would_have_no_effect_are_one_clear_line(root, fields, ignored):
    named = model(
        root, **({} if fields["base"] is None else {"file": None, "weights": None, "input_size": None}) | fields
    )
    with pytest.raises(ZSQBenchError, match=f"brings its own preprocessing: '{ignored}' has no effect"):
        COCODetection().find_model(named)


def test_what_is_absent_is_said_before_anything_runs(root):
    with pytest.raises(ZSQBenchError, match="needs a data root"):
        COCODetection().find_data(None)
    with pytest.raises(ZSQBenchError, match="there is no folder"):
        COCODetection(root="elsewhere").find_data(root)
    with pytest.raises(ZSQBenchError, match="is not a known detector"):
        COCODetection().find_model(zsqbench.ModelSpec(name="x", base="resnet20"))
    with pytest.raises(ValueError, match="not both"):
        COCODetection(calibration="a", holdout=1)


@pytest.mark.slow("it evaluates a large detector")
def test_a_real_detector_has_its_published_figures(shared):
    data = shared / "data"
    given = {"file": data / "models/fastestdet.py", "weights": str(data / "models/fastestdet.safetensors")}
    task, ctx = COCODetection(), context(data_root=data)
    pretrained = task.load(model(data, **given, input_size=(3, 352, 352), channels="bgr"), ctx)
    assert pretrained.outputs == ("objectness.4", "box.4", "category.4")
    found = task.evaluate(pretrained.module, pretrained, ctx).metrics
    assert [round(found[name], 1) for name in ("mAP", "mAP50", "mAP75")] == [16.4, 27.9, 15.8]


@pytest.mark.slow("it builds a detector of torchvision")
@parametrize_briefly(
    "base, side, outputs", [("ssdlite320_mobilenet_v3_large", 128, 12), ("retinanet_resnet50_fpn", 64, 2)], 1
)
def test_images_may_be_made_in_another_size_than_a_detector_takes_real_ones(root, base, side, outputs):
    """SSDlite resizes what it is shown to 320 x 320, and RetinaNet to 800 at least; both decode boxes for that size."""
    spec = zsqbench.ModelSpec(name="made", base=f"torchvision/{base}", weights="none", input_size=(3, side, side))
    pretrained = COCODetection().load(spec, context(data_root=root))
    assert pretrained.input_size == (3, side, side)
    assert len(pretrained.outputs) == outputs


def test_scenes_are_embedded_and_what_is_calibrated_on_is_not_evaluated(tmp_path):
    task, ctx = COCODetection(data="scenes"), context(folder=tmp_path)
    files = task.find_data(None)
    assert files.evaluation
    assert files.calibration
    found = task._find(ctx)
    assert len(found.evaluated) == 200
    assert not {path for _, path in found.evaluated} & set(found.calibration.values())
    assert all(tmp_path in path.parents for path in found.calibration.values())
    with pytest.raises(ValueError, match="data: scenes is embedded, with a part to calibrate on, and has no 'holdout'"):
        COCODetection(data="scenes", holdout=3)


def test_a_suite_calibrates_and_evaluates_a_detector_and_draws_its_boxes(bench):
    bench.suite("""
name: toysuite
tasks: {scenes: {method: coco_detection, data: scenes}}
generators: {real: {images: 8}}
matrix:
  - {task: scenes, model: scenedetector, generator: [real, hast], quantizer: rtn, scheme: hw/w8a8, seed: 0}
""")
    said = bench.run()
    rows = {row["generator"]: row for row in bench.rows().values()}
    assert rows["hast"]["reason"] == "hast needs a classifier, and scenedetector is not one"
    real = rows["real"]
    assert abs(real["metrics"]["mAP"] - real["float_metrics"]["mAP"]) < 0.5
    assert real["data"] == {"evaluated": 200, "digest": ANY, "images": 8, "calibrated": 8}
    assert "COCO's mean average precision (IoU 0.5 to 0.95) in percent, 200 samples evaluated" in said.out
    assert len(base64.b64decode(real["resampled"]["mAP"])) == 4 * 200
    folder = bench.home / "store" / "evaluate" / real["keys"]["evaluate"]
    assert {"picture.png", "samples.safetensors"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow("it evaluates two more cells of 200 scenes, and compares them in a table")
def test_detection_runs_from_suite_to_table_and_picture(bench):
    bench.suite("""
name: toysuite
tasks: {scenes: {method: coco_detection, data: scenes}}
generators: {noise: {images: 4}, real: {images: 8}}
matrix:
  - {task: scenes, model: scenedetector, generator: [noise, real], quantizer: rtn, scheme: hw/w8a8, seed: 0}
  - {task: scenes, model: scenedetector, generator: hast, quantizer: rtn, scheme: hw/w8a8, seed: 0}
  - {task: scenes, model: scenedetector, generator: none, quantizer: fp32, scheme: float}
""")
    said = bench.run()
    rows = {row["generator"]: row for row in bench.rows().values()}
    assert rows["hast"]["status"] == "impossible"
    assert rows["hast"]["reason"] == "hast needs a classifier, and scenedetector is not one"
    real = rows["real"]
    assert real["metric"] == "mAP"
    assert abs(real["metrics"]["mAP"] - real["float_metrics"]["mAP"]) < 0.5
    assert real["data"] == {"evaluated": 200, "digest": ANY, "images": 8, "calibrated": 8}
    assert "COCO's mean average precision (IoU 0.5 to 0.95) in percent, 200 samples evaluated" in said.out
    assert len(base64.b64decode(real["resampled"]["mAP"])) == 4 * 200
    table = bench.zsqbench("leaderboard", bench.file, *bench.places()).out
    assert "cannot be told apart on these images" in table
    folder = bench.home / "store" / "evaluate" / real["keys"]["evaluate"]
    assert {"picture.png", "samples.safetensors"} <= {path.name for path in folder.iterdir()}
    nothing = bench.home / "store" / "evaluate" / rows[None]["keys"]["evaluate"]
    before = bench.home / "store" / "baseline" / rows[None]["keys"]["baseline"]
    boxes, expected = (load_file(each / "samples.safetensors") for each in (nothing, before))
    assert all(torch.equal(boxes[name], expected[name]) for name in expected)
    assert str(folder / "picture.png") in bench.zsqbench("show", bench.file, "real", *bench.places()).out
