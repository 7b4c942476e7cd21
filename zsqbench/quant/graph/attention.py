"""Split attention into its parts: projections, scores, softmax and context. A scheme can quantize each part."""

import operator as operators
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, fx, nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.constants import known_by_sizes, replace_argument
from zsqbench.quant.graph.layers import MADE
from zsqbench.quant.graph.operators import FUSED, call_name, names, operator, tensor_name

_FUNCTION = "scaleddotproductattention"
_MODULE = "multiheadattention"

ATTENTION = names(f"{_FUNCTION} {_MODULE}")
"""Operators that `take_attention_apart` replaces by their parts."""

_CONTEXT = "scaled_dot_product_attention"
"""The name of the output of attention, in both forms. It is the name of the function."""

FINITE, DIMENSIONS = "finite", "dimensions"
"""Keys of `meta` for inputs of attention: true for finite numbers (not for truth values), and the number of axes."""

_BATCHED = 3
"""Number of dimensions of the input of nn.MultiheadAttention with images."""


def scores(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Scaled scores [..., L, S] of queries [..., L, d] and keys [..., S, d]. The default scale is 1 / sqrt(d)."""
    return query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)


def masked_softmax(scores: Tensor, mask: Tensor, *, hides: bool = False) -> Tensor:
    """Softmax of masked scores [..., L, S]. A row that is completely masked is zero, as in torch's attention.

    A mask of numbers is added. A mask of truth values says which keys are seen or, with `hides`, which are hidden.
    """
    by_truth = mask.dtype == torch.bool
    masked = scores.masked_fill(mask if hides else ~mask, -torch.inf) if by_truth else scores + mask
    return masked.softmax(-1).masked_fill(masked.isneginf().all(-1, keepdim=True), 0.0)


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax of scores [..., L, S]. No query sees a later key."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def take_attention_apart(captured: fx.GraphModule) -> None:
    """Replace nn.MultiheadAttention and F.scaled_dot_product_attention by their parts, in place.

    A mask of finite numbers, such as a relative position bias, is added to the scores, and the sum is a tensor. Any
    other mask is a part of the softmax, because no grid holds -inf. The context has the name of the function's call.
    Raises ZSQBenchError for attention that cannot be taken apart.
    """
    writer = _Writer(captured)
    for node in list(captured.graph.nodes):
        writer.place = node
        if operator(node) == _FUNCTION:
            _take_function(writer)
        elif operator(node) == _MODULE:
            _take_module(writer)
        elif operator(node) in FUSED:
            _refuse(
                node,
                "is attention that cannot be taken apart; expected nn.MultiheadAttention without hooks or "
                "F.scaled_dot_product_attention: call one of these",
            )
    captured.recompile()


@dataclass(frozen=True)
class _FunctionCall:
    """A call of F.scaled_dot_product_attention, with its arguments in its order."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    attn_mask: fx.Node | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | fx.Node | None = None
    enable_gqa: bool = False


@dataclass(frozen=True)
class _ModuleCall:
    """A call of nn.MultiheadAttention, with its arguments in its order."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    key_padding_mask: fx.Node | None = None
    need_weights: bool = True
    attn_mask: fx.Node | None = None
    average_attn_weights: bool = True
    is_causal: bool = False


@dataclass(frozen=True)
class _Mask:
    """The mask of the keys that a query does not see."""

    node: fx.Node | None = None
    hides: bool = False
    """True if true values in a mask mean hidden keys, as in nn.MultiheadAttention."""
    causal: bool = False


class _Writer:
    """Writes nodes with names and shapes into a captured graph, before the node that they replace."""

    place: fx.Node

    def __init__(self, captured: fx.GraphModule) -> None:
        self.captured = captured
        self._modules: dict[str, nn.MultiheadAttention] = {}
        self._taken = {node.meta.get("tensor_name") for node in captured.graph.nodes}
        self._by_sizes = known_by_sizes(captured.graph.nodes)

    def is_fixed(self, node: fx.Node) -> bool:
        """True if the result of a node does not depend on values of images."""
        return node in self._by_sizes

    def call(self, function: Any, *args: Any, shape: tuple[int, ...], name: str = "", **more: Any) -> fx.Node:
        """Call a function, or the method with this name. `name` is the name for its tensor, if it differs."""
        with self.captured.graph.inserting_before(self.place):
            create = self.captured.graph.call_method if isinstance(function, str) else self.captured.graph.call_function
            node = create(function, args, more)
        kind = call_name(node)
        return self._describe(node, ".".join(filter(None, (self.place.meta["called_in"], name or kind))), kind, shape)

    def move(self, method: str, source: fx.Node, *args: Any) -> fx.Node:
        """Call a method that only moves values."""
        shape = getattr(torch.empty(source.meta["shape"], device="meta"), method)(*args).shape
        return self.call(method, source, *args, shape=tuple(shape))

    def split(self, mask: fx.Node, sizes: tuple[int, int]) -> fx.Node:
        """Split the first axis of a mask. It may be a mask of truth values."""
        with self.captured.graph.inserting_before(self.place):
            node = self.captured.graph.call_method("unflatten", (mask, 0, sizes))
        shape = mask.meta["shape"]
        shape = None if shape is None else (shape[0] // sizes[1], sizes[1], *shape[1:])
        self._describe(node, str(mask.meta["tensor_name"]), "unflatten", shape)
        node.meta |= {name: mask.meta[name] for name in ("carries_values", FINITE)}
        return node

    def layer(self, name: str, source: fx.Node, weight: Tensor, bias: Tensor | None) -> fx.Node:
        """Call the linear layer of this name below the module that the node calls. All its calls share the layer."""
        path = f"{self.place.target}.{name}"
        parent = self.captured.get_submodule(str(self.place.target))
        if not hasattr(parent, name):
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            for kind, value in (("weight", weight), ("bias", bias)):
                parameter = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
                layer.register_parameter(kind, parameter)
            parent.add_module(name, layer.eval())
        with self.captured.graph.inserting_before(self.place):
            node = self.captured.graph.call_module(path, (source,))
        node.meta |= {"padding_value": None, MADE: True}
        return self._describe(node, path, "linear", (*source.meta["shape"][:-1], weight.shape[0]))

    def attend(
        self, query: fx.Node, key: fx.Node, value: fx.Node, scale: float | fx.Node | None, mask: _Mask
    ) -> fx.Node:
        """The context [..., L, e] of queries [..., L, d], keys [..., S, d] and values [..., S, e]."""
        q, k, v = (source.meta["shape"] for source in (query, key, value))
        shape = (*_broadcast(q[:-2], k[:-2]), q[-2], k[-2])
        given = self.call(scores, query, key, scale, shape=shape)
        if mask.causal:
            weights = self.call(causal_softmax, given, shape=shape, name="softmax")
        elif mask.node is not None and not mask.node.meta[FINITE]:
            more = {"hides": True} if mask.hides else {}
            weights = self.call(masked_softmax, given, mask.node, shape=shape, name="softmax", **more)
        else:
            if mask.node is not None:
                shape = _broadcast(shape, mask.node.meta["shape"])
                given = self.call(operators.add, given, mask.node, shape=shape)
            weights = self.call(torch.softmax, given, -1, shape=shape)
        shape = (*_broadcast(shape[:-2], v[:-2]), shape[-2], v[-1])
        return self.call(torch.matmul, weights, value, shape=shape, name=_CONTEXT)

    def forget(self) -> None:
        """Make the name of the node available."""
        self._taken.discard(self.place.meta["tensor_name"])

    def module(self) -> nn.MultiheadAttention:
        """The module that the node calls. At its first call, a module for its layers replaces it."""
        path = str(self.place.target)
        if path not in self._modules:
            own = self._modules[path] = cast("nn.MultiheadAttention", self.captured.get_submodule(path))
            holder = nn.Module()
            for node in self.captured.graph.nodes:
                start, _, name = str(node.target).rpartition(".")
                if node.op == "get_attr" and start == path:
                    holder.register_parameter(name, getattr(own, name))
            self.captured.set_submodule(path, holder)
        return self._modules[path]

    def erase(self) -> None:
        """Erase the node, and the constants that only it reads."""
        sources = self.place.all_input_nodes
        self.captured.graph.erase_node(self.place)
        for source in sources:
            if source.op == "get_attr" and not source.users:
                self.captured.graph.erase_node(source)

    def _describe(self, node: fx.Node, name: str, kind: str, shape: tuple[int, ...] | None) -> fx.Node:
        numbered = (f"{name}_{number}" if number else name for number in count())
        unique = next(each for each in numbered if each not in self._taken)
        self._taken.add(unique)
        node.meta |= {
            "called_in": self.place.meta["called_in"],
            "operator": kind.replace("_", ""),
            "tensor_name": unique,
            "shape": shape,
            "carries_values": True,
        }
        return node


def _take_function(writer: _Writer) -> None:
    node = writer.place
    given = _FunctionCall(*node.args, **node.kwargs)  # type: ignore[arg-type]
    if given.dropout_p != 0:
        _refuse(
            node,
            f"drops attention weights in eval mode, too (dropout_p={given.dropout_p}); expected dropout_p=0: "
            "write dropout_p=p if self.training else 0.0",
        )
    if given.enable_gqa:
        _refuse(
            node,
            "has fewer heads of keys than of queries (enable_gqa); expected as many: repeat keys and values by "
            "repeat_interleave",
        )
    mask = given.attn_mask
    if mask is not None and not writer.is_fixed(mask) and not mask.meta[FINITE]:
        _refuse_mask(node, "attn_mask")
    query, key, value = given.query, given.key, given.value
    writer.forget()
    context = writer.attend(query, key, value, given.scale, _Mask(mask, causal=given.is_causal))
    node.replace_all_uses_with(context)
    writer.erase()


def _take_module(writer: _Writer) -> None:
    node = writer.place
    module = writer.module()
    given = _ModuleCall(*node.args, **node.kwargs)  # type: ignore[arg-type]
    _check_module(writer, module, given)
    reads: dict[fx.Node, fx.Node] = {}
    for source in (given.query, given.key, given.value):
        batched = not module.batch_first and len(source.meta["shape"]) == _BATCHED
        reads[source] = reads.get(source) or (writer.move("transpose", source, 0, 1) if batched else source)
    query, key, value = (reads[each] for each in (given.query, given.key, given.value))
    split = [
        writer.move("transpose", writer.move("unflatten", each, -1, (module.num_heads, -1)), -3, -2)
        for each in _projections(writer, module, query, key, value)
    ]
    scale, mask = module.head_dim**-0.5, _module_mask(writer, module, given)
    context = writer.attend(split[0], split[1], split[2], scale, mask)
    merged = writer.move("flatten", writer.move("transpose", context, -3, -2), -2)
    out = writer.layer("out_proj", merged, module.out_proj.weight, module.out_proj.bias)
    if query is not given.query:
        out = writer.move("transpose", out, 0, 1)
    _replace_first(writer, out)


def _check_module(writer: _Writer, module: nn.MultiheadAttention, given: _ModuleCall) -> None:
    node, mask = writer.place, given.attn_mask
    if module.training and module.dropout:
        _refuse(
            node,
            f"drops attention weights in eval mode, too (dropout={module.dropout}); expected none: let eval() reach it",
        )
    if module.bias_k is not None or module.add_zero_attn:
        option = "add_bias_kv" if module.bias_k is not None else "add_zero_attn"
        _refuse(node, f"has {option}=True; expected False: append tokens to keys and values before it")
    if given.key_padding_mask is not None:
        _refuse_mask(node, "key_padding_mask")
    if mask is not None and not writer.is_fixed(mask):
        _refuse_mask(node, "attn_mask")
    for user in node.users:
        index = user.args[1] if operator(user) == "getitem" else None
        if index in (1, -1) and not user.users:
            continue
        if index not in (0, -2) and (given.need_weights or index not in (1, -1)):
            _refuse(
                node,
                "gives its attention weights to the network; expected its first output alone to be read: take "
                "attention, _ = ... or compute the weights in code of your own",
            )


def _projections(
    writer: _Writer, module: nn.MultiheadAttention, query: fx.Node, key: fx.Node, value: fx.Node
) -> list[fx.Node]:
    """Queries, keys and values [..., L, E]. As in torch, one layer makes all that come from the same tensor."""
    packed: Tensor | None = module.in_proj_weight
    separate = cast("tuple[Tensor, ...]", (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight))
    weights = separate if packed is None else packed.chunk(3)
    biases = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    runs = ["q", "k", "v"]
    if packed is not None and key is value:
        runs = ["qkv"] if query is key else ["q", "kv"]
    made: list[fx.Node] = []
    for run in runs:
        part = slice(len(made), len(made) + len(run))
        name = "in_proj" if run == "qkv" else f"{run}_proj"
        bias = None if biases is None else torch.cat(biases[part])
        layer = writer.layer(name, (query, key, value)[len(made)], torch.cat(weights[part]), bias)
        size = module.embed_dim
        each = (writer.move("narrow", layer, -1, place * size, size) for place in range(len(run)))
        made += [layer] if len(run) == 1 else each
    return made


def _module_mask(writer: _Writer, module: nn.MultiheadAttention, given: _ModuleCall) -> _Mask:
    mask = given.attn_mask
    if given.is_causal and not given.need_weights:  # as in torch, the mask is then only a hint
        return _Mask(causal=True)
    if mask is not None and mask.meta[DIMENSIONS] == _BATCHED == len(given.query.meta["shape"]):
        mask = writer.split(mask, (-1, module.num_heads))
    return _Mask(mask, hides=True)


def _replace_first(writer: _Writer, new: fx.Node) -> None:
    """Let all readers of the first of two outputs read this node. Readers of the second output get None."""
    for user in list(writer.place.users):
        if user.args[1] in (0, -2):
            user.replace_all_uses_with(new)
        else:
            for reader in list(user.users):
                replace_argument(reader, user, None)
        writer.captured.graph.erase_node(user)
    writer.erase()


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _refuse_mask(node: fx.Node, name: str) -> NoReturn:
    _refuse(
        node,
        f"is given {name} at run time, which images decide; expected a constant mask: make it in __init__ as a buffer, "
        "or leave it out",
    )


def _refuse(node: fx.Node, why: str) -> NoReturn:
    raise ZSQBenchError(f"{tensor_name(node)!r} ({operator(node)}) {why}")
