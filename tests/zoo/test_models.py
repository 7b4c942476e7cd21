import subprocess
import sys

import pytest
import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import DEFINITIONS, check_name, load_named
from zsqbench.zoo.train import accuracy


def test_names_can_be_listed_and_checked_without_torch():
    code = (
        "import sys; from zsqbench.zoo import models; models.check_name('timm/x'); assert models.DEFINITIONS; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "percent"), [("resnet20", 98), ("mobilenetv2", 98), ("vit", 97)])
def test_an_embedded_network_is_right_on_nearly_all_held_out_digits(name, percent):
    assert accuracy(load_named(name).module) >= percent


def test_all_that_is_embedded_takes_less_than_two_megabytes():
    folder = DEFINITIONS["resnet20"].weights.parent
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 2_000_000


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet2", "'resnet20'"), ("cifar_resnet21", "'cifar_resnet"), ("torchvison/resnet18", "'torchvision/'")],
)
def test_an_unknown_name_suggests_one(name, suggestion):
    with pytest.raises(ZSQBenchError, match=f"unknown model '{name}'; did you mean {suggestion}"):
        check_name(name)


@pytest.mark.parametrize("name", ["", "/resnet18", "torchvision"])
def test_half_a_name_is_unknown(name):
    with pytest.raises(ZSQBenchError, match="unknown model"):
        check_name(name)


def test_a_definition_without_weights_asks_for_them():
    with pytest.raises(ZSQBenchError, match="'cifar_resnet20' comes without weights; give 'weights'"):
        load_named("cifar_resnet20")


def test_random_weights_are_the_same_each_time_and_not_the_trained_ones():
    one, two, trained = load_named("resnet20", "none"), load_named("resnet20", "none"), load_named("resnet20")
    weights = [network.module.conv1.weight for network in (one, two, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_definition_is_built_for_any_number_of_classes():
    assert load_named("cifar_resnet32", "none", classes=100).module.linear.out_features == 100
