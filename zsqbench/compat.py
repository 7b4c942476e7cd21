"""Everything that zsqbench takes from torch beyond its public interface. A new release is checked in this one place.

tests/test_compat.py has a test for each part, and a test that no other module reaches into torch. This module imports
torch. A module that must not import torch imports this one inside its functions.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace as symbolic_trace
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_structure,
    tree_unflatten,
)

__all__ = [
    "TorchDispatchMode",
    "TreeSpec",
    "attributes",
    "children",
    "clear_global_hooks",
    "decompose",
    "differentiable_twice",
    "finds_compiler",
    "forward_is_hooked",
    "global_hooks",
    "hook_tables",
    "is_assertion",
    "keep_custom_graphs",
    "padding_of",
    "recompile_at_most",
    "tracing_into",
    "tree_leaves",
    "tree_map",
    "tree_places",
    "tree_structure",
    "tree_unflatten",
    "with_children",
]

F = TypeVar("F", bound=Callable[..., Any])
Network = TypeVar("Network", bound=nn.Module)

_CHILDREN = "_modules"
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def tree_places(returned: Any) -> list[str]:
    """Where each leaf of an output is, such as `['boxes'][0]`, in the order of `tree_leaves`. `""`: the only leaf."""
    return [keystr(place) for place, _ in tree_flatten_with_path(returned)[0]]


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The table of a module's children. `named_children` would leave out the second name of a child."""
    return module._modules  # noqa: SLF001


def with_children(module: Network, **given: nn.Module) -> Network:
    """A shallow copy of a module in which other modules replace some children."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **given}  # noqa: SLF001
    return copied


def attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The attributes that a module holds itself, without the table of its children."""
    return ((name, value) for name, value in vars(module).items() if name != _CHILDREN)


def hook_tables(module: nn.Module) -> list[str]:
    """The names of a module's own tables of hooks that are not empty. torch has no public function for this."""
    return [name for name in _HOOKS if getattr(module, name)]


def forward_is_hooked(module: nn.Module) -> bool:
    """True if a hook of the module's own runs before or after its forward pass."""
    return any("forward" in name for name in hook_tables(module))


def global_hooks() -> dict[str, dict[int, Any]]:
    """The tables of hooks that torch calls for all modules, by the names that torch has for them."""
    found = vars(torch.nn.modules.module).items()
    return {name: hooks for name, hooks in found if name.startswith("_global_") and isinstance(hooks, dict)}


def clear_global_hooks() -> None:
    """Remove all hooks that are called for all modules."""
    for hooks in global_hooks().values():
        hooks.clear()


def padding_of(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """The padding of a convolution as `functional.pad` takes it, even if the layer states it as a word ("same")."""
    return layer._reversed_padding_repeated_twice  # noqa: SLF001


def is_assertion(node: fx.Node) -> bool:
    """True for a call of `torch._assert`. Networks call it because it can be traced."""
    return node.op == "call_function" and node.target is torch._assert  # noqa: SLF001


@contextmanager
def tracing_into(home: str) -> Iterator[None]:
    """Let a tracer look into functions of a module that `torch.fx.wrap` makes one operator. The module is named.

    Meanwhile the transformers of torch accept a placeholder for a mask, although they ask for its type.
    """
    wrapped = symbolic_trace._wrapped_fns_to_patch  # noqa: SLF001
    opened = {place: names for place, names in wrapped.items() if names.get("__name__") == home}
    for place in opened:
        del wrapped[place]
    own_type_of = functional._none_or_dtype  # noqa: SLF001
    functional._none_or_dtype = lambda mask: (  # type: ignore[assignment] # noqa: SLF001
        mask.dtype if isinstance(mask, fx.Proxy) else own_type_of(mask)
    )
    try:
        yield
    finally:
        wrapped.update(opened)
        functional._none_or_dtype = own_type_of  # noqa: SLF001


def recompile_at_most(versions: int) -> None:
    """Let torch.compile make so many versions of a function. Beyond its limit a function runs uncompiled."""
    config = torch._dynamo.config  # noqa: SLF001 - where torch documents it
    if hasattr(config, "recompile_limit"):
        config.recompile_limit = versions
    else:  # torch 2.5
        config.cache_size_limit = versions


def keep_custom_graphs() -> None:
    """Let torch cache compiled graphs with an `autograd.Function`. torch 2.5 cannot do this.

    torch traces both passes of the function into the graph, and finds a cached graph by its content.
    """
    from torch._functorch import config

    if hasattr(config, "autograd_cache_allow_custom_autograd_functions"):
        config.autograd_cache_allow_custom_autograd_functions = True


def differentiable_twice(compiled: F) -> F:
    """A compiled function whose backward pass may run twice. By default the first run overwrites data of the second."""
    from torch._functorch import config

    if not hasattr(config, "donated_buffer"):  # before torch 2.6 no pass overwrote anything
        return compiled

    @functools.wraps(compiled)
    def call(*arguments: Any, **options: Any) -> Any:
        with config.patch(donated_buffer=False):
            return compiled(*arguments, **options)

    return cast("F", call)


def decompose(operators: Mapping[Any, Callable[..., Any]]) -> None:
    """From now on, let torch.compile compute operators by functions of zsqbench."""
    from torch._inductor import decomposition

    decomposition.decompositions.update(operators)


def finds_compiler() -> bool:
    """True if torch.compile finds the C++ compiler that it needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
