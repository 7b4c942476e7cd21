import pytest
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from zsqbench import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.testing import context


def test_the_shipped_controls_say_which_they_are():
    provided = load_plugins().provided.items()
    controls = {name: entry.method.control for (_, name), entry in provided if entry.method.control}
    assert controls == {"noise": "negative", "real": "positive", "fp32": "float"}


def test_without_a_compiler_compile_is_one_clear_error(monkeypatch):
    def find():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", find)
    ctx = context()
    assert ctx.compile(len) is len
    ctx.settings = Settings(compile=True)
    with pytest.raises(ZSQBenchError, match="torch finds no C\\+\\+ compiler; install g\\+\\+"):
        ctx.compile(len)
