import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.weights import build_network, load_weights, read_weights


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def saved(path, state):
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"net": s}, "optimizer": {"lr": 1}}]
)
def test_a_checkpoint_may_be_nested_and_come_from_data_parallel(tmp_path, wrap):
    source, target = network(), network()
    torch.save(wrap({f"module.{name}": tensor for name, tensor in source.state_dict().items()}), tmp_path / "x.pth")
    load_weights(target, tmp_path / "x.pth")
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_safetensors_without_batch_counters_are_enough(tmp_path):
    source, target = network(), network()
    state = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    load_weights(target, saved(tmp_path / "x.safetensors", state))
    assert torch.equal(target[0].weight, source[0].weight)


def test_missing_and_extra_tensors_are_named_three_of_each_at_most(tmp_path):
    names = [f"other{index}" for index in range(5)]
    path = saved(tmp_path / "x.safetensors", {name: torch.zeros(1) for name in names})
    with pytest.raises(ZSQBenchError) as error:
        load_weights(network(), path)
    text = str(error.value)
    assert "lacks 0.weight, 0.bias, 1.weight and 5 more" in text
    assert "other0, other1, other2 and 2 more" in text
    assert str(path) in text


def test_another_shape_is_told_with_both_shapes(tmp_path):
    state = network().state_dict() | {"2.weight": torch.zeros(5, 4), "2.bias": torch.zeros(5)}
    with pytest.raises(ZSQBenchError, match=re.escape("2.weight is [5, 4], not [3, 4]; 2.bias is [5], not [3]")):
        load_weights(network(), saved(tmp_path / "x.safetensors", state))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_one_clear_line(tmp_path, suffix, left):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(network().state_dict(), path)
    else:
        saved(path, network().state_dict())
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ZSQBenchError, match="damaged") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dump", [torch.save, pickle.dump])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch, dump):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "x.pth").open("wb") as file:
        dump({"weight": Bomb()}, file)
    with pytest.raises(ZSQBenchError, match="not run here"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(3)])
def test_a_checkpoint_without_tensors_by_name_is_told(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ZSQBenchError, match="not tensors by name"):
        read_weights(tmp_path / "x.pth")


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(ZSQBenchError, match="there is no weights file"):
        read_weights(tmp_path / "x.pth")


def test_random_weights_are_seeded_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build_network(network, "none")
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one[0].weight, build_network(network, "none")[0].weight)
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())
