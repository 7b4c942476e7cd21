"""The tracer: it calls a network like a user, with a placeholder for the images, and records all operations."""

import operator
import os
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.compat import forward_is_hooked, tracing_into
from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.constants import known_by_sizes

_HERE = str(Path(__file__))
_TORCH = str(Path(torch.__file__).parent) + os.sep
_TRACED = "zsqbench_traced"
BATCHES = 2, 3
"""Numbers of images that are tried to find if a value depends on them."""
_BY_VALUE = (
    "the computation must not depend on values in tensors; use torch.where for a choice by value, choose by shape or "
    "setting in __init__, or put this code into a function with @torch.fx.wrap, which counts as one operator"
)
_FOREIGN = (
    "a function that was set on a module calls that very module, and so another one than its copy has; set it with "
    "types.MethodType, or write a subclass"
)
_OPENED = "torchvision.models.swin_transformer"
"""Its functions with weights are wrapped, so that a plain tracer takes each as one operator."""


def trace(module: nn.Module, input_size: tuple[int, int, int]) -> fx.Graph:
    """The graph of a module. If it cannot be traced, raises ZSQBenchError with the line of code that prevents it."""
    tracer = _Tracer(input_size)
    own = type(module)
    # a separate class, because a tracer starts from a function of the class, and `forward` is behind hooks
    module.__class__ = types.new_class(own.__name__, (own,), {}, lambda names: names.update({_TRACED: _call}))
    try:
        with tracing_into(_OPENED):
            return tracer.trace(module)
    except Exception as error:
        # Any exception: the module's own code gets a placeholder instead of a tensor.
        where = f" in module {tracer.current_module!r}" if tracer.current_module else ""
        raise ZSQBenchError(
            f"{own.__name__} cannot be traced{where}{_place(error)} ({first_line(error)}): "
            + (_FOREIGN if isinstance(error, NameError) else _BY_VALUE)
        ) from error
    finally:
        module.__class__ = own


def _call(self: nn.Module, images: Tensor) -> Any:
    return self(images)


def images_of_zeros(module: nn.Module, images: int, input_size: tuple[int, int, int]) -> Tensor:
    """Black images [images, C, H, W] on the device and in the precision of a module."""
    example = next(module.parameters(), torch.empty(0))
    return torch.zeros(images, *input_size, dtype=example.dtype, device=example.device)


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch that defines a module's computation: its own class, or an unchanged base class."""
    kind = type(module)
    known = (base for base in kind.__mro__ if base is FrozenBatchNorm2d or base.__module__.startswith("torch.nn.mod"))
    base: type[nn.Module] = next(known, nn.Module)
    if base is nn.Module or issubclass(base, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return None
    return base if all(getattr(kind, name, None) is getattr(base, name, None) for name in _COMPUTES) else None


_COMPUTES = "forward", "_conv_forward", "__call__"
"""Methods that define the computation of a module. The second is that of nn.Conv2d."""


def _is_changed(module: nn.Module) -> bool:
    """True if a module computes something else than its class, because it has hooks or its own methods."""
    # parametrized: its weight is computed from others
    changed = forward_is_hooked(module) or hasattr(module, "parametrizations")
    return changed or any(name in vars(module) for name in _COMPUTES)


class _Sized:
    """A placeholder. Its length is known if it only depends on sizes."""

    tracer: Any
    node: fx.Node

    def __len__(self) -> int:
        return int(self.tracer.length(self.node))


class _Attribute(_Sized, fx.proxy.Attribute):
    """A placeholder for an attribute of a value."""


class _Proxy(_Sized, fx.Proxy):
    """A placeholder for a value. `x += y` stays a change of x."""

    def __getattr__(self, k: str) -> Any:
        return _Attribute(self, k)

    def __iadd__(self, other: Any) -> Any:
        return self._change(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._change(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._change(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._change(operator.itruediv, other)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def _change(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """Takes an unchanged torch module with any name as one operator, and notes its calls.

    It calls the network like a user, so that hooks and an overridden `__call__` of the network and its modules are part
    of the graph. A choice by sizes is evaluated with the sizes.
    """

    traced_func_name = _TRACED

    def __init__(self, input_size: tuple[int, int, int]) -> None:
        super().__init__(param_shapes_constant=True)
        self.current_module = ""
        self._input_size = input_size
        self._known: list[dict[fx.Node, Any]] = [{} for _ in BATCHES]
        self._computes = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.root or _is_changed(m) or type(m).__module__ == nn.Transformer.__module__:
            return False
        return torch_class(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computes else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._computes:
            return forward(*args, **kwargs)
        caller, self.current_module = self.current_module, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.current_module = caller  # not in a finally: if tracing fails, the path of the failing module is needed
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["called_in"] = self.current_module
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        if obj.node not in known_by_sizes(self.graph.nodes):
            raise fx.proxy.TraceError("a choice depends on the values in a tensor")
        return bool(self._decide(obj.node, bool))

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(self.length(obj.node))])

    def length(self, node: fx.Node) -> int:
        """The length of a value, from sizes."""
        if node.op == "call_module" and isinstance(self.root.get_submodule(str(node.target)), nn.MultiheadAttention):
            return 2  # output and weights; computing them would take most of the time of tracing
        return int(self._decide(node, len))

    def _decide(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """The truth of a value for any number of images. Raises TraceError if it depends on the number."""
        answers = {ask(self._value(node, batch)) for batch in range(len(BATCHES))}
        if len(answers) > 1:
            raise fx.proxy.TraceError("a choice depends on the number of images")
        return answers.pop()

    def _value(self, node: fx.Node, batch: int) -> Any:
        """The value of a node for a batch of black images. All nodes before it are also computed, each once."""
        known = self._known[batch]
        with self._computing():
            for each in self.graph.nodes:
                if each not in known:
                    known[each] = self._compute(each, known, BATCHES[batch])
                if each is node:
                    break
        return known[node]

    def _compute(self, node: fx.Node, known: dict[fx.Node, Any], images: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        if node.op == "placeholder":
            return images_of_zeros(self.root, images, self._input_size)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator] # of a call_function it is one

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self._computes = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._computes = False


def _place(error: Exception) -> str:
    """The last line of the traceback outside torch. There the user's code does something that cannot be traced."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if not f.filename.startswith(_TORCH) and f.filename != _HERE]
    return f" at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""


def first_line(error: Exception) -> str:
    """The first line of an error, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
