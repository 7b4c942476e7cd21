import pytest
import torch
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import CalibrationSet, Pretrained


class Extra(nn.Linear):
    def __init__(self, state):
        torch.manual_seed(0)
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def digest(state):
    return Pretrained(Extra(state), (1, 1, 2), (0.0,), (1.0,)).digest()


def test_extra_state_is_part_of_what_a_network_is():
    states = [
        *({"gain": 1.0}, {"gain": 2.0}, {"gain": None}, [1.0], "gain", {}, torch.ones(1), torch.ones(2)),
        *({"a": [torch.ones(1)]}, {"a": [torch.zeros(1)]}, {"a": [torch.zeros(1).half()]}),
    ]
    digests = [digest(state) for state in states]
    assert digests == [digest(state) for state in states]
    assert len(set(digests)) == len(states)


def test_extra_state_that_has_no_identity_is_refused():
    with pytest.raises(ZSQBenchError, match=r"extra state _extra_state .* it holds object, expected numbers"):
        digest({"x": object()})
    with pytest.raises(ZSQBenchError, match="keys must be"):
        digest({(1, 2): 3})


def test_boxes_are_kept_with_their_images(tmp_path):
    boxes = torch.tensor([[0, 3, 0.5, 0.5, 0.2, 0.4], [0, 4, 0.3, 0.3, 0.1, 0.1], [2, 3, 0.5, 0.5, 1.0, 1.0]])
    CalibrationSet(torch.zeros(3, 3, 4, 4), boxes=boxes).save(tmp_path / "set.safetensors")
    found = CalibrationSet.load(tmp_path / "set.safetensors")
    assert torch.equal(found.boxes, boxes)
    assert found.labels is None
    CalibrationSet(torch.zeros(3, 3, 4, 4)).save(tmp_path / "plain.safetensors")
    assert CalibrationSet.load(tmp_path / "plain.safetensors").boxes is None
