"""Inspect a network at a scheme: does the student compute the same, what is folded, and what is quantized."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsqbench.compat import tree_leaves
from zsqbench.errors import ZSQBenchError
from zsqbench.quant.attention import find_attention, patch_size
from zsqbench.quant.graph.bn_folding import FOLDED, UNFOLDED, fold_bn
from zsqbench.quant.graph.maps import last_map
from zsqbench.quant.graph.operators import is_batch_norm, tensor_name
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.graph.units import Grain, Unit, find_units
from zsqbench.quant.student import activation_quantizers, prepare, quantized_layers
from zsqbench.scheme import Inspection, Scheme

IMAGES = 4
TOLERANCE = 1e-5
"""The largest allowed difference of a student, relative to the network's largest output."""

_OF_UNITS = 2
"""Number of images that pass through units. A unit treats all images alike."""

InputSize = tuple[int, int, int]


def inspect(module: nn.Module, scheme: Scheme, input_size: InputSize, *, by_units: bool = False) -> Inspection:
    """Prepare a student, compare it with its network, and return the findings. `by_units`: also compare unit by unit.

    If a network cannot be quantized, this is a finding, not an error.
    """
    try:
        student = check_student(module, scheme, input_size, by_units=by_units)
    except ZSQBenchError as error:
        return Inspection(blocker=str(error))
    return Inspection(
        None,
        len(quantized_layers(student)),
        len(activation_quantizers(student)),
        tuple(student.meta.get(FOLDED, {})),
        unfolded(student),
        _extent(student),
        len(find_attention(student)),
        patch_size(student) or (),
    )


def _extent(student: fx.GraphModule) -> tuple[int, ...]:
    node = last_map(student)
    return () if node is None else tuple(node.meta["shape"][2:])


def unfolded(student: fx.GraphModule) -> dict[str, str]:
    """Why each batch normalisation of a student is not folded, by its path."""
    norms = dict.fromkeys(str(node.target) for node in student.graph.nodes if is_batch_norm(node))
    return {path: student.meta.get(UNFOLDED, {}).get(path, "the scheme leaves it") for path in norms}


def check_student(
    module: nn.Module, scheme: Scheme, input_size: InputSize, *, by_units: bool = False
) -> fx.GraphModule:
    """A student whose outputs, with all quantizers off, equal the network's on a few seeded images.

    The comparison uses float64 if float32 leaves doubt. If outputs differ, raises ZSQBenchError with the first tensor
    that differs. Also raises it as `prepare` does.
    """
    student = prepare(module, scheme, input_size)
    if _departs(module, student, images_for(module, input_size)):
        _find_departure(module, scheme, input_size)
    if by_units:
        _check_units(student, images_for(module, input_size)[:_OF_UNITS])
    return student


def images_for(module: nn.Module, input_size: InputSize) -> Tensor:
    """Seeded normal noise [4, C, H, W] on the device of a module."""
    example = next(module.parameters(), torch.empty(0))
    rng = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, *input_size, generator=rng).to(example.device, example.dtype)


def departure(found: Any, expected: Any) -> float:
    """The largest difference of outputs with the same structure, relative to the largest expected value.

    Infinite if shapes or numbers of tensors differ, or if a value is finite in only one of them.
    """
    ours, theirs = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (found, expected))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return float("inf")
    return max((_difference(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    different = (found != expected) & ~(found.isnan() & expected.isnan())
    if not different.any():
        return 0.0
    finite = expected[expected.isfinite()].double()
    largest = finite.abs().max() if finite.numel() else torch.zeros(())
    difference = (found[different].double() - expected[different].double()).abs().max()
    share = float(difference / largest.clamp_min(torch.finfo(torch.float32).tiny))
    return share if math.isfinite(share) else math.inf


@torch.no_grad()
def _departs(module: nn.Module, student: nn.Module, images: Tensor) -> bool:
    return departure(student.eval()(images.clone()), module(images.clone())) > TOLERANCE


@torch.no_grad()
def _find_departure(module: nn.Module, scheme: Scheme, input_size: InputSize) -> None:
    """Compare in float64, stage by stage. Raises ZSQBenchError with the first module or tensor that departs."""
    module = copy.deepcopy(module).double().eval()
    images = images_for(module, input_size)
    try:
        expected = module(images.clone())
        student = prepare(module, scheme, input_size)
        found = student(images.clone())
    except RuntimeError as error:
        raise ZSQBenchError(
            f"the student of {type(module).__name__} does not compute what the network does in float32, and in float64 "
            f"the network does not run ({str(error).splitlines()[0]})"
        ) from error
    if departure(found, expected) <= TOLERANCE:
        return
    again = departure(module(images.clone()), expected)
    if again > TOLERANCE:
        raise ZSQBenchError(
            f"{type(module).__name__} gives other outputs for the same images each time (by {again:.1e} of the "
            "largest); make it deterministic in eval mode"
        )
    captured = capture(module, input_size)
    place = _first_module(module, captured, images) or _first_tensor(captured, scheme, images)
    raise ZSQBenchError(
        f"the student of {type(module).__name__} does not compute what the network does with all quantizers off: "
        f"{place or 'its output'} departs first; the outputs by {departure(found, expected):.1e} of the largest, and "
        f"{TOLERANCE:.0e} is allowed"
    )


class _Values(fx.Interpreter):
    """Runs a graph and keeps the result of each node."""

    def __init__(self, captured: fx.GraphModule, name: Callable[[fx.Node], str]) -> None:
        super().__init__(captured)
        self._name, self.values = name, dict[str, list[Any]]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("get_attr", "output"):
            self.values.setdefault(self._name(n), []).append(result)
        return result


def _values(captured: fx.GraphModule, images: Tensor, name: Callable[[fx.Node], str]) -> dict[str, list[Any]]:
    interpreter = _Values(captured, name)
    interpreter.run(images.clone())
    return interpreter.values


def _first_module(module: nn.Module, captured: fx.GraphModule, images: Tensor) -> str | None:
    """The first module whose outputs in the graph differ from those in the network."""
    given: dict[str, list[Any]] = {}
    handles = [
        each.register_forward_hook(lambda _, __, output, path=path: given.setdefault(path, []).append(output))
        for path, each in module.named_modules()
    ]
    try:
        module(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return _first_departing(_values(captured, images, lambda node: str(node.target)), given)


def _first_tensor(captured: fx.GraphModule, scheme: Scheme, images: Tensor) -> str | None:
    """The first tensor that folding changed."""
    before = _values(captured, images, tensor_name)
    if scheme.placement.fold_bn:
        fold_bn(captured)
    return _first_departing(_values(captured, images, tensor_name), {name: each[-1:] for name, each in before.items()})


def _first_departing(found: Mapping[str, list[Any]], expected: Mapping[str, list[Any]]) -> str | None:
    for name, values in found.items():
        if name in expected and departure(values, expected[name]) > TOLERANCE:
            return repr(name)
    return None


@torch.no_grad()
def _check_units(student: fx.GraphModule, images: Tensor) -> None:
    """Raise ZSQBenchError unless the units in sequence compute the same as the student."""
    expected = {name: each[0] for name, each in _values(student, images, lambda node: node.name).items()}
    grains: tuple[Grain, ...] = ("block", "layer")
    for grain in grains:
        for unit, outputs in _in_sequence(find_units(student, grain), images):
            wrong = [name for name, value in outputs.items() if departure(value, expected[name]) > TOLERANCE]
            if wrong:
                raise ZSQBenchError(
                    f"the units of {type(student).__name__} do not compute what it does: {unit.name!r} departs first "
                    f"({', '.join(wrong)}); take a quantizer that does not learn unit by unit"
                )


def _in_sequence(units: list[Unit], images: Tensor) -> Iterator[tuple[Unit, dict[str, Tensor]]]:
    """Run units in sequence, each on the results of the units before."""
    given = dict.fromkeys(units[0].inputs, images) if units else {}
    for unit in units:
        outputs = unit.run(*(given[name].clone() for name in unit.inputs))
        given |= outputs
        yield unit, outputs
