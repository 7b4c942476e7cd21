import torch
from networks import from_forward
from torch import nn

from zsqbench.quant import (
    MovingRanges,
    activation_quantizers,
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
