"""Networks that make images: how their weights are drawn."""

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
