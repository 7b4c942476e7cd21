from pathlib import Path

import pytest
from pydantic import ValidationError

from zsqbench.methods import ModelSpec
from zsqbench.zoo.models import Checkpoint


@pytest.mark.parametrize("weights", [None, "none"])
def test_a_choice_among_the_weights_of_a_file_needs_a_file(weights):
    with pytest.raises(ValidationError, match="'weights' names no file"):
        ModelSpec(name="a", base="resnet20", weights=weights, checkpoint="ema")


def test_weights_to_load_are_none_random_or_of_a_file(tmp_path):
    path, told = tmp_path / "x.pth", []
    path.touch()
    mine = ModelSpec(name="a", base="resnet20", weights=str(path), checkpoint="ema")
    assert mine.weights_to_load(told.append) == Checkpoint(Path(path), "ema", told.append)
    assert ModelSpec(name="a", base="resnet20", weights="none").weights_to_load(told.append) == "none"
    assert ModelSpec(name="a", base="resnet20").weights_to_load(told.append) is None
    assert ModelSpec(name="a", base="resnet20").random_weights is False


def test_what_builds_a_network_may_load_its_weights_which_are_not_random(tmp_path):
    file = tmp_path / "net.py"
    file.touch()
    mine = ModelSpec(name="a", file=str(file), weights="built", input_size=(3, 8, 8))
    assert (mine.weights_from, mine.random_weights) == ("built", False)


def test_a_named_network_is_not_built_by_its_user():
    with pytest.raises(ValidationError, match="'weights: built' is for a 'file' of your own"):
        ModelSpec(name="a", base="resnet20", weights="built")


def test_a_file_without_weights_is_told_what_there_is(tmp_path):
    (tmp_path / "net.py").touch()
    with pytest.raises(ValidationError, match="a path, built for those that its function loads itself, or none for"):
        ModelSpec(name="a", file=str(tmp_path / "net.py"), input_size=(3, 8, 8))
