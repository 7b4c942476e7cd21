import pytest
from networks import from_forward
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.outputs import output_layers
from zsqbench.quant.graph.tracing import capture


def test_an_output_may_come_from_a_normalisation_or_an_activation_of_a_layer():
    def forward(net, x):
        return net.norm(net.conv(x)), net.last(x).relu()

    net = from_forward(forward, conv=nn.Conv2d(3, 2, 1), norm=nn.BatchNorm2d(2), last=nn.Conv2d(3, 2, 1))
    assert output_layers(capture(net, (3, 8, 8))) == ["norm", "last"]
    with pytest.raises(ZSQBenchError, match=r"the output 'mul' \(mul\) comes from no convolution or linear layer"):
        output_layers(capture(from_forward(lambda net, x: net.conv(x) * 2, conv=nn.Conv2d(3, 2, 1)), (3, 8, 8)))
