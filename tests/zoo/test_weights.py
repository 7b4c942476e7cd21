import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import Checkpoint
from zsqbench.zoo.weights import build_network, load_weights


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


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


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = network()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_a_prefix_that_all_names_share_is_left_out_and_told(tmp_path, prefix):
    source, target, told = network(), network(), []
    path = saved(tmp_path / "x.safetensors", prefixed(prefix, source.state_dict()))
    load_weights(target, Checkpoint(path, note=told.append))
    assert torch.equal(target[0].weight, source[0].weight)
    assert told == [f"names in x.safetensors begin with '{prefix}', which was left out"]


@pytest.mark.parametrize(("prefix", "said"), [("", 0), ("module.", 1)])
def test_a_network_whose_own_names_begin_with_the_prefix_is_loaded_as_it_is(tmp_path, prefix, said):
    source, target, told = Wrapper(), Wrapper(), []
    path = saved(tmp_path / "x.safetensors", prefixed(prefix, source.state_dict()))
    load_weights(target, Checkpoint(path, note=told.append))
    assert torch.equal(target.module[0].weight, source.module[0].weight)
    assert len(told) == said


def test_the_names_of_the_file_are_told_where_no_prefix_helps(tmp_path):
    path = saved(tmp_path / "x.safetensors", {"model.other": torch.zeros(1)})
    with pytest.raises(ZSQBenchError, match=r"lacks 0\.weight, .* also holds model\.other"):
        load_weights(network(), path)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = network(), nn.Linear(2, 2)


@pytest.mark.parametrize("part", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_parts_of_wrappers_of_children_are_left_out_and_told(tmp_path, prefix, part):
    source, target, told = Nested(), Nested(), []
    state = {name.replace("features.", f"features.{part}"): tensor for name, tensor in source.state_dict().items()}
    path = saved(tmp_path / "x.safetensors", prefixed(prefix, state))
    load_weights(target, Checkpoint(path, note=told.append))
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    assert ["have parts 'module.' or '_orig_mod.'" in line for line in told] == [True]


def test_the_counter_of_an_averaged_model_is_no_weight_of_the_network(tmp_path):
    source, target = torch.optim.swa_utils.AveragedModel(network()), network()
    load_weights(target, saved(tmp_path / "x.safetensors", source.state_dict()))
    assert torch.equal(target[0].weight, source.module[0].weight)
    again = torch.optim.swa_utils.AveragedModel(network())
    load_weights(again, tmp_path / "x.safetensors")
    assert torch.equal(again.module[0].weight, source.module[0].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused_by_the_name_of_the_tensor(tmp_path, name, value):
    state = network().state_dict()
    state[name].view(-1)[0] = value
    with pytest.raises(ZSQBenchError, match=f"NaN or infinite in {re.escape(name)}: give"):
        load_weights(network(), saved(tmp_path / "x.safetensors", state))


def test_a_number_that_is_too_large_for_the_network_is_not_finite(tmp_path):
    state = network().state_dict()
    state["0.weight"] = state["0.weight"].double() * 1e300
    with pytest.raises(ZSQBenchError, match=r"NaN or infinite in 0\.weight"):
        load_weights(network(), saved(tmp_path / "x.safetensors", state))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused_by_the_name_of_the_tensor(tmp_path, dtype):
    state = network().state_dict()
    state["0.weight"] = state["0.weight"].to(dtype)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ZSQBenchError, match=rf"in 0\.weight \({str(dtype)[6:]}, not float32\): "):
        load_weights(network(), tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_converted(tmp_path, dtype):
    source, target = network(), network()
    load_weights(target, saved(tmp_path / "x.safetensors", source.to(dtype).state_dict()))
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.float())


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.arange(3))
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))


def test_integers_and_infinities_that_the_network_has_itself_are_no_fault(tmp_path):
    state = Masked().state_dict() | {"index": torch.tensor([2, 0, 1])}
    target = Masked()
    load_weights(target, saved(tmp_path / "x.safetensors", state))
    assert target.index.tolist() == [2, 0, 1]
    with pytest.raises(ZSQBenchError, match="NaN or infinite in mask"):
        load_weights(Masked(), saved(tmp_path / "x.safetensors", state | {"mask": torch.full((2,), -float("inf"))}))


def test_a_counter_of_batches_that_overflowed_is_no_fault(tmp_path):
    state = network().state_dict() | {"1.num_batches_tracked": torch.tensor(float("inf"), dtype=torch.float16)}
    load_weights(network(), saved(tmp_path / "x.safetensors", state))


def test_random_weights_are_seeded_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build_network(network, "none")
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one[0].weight, build_network(network, "none")[0].weight)
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_what_is_taken_as_it_is_built_is_not_seeded_and_leaves_the_global_state_alone():
    def network():
        return nn.Linear(3, 2)

    torch.manual_seed(7)
    one, other = build_network(network, "built"), build_network(network, "built")
    assert not torch.equal(one.weight, other.weight)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build_network(network, "built")
    assert torch.equal(torch.rand(1), expected)


def test_what_is_built_with_its_weights_must_be_finite():
    def network():
        layer = nn.Linear(3, 2)
        layer.weight.data[0, 0] = torch.nan
        return layer

    with pytest.raises(ZSQBenchError, match="NaN or infinite as it was built, in weight"):
        build_network(network, "built")
