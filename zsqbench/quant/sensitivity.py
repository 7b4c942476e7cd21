"""The sensitivity of weights: the effect on the outputs of a network if only one weight is quantized."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.quant.graph.outputs import output_producers
from zsqbench.quant.ranges.calibration import calibrate_weights, switched
from zsqbench.quant.student import Grids, prepare, tensor_roles, weight_quantizers
from zsqbench.scheme import FLOAT_BITS, RankedWeight, Scheme

BATCH = 8
"""Images of a pass. All their activations are kept."""


@torch.no_grad()
def rank_weights(
    module: nn.Module,
    scheme: Scheme,
    input_size: tuple[int, int, int],
    images: Tensor,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[RankedWeight]:
    """All weights of a network in eval mode, the most sensitive first.

    A weight has the bits of the scheme, and ranges by the search `lp_search`, the default of `rtn`. All other tensors
    stay float. Its error is |y' - y|^2 / |y|^2 over all images [N, C, H, W] (float32, on any device), for each raw
    output y of the network, and the mean over outputs. It is infinite if y' is not finite. Weights of equal error are
    in execution order. Weights that stay float come last, without an error. `progress` gets the number of finished
    passes and of all passes. Raises ZSQBenchError as `prepare` does.
    """
    student = prepare(module, scheme, input_size, Grids(weights=scheme.placement.grid_of("weight") or "affine")).eval()
    calibrate_weights(student, "mse")
    quantizers = dict(weight_quantizers(student))
    with switched(quantizers.values(), enabled=False):
        errors = _errors(student, list(quantizers), images, progress) if quantizers else {}
    ranked = [
        RankedWeight(kind, name, role, _bits(quantizers.get(name)), _elements(student, name), errors.get(name))
        for (kind, name), role in tensor_roles(student).items()
        if kind == "weight"
    ]
    return sorted(ranked, key=lambda weight: -1.0 if weight.error is None else weight.error, reverse=True)


def _bits(quantizer: Any) -> int:
    return FLOAT_BITS if quantizer is None else int(quantizer.bits)


def _elements(student: fx.GraphModule, name: str) -> int:
    return cast("Tensor", student.get_submodule(name).weight).numel()


def _errors(
    student: fx.GraphModule, layers: Sequence[str], images: Tensor, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """The error of each of these layers. All their quantizers are set and switched off."""
    nodes, quantizers = list(student.graph.nodes), dict(weight_quantizers(student))
    outputs = sorted(output_producers(student), key=nodes.index)
    of_all, of_outputs = _Values(student, nodes), _Values(student, outputs)
    unaffected = {name: _unaffected(student, name) for name in layers}
    batches, device = torch.split(images, BATCH), next(student.parameters(), images).device
    squares = torch.zeros(len(outputs), dtype=torch.float64)
    departures = {name: torch.zeros(len(outputs), dtype=torch.float64) for name in layers}
    done, total = 0, len(batches) * (len(layers) + 1)
    for batch in batches:
        values = of_all.values(batch.to(device))
        squares += _squares([values[node] for node in outputs])
        progress(done := done + 1, total)
        for name in layers:
            with switched([quantizers[name]], enabled=True):
                found = of_outputs.values(batch, {node: values[node] for node in unaffected[name]})
            departures[name] += _squares([found.get(node, values[node]) - values[node] for node in outputs])
            progress(done := done + 1, total)
    return {name: _error(departure, squares) for name, departure in departures.items()}


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.double().square().sum().cpu() for tensor in tensors])


def _error(departure: Tensor, squares: Tensor) -> float:
    error = float((departure / squares.clamp_min(torch.finfo(torch.float32).tiny)).mean())
    return error if math.isfinite(error) else math.inf


def _unaffected(student: fx.GraphModule, layer: str) -> list[fx.Node]:
    """The nodes whose values do not depend on a layer's output."""
    affected: set[fx.Node] = set()
    for node in student.graph.nodes:
        if (node.op == "call_module" and node.target == layer) or not affected.isdisjoint(node.all_input_nodes):
            affected.add(node)
    return [node for node in student.graph.nodes if node not in affected]


class _Values(fx.Interpreter):
    """Runs a graph, from its beginning or from known values, and returns the values of the nodes that ran."""

    def __init__(self, student: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
        super().__init__(student)
        self._nodes, self._found = frozenset(nodes), dict[fx.Node, Any]()

    def values(self, images: Tensor, known: Mapping[fx.Node, Any] | None = None) -> dict[fx.Node, Any]:
        self._found = {}
        self.run(images, initial_env=dict(known or {}))
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._nodes:
            self._found[n] = result
        return result
