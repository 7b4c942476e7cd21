import pytest
import torch
from torch import nn

from zsqbench.quant.grids.fake_quant import quantized_layer
from zsqbench.quant.grids.transposed import TransposedConv2d, turned

LAYERS = {
    "plain": nn.ConvTranspose2d(4, 6, 3, bias=False),
    "stride and output padding": nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1),
    "groups": nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
    "depthwise": nn.ConvTranspose2d(4, 4, 4, 2, padding=1, groups=4),
    "dilation, and kernels that are no squares": nn.ConvTranspose2d(4, 6, (2, 3), (1, 2), dilation=(3, 2), groups=2),
}


def test_channels_are_turned_group_by_group_and_back():
    weight = torch.arange(8).view(4, 2, 1, 1)  # two groups of two inputs and two outputs: rows are inputs
    expected = [[0, 2], [1, 3], [4, 6], [5, 7]]  # rows are outputs
    assert turned(weight, 2).flatten(1).tolist() == expected
    assert torch.equal(turned(turned(weight, 2), 2), weight)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_it_computes_what_the_layer_of_torch_does(layer):
    x = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    ours = TransposedConv2d.of(layer)
    assert ours.weight.shape == (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    assert torch.equal(ours(x), layer(x))


def test_it_takes_an_output_size_as_the_layer_of_torch_does():
    layer = nn.ConvTranspose2d(4, 6, 3, 2, padding=1)
    ours, x = TransposedConv2d.of(layer), torch.randn(2, 4, 5, 5)
    for size in (9, 10):
        assert torch.equal(ours(x, output_size=(size, size)), layer(x, output_size=(size, size)))
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, output_size=(12, 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_geometry_mode_bias_and_gradient_are_those_of_the_layer(dtype):
    layer = LAYERS["groups"].to(dtype).eval()
    layer.weight.requires_grad_(requires_grad=False)
    ours = TransposedConv2d.of(layer)
    assert ours.extra_repr() == layer.extra_repr()
    assert (ours.training, ours.weight.requires_grad, ours.weight.dtype) == (False, False, dtype)
    assert ours.bias is layer.bias


def test_each_output_channel_has_a_grid_of_its_own():
    layer = nn.ConvTranspose2d(2, 4, 1, groups=2, bias=False)
    with torch.no_grad():  # input 0 makes outputs 0 and 1, input 1 makes 2 and 3
        layer.weight.copy_(torch.tensor([[0.3, 3.0], [-1.5, 6.0]]).view(2, 2, 1, 1))
    quantized = quantized_layer(TransposedConv2d.of(layer), "up", "weight", 2)
    assert quantized.weight_quantizer.scale.shape == (4, 1, 1, 1)
    low, high = torch.tensor([0.0, 0.0, -1.5, 0.0]), torch.tensor([0.3, 3.0, 0.0, 6.0])
    quantized.weight_quantizer.set_range(low, high)
    torch.testing.assert_close(quantized.weight_quantizer.scale.flatten(), torch.tensor([0.1, 1.0, 0.5, 2.0]))
    assert quantized.weight_quantizer.codes(quantized.weight).flatten().tolist() == [3, 3, 0, 3]
    assert quantized(torch.ones(1, 2, 1, 1)).flatten().tolist() == pytest.approx([0.3, 3.0, -1.5, 6.0])
