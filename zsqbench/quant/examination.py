"""Examine a network: its parts, and properties that make it hard to quantize for every method."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.compat import tree_leaves
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.quant.corrections.equalization import dead_channels
from zsqbench.quant.graph.bn_folding import fold_bn
from zsqbench.quant.graph.operators import ACTIVATIONS, operator
from zsqbench.quant.graph.rectifiers import is_bounded
from zsqbench.quant.graph.tensor_roles import weight_roles
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.grids.transposed import TransposedConv2d, turned
from zsqbench.quant.inspection import images_for

UNEVEN = 100.0
"""A layer is uneven if the largest weights of two channels differ by more than this factor. Beyond it, the smaller
channel has about one of the 127 steps that one grid at 8 bits has for the larger channel."""

FLOAT_BYTES = 4
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Output:
    """A tensor that the network returns for four seeded images."""

    shape: tuple[int, ...]
    low: float | None
    """Its smallest value. None: a value is NaN or infinite."""
    high: float | None


@dataclass(frozen=True)
class Examination:
    """Facts of a network. Facts of single layers are by the path of the module.

    Batch normalisation is folded into weights. If the network cannot be captured, weights are unchanged.
    """

    blocker: str | None
    """Why it cannot be captured or run, in one line. None: it can."""
    layers: Mapping[str, int]
    """Number of layers with weights of each class."""
    norms: Mapping[str, int]
    """Number of normalisations of each class."""
    bounded: Mapping[str, int]
    """Number of calls of each bounded activation function, such as ReLU6."""
    unbounded: Mapping[str, int]
    """Number of calls of each other activation function. Both are empty if the network cannot be captured."""
    channels: Mapping[str, int]
    """Number of output channels of each layer with a weight that can be quantized."""
    dead: Mapping[str, int]
    """Number of dead channels (no weight above a 2^24th of the layer's largest), for layers that have some."""
    spread: Mapping[str, float]
    """The factor between the largest absolute weights of two channels of a layer, without dead channels."""
    still: Mapping[str, int]
    """Number of channels of a batch normalisation with a variance of at most eps, for norms that have some."""
    weights: int
    """Number of values in weights that can be quantized."""
    others: int
    """Number of all other values: biases, and normalisation that is not folded."""
    outputs: tuple[Output, ...] = field(default=())

    @property
    def uneven(self) -> dict[str, float]:
        """The layers whose channels differ by more than `UNEVEN`, with the factor."""
        return {path: factor for path, factor in self.spread.items() if factor > UNEVEN}

    @property
    def not_finite(self) -> bool:
        """True if an output is NaN or infinite."""
        return any(output.low is None for output in self.outputs)

    def size(self, bits: int) -> int:
        """Bytes with all weights packed at these bits and all other values in float32. Scales are not counted."""
        return -(-bits * self.weights // 8) + FLOAT_BYTES * self.others


@dataclass(frozen=True)
class _Parts:
    """The parts of a network for an examination."""

    modules: Mapping[str, nn.Module]
    bounded: Counter[str]
    unbounded: Counter[str]
    weights: Mapping[str, Tensor]
    """Weights with output channels on axis 0."""
    tensors: Iterable[Tensor]


@torch.no_grad()
def examine(module: nn.Module, input_size: tuple[int, int, int]) -> Examination:
    """Examine a network in eval mode. If it cannot be captured or run, this is a finding, not an error."""
    try:
        parts, blocker = _parts_of_graph(capture(module, input_size)), None
    except ZSQBenchError as error:
        parts, blocker = _parts_of_modules(module), str(error)
    outputs, failure = _run(module, input_size)
    norms = {path: part for path, part in parts.modules.items() if _is_norm(part)}
    layers = [part for path, part in parts.modules.items() if path not in norms and _has_weight(part)]
    dead = {path: dead_channels(weight) for path, weight in parts.weights.items()}
    weights = _count(parts.weights.values())
    return Examination(
        blocker=blocker or failure,
        layers=dict(Counter(map(_kind, layers))),
        norms=dict(Counter(map(_kind, norms.values()))),
        bounded=dict(parts.bounded),
        unbounded=dict(parts.unbounded),
        channels={path: len(weight) for path, weight in parts.weights.items()},
        dead={path: int(found.sum()) for path, found in dead.items() if found.any()},
        spread={path: _spread(weight, dead[path]) for path, weight in parts.weights.items()},
        still={path: count for path, norm in norms.items() if (count := _still(norm))},
        weights=weights,
        others=_count(parts.tensors) - weights,
        outputs=outputs,
    )


def _parts_of_graph(captured: fx.GraphModule) -> _Parts:
    calls = [str(node.target) for node in captured.graph.nodes if node.op == "call_module"]
    modules = {path: captured.get_submodule(path) for path in calls}
    bounded, unbounded = Counter[str](), Counter[str]()
    for node in captured.graph.nodes:
        if operator(node) in ACTIVATIONS:
            (bounded if is_bounded(captured, node, operator(node)) else unbounded)[operator(node)] += 1
    fold_bn(captured)
    weights = {path: cast("Tensor", captured.get_submodule(path).weight) for path in weight_roles(captured)}
    tensors = [tensor for node in captured.graph.nodes for tensor in _tensors(captured, node)]
    return _Parts(modules, bounded, unbounded, weights, tensors)


def _parts_of_modules(module: nn.Module) -> _Parts:
    """The facts of a network that are known without its graph."""
    modules = dict(module.named_modules())
    layers: dict[str, Any] = {path: part for path, part in modules.items() if isinstance(part, _LAYERS)}
    weights = {path: _outputs_first(layer) for path, layer in layers.items()}
    return _Parts(modules, Counter(), Counter(), weights, [*module.parameters(), *module.buffers()])


def _run(module: nn.Module, input_size: tuple[int, int, int]) -> tuple[tuple[Output, ...], str | None]:
    """The outputs of the network for seeded images, or why there are none."""
    images = images_for(module, input_size)
    try:
        given = module(images)
    except Exception as error:  # noqa: BLE001  # any exception of a user's network is a finding
        return (), f"{type(module).__name__} fails on images {list(images.shape)}: {one_line(error)}"
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return tuple(map(_output, tensors)), None


def _output(tensor: Tensor) -> Output:
    if not tensor.numel() or not tensor.isfinite().all():
        return Output(tuple(tensor.shape), None, None)
    return Output(tuple(tensor.shape), float(tensor.min()), float(tensor.max()))


def _tensors(captured: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    """The parameters and buffers that a node uses."""
    if node.op == "call_module":
        part = captured.get_submodule(str(node.target))
        return [*part.parameters(), *part.buffers()]
    value = attrgetter(str(node.target))(captured) if node.op == "get_attr" else None
    return [value] if isinstance(value, Tensor) else []


def _count(tensors: Iterable[Tensor]) -> int:
    """Number of real numbers in these tensors. A tensor that occurs several times counts once."""
    return sum({id(tensor): tensor.numel() for tensor in tensors if tensor.is_floating_point()}.values())


def _outputs_first(layer: Any) -> Tensor:
    """The weight of a layer of torch, with output channels on axis 0."""
    weight: Tensor = layer.weight
    is_turned = isinstance(layer, nn.ConvTranspose2d) and not isinstance(layer, TransposedConv2d)
    return turned(weight, layer.groups) if is_turned else weight


def _has_weight(part: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in part.parameters(recurse=False))


def _is_norm(part: nn.Module) -> bool:
    return hasattr(part, "running_var") or "Norm" in _kind(part)


def _kind(part: nn.Module) -> str:
    """The class of a module, or its base class of torch."""
    bases = [base for base in type(part).__mro__ if base.__module__.startswith(("torch.nn.", "torchvision.ops."))]
    return next((base.__name__ for base in bases if base is not nn.Module), type(part).__name__)


def _spread(weight: Tensor, dead: Tensor) -> float:
    """The largest divided by the smallest range of channels that are not dead. 1: there are none."""
    alive = weight.abs().flatten(1).amax(1)[~dead]
    return float(alive.max() / alive.min()) if len(alive) else 1.0


def _still(norm: Any) -> int:
    """Number of channels with a variance of at most eps. 0 if the norm keeps no variance."""
    variance = getattr(norm, "running_var", None)
    return 0 if variance is None else int((variance <= norm.eps).sum())
