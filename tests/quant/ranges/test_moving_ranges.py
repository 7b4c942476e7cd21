import numpy as np
import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench.quant import (
    MovingRanges,
    activation_quantizers,
    calibrate_weights,
    prepare,
)
from zsqbench.scheme import parse_scheme

SIZE = (3, 4, 4)


def test_a_moving_range_counts_a_batch_once_however_often_a_layer_is_called():
    net = from_forward(lambda net, x: (net.tower(4 * x), net.tower(x)), tower=nn.Conv2d(3, 2, 1))
    student = prepare(net, parse_scheme("hw/w32a8"), SIZE)
    ranges, batches = MovingRanges(student, 0.5), torch.randn(2, 4, *SIZE).unbind()
    for images in batches:
        ranges.update(images)
    quantizer = dict(activation_quantizers(student))["tower"]
    (state,) = [value for name, value in ranges.state().items() if name.endswith("tower")]
    ends = [torch.stack([net.tower(4 * images).min(), net.tower(4 * images).max()]) for images in batches]
    assert state[2] == 2
    torch.testing.assert_close(state[:2].float(), 0.25 * ends[0] + 0.5 * ends[1], rtol=0.05, atol=0.05)
    assert quantizer.enabled


@pytest.mark.parametrize(
    "file",
    ["hast_finetune_w3a3_a", "hast_finetune_w4a4_a", "2025/synq_update_resnet20_a", "2025/adadfq_iteration_resnet20_a"],
)
def test_the_first_batch_of_a_network_sets_the_ranges_of_the_releases(shared, resnet20, file):
    """Each activation is rounded before the next one is seen. Releases that build on HAST's have its lines."""
    stored = np.load(shared / "golden" / f"{file}.npz")
    student = prepare(resnet20, parse_scheme(f"hast/w{stored['w_bits']}a{stored['a_bits']}"), (3, 32, 32))
    calibrate_weights(student, "minmax")
    ranges = MovingRanges(student, compounding=True)
    ranges.update(torch.from_numpy(stored["range_init_images"]))
    found = torch.stack([state[:2] for state in ranges.state().values()]).float()
    torch.testing.assert_close(found, torch.from_numpy(stored["act_ranges"]), rtol=1e-5, atol=1e-6)
