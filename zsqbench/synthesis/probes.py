"""Moments of the inputs of a network's batch normalisations, image by image, measured in the forward pass itself."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis.channel_moments import image_moments, merge_calls, norm_and_moments

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
_PLAIN = {norm.forward for norm in BATCH_NORMS}

HookPoint = Literal["bn_input", "conv_output"]


@dataclass(frozen=True)
class Seen:
    """The moments of a forward pass. Channels of all layers lie side by side, in order of registration."""

    mean: Tensor
    """[N, T], for each image."""
    variance: Tensor
    """[N, T], biased."""
    channels: list[int]
    """Number of channels of each layer, of the T."""
    counts: list[int]
    """Number of values of an image in a channel of each layer: the size of its map."""
    outputs: Any
    """The network's return value. None if the pass stopped after the last batch normalisation."""
    order: list[int]
    """The layers in the order of the pass. A layer that it reached several times counts at the last."""

    def layer(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Mean and variance [N, C] of one layer, and its map's size."""
        mean, variance = (torch.split(each, self.channels, 1)[index] for each in (self.mean, self.variance))
        return mean, variance, self.counts[index]


class Probes:
    """Runs a network and measures the inputs of its batch normalisations, while the block lasts.

    The network is in eval mode with frozen parameters, and its norms compute moments beside their output. Afterwards
    the network is unchanged. Moments are differentiable once with respect to the images. Hook point `conv_output` reads
    the output of the convolution with the same number in the order of registration, as ZeroQ's release does.

    Raises ZSQBenchError for a network without batch normalisation, and for `conv_output` also where there are fewer
    convolutions.
    """

    def __init__(self, module: nn.Module, hook_point: HookPoint = "bn_input") -> None:
        self.norms = batch_norms(module)
        self._module = module
        self._of_convolutions = hook_point == "conv_output"
        self._convolutions = _paired_convolutions(module, len(self.norms)) if self._of_convolutions else []
        if not self.norms:
            raise ZSQBenchError(f"{type(module).__name__} has no batch normalisation whose statistics could be matched")
        self._resources = ExitStack()
        self._calls: list[list[tuple[Tensor, Tensor, int]]] = []
        self._unmeasured: list[list[Tensor]] = []
        self._reached: list[int] = []
        self.running = False
        self._passed = 0
        self._stop_at: int | None = None
        self._last: int | None = None

    def __enter__(self) -> Self:
        self._resources.enter_context(frozen(self._module))
        for index, norm in enumerate(self.norms.values()):
            self._resources.enter_context(_as_probe(norm, self, index))
        for index, convolution in enumerate(self._convolutions):
            hook = convolution.register_forward_hook(partial(self._convolution, index))
            self._resources.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def __call__(self, images: Tensor, *, outputs: bool = True) -> Seen:
        """Run the network on images [N, C, H, W], to its end only if `outputs` are asked for.

        Raises ZSQBenchError for a batch normalisation that the pass does not reach, or whose convolution does not fit.
        """
        self._calls = [[] for _ in self.norms]
        self._unmeasured = [[] for _ in self.norms]
        self._passed, self._reached = 0, []
        stop = not outputs and not torch.compiler.is_compiling()
        returned = self._run(images, self._last if stop else None)
        if not torch.compiler.is_compiling():
            self._last = self._passed  # later parts have no statistics, such as neck and head of a detector
        moments = [self._measured(index, name) for index, name in enumerate(self.norms)]
        self._calls, self._unmeasured = [], []  # else they would keep the pass's memory until the next pass
        means, variances, counts = zip(*moments, strict=True)
        channels = [mean.shape[1] for mean in means]
        order = list(dict.fromkeys(reversed(self._reached)))[::-1]
        return Seen(torch.cat(means, 1), torch.cat(variances, 1), channels, list(counts), returned, order)

    def _run(self, images: Tensor, last: int | None) -> Any:
        self._stop_at = last
        self.running = True
        try:
            return self._module(images)
        except _Stopped:
            return None
        finally:
            self.running = False

    def _measured(self, index: int, name: str) -> tuple[Tensor, Tensor, int]:
        calls = self._calls[index] + [(*image_moments(values), _size(values)) for values in self._unmeasured[index]]
        if not calls:
            raise ZSQBenchError(f"the forward pass does not reach the layer of batch normalisation {name!r}")
        channels, expected = calls[0][0].shape[1], len(self.norms[name].running_mean)
        if channels != expected:
            raise ZSQBenchError(
                f"batch normalisation {name!r} has {expected} channels, but the convolution with the same number in "
                f"the order of registration gives {channels}: pair each with its own input instead (bn_input)"
            )
        return merge_calls(calls)

    def norm(self, index: int, norm: Any, forward: Callable[..., Tensor], values: Tensor) -> Tensor:
        """The computation of a norm in a pass of these probes."""
        self._reached.append(index)
        if self._of_convolutions:
            mine = any(values is output for output in self._unmeasured[index])
            self._unmeasured[index] = [output for output in self._unmeasured[index] if output is not values]
        else:
            mine = True
        if not mine:
            result = forward(values)
        elif self._passed + 1 == self._stop_at or norm.own is not None or not norm.plain:
            self._calls[index].append((*image_moments(values), _size(values)))
            self._pass()
            return forward(values)
        else:
            result, mean, variance = norm_and_moments(values, norm)
            self._calls[index].append((mean, variance, _size(values)))
        self._pass()
        return result

    def _convolution(self, index: int, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep an output until its norm reads it, usually the next call, or until the pass is over."""
        if self.running:
            self._unmeasured[index].append(output)
            self._pass()

    def _pass(self) -> None:
        self._passed += 1
        if self._passed == self._stop_at:
            raise _Stopped


def batch_norms(module: nn.Module) -> dict[str, Any]:
    """The batch normalisations that store statistics, by path, in order of registration."""
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, BATCH_NORMS) and getattr(norm, "running_mean", None) is not None
    }


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a network into eval mode and disable its parameters' gradients, until the block ends."""
    modes = [(part, part.training) for part in module.modules()]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part, training in modes:
            part.training = training


class _Probed(nn.Module):
    """A norm while it is probed.

    The class of the norm is replaced, not its `forward`, because torch.compile would not recognise a new `forward` in
    the next step.
    """

    plain: ClassVar[bool]
    """True if its class only normalises. A subclass may do more, such as timm's norms with an activation."""
    probes: "tuple[tuple[Probes, int], ...]"
    own: "Callable[..., Tensor] | None"
    """A user's own forward of this norm."""

    def forward(self, values: Tensor) -> Tensor:
        forward = super().forward if self.own is None else self.own
        for probes, index in self.probes:
            if probes.running:
                return probes.norm(index, self, forward, values)
        return forward(values)


@cache
def _probed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Probed{kind.__name__}", (_Probed, kind), {"plain": kind.forward in _PLAIN})


@contextmanager
def _as_probe(norm: nn.Module, probes: Probes, index: int) -> Iterator[None]:
    kind, before = type(norm), vars(norm).copy()
    own = before.get("own") if isinstance(norm, _Probed) else vars(norm).pop("forward", None)
    norm.__class__ = kind if isinstance(norm, _Probed) else _probed(kind)  # type: ignore[arg-type]
    vars(norm).update(probes=((probes, index), *before.get("probes", ())), own=own)
    try:
        yield
    finally:
        norm.__class__ = kind
        for name in ("probes", "own", "forward"):
            vars(norm).pop(name, None)
            if name in before:
                vars(norm)[name] = before[name]


class _Stopped(Exception):  # noqa: N818 - not an error
    """The forward pass has gone as far as needed."""


def _size(values: Tensor) -> int:
    return values.shape[2] * values.shape[3]


def follow_convolutions(module: nn.Module) -> bool:
    """True if each batch normalisation has the channels of the convolution with the same number in their order."""
    norms = batch_norms(module).values()
    widths = [layer.out_channels for layer in _convolutions(module)]
    return len(widths) >= len(norms) and all(
        len(norm.running_mean) == width for norm, width in zip(norms, widths, strict=False)
    )


def _paired_convolutions(module: nn.Module, norms: int) -> list[nn.Module]:
    convolutions = _convolutions(module)
    if len(convolutions) < norms:
        raise ZSQBenchError(
            f"{type(module).__name__} has {norms} batch normalisations but {len(convolutions)} convolutions, "
            "which cannot be paired by their order"
        )
    return list(convolutions[:norms])


def _convolutions(module: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
