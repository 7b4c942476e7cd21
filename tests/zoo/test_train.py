import pytest
import torch
from brief import parametrize_briefly
from safetensors.numpy import load_file
from torch import nn

from zsqbench.zoo import digits, train
from zsqbench.zoo.models import load_named
from zsqbench.zoo.train import RECIPES, ClassifierTraining, augment


@parametrize_briefly("name, optimizer, blanks", [("vit", "adamw", 8), ("mobilenetv2", "sgd", 0)], 1)
def test_training_is_the_same_each_time(name, optimizer, blanks):
    short = ClassifierTraining(
        0.5, weight_decay=1e-4, spread=1.0, epochs=1, batch=256, optimizer=optimizer, blanks=blanks
    )
    one, two = (train.train(name, short).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("name", "normalization"), [("mobilenetv2", nn.BatchNorm2d), ("vit", nn.LayerNorm)])
def test_spread_channels_stay_within_the_spread(name, normalization):
    network = load_named(name, "none").module
    train.spread_channels(network, 1.0, torch.Generator().manual_seed(0))
    weights = torch.cat([module.weight for module in network.modules() if isinstance(module, normalization)])
    assert weights.min() < 0.5
    assert weights.max() > 2
    assert weights.log().abs().max() <= 1


def test_augmentation_without_noise_stays_in_range_and_moves_images():
    images = torch.rand(4, 1, 16, 16)
    moved = augment(images, 0.0, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, images)


def test_blanks_are_noise_of_half_to_one_and_a_half_deviations():
    images = train.blank(50, torch.Generator().manual_seed(0))
    assert images.shape == (50, 1, 16, 16)
    assert images.mean().abs() < 0.05
    deviations = images.flatten(1).std(1)
    assert 0.4 < deviations.min() < 0.6
    assert 1.4 < deviations.max() < 1.7


def test_the_transformer_finds_no_class_in_noise_and_one_in_digits():
    network = load_named("vit").module
    images, _ = digits.load_digits("test")
    certain, uncertain = (
        network(x).softmax(1).amax(1).mean()
        for x in (train.normalize(train.resize(images)), train.blank(100, torch.Generator().manual_seed(1)))
    )
    assert certain > 0.7
    assert uncertain < 0.3


def test_each_embedded_network_has_a_recipe():
    assert set(RECIPES) == {"resnet20", "mobilenetv2", "vit"}


def test_the_data_file_is_what_the_script_writes(tmp_path, monkeypatch):
    before = load_file(digits.FILE)
    monkeypatch.setattr(digits, "FILE", tmp_path / "digits.safetensors")
    train.write_digits()
    after = load_file(tmp_path / "digits.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_the_script_writes_weights_that_load(tmp_path, monkeypatch):
    short = ClassifierTraining(noise=0.5, weight_decay=1e-4, spread=0.0, epochs=1, batch=448)
    monkeypatch.setattr(train, "RECIPES", {"mobilenetv2": short})
    monkeypatch.setattr(train.models, "shipped_weights", lambda name: tmp_path / f"{name}.safetensors")
    train.main()
    load_named("mobilenetv2", tmp_path / "mobilenetv2.safetensors")
