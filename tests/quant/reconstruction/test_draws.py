import pytest
import torch

from zsqbench.quant.reconstruction.draws import select


def numbers(seed):
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_selected_and_its_gradients_are_those_of_where(memory_format):
    rng = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 4, 5, 6, generator=rng) < 0.5
    found = []
    for choose in (select, torch.where):
        pair = [
            torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)).contiguous(
                memory_format=memory_format
            )
            for seed in (1, 2)
        ]
        pair[0][0, 0, 0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
        leaves = [each.requires_grad_() for each in pair]
        made = choose(mask, *leaves)
        (made * torch.randn(mask.shape, generator=torch.Generator().manual_seed(3))).nan_to_num(
            0, 0, 0
        ).sum().backward()
        found.append([made.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def test_other_types_are_selected_as_by_where():
    mask = torch.tensor([True, False])
    assert select(mask, torch.ones(2).double(), torch.zeros(2).double()).tolist() == [1, 0]
