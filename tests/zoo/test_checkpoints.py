import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.checkpoints import read_weights
from zsqbench.zoo.models import Checkpoint

STATE = {"weight": torch.zeros(40), "bias": torch.zeros(1)}
ONE, TWO = {"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def read(path, content, taken=None):
    """The only weight of a checkpoint, and what was told."""
    told = []
    torch.save(content, path)
    return read_weights(Checkpoint(path, taken, told.append))["weight"].item(), told


BOTH = [
    {"model": ONE, "model_ema": TWO, "epoch": 9},
    {"model_ema": TWO, "model": ONE},
    {"state_dict": ONE, "state_dict_ema": TWO, "ema_decay": 0.99},
    {"ema_state_dict": TWO, "state_dict": ONE},
    {"model": ONE, "ema": {"state_dict": TWO}},
    {"net": {"params": ONE, "params_ema": TWO}},
]


@pytest.mark.parametrize("content", BOTH)
@pytest.mark.parametrize("taken", [None, "model"])
def test_of_weights_and_their_average_the_weights_are_taken_and_the_average_is_told(tmp_path, content, taken):
    value, (told,) = read(tmp_path / "x.pth", content, taken)
    assert value == 1
    assert "the weights were taken; 'checkpoint: ema' takes the average" in told


@pytest.mark.parametrize("content", BOTH)
def test_the_average_is_taken_where_it_is_asked_for(tmp_path, content):
    value, (told,) = read(tmp_path / "x.pth", content, "ema")
    assert value == 2
    assert "the average was taken" in told


def test_names_of_both_are_told(tmp_path):
    _, (told,) = read(tmp_path / "x.pth", {"net": {"params": ONE, "params_ema": TWO}})
    assert told.startswith("x.pth holds weights, 'net.params', and their moving average, 'net.params_ema': ")


@pytest.mark.parametrize("taken", [None, "ema"])
def test_an_average_alone_is_taken_and_told(tmp_path, taken):
    value, told = read(tmp_path / "x.pth", {"model_ema": TWO, "epoch": 3}, taken)
    assert value == 2
    assert told == ["x.pth holds no weights but a moving average, 'model_ema', which was taken"]


def test_weights_that_are_asked_for_and_not_there_are_missed(tmp_path):
    with pytest.raises(
        ZSQBenchError, match=r"dictionary of model_ema, and no weights but .* leave 'checkpoint: model'"
    ):
        read(tmp_path / "x.pth", {"model_ema": TWO}, "model")
    with pytest.raises(ZSQBenchError, match=r"dictionary of model, and no moving average .* leave 'checkpoint: ema'"):
        read(tmp_path / "x.pth", {"model": ONE}, "ema")
    save_file(ONE, tmp_path / "x.safetensors")
    with pytest.raises(ZSQBenchError, match="no moving average"):
        read_weights(Checkpoint(tmp_path / "x.safetensors", "ema"))


@pytest.mark.parametrize("content", [ONE, {"state_dict": ONE}, {"model": ONE, "ema_decay": 0.9, "schema": TWO}])
def test_nothing_is_told_where_there_is_no_average(tmp_path, content):
    assert read(tmp_path / "x.pth", content) == (1, [])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_one_clear_line(tmp_path, suffix, left):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ZSQBenchError, match="damaged") as error:
        read_weights(Checkpoint(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dump", [torch.save, pickle.dump])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch, dump):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "x.pth").open("wb") as file:
        dump({"weight": Bomb()}, file)
    with pytest.raises(ZSQBenchError, match="not run here"):
        read_weights(Checkpoint(tmp_path / "x.pth"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(3)])
def test_a_checkpoint_without_tensors_by_name_is_told(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ZSQBenchError, match="not tensors by name"):
        read_weights(Checkpoint(tmp_path / "x.pth"))


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(ZSQBenchError, match="there is no weights file"):
        read_weights(Checkpoint(tmp_path / "x.pth"))
