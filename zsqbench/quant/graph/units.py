"""Cut a student into a sequence of units: the layers and blocks whose outputs are reconstructed.

Every node that carries values is in one unit. So running the units in order computes the network, except for values
without readers. `zsqbench.quant.graph.boundaries` says which values pass between units. Blocks are found only from the
graph: parts that branch and join again (residual additions, squeeze-excite, Inception), parts that widen and narrow
without a branch (inverted residuals whose stride prevents an addition), and, inside a part that is too large for one
unit, layers that give one tensor to many readers (the layers of a dense block).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import chain, takewhile
from typing import Literal

from torch import Tensor, fx, nn

from zsqbench.quant.graph.boundaries import computed, final_tensors, note_passing, passes, roots, values
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    PRODUCTS,
    comes_from,
    is_batch_norm,
    is_layer,
    operator,
    value_users,
)
from zsqbench.quant.graph.outputs import decoding
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, QuantizedLayer

MAX_LAYERS = 10
"""A block with more layers is not a unit. It is cut at a tensor with several readers, or else into layers."""

Grain = Literal["block", "layer"]


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of a student with its inputs and outputs, as names of graph nodes."""

    name: str
    """The module path that its layers share, or the first and last of them."""
    kind: Literal["block", "layer", "passage"]
    """True for a passage: it has nothing to quantize (pooling, reshaping), and values only pass through it."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """The values that later units read, and the values that the network returns or from which it computes an index."""
    targets: tuple[str, ...]
    """The outputs that are reconstructed: no other output is computed from them."""
    module: fx.GraphModule
    """The module that computes the outputs, as a tuple, from the inputs. It shares the student's submodules."""
    layers: tuple[tuple[str, QuantizedLayer], ...]
    quantizers: tuple[ActivationQuantizer, ...]

    def run(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        return dict(zip(self.outputs, self.module(*inputs), strict=True))


def find_units(student: fx.GraphModule, grain: Grain = "block") -> list[Unit]:
    """Cut a prepared student into units, in execution order. `layer` makes a unit of each layer.

    A unit of a layer includes its batch normalisation, activation function and quantizer. A quantizer without a layer
    before it (of the image, of pooled features) belongs to the unit after it.
    """
    note_passing(student)
    ending = {node for node in decoding(student) if _quantizer(student, node) is None}  # no unit is compared behind it
    groups = [kept for atom in _atoms(student) if (kept := [node for node in atom if node not in ending])]
    if grain == "block":
        groups = _blocks(student, groups)
    groups += [[node for node in student.graph.nodes if node in ending]] if ending else []
    return list(_units(student, _with_all_calls(student, _without_strays(student, _closed(groups)))))


def describe_units(units: Sequence[Unit]) -> str:
    """One line that names these units."""
    blocks = [f"{unit.name} ({len(unit.layers)})" for unit in units if unit.kind == "block"]
    layers = [unit.name for unit in units if unit.kind == "layer"]
    parts = [f"{len(blocks)} blocks (layers in each): {', '.join(blocks)}"] if blocks else []
    parts += [f"{len(layers)} layers: {', '.join(layers)}"] if layers else []
    return f"{len(blocks) + len(layers)} units; {'; '.join(parts)}"


Group = list[fx.Node]


def _atoms(student: fx.GraphModule) -> list[Group]:
    """Each operator with the nodes that are computed as one with it: normalisation, activation function, quantizer."""
    taken: set[fx.Node] = set()
    atoms = []
    for node in student.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node in taken or not node.meta["carries_values"]:
            continue
        atom = [node]
        while len(readers := value_users(atom[-1])) == 1 and _is_fused_into(student, atom, readers[0]):
            atom.append(readers[0])
        taken.update(atom)
        atoms.append(atom)
    return atoms


def _is_fused_into(student: fx.GraphModule, atom: Group, follower: fx.Node) -> bool:
    if follower.op == "output":
        return False
    if _quantizer(student, follower) is not None:
        return True
    last = atom[-1]
    if operator(follower) in ACTIVATIONS and computed(follower) == [last]:
        rounded = len(atom) > 1 and _quantizer(student, last) is not None  # a preactivation
        node = atom[-2] if rounded else last
        return is_layer(node) or is_batch_norm(node) or operator(node) == "add"
    return is_batch_norm(follower) and is_layer(last)


def _quantizer(student: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) else None


def _live(groups: Sequence[Group]) -> Iterator[list[fx.Node]]:
    """The values that are read behind each group."""
    place = {node: index for index, group in enumerate(groups) for node in group}
    last = {
        node: max((place.get(reader, len(groups)) for reader in value_users(node)), default=-1)
        for node in dict.fromkeys((*place, *(source for group in groups for n in group for source in values(n))))
    }
    for index in range(len(groups)):
        yield [node for node, until in last.items() if place.get(node, -1) <= index < until]


def _closed(groups: Sequence[Group]) -> list[Group]:
    """Join groups from a group with a value that cannot pass, such as a tuple of tensors, to its last reader."""
    place = {node: index for index, group in enumerate(groups) for node in group}
    last = list(range(len(groups)))
    for index, group in enumerate(groups):
        for root in chain.from_iterable(map(roots, group)):
            if root in place and not passes(root):
                last[place[root]] = index
    closed: list[Group] = []
    until = -1
    for index, group in enumerate(groups):
        if index <= until:
            closed[-1] = closed[-1] + group
        else:
            closed.append(list(group))
        until = max(until, last[index])
    return closed


def _blocks(student: fx.GraphModule, atoms: list[Group]) -> list[Group]:
    """Join atoms into blocks: between tensors on all paths, and along inverted residuals."""
    segments: list[list[Group]] = [[]]
    for atom, live in zip(atoms, _live(atoms), strict=True):
        segments[-1].append(atom)
        if len(live) <= 1:
            segments.append([])
    groups: list[Group] = []
    for segment in segments:
        if len(segment) > 1 and _count_layers(segment) > MAX_LAYERS:
            groups += _hubs(segment)
        elif segment:
            groups.append([node for atom in segment for node in atom])
    return _inverted_residuals(student, groups)


def _count_layers(groups: Sequence[Group]) -> int:
    return sum(is_layer(node) for group in groups for node in group)


def _hubs(atoms: list[Group]) -> list[Group]:
    """Cut where the last tensor has several readers. A part that is still too large is split into its atoms."""
    parts: list[list[Group]] = [[]]
    for atom in atoms:
        parts[-1].append(atom)
        if len(value_users(atom[-1])) > 1 and _count_layers(parts[-1]):
            parts.append([])
    groups: list[Group] = []
    for part in parts:
        if _count_layers(part) > MAX_LAYERS:
            groups += part
        elif part:
            groups.append([node for atom in part for node in atom])
    return groups


def _inverted_residuals(student: fx.GraphModule, groups: list[Group]) -> list[Group]:
    """Join [expansion] depthwise [squeeze-excite] projection: a block without an addition at its end."""
    joined: list[Group] = []
    for group in groups:
        joined.append(group)
        if not _is_projection(student, group):
            continue
        first = len(joined) - 1
        while first > 0 and _is_gate(joined[first - 1]):
            first -= 1
        if first > 0 and _is_depthwise(student, joined[first - 1]):
            first -= 1
            if first > 0 and _is_pointwise(student, joined[first - 1]):
                first -= 1
        elif first > 1 and _widens(student, joined[first - 1]):  # the network's first layer is not an expansion
            first -= 1
        else:
            continue
        joined[first:] = [[node for part in joined[first:] for node in part]]
    return joined


def _only_convolution(student: fx.GraphModule, group: Group) -> nn.Conv1d | nn.Conv2d | None:
    layers = [node for node in group if is_layer(node)]
    if len(layers) != 1:
        return None
    layer = student.get_submodule(str(layers[0].target))
    return layer if isinstance(layer, nn.Conv1d | nn.Conv2d) else None


def _is_pointwise(student: fx.GraphModule, group: Group) -> bool:
    layer = _only_convolution(student, group)
    return layer is not None and set(layer.kernel_size) == {1} and layer.groups == 1


def _is_projection(student: fx.GraphModule, group: Group) -> bool:
    """True for a linear bottleneck: a pointwise convolution to fewer channels without an activation function."""
    layer = _only_convolution(student, group)
    linear = not any(operator(node) in ACTIVATIONS for node in group)
    return layer is not None and _is_pointwise(student, group) and linear and layer.out_channels < layer.in_channels


def _is_depthwise(student: fx.GraphModule, group: Group) -> bool:
    layer = _only_convolution(student, group)
    return layer is not None and layer.groups == layer.in_channels > 1


def _widens(student: fx.GraphModule, group: Group) -> bool:
    layer = _only_convolution(student, group)
    return layer is not None and layer.groups == 1 and layer.out_channels > layer.in_channels


def _is_gate(group: Group) -> bool:
    """True for squeeze-excite: a branch that ends in the product with its starting tensor."""
    return any(operator(node) in PRODUCTS and len(values(node)) > 1 for node in group)


def _without_strays(student: fx.GraphModule, groups: list[Group]) -> list[Group]:
    """Join groups with quantizers but no layer to the group after them (or before, at the end), and join passages."""
    joined: list[Group] = []
    waiting: Group = []
    for group in groups:
        here = waiting + group
        waiting = []
        quantizes = any(_quantizer(student, node) for node in here)
        if quantizes and not _count_layers([here]):
            waiting = here
        elif joined and not any(_is_quantized(student, node) for node in [*joined[-1], *here]):
            joined[-1] = joined[-1] + here
        else:
            joined.append(here)
    if waiting:
        joined[-1:] = [[*(joined[-1] if joined else []), *waiting]]
    return joined


def _with_all_calls(student: fx.GraphModule, groups: list[Group]) -> list[Group]:
    """Join groups that call the same layer, such as a head that is shared over pyramid levels.

    A joined group has the place of the first group, or is behind groups in between that the others read. A layer that
    reads its own earlier output stays in several groups.
    """
    joined: list[Group] = []
    holder: dict[str, tuple[Group, fx.Node]] = {}
    for group in groups:
        calls = {str(node.target): node for node in group if is_layer(node)}
        again = {path: call for path, call in calls.items() if path in holder}
        shared = [holder[path][0] for path, call in again.items() if not comes_from(call, holder[path][1])]
        into, *others = [each for each in joined if any(each is one for one in shared)] or [[]]
        if not into:
            joined.append(into)
        for other in others:
            into += other
            joined = [each for each in joined if each is not other]
            holder = {path: (into if held is other else held, call) for path, (held, call) in holder.items()}
        into += group
        holder = {path: (into, call) for path, call in calls.items()} | holder
    if len(joined) == len(groups):
        return joined
    return _in_order(joined, {node: position for position, node in enumerate(student.graph.nodes)})


def _in_order(groups: list[Group], positions: Mapping[fx.Node, int]) -> list[Group]:
    """Groups in an order behind all their inputs. Groups that read each other are joined."""
    place = {node: index for index, group in enumerate(groups) for node in group}
    sorter: TopologicalSorter[int] = TopologicalSorter(
        {
            index: {place[source] for node in group for source in roots(node) if source in place} - {index}
            for index, group in enumerate(groups)
        }
    )
    try:
        sorter.prepare()
    except CycleError as error:
        circle = set(error.args[1])
        first = min(circle)
        merged = sorted((node for index in circle for node in groups[index]), key=positions.__getitem__)
        rest = [group for index, group in enumerate(groups) if index not in circle]
        return _in_order([*rest[:first], merged, *rest[first:]], positions)
    ordered: list[Group] = []
    ready: list[int] = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heappush(ready, index)
        index = heappop(ready)  # the first of the possible next groups
        ordered.append(groups[index])
        sorter.done(index)
    return ordered


def _is_quantized(student: fx.GraphModule, node: fx.Node) -> bool:
    return is_layer(node) or _quantizer(student, node) is not None


def _units(student: fx.GraphModule, groups: list[Group]) -> Iterator[Unit]:
    taken: Counter[str] = Counter()
    read = [{root: None for node in group for root in roots(node) if root not in group} for group in groups]
    final = final_tensors(student)
    for place, group in enumerate(groups):
        needed = {*final, *chain.from_iterable(read[place + 1 :])}
        outputs = [node for node in group if node in needed]
        calls = [node for node in group if node.op == "call_module"]
        modules = [(str(node.target), student.get_submodule(str(node.target))) for node in calls]
        layers = {path: module for path, module in modules if isinstance(module, QuantizedLayer)}
        quantizers = [module for _, module in modules if isinstance(module, ActivationQuantizer)]
        if not (outputs or layers or quantizers):  # only an index is taken from it, which is computed where it is read
            continue
        count = len({node.target for node in calls if is_layer(node)})
        name = _name([*dict.fromkeys(str(n.target) for n in calls if is_layer(n))] or [node.name for node in group])
        taken[name] += 1
        yield Unit(
            name=name if taken[name] == 1 else f"{name} ({taken[name]})",
            kind="block" if count > 1 else "layer" if count else "passage",
            inputs=tuple(node.name for node in read[place]),
            outputs=tuple(node.name for node in outputs),
            targets=tuple(node.name for node in _last(group, outputs)),
            module=_submodule(student, group, list(read[place]), outputs),
            layers=tuple(layers.items()),
            quantizers=tuple(dict.fromkeys(quantizers)),
        )


def _last(group: Group, outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The outputs of a group from which none of its other outputs is computed."""
    used: dict[fx.Node, set[fx.Node]] = {}
    for node in group:
        sources = [source for source in roots(node) if source in used]
        used[node] = {*sources, *chain.from_iterable(used[source] for source in sources)}
    return [node for node in outputs if not any(node in used[other] for other in outputs)]


def _name(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return paths[0]
    parts = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    shared = takewhile(lambda names: len(set(names)) == 1, parts)
    return ".".join(names[0] for names in shared) or f"{paths[0]}..{paths[-1]}"


def _submodule(
    student: fx.GraphModule, group: Group, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}

    def copy(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source not in copied:  # a parameter, a size
                copy(source)
        copied[node] = graph.node_copy(node, copied.__getitem__)

    for node in group:
        copy(node)
    graph.output(tuple(copied[node] for node in outputs))
    return fx.GraphModule(student, graph)
