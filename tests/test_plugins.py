import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brief import parametrize_briefly
from distributions import write_metadata

from zsqbench.errors import PluginUnavailableError, ZSQBenchError
from zsqbench.plugins import load_plugins

GENERATOR = """
import zsqbench

class Mine(zsqbench.Generator):
    name = "mine"

    def generate(self, teacher, ctx):
        ...

@zsqbench.hookimpl
def register_generators():
    return [Mine]
"""


IN_EARNEST = "import multiprocessing as m, signal\nif m.parent_process() is None:"
"""Not in the copy of the process in which a plugin is tried first."""


@pytest.fixture
def load(tmp_path):
    """Load one plugin file, and return the catalog and what became of the plugin."""

    def load(source, name="my_method.py"):
        path = tmp_path / name
        path.write_text(source)
        catalog = load_plugins([path])
        return catalog, catalog.plugins[-1]

    return load


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution with one module and these entry points."""

    def install(distribution, entry_points, **modules):
        folder = tmp_path / f"site-{distribution}"
        write_metadata(folder, distribution, "1.5", entry_points)
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))

    return install


def test_a_single_file_provides_its_method(load):
    catalog, plugin = load(GENERATOR)
    assert ("mine", None, plugin) == (
        catalog.find("generator", "mine").method.name,
        plugin.error,
        catalog.find("generator", "mine").plugin,
    )


def test_the_engines_come_in_as_any_plugin_does():
    assert {"in_process", "pool"} <= set(load_plugins().names("engine"))


def test_a_file_that_is_named_twice_is_loaded_once(tmp_path):
    path = tmp_path / "my_method.py"
    path.write_text(GENERATOR)
    catalog = load_plugins([path, tmp_path / "." / "my_method.py"])
    assert (catalog.clashes, sum(plugin.name == "my_method" for plugin in catalog.plugins)) == ([], 1)


def test_two_files_of_one_name_are_two_plugins(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "method.py").write_text(GENERATOR.replace("mine", folder))
    catalog = load_plugins([tmp_path / "one" / "method.py", tmp_path / "two" / "method.py"])
    assert {"one", "two"} <= set(catalog.names("generator"))


def test_the_hash_of_a_single_file_is_that_of_its_source(load):
    _, before = load(GENERATOR)
    _, after = load(GENERATOR + "# changed\n")
    assert before.source != after.source


@parametrize_briefly(
    "source,error",
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise RuntimeError('no\\nand more')", "RuntimeError: no and more"),
        ("def broken(:", "SyntaxError: invalid syntax (my_method.py, line 1)"),
        ("raise SystemExit('a script')", "SystemExit: a script"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import asyncio\nraise asyncio.CancelledError('no')", "CancelledError: no"),
        ("class Mine(BaseException): pass\nraise Mine(1)", "Mine: 1"),
        ("class Mine(Exception):\n    def __str__(self): return 1\nraise Mine", "Mine"),
        ("import os; os._exit(0)", "its import ended the process with exit code 0"),
        ("import os; os._exit(3)", "its import ended the process with exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "its import ended the process with signal 11 (SIGSEGV)"),
    ],
    5,
)
def test_a_plugin_that_fails_at_import_is_noted_with_one_line(load, source, error):
    _, plugin = load(source)
    assert error == plugin.error


def test_a_hook_that_ends_the_process_is_noted_as_an_import_that_does(load):
    _, plugin = load(GENERATOR.replace("return [Mine]", "import os; os._exit(0)"))
    assert plugin.error == "its import ended the process with exit code 0"


def test_a_plugin_that_ends_the_process_does_not_stop_the_others(tmp_path):
    (tmp_path / "good.py").write_text(GENERATOR)
    (tmp_path / "fatal.py").write_text("import os; os._exit(0)")
    (tmp_path / "other.py").write_text(GENERATOR.replace("mine", "other"))
    names = load_plugins([tmp_path / f"{name}.py" for name in ("good", "fatal", "other")]).names("generator")
    assert {"mine", "other"} <= set(names)


def test_a_plugin_is_heard_once(load, capfd):
    load(GENERATOR + "print('hello')")
    assert capfd.readouterr().out == "hello\n"


def test_a_ctrl_c_while_a_plugin_is_imported_is_one(load):
    with pytest.raises(KeyboardInterrupt):
        load(f"{IN_EARNEST}\n  try: signal.raise_signal(signal.SIGINT)\n  except BaseException: pass")


def test_a_plugin_that_hangs_is_ended_by_ctrl_c(tmp_path):
    """In the copy of the process that tries it, whose end is waited for."""
    (tmp_path / "hangs.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'here')!r}).touch()\nwhile True: pass"
    )
    command = [sys.executable, "-m", "zsqbench", "plugins", "list", "--plugin", str(tmp_path / "hangs.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            while not (tmp_path / "here").exists():
                time.sleep(0.01)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=20)
        finally:
            running.kill()
    assert (running.returncode, err.strip()) == (130, "interrupted")


def test_a_plugin_does_not_move_the_command_to_another_folder(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("import os; os.chdir('/')")
    assert Path.cwd() == tmp_path


def test_a_plugin_that_fails_keeps_its_traceback(load):
    _, plugin = load("def f():\n    raise RuntimeError('no')\nf()")
    assert "my_method.py" in plugin.traceback


def test_a_misspelt_hook_is_named_with_a_suggestion(load):
    _, plugin = load(GENERATOR.replace("register_generators", "register_generator"))
    assert "unknown hook 'register_generator'; did you mean 'register_generators'?" in plugin.error


def test_a_hook_that_is_like_none_is_refused_in_whole_clauses(load):
    _, plugin = load(GENERATOR.replace("register_generators", "zzz"))
    assert "unknown hook 'zzz'; known: cell_finished, " in plugin.error


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper"])
def test_a_hook_that_wraps_those_of_others_is_refused(load, option):
    _, plugin = load(f"import zsqbench\n@zsqbench.hookimpl({option}=True)\ndef step_finished(step):\n    yield")
    assert plugin.error.endswith("step_finished wraps the hooks of other plugins; write it without `wrapper`")


NEVER_CALLED_SO = {
    "def cell_finished(resul): ...": (
        "has an unknown argument 'resul'; did you mean 'result'? known: cached, result, suite"
    ),
    "def cell_finished(*, result): ...": (
        "takes 'result' by keyword only, but hooks are called by position; write it without `*`"
    ),
    "def cell_finished(result, cached=True): ...": (
        "has a default for 'cached', but always gets a value; write 'cached' without a default"
    ),
    "def cell_finished(**all): ...": (
        "takes '**all', which would be empty; name the arguments that it needs, out of: suite, result, cached"
    ),
    "async def cell_finished(result): ...": "is async, and nothing waits for it; write it with `def`",
    "def cell_finished(result): yield": ("has a `yield`, so a call does not run it; return a list instead"),
    "def register_tasks(self): ...": "takes 'self'; provide an object, not its class",
}


@pytest.mark.parametrize("source", NEVER_CALLED_SO)
def test_a_hook_that_would_not_be_called_as_it_says_is_refused(load, source):
    _, plugin = load(f"import zsqbench\n@zsqbench.hookimpl\n{source}")
    name = re.search(r"def (\w+)", source)[1]
    assert plugin.error == f"{name} {NEVER_CALLED_SO[source]}"


def test_a_hook_may_have_defaults_for_arguments_of_its_own(load):
    _, plugin = load("import zsqbench\n@zsqbench.hookimpl\ndef cell_finished(result, _seen=[]): ...")
    assert plugin.error is None


def test_a_hook_that_is_no_function_is_refused(load):
    _, plugin = load("import functools, zsqbench\ncell_finished = zsqbench.hookimpl(functools.partial(print))")
    assert plugin.error == "cell_finished is marked as a hook, but is a partial, not a function"


@parametrize_briefly(
    "change,error",
    [
        (
            ("return [Mine]", "return Mine"),
            "register_generators returned <class .*expected a list of Generator classes",
        ),
        (("return [Mine]", "return None"), "register_generators returned None; expected a list of Generator classes"),
        (("return [Mine]", "return [Mine()]"), "register_generators returned .*; expected subclasses of Generator"),
        (("return [Mine]", "return ['mine']"), "register_generators returned 'mine'; expected subclasses of Generator"),
        (("register_generators", "register_tasks"), "register_tasks returned .*Mine.*; expected subclasses of Task"),
        (('name = "mine"', ""), "Mine has no name; give it a class attribute name = '...'"),
        (('name = "mine"', "name = 3"), "Mine has no name"),
        (('name = "mine"', "name = ''"), "Mine has no name"),
        (("def generate", "def generates"), "Mine does not define generate"),
    ],
    5,
)
def test_what_is_no_method_is_refused(load, change, error):
    _, plugin = load(GENERATOR.replace(*change))
    assert plugin.error is not None
    assert re.search(error, plugin.error), plugin.error


def test_a_plugin_that_fails_leaves_no_hook_behind(load):
    source = (
        GENERATOR.replace("return [Mine]", "raise RuntimeError") + "\n@zsqbench.hookimpl\ndef suite_finished(): ..."
    )
    catalog, _ = load(source)
    files = [hook.function.__code__.co_filename for hook in catalog.hooks.hook.suite_finished.get_hookimpls()]
    assert [file for file in files if file.endswith("my_method.py")] == []


def test_a_plugin_that_fails_does_not_stop_the_next(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError")
    (tmp_path / "good.py").write_text(GENERATOR)
    assert "mine" in load_plugins([tmp_path / "broken.py", tmp_path / "good.py"]).names("generator")


def test_a_method_that_a_broken_plugin_may_provide_is_unavailable_and_the_plugin_named(load):
    catalog, _ = load("raise RuntimeError('no luck')")
    with pytest.raises(
        PluginUnavailableError, match=r"unknown generator 'mine'.*'my_method' \(.*\): RuntimeError: no luck"
    ):
        catalog.find("generator", "mine")


def test_an_unknown_method_is_refused_with_a_suggestion(load):
    catalog, _ = load(GENERATOR)
    catalog.plugins = [plugin for plugin in catalog.plugins if not plugin.error]
    with pytest.raises(ZSQBenchError, match=r"unknown generator 'mime'; did you mean 'mine'. known: .*mine") as error:
        catalog.find("generator", "mime")
    assert error.value.exit_code == 2


def test_two_claims_to_one_name_are_an_error_that_names_both(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(GENERATOR)
    catalog = load_plugins([tmp_path / "one.py", tmp_path / "two.py"])
    with pytest.raises(ZSQBenchError) as error:
        catalog.check()
    expected = (
        f"two plugins provide a generator named 'mine': 'one' ({tmp_path}/one.py) and 'two' ({tmp_path}/two.py); "
        "rename one, or leave one out with --no-plugin"
    )
    assert expected == str(error.value)


def test_two_classes_of_one_plugin_with_one_name_are_refused(load):
    _, plugin = load(
        GENERATOR.replace("return [Mine]", "return [Mine, type('Other', (Mine,), {'__module__': __name__})]")
    )
    assert plugin.error == "Mine and Other are both a generator named 'mine'; rename one"


def test_one_name_for_two_kinds_is_no_clash(load):
    quantizer = """
class Q(zsqbench.Quantizer):
    name = "mine"

    def quantize(self, student, teacher, data, ctx): ...

@zsqbench.hookimpl
def register_quantizers():
    return [Q]
"""
    catalog, plugin = load(GENERATOR + quantizer)
    assert (plugin.error, catalog.clashes) == (None, [])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"cannot read plugin file .*nothing\.py: No such file or directory"):
        load_plugins([tmp_path / "nothing.py"])


def test_a_file_that_is_no_python_is_noted(load):
    _, plugin = load(GENERATOR, "my_method.txt")
    assert "is not a Python file (.py)" in plugin.error


def test_an_unknown_plugin_to_leave_out_is_refused_with_a_suggestion():
    with pytest.raises(ZSQBenchError, match="unknown plugin 'mflow' in --no-plugin; did you mean 'mlflow'"):
        load_plugins(without=["mflow"])


def test_a_plugin_that_is_left_out_is_not_imported():
    assert "mlflow" not in [plugin.name for plugin in load_plugins(without=["mlflow"]).plugins]


def test_the_shipped_plugins_are_marked(load):
    catalog, plugin = load(GENERATOR)
    shipped = {entry.name for entry in catalog.plugins if entry.shipped}
    assert ({"engines", "noise", "mlflow"} <= shipped, plugin.shipped) == (True, False)


def test_the_shipped_plugins_can_be_loaded_alone(installed, tmp_path):
    installed("stranger-alone", [("their", "stranger_alone")], stranger_alone="raise RuntimeError")
    (tmp_path / "mine.py").write_text(GENERATOR)
    catalog = load_plugins([tmp_path / "mine.py"], ["their", "progress"], only_shipped=True)
    assert all(plugin.shipped for plugin in catalog.plugins)
    assert {"noise", "progress"} & {plugin.name for plugin in catalog.plugins} == {"noise"}


def test_a_module_of_an_installed_distribution_is_a_plugin(installed):
    installed("stranger", [("their", "stranger_plugin")], stranger_plugin=GENERATOR)
    plugin = load_plugins().find("generator", "mine").plugin
    assert (plugin.name, plugin.origin, plugin.source) == ("their", "stranger 1.5", None)


def test_an_object_of_an_installed_distribution_is_a_plugin(installed):
    source = "import zsqbench\n" + GENERATOR.replace(
        "@zsqbench.hookimpl\ndef register_generators():\n    return [Mine]", ""
    )
    source += """
class Plugin:
    @zsqbench.hookimpl
    def register_generators(self):
        return [Mine]

plugin = Plugin()
"""
    installed("stranger-object", [("their", "stranger_object:plugin")], stranger_object=source)
    assert "mine" in load_plugins().names("generator")


def test_an_entry_point_that_does_not_exist_is_noted_and_stops_nothing(installed):
    installed("stranger-broken", [("their", "stranger_broken:nothing")], stranger_broken=GENERATOR)
    plugin = next(plugin for plugin in load_plugins().plugins if plugin.name == "their")
    assert "AttributeError" in plugin.error


def test_two_distributions_may_use_one_entry_point_name(installed):
    for number in (1, 2):
        source = GENERATOR.replace("mine", f"mine{number}")
        installed(f"stranger{number}", [("their", f"stranger_{number}")], **{f"stranger_{number}": source})
    assert {"mine1", "mine2"} <= set(load_plugins().names("generator"))


def test_a_distribution_that_takes_a_shipped_name_is_named_with_ours(installed):
    source = GENERATOR.replace("mine", "noise")
    installed("stranger-noise", [("their", "stranger_noise")], stranger_noise=source)
    with pytest.raises(
        ZSQBenchError, match=r"generator named 'noise': 'noise' \(zsqbench.*\) and 'their' \(stranger-noise"
    ):
        load_plugins().check()


def test_a_plugin_may_use_annotations_as_text(load):
    source = "from __future__ import annotations\nfrom typing import Literal\n" + GENERATOR
    _, plugin = load(source.replace('name = "mine"', 'name = "mine"\n    mode: Literal["x", "y"] = "x"'))
    assert None is plugin.error


def test_the_checkout_works_from_another_folder(python):
    done = python("""
        import json
        from zsqbench.plugins import load_plugins
        catalog = load_plugins()
        plugins = [plugin.name for plugin in catalog.plugins]
        print(json.dumps([plugins, catalog.names("generator"), catalog.names("engine")]))
    """)
    plugins, generators, engines = json.loads(done.stdout or "null") or pytest.fail(done.stderr)
    assert {"noise", "in_process", "engines"} <= {*plugins, *generators, *engines}


def test_a_shipped_suite_is_found_from_another_folder(python):
    done = python("from zsqbench.suite import find_suite; print(find_suite('smoke'))")
    assert done.stdout.strip().endswith("smoke.yaml"), done.stderr
