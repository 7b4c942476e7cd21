"""Count how often the grid of an output is too short, so that the largest values of an image become equal."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import ActivationQuantizer
from zsqbench.quant.student import activation_quantizers

SEVERAL = 2
"""If so many values of an image are beyond the end of their grid, they become equal, and their order is lost."""


class Clipping:
    """Counts images with several values of a tensor more than half a step above the end of its grid."""

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._clipped: dict[str, Tensor] = {}

    @property
    def shares(self) -> dict[str, float]:
        """The share of these images, 0 to 1, for each tensor that was computed."""
        return {name: self._clipped[name].item() / images for name, images in self._images.items()}

    def see(self, quantizer: nn.Module, args: tuple[Any, ...]) -> None:
        """Add the input of an activation quantizer, [N, ...]. This is a hook for `register_forward_pre_hook`."""
        x: Tensor = args[0]
        if not isinstance(quantizer, ActivationQuantizer) or not quantizer.enabled or not x.dim() or not x.numel():
            return
        end = (levels(quantizer.bits) + 0.5 - quantizer.zero_point) * quantizer.scale
        values = x.reshape(len(x), -1)
        beyond = torch.count_nonzero(values > end, dim=1)
        clipped = torch.count_nonzero(beyond >= min(SEVERAL, values.shape[1]))
        name = quantizer.name
        self._images[name] = self._images.get(name, 0) + len(x)
        self._clipped[name] = self._clipped[name] + clipped if name in self._clipped else clipped


@contextlib.contextmanager
def counted_clipping(student: nn.Module, role: str) -> Iterator[Clipping]:
    """Count, in all passes meanwhile, how often the grids of the activations of a role are too short.

    A single value beyond the end stays the largest, so it changes no decision. Counting does not change the results of
    the student, and does not wait for a device.
    """
    clipping = Clipping()
    with contextlib.ExitStack() as hooks:
        for _, quantizer in activation_quantizers(student):
            if quantizer.role == role:
                hooks.callback(quantizer.register_forward_pre_hook(clipping.see).remove)
        yield clipping
