"""Penultimate features of images: the input of a network's last linear layer."""

from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from zsqbench.errors import ZSQBenchError


class PenultimateFeatures:
    """Keeps the penultimate features of each forward pass while the block lasts.

    They are the input of the last `Linear` or 1 x 1 convolution that a pass calls: `with PenultimateFeatures(module) as
    features: module(images); features.last`. Enter it before a compiled module runs for the first time, because
    torch.compile ignores later hooks.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._resources = ExitStack()
        self._layer: str | None = None
        self._input: Tensor | None = None

    def __enter__(self) -> Self:
        for name, layer in self._module.named_modules():
            if _mixes_channels(layer):
                hook = layer.register_forward_pre_hook(partial(self._keep, name))
                self._resources.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        self._layer = self._input = None  # else it would keep the pass's memory

    @property
    def layer(self) -> str:
        """Path of the layer that reads the features. It is '' where the network itself is the layer."""
        return self._last()[0]

    @property
    def last(self) -> Tensor:
        """The features [N, F] of the last pass, averaged over positions if there are any; differentiable.

        Raises ZSQBenchError where no pass called a linear layer or 1 x 1 convolution.
        """
        layer, values = self._last()
        if values.dim() > 2 and not isinstance(self._module.get_submodule(layer), nn.Linear):  # noqa: PLR2004
            return values.flatten(2).mean(2)
        return values.flatten(1, -2).mean(1) if values.dim() > 2 else values  # noqa: PLR2004

    def _last(self) -> tuple[str, Tensor]:
        if self._layer is None or self._input is None:
            raise ZSQBenchError(
                f"no forward pass of {type(self._module).__name__} called a linear layer or a 1 x 1 convolution, "
                "whose input its features would be"
            )
        return self._layer, self._input

    def _keep(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._layer, self._input = name, inputs[0]


def _mixes_channels(layer: nn.Module) -> bool:
    """True for a linear layer, also if it is written as a convolution."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
