"""The tasks that judge a network against the float one, on a file of images and on a folder."""

import copy

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from zsqbench_plugins.agreement import Agreement, Fidelity

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.testing import context
from zsqbench.zoo.digits import load_digits

RESNET = zsqbench.ModelSpec(name="r", base="resnet20")


def complaint(call, *arguments):
    with pytest.raises(ZSQBenchError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def digits(tmp_path):
    """Twelve digits in class folders 0 to 9, and what is right of each."""
    images, labels = load_digits("test")
    wanted = [next(i for i in range(900) if labels[i] == digit) for digit in range(10)] + [20, 21]
    for index in wanted:
        folder = tmp_path / "digits" / str(int(labels[index]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[index, 0] * 255).round().byte().numpy()).save(folder / f"{index:04}.png")
    return tmp_path / "digits"


@pytest.fixture
def file(tmp_path):
    """Sixteen images of noise."""
    images = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    save_file({"images": images}, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors"


class Turned(nn.Module):
    """A classifier whose logits, of the first images of each batch, are turned around."""

    def __init__(self, network, first):
        super().__init__()
        self.network, self.first = network, first

    def forward(self, x):
        logits = self.network(x).clone()
        logits[: self.first] *= -1
        return logits


def test_the_float_network_agrees_with_itself(file):
    task = Agreement(file=file)
    network = task.load(RESNET, context())
    found = task.evaluate(network.module, network, context())
    expected = {"agreement": 100, "fidelity": 100, "synthetic/agreement": 100, "synthetic/fidelity": 100}
    assert found.metrics == {**expected, "synthetic/samples": 16, "samples": 16}
    assert (network.classes, network.input_size, list(found.labels)) == (10, (1, 16, 16), [])


def test_agreement_is_the_share_of_equal_decisions_and_fidelity_one_minus_the_relative_error(file):
    task = Agreement(file=file, batch_size=16)
    network = task.load(RESNET, context())
    found = task.evaluate(Turned(network.module, 4), network, context())
    logits = network.module(zsqbench.CalibrationSet.load(file).images)
    error = (4 * logits[:4].square().sum() / logits.square().sum()).sqrt()
    assert found.metrics["agreement"] == 75
    assert found.metrics["fidelity"] == pytest.approx(100 * (1 - float(error)), abs=1e-3)
    assert list(found.per_sample) == [False] * 4 + [True] * 12


def test_class_folders_as_many_as_classes_are_labels_and_the_headline_is_of_the_folder(file, digits):
    task = Agreement(file=file, folder=digits, batch_size=20)
    network = task.load(RESNET, context())
    found = task.evaluate(Turned(network.module, 3), network, context())
    assert found.metrics["images/samples"] == found.metrics["samples"] == 12
    assert found.metrics["agreement"] == found.metrics["images/agreement"] == 75
    assert found.metrics["synthetic/agreement"] == pytest.approx(100 * 13 / 16)
    assert found.metrics["top1"] == 75
    right = [one == other for one, other in zip(found.predictions, found.labels, strict=True)]
    assert right == [False] * 3 + [True] * 9


def test_some_of_the_images_are_the_same_ones_each_time_and_are_labelled_by_all_folders(digits, tmp_path):
    task, all_of_them = Agreement(folder=digits, most=4), Agreement(folder=digits)
    network = task.load(RESNET, context())
    found, others = (task.evaluate(network.module, network, context()) for _ in range(2))
    assert (found.metrics["images/samples"], found.metrics["top1"]) == (4, 100)
    assert list(found.labels) == list(others.labels)
    files, every = task.find_data(None).evaluation, all_of_them.find_data(None).evaluation
    assert len(files) == 4
    assert files.items() <= every.items()
    fewer = Agreement(folder=digits, most=2).find_data(None).evaluation
    assert fewer.items() < files.items()


def test_a_folder_without_classes_is_judged_without_labels(digits, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in digits.rglob("*.png"):
        path.rename(flat / path.name)
    task, ctx = Agreement(folder=flat), context()
    network = task.load(RESNET, ctx)
    found = task.evaluate(network.module, network, ctx)
    assert ("top1" in found.metrics, list(found.labels), found.metrics["agreement"]) == (False, [], 100)
    assert ctx.reporter.notes == []


def test_folders_that_are_not_the_classes_are_told(digits):
    (digits / "9").rename(digits / "8" / "more")
    task, ctx = Agreement(folder=digits), context()
    network = task.load(RESNET, ctx)
    assert "top1" not in task.evaluate(network.module, network, ctx).metrics
    assert ctx.reporter.notes == ["the images have no labels: they lie in 9 folders, for 10 classes"]


def test_without_images_seeded_noise_is_judged_on():
    task = Agreement(noise=8)
    network = task.load(RESNET, context())
    first, second = (task.evaluate(network.module, network, context()) for _ in range(2))
    assert first.metrics["noise/samples"] == 8
    assert first.predictions == second.predictions


def test_outputs_that_are_not_finite_are_no_measurement(file):
    task = Agreement(file=file)
    network = task.load(RESNET, context())
    broken = copy.deepcopy(network.module)
    broken.register_forward_hook(lambda _, __, logits: logits * float("nan"))
    said = complaint(task.evaluate, broken, network, context())
    assert said == "the quantized network's outputs are not finite"


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        x = self.conv(x)
        return {result}
def build():
    return Net()
"""


def own(tmp_path, result):
    (tmp_path / "net.py").write_text(NET.format(result=result))
    fields = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 8, 8)}
    return zsqbench.ModelSpec(name="own", file=tmp_path / "net.py", weights="none", **fields)


def test_fidelity_judges_all_outputs_of_a_network_that_is_no_classifier(tmp_path):
    task, spec = Fidelity(noise=4), own(tmp_path, '{"a": x, "b": [x.mean((2, 3)), x.argmax(1)]}')
    network = task.load(spec, context())
    assert task.evaluate(network.module, network, context()).metrics["fidelity"] == 100
    halved = copy.deepcopy(network.module)
    halved.conv.weight.data *= 0.5
    halved.conv.bias.data *= 0.5
    found = task.evaluate(halved, network, context()).metrics
    assert found["fidelity"] == found["noise/fidelity"] == pytest.approx(50, abs=1e-3)


def test_agreement_refuses_what_is_no_classifier_and_names_the_task_that_takes_it(tmp_path):
    said = complaint(Agreement().load, own(tmp_path, "x"), context())
    assert said == ("model 'own' is not a classifier: it returns [2, 4, 6, 6] for 2 images; take the task fidelity")


def test_a_network_without_real_outputs_is_refused(tmp_path):
    said = complaint(Fidelity().load, own(tmp_path, "x.argmax(1)"), context())
    assert said == "model 'own' returns no tensor of real numbers; the task needs one"


def test_outputs_of_zeros_have_no_relative_error(tmp_path):
    task, spec = Fidelity(noise=4), own(tmp_path, "x * 0")
    network = task.load(spec, context())
    assert complaint(task.evaluate, network.module, network, context()).startswith(
        "the float network's outputs are all zero"
    )


def test_images_of_another_size_are_refused(tmp_path):
    save_file({"images": torch.zeros(2, 3, 8, 8)}, tmp_path / "other.safetensors")
    task = Agreement(file=tmp_path / "other.safetensors")
    network = task.load(RESNET, context())
    said = complaint(task.evaluate, network.module, network, context())
    assert said.endswith("are [2, 3, 8, 8]; the network takes [N, 1, 16, 16]")


def test_folders_that_are_absent_empty_or_relative_to_nothing_are_told_before_a_run(tmp_path):
    assert complaint(Agreement(folder=tmp_path / "no").find_data, None).startswith("there is no folder ")
    assert complaint(Agreement(folder=tmp_path).find_data, None) == f"{tmp_path} holds no images to judge on"
    assert complaint(Agreement(folder="here").find_data, None).startswith("folder here needs a data root")


def test_what_is_judged_on_is_watched_and_in_the_identity_and_nothing_is_for_calibration(file, digits):
    found = Agreement(file=file, folder=digits.name).find_data(digits.parent)
    assert set(found.folders) == {file, digits}
    assert len(found.evaluation) == 13
    assert found.evaluation["file"] == file
    assert found.calibration == {}
