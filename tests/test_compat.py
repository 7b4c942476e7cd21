"""Each part of torch that is not public does what zsqbench takes it for, in the release that is installed."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from zsqbench import compat

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("zsqbench", "plugins") for path in (ROOT / folder).rglob("*.py"))
PRIVATE = re.compile(
    r"(\bfrom torch[\w.]*\._"  # from torch._x, torch.x._y
    r"|\bfrom torch[\w.]* import (\w+, )*_"
    r"|\btorch(\.\w+)*\._[a-z]"
    r"|_reversed_padding"
    r"|[\".](_(forward|backward)(_pre)?_hooks\b|_global_))"
)
LIMIT, KEEPS = "cache_size_limit", "autograd_cache_allow_custom_autograd_functions"
OUTPUTS = {"boxes": [torch.zeros(1), torch.ones(2)], "scores": (torch.full((3,), 2.0),)}


@pytest.fixture
def restored(monkeypatch):
    """Torch has its configuration of before after each test, as far as the parts say that they set it."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    from torch._inductor import decomposition

    monkeypatch.setattr(decomposition, "decompositions", dict(decomposition.decompositions))
    with ExitStack() as stack:
        for config, name in ((dynamo, LIMIT), (functorch, KEEPS)):
            if hasattr(config, name):
                stack.enter_context(config.patch({name: getattr(config, name)}))
        yield


def test_no_other_module_reaches_into_torch():
    found = {path.relative_to(ROOT): PRIVATE.findall(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert [str(path) for path, places in found.items() if places] == ["zsqbench/compat.py"]


@pytest.mark.parametrize(
    "line",
    [
        "from torch._inductor import decomposition",
        "from torch.utils import _pytree",
        "from torch.fx import graph, _symbolic_trace",
        "torch._dynamo.config.recompile_limit = 8",
        "torch.fx._symbolic_trace.is_fx_tracing()",
        "if module._forward_pre_hooks:",
        'name.startswith("_global_")',
        "sides = layer._reversed_padding_repeated_twice",
    ],
)
def test_a_line_that_reaches_into_torch_would_be_found(line):
    assert PRIVATE.search(line)


def test_the_command_line_imports_no_torch_for_it():
    code = "import sys, zsqbench.cli, zsqbench.methods, zsqbench.execution.isolation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_outputs_are_taken_apart_and_put_together_in_one_order():
    leaves, structure = compat.tree_leaves(OUTPUTS), compat.tree_structure(OUTPUTS)
    assert [len(leaf) for leaf in leaves] == [1, 2, 3]
    assert isinstance(structure, compat.TreeSpec)
    assert compat.tree_unflatten([1, 2, 3], structure) == {"boxes": [1, 2], "scores": (3,)}
    assert compat.tree_map(len, OUTPUTS) == {"boxes": [1, 2], "scores": (3,)}


def test_places_of_outputs_are_named_as_python_would_reach_them():
    assert compat.tree_places(OUTPUTS) == ["['boxes'][0]", "['boxes'][1]", "['scores'][0]"]
    assert compat.tree_places(torch.zeros(1)) == [""]


def test_operators_are_seen_before_they_run():
    class Seen(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names = []
    with Seen():
        torch.zeros(2).relu()
    assert names == ["aten::zeros", "aten::relu"]


def test_a_child_with_two_names_has_both_in_the_table():
    module = nn.Module()
    module.first = module.second = child = nn.ReLU()
    assert list(dict(module.named_children())) == ["first"]
    assert compat.children(module) == {"first": child, "second": child}
    compat.children(module)["second"] = other = nn.ReLU6()
    assert module.second is other


def test_a_copy_with_other_children_leaves_the_module_alone():
    module = nn.Sequential(nn.ReLU(), nn.Flatten())
    copied = compat.with_children(module, **{"0": nn.ReLU6()})
    assert [type(child) for child in copied] == [nn.ReLU6, nn.Flatten]
    assert [type(child) for child in module] == [nn.ReLU, nn.Flatten]
    assert copied[1] is module[1]


def test_attributes_are_all_but_the_children():
    module = nn.Sequential(nn.ReLU())
    module.limit = 6
    assert {name for name, _ in compat.attributes(module)} == vars(module).keys() - {"_modules"}
    assert ("limit", 6) in compat.attributes(module)


@pytest.mark.parametrize(
    ("register", "changes_forward"),
    [
        ("register_forward_hook", True),
        ("register_forward_pre_hook", True),
        ("register_full_backward_hook", False),
        ("register_full_backward_pre_hook", False),
    ],
)
def test_each_kind_of_hook_is_seen_while_it_is_there(register, changes_forward):
    module = nn.ReLU()
    handle = getattr(module, register)(lambda *_: None)
    assert len(compat.hook_tables(module)) == 1
    assert compat.forward_is_hooked(module) is changes_forward
    handle.remove()
    assert not compat.hook_tables(module)
    assert not compat.forward_is_hooked(module)


@pytest.mark.parametrize(
    "register",
    [
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
        "register_module_full_backward_hook",
        "register_module_full_backward_pre_hook",
        "register_module_module_registration_hook",
    ],
)
def test_hooks_of_all_modules_are_seen_and_removed(register):
    getattr(nn.modules.module, register)(lambda *_: None)
    try:
        assert sum(map(len, compat.global_hooks().values())) == 1
    finally:
        compat.clear_global_hooks()
    assert not any(compat.global_hooks().values())


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("padding", [0, 2, "same"])
def test_a_convolution_of_padded_values_is_the_convolution(layer, padding):
    padded = layer(3, 4, 3, padding=padding, dilation=2)
    bare = layer(3, 4, 3, dilation=2)
    bare.load_state_dict(padded.state_dict())
    x = torch.randn(2, 3, *[9] * (padded.weight.dim() - 2))
    torch.testing.assert_close(bare(functional.pad(x, compat.padding_of(padded))), padded(x))


class Asserting(nn.Module):
    def forward(self, x):
        torch._assert(x.dim() == 4, "images")
        return x.relu()


def test_an_assertion_is_told_in_a_graph():
    nodes = fx.symbolic_trace(Asserting()).graph.nodes
    assert [node.op for node in nodes if compat.is_assertion(node)] == ["call_function"]


WRAPPED = "zsqbench_wrapped_for_a_test"


@pytest.fixture
def wrapped(monkeypatch):
    """A module whose function is one operator to a tracer, and which calls it."""
    names = {"__name__": WRAPPED, "torch": torch}
    exec("def double(x):\n    return x + x\ntorch.fx.wrap('double')\n", names)  # noqa: S102 - our own text
    table = fx._symbolic_trace._wrapped_fns_to_patch
    yield type("Calling", (nn.Module,), {"forward": lambda _, x: names["double"](x)})()
    for place in [place for place, own in table.items() if own is names]:
        del table[place]


def test_a_tracer_looks_into_a_wrapped_function_where_it_is_told_to(wrapped):
    def targets():
        return [node.target.__name__ for node in fx.symbolic_trace(wrapped).graph.nodes if node.op == "call_function"]

    before = targets()
    with compat.tracing_into(WRAPPED):
        within = targets()
    with compat.tracing_into("another"):
        other = targets()
    assert (before, within, other, targets()) == (["double"], ["add"], ["double"], ["double"])


def test_a_placeholder_is_a_mask_while_a_tracer_looks_on():
    own = functional._none_or_dtype
    with compat.tracing_into("none"):
        assert functional._none_or_dtype(None) is None
        assert functional._none_or_dtype(torch.zeros(1, dtype=torch.bool)) == torch.bool
        assert isinstance(functional._none_or_dtype(fx.Proxy(fx.Graph().placeholder("mask"))), fx.Proxy)
    assert functional._none_or_dtype is own


def test_the_limit_of_versions_is_that_of_torch(restored):
    compat.recompile_at_most(5)
    assert torch._dynamo.config.cache_size_limit == 5


def test_graphs_with_functions_of_ours_are_kept_where_torch_can(restored):
    from torch._functorch import config

    compat.keep_custom_graphs()
    assert getattr(config, KEEPS, True)


def test_a_backward_pass_may_run_twice_where_it_is_wanted():
    from torch._functorch import config

    seen = compat.differentiable_twice(lambda: getattr(config, "donated_buffer", False))
    assert seen() is False


def test_the_compiler_takes_operators_as_we_say(restored):
    from torch._inductor import decomposition

    operator = torch.ops.aten.threshold_backward.default
    compat.decompose({operator: torch.sub})
    assert decomposition.select_decomp_table()[operator] is torch.sub


def test_a_compiler_that_is_not_there_is_told(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def find():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", find)
    assert not compat.finds_compiler()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert compat.finds_compiler()
