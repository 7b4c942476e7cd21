import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from zsqbench_plugins.classification import Classification

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.zoo.models import CIFAR10, CIFAR100

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")


class Silent:
    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)

    def log(self, name, value, step):
        pass

    def progress(self, done, total):
        pass


def context(data_root=None):
    return zsqbench.TaskContext(torch.device("cpu"), 0, torch.Generator(), Settings(), Silent(), data_root=data_root)


def model(name="m", **fields):
    return zsqbench.ModelSpec.model_validate({"name": name, **fields})


def fill(root, classes=("a", "b"), images=3, size=8, suffix="png"):
    """Class folders of noise, each image another."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(images):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                root / name / f"{index}.{suffix}"
            )
    return root


def write_batches(folder, names, labels="labels"):
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        content = {b"data": np.full((4, 3072), index, np.uint8), labels.encode(): [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


class Constant(nn.Module):
    """Gives the same logits for each image."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def pretrained(classes=2, size=8):
    return zsqbench.Pretrained(
        module=Constant([0.0] * classes),
        input_size=(3, size, size),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        classes=classes,
        preprocessing={"resize": None, "crop": None, "interpolation": "bilinear", "channels": "rgb"},
    )


@pytest.mark.parametrize(
    "options",
    [
        {"data": "imagefolder"},
        {"data": "cifar10", "holdout": 5},
        {"data": "digits", "calibration": "x"},
        {"data": "digits", "root": "x"},
        {"data": "imagefolder", "root": "x", "calibration": "y", "holdout": 5},
        {"data": "imagefolder", "root": "x", "holdout": -1},
        {"data": "mnist"},
        {"data": "digits", "batch_size": 0},
    ],
)
def test_options_that_do_not_fit_together_are_refused(options):
    with pytest.raises(ValidationError):
        Classification.model_validate(options)


def test_data_and_models_are_found_without_torch(tmp_path):
    fill(tmp_path / "x")
    code = (
        "import sys, zsqbench; from pathlib import Path\n"
        "from zsqbench_plugins.classification import Classification as C\n"
        f"C(data='imagefolder', root='x', holdout=1).find_data(Path({str(tmp_path)!r}))\n"
        "C(data='digits').find_data(None)\n"
        "C(data='digits').find_model(zsqbench.ModelSpec(name='resnet20', base='resnet20'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_root_that_is_not_given_is_told():
    with pytest.raises(ZSQBenchError, match="cifar10 needs a data root: give --data-root or set ZSQBENCH_DATA_ROOT"):
        Classification(data="cifar10").find_data(None)


def test_an_absent_folder_is_told(tmp_path):
    with pytest.raises(ZSQBenchError, match=f"there is no folder {tmp_path}/cifar10"):
        Classification(data="cifar10").find_data(tmp_path)


@pytest.mark.parametrize("options", [{"data": "cifar10", "root": "x"}, {"data": "imagefolder", "root": "x"}])
def test_an_empty_folder_is_told_with_the_layout_that_is_expected(tmp_path, options):
    (tmp_path / "x/test").mkdir(parents=True)
    with pytest.raises(ZSQBenchError, match=r"holds no .*expected .*CLASS"):
        Classification.model_validate(options).find_data(tmp_path)


def test_a_sole_folder_offers_nothing_to_calibrate_on(tmp_path):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x")
    assert task.find_data(tmp_path).calibration == {}
    with pytest.raises(ZSQBenchError, match=r"no images to calibrate on: set the task's 'calibration'.*'holdout'"):
        task.calibration_images(1, 0, pretrained(), context(tmp_path))


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_images_are_not_evaluated_and_all_others_are(tmp_path, seed):
    fill(tmp_path / "x", images=10)
    everything = set(Classification(data="imagefolder", root="x").find_data(tmp_path).evaluation)
    found = Classification(data="imagefolder", root="x", holdout=7, split_seed=seed).find_data(tmp_path)
    assert len(found.calibration) == 7
    assert set(found.calibration) | set(found.evaluation) == everything
    assert not set(found.calibration) & set(found.evaluation)


def test_the_split_is_a_function_of_its_seed(tmp_path):
    fill(tmp_path / "x", images=10)
    parts = [
        tuple(Classification(data="imagefolder", root="x", holdout=7, split_seed=s).find_data(tmp_path).calibration)
        for s in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]


def test_the_draw_of_a_flat_folder_is_what_it_always_was(tmp_path):
    fill(tmp_path / "x", images=10)
    found = Classification(data="imagefolder", root="x", holdout=4).find_data(tmp_path)
    assert list(found.calibration) == ["a/6.png", "a/7.png", "b/0.png", "b/4.png"]


def test_images_below_a_class_are_evaluated_and_held_out_by_their_own_names(tmp_path):
    fill(tmp_path / "x", images=3)
    fill(tmp_path / "x/a", classes=("left", "right"), images=3)  # the same file names in three folders
    found = Classification(data="imagefolder", root="x", holdout=5).find_data(tmp_path)
    names = [*found.calibration, *found.evaluation]
    assert len(names) == len(set(names)) == 12
    assert {"a/left/0.png", "a/right/0.png", "a/0.png"} <= set(names)
    task = Classification(data="imagefolder", root="x")
    metrics = task.evaluate(Constant([1.0, 0.0]), pretrained(), context(tmp_path)).metrics
    assert (metrics["correct"], metrics["samples"]) == (9, 12)


def test_a_holdout_of_everything_is_refused(tmp_path):
    fill(tmp_path / "x")
    with pytest.raises(ZSQBenchError, match="holdout: 6 leaves nothing to evaluate of the 6 images"):
        Classification(data="imagefolder", root="x", holdout=6).find_data(tmp_path)


@pytest.mark.parametrize("other", ["x", "x/a", ".", "link"])
def test_a_calibration_folder_that_is_evaluated_is_refused(tmp_path, other):
    fill(tmp_path / "x")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(ZSQBenchError, match=r"overlap|not among the 2 classes|holds no images"):
        Classification(data="imagefolder", root="x", calibration=other).find_data(tmp_path)


def test_a_calibration_folder_of_links_to_evaluated_images_is_refused(tmp_path):
    fill(tmp_path / "x")
    (tmp_path / "y/a").mkdir(parents=True)
    (tmp_path / "y/a/other.png").symlink_to(tmp_path / "x/a/0.png")
    with pytest.raises(ZSQBenchError, match="overlap"):
        Classification(data="imagefolder", root="x", calibration="y").find_data(tmp_path)


def test_labels_of_a_calibration_folder_are_those_of_the_evaluated_classes(tmp_path):
    fill(tmp_path / "x", ("a", "b", "c"))
    fill(tmp_path / "y", ("c",))
    task = Classification(data="imagefolder", root="x", calibration="y")
    assert task.calibration_images(9, 0, pretrained(3), context(tmp_path)).labels.tolist() == [2, 2, 2]


def test_both_folders_are_closed_to_methods(tmp_path):
    fill(tmp_path / "x")
    fill(tmp_path / "y")
    found = Classification(data="imagefolder", root="x", calibration="y").find_data(tmp_path)
    assert set(found.folders) == {tmp_path / "x", tmp_path / "y"}


def test_an_empty_class_folder_counts_so_it_is_part_of_the_identity(tmp_path):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x")
    before = task.find_data(tmp_path).split
    (tmp_path / "x/aa").mkdir()
    assert task.find_data(tmp_path).split != before


def test_cifar_class_folders_calibrate_on_the_train_part(tmp_path):
    fill(tmp_path / "cifar10/test")
    fill(tmp_path / "cifar10/train")
    found = Classification(data="cifar10").find_data(tmp_path)
    assert list(found.evaluation)[:2] == ["test/a/0.png", "test/a/1.png"]
    assert next(iter(found.calibration)) == "train/a/0.png"


def test_cifar_parts_that_are_one_folder_by_a_link_are_refused(tmp_path):
    fill(tmp_path / "cifar10/test")
    (tmp_path / "cifar10/train").symlink_to(tmp_path / "cifar10/test")
    with pytest.raises(ZSQBenchError, match="train and test share"):
        Classification(data="cifar10").find_data(tmp_path)


@pytest.mark.parametrize("folder", ["cifar10", "cifar10/cifar-10-batches-py"])
def test_cifar_batches_are_found_where_they_lie(tmp_path, folder):
    names = [f"data_batch_{index}" for index in range(1, 6)]
    write_batches(tmp_path / folder, ["test_batch", *names])
    task = Classification(data="cifar10")
    found = task.find_data(tmp_path)
    assert list(found.evaluation) == ["test_batch"]
    assert list(found.calibration) == names
    evaluation = task.evaluate(Constant([1.0] + [0.0] * 9), pretrained(10, 32), context(tmp_path))
    assert evaluation.per_sample == [True, False, False, False]
    images = task.calibration_images(100, 0, pretrained(10, 32), context(tmp_path)).images
    assert len(images) == 20
    assert images.unique().numel() == 5


def test_cifar100_batches_have_fine_labels(tmp_path):
    write_batches(tmp_path / "cifar100", ["train", "test"], labels="fine_labels")
    task = Classification(data="cifar100")
    assert task.evaluate(Constant([1.0] + [0.0] * 99), pretrained(100, 32), context(tmp_path)).metrics["correct"] == 1


def test_the_files_of_a_model_are_known_before_it_is_loaded(tmp_path):
    for name in ("net.py", "w.safetensors"):
        (tmp_path / name).touch()
    task = Classification(data="digits")
    own = model(file=str(tmp_path / "net.py"), weights=str(tmp_path / "w.safetensors"), input_size=[1, 8, 8])
    assert task.find_model(own) == {"file": tmp_path / "net.py", "weights": tmp_path / "w.safetensors"}
    assert task.find_model(model(base="resnet20"))["weights"].name == "resnet20.safetensors"
    assert task.find_model(model(base="resnet20", weights="none")) == {}
    assert task.find_model(model(base="torchvision/resnet18")) == {}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"base": "resnet21"}, "did you mean 'resnet20'"), ({"base": "cifar_resnet20"}, "comes without weights")],
)
def test_a_model_that_cannot_be_is_told_before_it_is_loaded(fields, complaint):
    with pytest.raises(ZSQBenchError, match=complaint):
        Classification(data="digits").find_model(model(**fields))


def write_model(folder, body, **fields):
    (folder / "net.py").write_text(f"import torch\nfrom torch import nn\n\ndef build():\n    return {body}\n")
    return model(**{"file": str(folder / "net.py"), "weights": "none", "input_size": [3, 8, 8]} | fields)


LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear(192, 4))"


def test_a_users_model_on_a_users_images_must_say_mean_and_std(tmp_path):
    with pytest.raises(ZSQBenchError, match="needs 'mean' and 'std'"):
        Classification(data="imagefolder", root="x").find_model(write_model(tmp_path, LINEAR))


def test_a_network_without_batch_normalisation_loads(tmp_path):
    loaded = Classification(data="cifar10").load(write_model(tmp_path, LINEAR), context())
    assert loaded.classes == 4
    assert loaded.mean == CIFAR10.mean
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


@pytest.mark.parametrize(
    ("body", "fields", "complaint"),
    [
        ("nn.Linear(5, 4)", {}, "fails on an input of"),
        ("nn.Flatten(0)", {}, "expected logits"),
        ("nn.ReLU()", {}, r"returns \[2, 3, 8, 8\] for 2 images"),
        ("nn.LSTM(8, 4)", {"input_size": [3, 2, 8]}, "fails on an input of|expected logits"),
        (LINEAR, {"classes": 5}, "has 4 outputs, but the suite says classes: 5"),
        (LINEAR, {"mean": [0.5]}, "'mean' and 'std' need 3 values"),
        (LINEAR, {"std": [0.5, 0.0, 0.5]}, "std positive"),
        (LINEAR, {"input_size": [4, 8, 8]}, "takes 4 channels"),
    ],
)
def test_a_users_network_that_is_no_classifier_is_told(tmp_path, body, fields, complaint):
    with pytest.raises(ZSQBenchError, match=complaint) as error:
        Classification(data="cifar10").load(write_model(tmp_path, body, **fields), context())
    assert "\n" not in str(error.value)


def test_the_average_in_a_checkpoint_is_another_network_and_both_are_told(tmp_path):
    states = [{"1.weight": torch.full((4, 192), value), "1.bias": torch.zeros(4)} for value in (1.0, 2.0)]
    torch.save(dict(zip(("model", "model_ema"), states, strict=True)), tmp_path / "both.pth")
    loaded, notes = [], []
    for taken in (None, "ema"):
        spec = write_model(tmp_path, LINEAR, weights=str(tmp_path / "both.pth"), checkpoint=taken)
        ctx = context()
        ctx.reporter.note = notes.append
        loaded.append(Classification(data="cifar10").load(spec, ctx))
    assert [each.module[1].weight[0, 0].item() for each in loaded] == [1, 2]
    assert loaded[0].digest() != loaded[1].digest()
    assert ["weights were taken" in notes[0], "average was taken" in notes[1], len(notes)] == [True, True, 2]


def test_a_variant_overrides_what_it_says_and_keeps_the_rest():
    task = Classification(data="imagefolder", root="x")
    variant = model(base="torchvision/squeezenet1_1", weights="none", resize=80, input_size=[3, 64, 64], channels="bgr")
    loaded = task.load(variant, context())
    assert loaded.preprocessing == {"resize": 80, "crop": 64, "interpolation": "bilinear", "channels": "bgr"}
    assert loaded.std == (0.229, 0.224, 0.225)


def test_resize_and_crop_can_be_turned_off():
    variant = model(base="resnet20", resize="none", crop="none", input_size=[1, 8, 8])
    loaded = Classification(data="digits").load(variant, context())
    assert (loaded.preprocessing["resize"], loaded.preprocessing["crop"]) == (None, None)


POOLED = "nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))"


@pytest.mark.parametrize(
    ("fields", "resize", "crop"),
    [
        ({"resize": 20}, 20, (16, 12)),
        ({"resize": [20, 15]}, (20, 15), (16, 12)),
        ({"resize": [20, 20], "crop": [16, 12], "crop_mode": "squash"}, 20, (16, 12)),
        ({"resize": [16, 12], "crop": "none", "crop_mode": "squash"}, (16, 12), None),
    ],
)
def test_heights_and_widths_of_a_suite_reach_the_images(tmp_path, fields, resize, crop):
    fill(tmp_path / "x", size=31)
    task = Classification(data="imagefolder", root="x", holdout=2)
    spec = write_model(tmp_path, POOLED, input_size=[3, 16, 12], mean=[0.5] * 3, std=[0.5] * 3, **fields)
    loaded = task.load(spec, context())
    assert (loaded.preprocessing["resize"], loaded.preprocessing["crop"]) == (resize, crop)
    assert task.calibration_images(2, 0, loaded, context(tmp_path)).images.shape == (2, 3, 16, 12)


def test_the_crop_mode_of_a_suite_is_in_the_identity_and_the_usual_one_is_not(tmp_path):
    task = Classification(data="cifar10")
    usual, said, other = (
        task.load(write_model(tmp_path, LINEAR, **fields), context())
        for fields in ({}, {"crop_mode": "center"}, {"crop_mode": "squash"})
    )
    assert usual.digest() == said.digest() != other.digest()
    assert "crop_mode" not in usual.preprocessing


def test_a_border_has_the_mean_and_what_is_squashed_has_all_of_the_image(tmp_path):
    (tmp_path / "x/a").mkdir(parents=True)
    pixels = np.zeros((4, 16, 3), np.uint8)
    pixels[:, 12:] = 255
    Image.fromarray(pixels).save(tmp_path / "x/a/0.png")
    Image.fromarray(pixels).save(tmp_path / "x/a/1.png")
    task = Classification(data="imagefolder", root="x", holdout=1)
    given = {"resize": 8, "mean": [0.2, 0.4, 0.6], "std": [1.0] * 3}
    images = {}
    for mode in ("center", "squash", "border"):
        loaded = task.load(write_model(tmp_path, LINEAR, crop_mode=mode, **given), context())
        images[mode] = task.calibration_images(1, 0, loaded, context(tmp_path)).images[0]
    assert images["border"][:, :3].abs().max() < 1e-6  # 0.2, 0.4 and 0.6 are 51, 102 and 153 of 255
    assert images["border"][0, 3:5, 7].tolist() == pytest.approx([0.8, 0.8])
    assert images["squash"][0, :, 7].tolist() == pytest.approx([0.8] * 8)
    assert images["center"].max() < 0.1  # the white end is cut off


@pytest.mark.parametrize(
    "fields", [{"resize": 0}, {"crop": -1}, {"resize": [8, 8, 8]}, {"crop": "center"}, {"crop_mode": "stretch"}]
)
def test_sizes_and_crop_modes_that_cannot_be_are_refused(tmp_path, fields):
    with pytest.raises(ValidationError):
        write_model(tmp_path, LINEAR, **fields)


def test_a_shipped_definition_suits_the_data():
    loaded = Classification(data="cifar100").load(model(base="cifar_resnet20", weights="none"), context())
    assert (loaded.classes, loaded.mean, loaded.std) == (100, CIFAR100.mean, CIFAR100.std)


def test_damaged_weights_fail_the_model_with_one_line(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"123")
    with pytest.raises(ZSQBenchError, match="damaged"):
        Classification(data="digits").load(model(base="resnet20", weights=str(tmp_path / "w.safetensors")), context())


@pytest.mark.parametrize(("name", "percent"), [("resnet20", 98), ("mobilenetv2", 98), ("vit", 97)])
def test_the_embedded_networks_are_right_on_nearly_all_of_900_digits(name, percent):
    task = Classification(data="digits")
    loaded = task.load(model(base=name), context())
    evaluation = task.evaluate(loaded.module, loaded, context())
    assert evaluation.metrics["samples"] == len(evaluation.per_sample) == 900
    assert evaluation.metrics["top1"] == 100 * sum(evaluation.per_sample) / 900 >= percent


def test_a_sample_is_as_hard_as_its_label_is_improbable(tmp_path):
    fill(tmp_path / "photos", images=1)
    task = Classification(data="imagefolder", root="photos")
    logits = [math.log(3.0), 0.0]  # p of the first class is 3 of 4
    found = task.evaluate(Constant(logits), pretrained(), context(tmp_path))
    assert found.difficulties == pytest.approx([0.25, 0.75])
    assert task.evaluate(Constant([float("nan"), 0.0]), pretrained(), context(tmp_path)).difficulties == [1, 1]


def test_a_viewer_shows_the_images_in_the_order_in_which_they_are_evaluated(tmp_path):
    for at, name in enumerate(("b/1.png", "a/2.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("L", (5 + at, 3)).save(tmp_path / "photos" / name)
    show = Classification(data="imagefolder", root="photos").viewer(tmp_path)
    assert [show(place).size for place in (0, 1)] == [(6, 3), (5, 3)]


def test_the_result_does_not_depend_on_the_batch_size():
    loaded = Classification(data="digits").load(model(base="mobilenetv2"), context())
    results = [
        Classification(data="digits", batch_size=size).evaluate(loaded.module, loaded, context())
        for size in (900, 64, 7)
    ]
    assert results[0] == results[1] == results[2]


class Squeezing(nn.Module):
    """Two logits from the mean colour; `squeeze` is what stands between pooling and the linear layer."""

    def __init__(self, squeeze):
        super().__init__()
        self.squeeze, self.linear = squeeze, nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(self.squeeze(x.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize(
    ("squeeze", "outcome"),
    [
        (lambda x: x.squeeze(), r"gives \[2\] for it, expected \[1, 2\]"),
        (lambda x: x.squeeze().transpose(1, 0).transpose(1, 0), r"fails on it \(IndexError: .*\)"),
    ],
)
@pytest.mark.parametrize(("size", "number", "better"), [(5, 2, 6), (1, 1, 2), (3, None, None)])
def test_a_batch_of_one_image_that_squeeze_breaks_is_one_clear_line(tmp_path, squeeze, outcome, size, number, better):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x", batch_size=size)
    arguments = Squeezing(squeeze), pretrained(), context(tmp_path)
    if number is None:
        assert task.evaluate(*arguments).metrics["samples"] == 6
        return
    said = rf"batch {number} of imagefolder x has 1 image, and the network {outcome}: a squeeze\(\) in it may also .*"
    with pytest.raises(
        ZSQBenchError, match=rf"{said}; name the dimensions to squeeze, .* batch_size to {better}$"
    ) as error:
        task.evaluate(*arguments)
    assert "\n" not in str(error.value)


def test_where_there_is_one_image_no_other_batch_size_is_proposed(tmp_path):
    fill(tmp_path / "x", images=1)
    task = Classification(data="imagefolder", root="x", holdout=1)
    with pytest.raises(ZSQBenchError, match=r"name the dimensions to squeeze$"):
        task.evaluate(Squeezing(lambda x: x.squeeze()), pretrained(), context(tmp_path))


def test_a_batch_for_which_a_network_gives_no_row_for_each_image_is_named(tmp_path):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x", batch_size=4)
    with pytest.raises(ZSQBenchError, match=r"batch 1 .* has 4 images, and the network gives \[1, 2\] .* \[4, 2\]$"):
        task.evaluate(Squeezing(lambda x: x.flatten(1)[:1]), pretrained(), context(tmp_path))


def test_an_error_of_a_network_on_many_images_stays_what_it_is(tmp_path):
    fill(tmp_path / "x")
    with pytest.raises(ZeroDivisionError):
        Classification(data="imagefolder", root="x").evaluate(
            Squeezing(lambda x: x / (1 // 0)), pretrained(), context(tmp_path)
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_output_that_is_not_finite_is_wrong(tmp_path, bad):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x")
    evaluation = task.evaluate(Constant([5.0, bad]), pretrained(), context(tmp_path))
    assert evaluation.metrics == {"top1": 0.0, "correct": 0, "samples": 6}


def test_predictions_are_first_guesses_and_below_zero_where_an_output_is_not_finite(tmp_path):
    fill(tmp_path / "x")
    task = Classification(data="imagefolder", root="x")
    guesses = [
        task.evaluate(Constant([0.0, logit]), pretrained(), context(tmp_path)).predictions
        for logit in (1.0, float("nan"))
    ]
    assert guesses == [[1] * 6, [-1] * 6]


def test_predictions_are_right_where_samples_are():
    task = Classification(data="digits")
    loaded = task.load(model(base="mobilenetv2"), context())
    evaluation = task.evaluate(loaded.module, loaded, context())
    assert len(evaluation.predictions) == 900
    assert sum(evaluation.per_sample) < 900
    assert set(evaluation.predictions) == set(range(10))


def test_top5_is_measured_where_there_are_more_than_five_classes(tmp_path):
    fill(tmp_path / "x", "abcdef", images=1)
    evaluation = Classification(data="imagefolder", root="x").evaluate(
        Constant([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), pretrained(6), context(tmp_path)
    )
    assert evaluation.metrics == {"top1": 100 / 6, "correct": 1, "samples": 6, "top5": 500 / 6}


def test_as_many_classes_as_outputs_are_demanded(tmp_path):
    fill(tmp_path / "x")
    with pytest.raises(ZSQBenchError, match="imagefolder x has 2 classes, the network 3 outputs"):
        Classification(data="imagefolder", root="x").evaluate(Constant([0.0] * 3), pretrained(3), context(tmp_path))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    fill(tmp_path / "x")
    (tmp_path / "x/b/1.png").write_bytes(b"")
    with pytest.raises(ZSQBenchError, match=r"image .*x/b/1\.png cannot be read"):
        Classification(data="imagefolder", root="x").evaluate(Constant([0.0, 1.0]), pretrained(), context(tmp_path))


def test_an_image_that_is_written_anew_is_decoded_anew(tmp_path):
    fill(tmp_path / "x", images=1)
    task = Classification(data="imagefolder", root="x", holdout=1)
    name, path = next(iter(task.find_data(tmp_path).calibration.items()))
    before = task.calibration_images(1, 0, pretrained(), context(tmp_path)).images
    Image.new("RGB", (8, 8)).save(path)
    os.utime(path, ns=(1, 1))
    after = task.calibration_images(1, 0, pretrained(), context(tmp_path)).images
    assert not torch.equal(before, after), name
    assert after.eq(-1).all()


@pytest.mark.parametrize("repeats", [1, 2])
def test_images_that_exif_turns_are_noted_also_where_they_were_decoded_before(tmp_path, repeats):
    fill(tmp_path / "x")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "x/b/1.png", exif=exif)
    for _ in range(repeats):
        ctx = context(tmp_path)
        Classification(data="imagefolder", root="x").evaluate(Constant([0.0, 1.0]), pretrained(), ctx)
    assert ctx.reporter.notes == [
        "1 of 6 images have an EXIF orientation and are not turned, as torchvision and timm turn none"
    ]


def test_files_of_16_bits_are_evaluated_as_their_8_bit_twins_are(tmp_path):
    rng, task = np.random.default_rng(0), Classification(data="imagefolder", root="x", holdout=3)
    seen = []
    for factor, kind in ((1, np.uint8), (257, np.uint16)):
        root = tmp_path / str(factor)
        (root / "x/a").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for index in range(4):
            grey = rng.integers(0, 256, (8, 8)).astype(kind) * kind(factor)
            Image.fromarray(grey).save(root / f"x/a/{index}.png")
        seen.append(task.calibration_images(3, 0, pretrained(), context(root)).images)
    assert torch.equal(*seen)


def test_the_preprocessor_takes_an_image_of_16_bits():
    wide = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    preprocess = Classification(data="digits").preprocessor(pretrained())
    assert preprocess(wide).eq(1).all()
    assert preprocess(Image.fromarray(np.full((8, 8), 25700, np.uint16))).max() < 0


def test_calibration_digits_are_a_seeded_choice_of_the_train_part():
    task = Classification(data="digits")
    loaded = task.load(model(base="resnet20"), context())
    one, again, other = (task.calibration_images(50, seed, loaded, context()) for seed in (0, 0, 1))
    assert one.images.shape == (50, 1, 16, 16)
    assert one.labels.shape == (50,)
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert len(task.calibration_images(5000, 0, loaded, context())) == 897


def test_calibration_digits_are_fed_as_evaluated_ones_are():
    task = Classification(data="digits")
    loaded = task.load(model(base="resnet20"), context())
    train = task.calibration_images(897, 0, loaded, context())
    assert (loaded.module(train.images).argmax(dim=1) == train.labels).float().mean() > 0.98


@needs_shared
def test_resnet20_is_right_on_776_of_846_cifar10_images():
    task = Classification(data="cifar10")
    spec = model(
        base="cifar_resnet20",
        weights=str(SHARED / "models/resnet20_cifar10.safetensors"),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    loaded = task.load(spec, context(SHARED))
    metrics = task.evaluate(loaded.module, loaded, context(SHARED)).metrics
    assert (metrics["correct"], metrics["samples"]) == (776, 846)


@needs_shared
@pytest.mark.slow
def test_a_users_mobilenet_is_right_on_572_of_1000_imagenet_images():
    task = Classification(data="imagefolder", root="imagenet/val")
    spec = model(
        file=str(SHARED / "models/mobilenetv1_025.py"),
        weights=str(SHARED / "models/mobilenetv1_025.safetensors"),
        input_size=[3, 224, 224],
        resize="none",
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    loaded = task.load(spec, context(SHARED))
    metrics = task.evaluate(loaded.module, loaded, context(SHARED)).metrics
    assert (metrics["correct"], metrics["samples"]) == (572, 1000)
