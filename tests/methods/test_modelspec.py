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
