"""Parts of networks that make images: a module, the drawing of weights, and checkpoints of their training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Doubled(nn.Module):
    """Maps [N, C, H, W] of twice the height and width, each value four times: torch's nearest upsampling by 2.

    A compiler turns torch's gradient into scalar sums, one by one. For values that are spread out, it makes vectors, in
    the order in which a CPU's convolution reads them.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [N, C, 2 H, 2 W]."""
        if not torch.compiler.is_compiling():
            return functional.interpolate(maps, scale_factor=2)
        count, channels, height, width = maps.shape
        places = maps.permute(0, 2, 3, 1)[:, :, None, :, None]
        spread = places.expand(count, height, 2, width, 2, channels)
        return spread.reshape(count, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def initialize(part: Any, rng: torch.Generator) -> None:
    """Draw one module's weights from `rng` as torch's `reset_parameters` draws them from the global generator."""
    if isinstance(part, nn.Linear | nn.Conv2d):
        bound = part.weight[0].numel() ** -0.5
        for parameter in (part.weight, part.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound, generator=rng)
    elif isinstance(part, nn.Embedding):
        nn.init.normal_(part.weight, generator=rng)
    elif hasattr(part, "reset_parameters"):
        part.reset_parameters()  # a normalisation's parameters, which are not random


def training_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A checkpoint's entries of a network and its optimiser."""
    moments = optimizer.state_dict()["state"]
    return {f"network.{name}": value for name, value in network.state_dict().items()} | {
        f"moments.{index}.{name}": value for index, values in moments.items() for name, value in values.items()
    }


def load_training(network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore a state that `training_state` returned."""
    network.load_state_dict(part(state, "network."))
    moments = {index: part(state, f"moments.{index}.") for index, _ in enumerate(network.parameters())}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with this prefix, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
