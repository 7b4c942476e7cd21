import pytest
import torch
from torch.nn import functional

from zsqbench.synthesis import Doubled


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_are_doubled_as_by_nearest_upsampling(compiling, layout, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    drawn = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = drawn.to(memory_format=layout).requires_grad_()
    found, expected = Doubled()(maps), functional.interpolate(maps, scale_factor=2)
    assert torch.equal(found, expected)
    of = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(each, maps, of)[0] for each in (found, expected)))
