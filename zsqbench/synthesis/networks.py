"""Networks that make images: how their weights are drawn, and what a checkpoint holds of one and its optimiser."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def initialise(part: Any, rng: torch.Generator) -> None:
    """Give one module weights as torch's `reset_parameters` does, which takes its numbers from the global generator."""
    if isinstance(part, nn.Linear | nn.Conv2d):
        bound = part.weight[0].numel() ** -0.5
        for parameter in (part.weight, part.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound, generator=rng)
    elif isinstance(part, nn.Embedding):
        nn.init.normal_(part.weight, generator=rng)
    elif hasattr(part, "reset_parameters"):
        part.reset_parameters()  # to what is not random: a normalisation's


def training_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint keeps of a network and its optimiser."""
    moments = optimizer.state_dict()["state"]
    return {f"network.{name}": value for name, value in network.state_dict().items()} | {
        f"moments.{index}.{name}": value for index, values in moments.items() for name, value in values.items()
    }


def load_training(network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from what `training_state` said."""
    network.load_state_dict(part(state, "network."))
    moments = {index: part(state, f"moments.{index}.") for index, _ in enumerate(network.parameters())}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
