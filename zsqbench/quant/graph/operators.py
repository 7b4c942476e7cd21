"""Nodes of a traced network: the operator of a node, the name of its tensor, and its readers."""

from collections.abc import Iterator
from typing import Any

from torch import fx


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Operators by a name that the module, function and method forms share, without case and underscores:
# nn.ReLU6, F.relu6 -> relu6; nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d -> adaptiveavgpool2d; x.add_(), += -> add.
LAYERS = names("conv1d conv2d convtranspose2d linear")
BATCH_NORMS = names("batchnorm1d batchnorm2d syncbatchnorm frozenbatchnorm2d")
MAX_POOLS = names("adaptivemaxpool1d adaptivemaxpool2d amax maxpool1d maxpool2d")
NO_OPERATIONS = names(
    "alphadropout clone contiguous detach dropblock2d dropout dropout1d dropout2d float identity stochasticdepth"
)
"""Operators that return their input in eval mode."""
RELUS = names("relu relu6")
ACTIVATIONS = RELUS | names(
    "celu clamp clampmax clampmin clip elu gelu hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu rrelu "
    "selu sigmoid silu softplus softsign tanh threshold"
)
AVERAGE_POOLS = names("adaptiveavgpool1d adaptiveavgpool2d avgpool1d avgpool2d")
MULTIPLICATIONS = names("mul multiply")
PRODUCTS = MULTIPLICATIONS | names("matmul mm bmm einsum scores")
CONCATENATIONS = names("cat concat concatenate stack hstack vstack")

FUSED = names(
    "flashattnfunc flashattnqkvpackedfunc flexattention memoryefficientattention multiheadattentionforward "
    "nativemultiheadattention scaleddotproductcudnnattention scaleddotproductefficientattention "
    "scaleddotproductflashattention scaleddotproductflashattentionforcpu transformerencoderlayerfwd"
)
"""Attention in one operator. Its inner tensors cannot be accessed."""

# Between the last layers and the network's outputs these are left to software, like the decoding of a detector.
ENDINGS = CONCATENATIONS | names("logsigmoid logsoftmax sigmoid softmax")

PADDINGS = names("constantpad1d constantpad2d constantpad3d pad zeropad1d zeropad2d zeropad3d")

# These only pass existing values on, or zeros, which every grid with a zero holds. They make no new tensor.
PASS_THROUGH = names(
    "adaptivemaxpool2d alphadropout amax amin broadcastto channelshuffle chunk circularpad2d clone contiguous detach "
    "dropblock2d dropout dropout1d dropout2d expand expandas flatten flip float getitem identity indexselect "
    "maxpool1d maxpool2d movedim narrow permute pixelshuffle pixelunshuffle ravel reflectionpad2d repeat "
    "replicationpad2d reshape reshapeas roll split squeeze stochasticdepth swapaxes swapdims tile to transpose unbind "
    "unflatten unfold unsqueeze upsamplingnearest2d view viewas "
    "adaptivemaxpool1d circularpad1d reflectionpad1d replicationpad1d"
)

# A parameter of several dimensions that enters one of these is not a weight matrix.
ELEMENTWISE = (
    PASS_THROUGH
    | CONCATENATIONS
    | MULTIPLICATIONS
    | names("add addcdiv addcmul div layernorm maskedfill maskedsoftmax maximum minimum prelu sub truediv where")
)

SELECTIONS = names("getitem indexselect narrow select")
"""Operators that take a part of a tensor."""

_IMAGE_DIMENSIONS = 4
_SPATIAL = frozenset({2, 3})


_ALIASES = {"iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "truediv", "imatmul": "matmul"}


def call_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    name = getattr(node.target, "__name__", str(node.target)).strip("_")
    return _ALIASES.get(name, name)


def tensor_name(node: fx.Node) -> str:
    """The unique readable name of the tensor that a node of a captured graph makes.

    The output of a batch normalisation behind a layer has the layer's name, so folding changes no name.
    """
    if is_batch_norm(node) and is_layer(node.all_input_nodes[0]) and feeds_one_batch_norm(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
    return str(node.meta["tensor_name"])


def operator(node: fx.Node) -> str:
    """The operator of a node of a captured graph, named as in `LAYERS` and `ACTIVATIONS`."""
    return str(node.meta["operator"])


def is_layer(node: fx.Node) -> bool:
    """True if the node calls a convolution or linear layer."""
    return node.op == "call_module" and operator(node) in LAYERS


def is_batch_norm(node: fx.Node) -> bool:
    """True if the node calls a batch normalisation."""
    return node.op == "call_module" and operator(node) in BATCH_NORMS


def repeats_values(node: fx.Node) -> bool:
    """True if a node only moves the values of its input, or adds zeros."""
    if operator(node) in PADDINGS:
        return _padding_value(node) in (None, 0) or _only_pooled(node)
    if operator(node) == "interpolate":
        return str(_argument(node, "mode", 3) or "nearest").startswith("nearest")
    if operator(node) in CONCATENATIONS:  # parts of one tensor are on its grid, as when a Swin merges patches
        return len({without_moves(source) for source in node.all_input_nodes}) == 1
    if operator(node) == "add":  # Python's sum begins with 0 + x
        return count_activations(node) == 1 and any(type(value) in (int, float) and value == 0 for value in node.args)
    return operator(node) in PASS_THROUGH


def adds_tensors(node: fx.Node) -> bool:
    """True if a node adds two tensors that the network computes: true for x + x, false for x + 1."""
    return operator(node) == "add" and count_activations(node) > 1


def multiplies_tensors(node: fx.Node) -> bool:
    """True if a node multiplies two tensors that the network computes, element by element."""
    return operator(node) in MULTIPLICATIONS and count_activations(node) > 1


def pools(node: fx.Node) -> bool:
    """True if a node averages over height and width, in any form."""
    if operator(node) != "mean":
        return operator(node) in AVERAGE_POOLS
    source = node.all_input_nodes[0]
    rank = len(source.meta["shape"])
    given: Any = node.kwargs.get("axis", _argument(node, "dim", 1))
    if given is None:
        return False
    dims = {dim % rank for dim in ((given,) if isinstance(given, int) else given)}
    if rank == _IMAGE_DIMENSIONS:
        return dims <= _SPATIAL
    if rank != _IMAGE_DIMENSIONS - 1 or dims != {2}:
        return False
    # the remaining axis of an image: its rows, after a mean, or its flattened places
    image = without_moves(source)
    return len(image.meta["shape"]) > rank or pools(image) or _is_line(image)


def _is_line(node: fx.Node) -> bool:
    """True if a tensor is [N, C, L], made by a one-dimensional convolution."""
    while operator(node) in ACTIVATIONS or is_batch_norm(node):
        node = without_moves(node.all_input_nodes[0])
    return is_layer(node) and operator(node) == "conv1d"


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use the values of a node, directly or after operators that only move values."""
    for user in node.users:
        if user.op == "output":
            continue
        if repeats_values(user):
            yield from readers(user)
        elif user.meta["carries_values"]:  # not only its shape, for example
            yield user


def output_node(graph: fx.Graph) -> fx.Node:
    """The node that returns; torch 2.5 has no method of graphs for it."""
    node: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return node


def without_moves(node: fx.Node) -> fx.Node:
    """The node itself or, if it only moves values, the node that made them."""
    while repeats_values(node):
        node = node.all_input_nodes[0]
    return node


def comes_from(node: fx.Node, other: fx.Node) -> bool:
    """True if a node depends on another node."""
    found, pending = {node}, [node]
    while pending:
        sources = [source for source in pending.pop().all_input_nodes if source not in found]
        found.update(sources)
        pending += sources
    return other in found


def called_once(captured: fx.GraphModule, node: fx.Node) -> bool:
    """True if the module that a node calls is called nowhere else."""
    # a module has one path in a traced graph, even if the network has it under several
    return [other.target for other in captured.graph.nodes if other.op == "call_module"].count(node.target) == 1


def value_users(node: fx.Node) -> list[fx.Node]:
    """All readers of the values of a node (not only its shape), including the network's output."""
    return [user for user in node.users if user.op == "output" or user.meta["carries_values"]]


def feeds_one_batch_norm(node: fx.Node) -> bool:
    """True if a batch normalisation is the only reader of a node's values."""
    users = value_users(node)
    return len(users) == 1 and is_batch_norm(users[0])


def count_activations(node: fx.Node) -> int:
    """How many of the arguments are tensors that the network computes. x + x has two."""
    values = (*node.args, *node.kwargs.values())
    return sum(
        isinstance(value, fx.Node) and value.op != "get_attr" and bool(value.meta["carries_values"]) for value in values
    )


def _padding_value(node: fx.Node) -> Any:
    return node.meta["padding_value"] if node.op == "call_module" else _argument(node, "value", 3)


def _only_pooled(node: fx.Node) -> bool:
    """True if max-pooling is the only reader of a padded tensor, maybe after moves. No grid must hold its border then.

    Networks write -inf, or a large negative number, around a tensor in this way.
    """
    users = value_users(node)
    return bool(users) and all(
        user.op != "output"
        and (operator(user) in MAX_POOLS or (operator(user) in PASS_THROUGH | PADDINGS and _only_pooled(user)))
        for user in users
    )


def _argument(node: fx.Node, name: str, index: int) -> Any:
    return node.kwargs.get(name, node.args[index] if len(node.args) > index else None)
