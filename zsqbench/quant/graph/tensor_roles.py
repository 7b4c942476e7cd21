"""The role of each tensor of a network in a scheme.

`roles` and `positions` give each new value fields of `zsqbench.scheme.Placement`. `weight_roles` and
`activation_roles` say which of them counts at a placement.
"""

from collections.abc import Iterator, Mapping

from torch import fx

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    BATCH_NORMS,
    CONCATENATIONS,
    ELEMENTWISE,
    LAYERS,
    PRODUCTS,
    RELUS,
    SELECTIONS,
    adds_tensors,
    comes_from,
    count_activations,
    feeds_one_batch_norm,
    is_batch_norm,
    is_layer,
    multiplies_tensors,
    operator,
    pools,
    readers,
    repeats_values,
    tensor_name,
    value_users,
    without_moves,
)
from zsqbench.quant.graph.outputs import output_producers, raw_outputs
from zsqbench.quant.graph.parts import is_mask, multiplies_matrices, operands, parts
from zsqbench.scheme import Placement


def roles(captured: fx.GraphModule, *, preactivations: bool = False, embeddings: bool = False) -> dict[fx.Node, str]:
    """The role of each tensor from its maker and its readers, in execution order: one of `ACTIVATION_ROLES`.

    These are left out: values that hardware never stores (the output of a layer or an addition that only activation
    functions read), values that repeat another tensor (reshape, slice, zero padding, max-pooling, dropout), and values
    behind the network's raw outputs. With `preactivations`, hardware stores the inputs of activation functions other
    than ReLU and ReLU6. With `embeddings`, it stores learned values of several axes that additions read.
    """
    outputs, after = raw_outputs(captured)
    found = {}
    for node in captured.graph.nodes:
        if embeddings and _is_embedding(captured, node):
            found[node] = "embedding"
        elif _is_new_value(node) and node not in after:
            if not _is_fused(node, outputs):
                found[node] = "logits" if node in outputs else _role(node)
            elif preactivations and any(operator(reader) in ACTIVATIONS - RELUS for reader in readers(node)):
                found[node] = "preactivation"
    return found


def positions(captured: fx.GraphModule) -> dict[fx.Node, tuple[str, ...]]:
    """The entries of `POSITIONS` for each tensor that has any. Outputs of the network never have any."""
    first = next(iter(_layers(captured).values()), None)
    read_last = {_without_pooling(node.all_input_nodes[0]) for node in _last_layers(captured)}
    played = {node: role for node, role in roles(captured).items() if role != "logits"}
    own = parts(captured, played)
    found: dict[fx.Node, tuple[str, ...]] = {}
    for node in played:
        maker = _maker(node)
        places = {
            "stem": maker is first,
            "features": node in read_last and is_layer(maker),
            "feature_sum": node in read_last and adds_tensors(maker),
        }
        found[node] = (*(position for position, is_here in places.items() if is_here), *own.get(node, ()))
    return {node: at for node, at in found.items() if at}


def weight_roles(captured: fx.GraphModule) -> dict[str, str]:
    """The role of each weight by the path of its layer, in execution order: one of `WEIGHT_ROLES`."""
    paths, last = list(_layers(captured)), {str(node.target) for node in _last_layers(captured)}
    ends = dict.fromkeys(paths[:1], "first_weight") | dict.fromkeys(last, "last_weight")
    return {path: ends.get(path, "weight") for path in paths}


def activation_roles(captured: fx.GraphModule, placement: Placement) -> dict[fx.Node, str]:
    """The role of each tensor, in execution order, or its position if the placement gives the position a width.

    With `side` `inputs` these are the inputs of layers and of products of matrices. An input may be a part of another
    operator's output, such as queries.
    """
    at = positions(captured)
    if placement.side == "inputs":
        return _roles_of_inputs(captured, placement, at)
    found = roles(
        captured, preactivations=placement.preactivation is not None, embeddings=placement.embedding is not None
    )
    return {node: placement.role(role, at.get(node, ())) for node, role in found.items()}


def reads_by_matrix(node: fx.Node) -> bool:
    """True for a layer and for a product of two matrices. With `side` `inputs`, their inputs are on a grid."""
    return is_layer(node) or multiplies_matrices(node)


def read_part(node: fx.Node) -> fx.Node:
    """The tensor itself or, if only one part of a layer normalisation is read (the class token's), that part.

    Hardware need not compute the rest, so no range must hold it.
    """
    if operator(node) != "layernorm":
        return node
    while len(users := value_users(node)) == 1 and operator(users[0]) in SELECTIONS:
        node = users[0]
    return node


def _roles_of_inputs(
    captured: fx.GraphModule, placement: Placement, at: Mapping[fx.Node, tuple[str, ...]]
) -> dict[fx.Node, str]:
    made, factors = roles(captured), operands(captured)
    found: dict[fx.Node, str] = {}
    for node in captured.graph.nodes:
        for source in node.all_input_nodes if reads_by_matrix(node) else ():
            maker = without_moves(source)
            if maker in made:
                played = (factors[node, source],) if (node, source) in factors else at.get(maker, ())
                found.setdefault(source, placement.role(made[maker], played))
    return found


def first_calls(captured: fx.GraphModule, of: Mapping[fx.Node, str]) -> dict[fx.Node, fx.Node]:
    """For each of these tensors that a layer makes in a later call, the tensor of its first call.

    A head that is shared over pyramid levels has one tensor behind each of its layers, for all levels. Tensors stay
    separate if one call reads the result of the other call, or if the roles or the norms behind the calls differ.
    """
    first: dict[tuple[str, ...], fx.Node] = {}
    found = {}
    for node, role in of.items():
        maker = _maker(node)
        if maker.op == "call_module" and any(True for _ in captured.get_submodule(str(maker.target)).parameters()):
            made = (role, str(maker.target), *map(_computation, _way(maker, node)))
            if first.setdefault(made, node) is not node and not comes_from(node, first[made]):
                found[node] = first[made]
    return found


def check_supported(captured: fx.GraphModule) -> None:
    """Raise ZSQBenchError if the network has a weight that no quantizer reaches.

    Leaving it float without an error would falsify a table.
    """
    for node in captured.graph.nodes:
        if _holds_matrix(captured, node) or _multiplies_by_parameter(node):
            raise ZSQBenchError(
                f"the weight of {tensor_name(node)!r} ({operator(node)}) cannot be quantized: only those of "
                "nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d and nn.Linear modules can; write it as one of these, or take "
                "a scheme that leaves weights alone, such as hw/w32a8"
            )


def _way(maker: fx.Node, node: fx.Node) -> Iterator[fx.Node]:
    """A tensor and the nodes between it and the operator that made its values, backwards."""
    while node is not maker:
        yield node
        node = node.all_input_nodes[0]


def _computation(node: fx.Node) -> str:
    return str(node.target) if is_batch_norm(node) else operator(node)


def _layers(captured: fx.GraphModule) -> dict[str, fx.Node]:
    """The first call of each layer by its path, in execution order."""
    first: dict[str, fx.Node] = {}
    for node in captured.graph.nodes:
        if is_layer(node):
            first.setdefault(str(node.target), node)
    return first


def _last_layers(captured: fx.GraphModule) -> list[fx.Node]:
    """Calls of the layers that make the outputs: one for a classifier, those of each head for a detector."""
    calls = [node for node in captured.graph.nodes if is_layer(node)]
    makers = {_maker(node) for node in output_producers(captured)}
    return [node for node in calls if node in makers] or calls[-1:]


def _maker(node: fx.Node) -> fx.Node:
    """The operator that made a tensor, looking back through activation function and batch normalisation."""
    maker = node
    if operator(maker) in ACTIVATIONS:
        maker = without_moves(maker.all_input_nodes[0])
    if is_batch_norm(maker):
        maker = without_moves(maker.all_input_nodes[0])
    return maker


def _without_pooling(node: fx.Node) -> fx.Node:
    while repeats_values(node) or pools(node):
        node = node.all_input_nodes[0]
    return node


def _holds_matrix(captured: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or operator(node) in LAYERS | BATCH_NORMS | ELEMENTWISE:
        return False
    return any(parameter.dim() > 1 for parameter in captured.get_submodule(str(node.target)).parameters())


def _multiplies_by_parameter(node: fx.Node) -> bool:
    shapes = [source.meta["shape"] or () for source in node.all_input_nodes if source.op == "get_attr"]
    # a vector may be along any axis
    is_matrix = any(sum(size > 1 for size in shape) > 1 for shape in shapes)
    return node.op != "output" and is_matrix and operator(node) not in ELEMENTWISE


def _is_new_value(node: fx.Node) -> bool:
    return node.meta["shape"] is not None and node.op not in ("get_attr", "output") and not repeats_values(node)


def _is_embedding(captured: fx.GraphModule, node: fx.Node) -> bool:
    """True for learned values of several axes that an addition reads. A channel bias and a mask do not count."""
    read_by = list(readers(node)) if node.op == "get_attr" and node.meta["shape"] is not None else []
    several = sum(size > 1 for size in node.meta["shape"] or ()) > 1
    return several and any(operator(reader) == "add" for reader in read_by) and not is_mask(captured, node)


def _is_fused(node: fx.Node, outputs: set[fx.Node]) -> bool:
    """True if the node and its reader are computed as one, without a tensor between them."""
    if is_layer(node) and feeds_one_batch_norm(node):
        return True
    if node in outputs or not (is_layer(node) or is_batch_norm(node) or operator(node) == "add"):
        return False
    read_by = list(readers(node))
    return bool(read_by) and all(operator(reader) in ACTIVATIONS for reader in read_by)


def _role(node: fx.Node) -> str:
    kind = operator(node)
    read_by = list(readers(node))
    if node.op == "placeholder":
        role = "input"
    elif kind in RELUS:
        role = "relu"
    elif kind in ACTIVATIONS:
        role = "gate" if read_by and all(multiplies_tensors(reader) for reader in read_by) else "activation"
    elif is_layer(node) or (is_batch_norm(node) and is_layer(node.all_input_nodes[0])):
        role = "addend" if read_by and all(adds_tensors(reader) for reader in read_by) else "linear"
    elif adds_tensors(node):
        role = "sum"
    elif kind in PRODUCTS and count_activations(node) > 1:
        role = "product"
    elif kind in CONCATENATIONS:
        role = "concat"
    else:
        role = "pooled" if pools(node) else "other"
    return role
