import json
import shutil

import pytest
from brief import parametrize_briefly

from zsqbench.cli.plugins_list import _overview
from zsqbench.plugins import load_plugins


def test_an_overview_has_one_line_for_each_method_below_its_kind(bench):
    said = bench.zsqbench("plugins", "list", "--plugin", bench.folder / "toy.py")
    lines = said.out.splitlines()
    listed = json.loads(bench.zsqbench("plugins", "list", "--format", "json", "--plugin", bench.folder / "toy.py").out)
    kinds = ["engine", "generator", "quantizer", "task"]
    heads = [f"{kind}s, with their versions" for kind in kinds]
    assert [line for line in lines if not line.startswith(" ")] == [
        *heads,
        "`zsqbench plugins list NAME` shows the options of one",
    ]
    for kind, head, following in zip(kinds, heads, [*heads[1:], lines[-1]], strict=True):
        shown = lines[lines.index(head) + 1 : lines.index(following)]
        assert [line.split()[0] for line in shown] == [m["name"] for m in listed["methods"] if m["kind"] == kind]
    assert {line.split(maxsplit=2)[1] for line in lines if line.startswith(" ")} >= {"1", "2"}


def test_an_overview_says_of_what_is_not_shipped_where_it_is_from(bench):
    said = bench.zsqbench("plugins", "list", "--plugin", bench.folder / "toy.py")
    (line,) = [line for line in said.out.splitlines() if line.split()[0] == "toy"]
    assert line.split(maxsplit=2) == ["toy", "1", f"({bench.folder}/toy.py) Noise."]
    (shipped,) = [line for line in said.out.splitlines() if line.split()[0] == "rtn"]
    assert shipped.split(maxsplit=2)[2].startswith("Rounds weights per output channel")


def test_an_overview_is_cut_to_the_width_of_the_terminal():
    provided = [entry for _, entry in sorted(load_plugins().provided.items())]
    whole, cut = list(_overview(provided, None)), list(_overview(provided, 60))
    assert max(map(len, whole)) > 60
    assert cut == [line if len(line) <= 60 else line[:57] + "..." for line in whole]


def test_plugins_are_listed_with_options_defaults_and_what_these_mean(bench):
    said = bench.zsqbench("plugins", "list", "toy", "--plugin", bench.folder / "toy.py")
    expected = [
        f"generator toy  (version 1, {bench.folder}/toy.py)",
        "    Noise.",
        "    images: integer, default 4  how many",
        "    scale: number, default 1.0  standard deviation",
    ]
    assert expected == said.out.splitlines()[:4]


def test_plugins_are_listed_as_json(bench):
    said = bench.zsqbench("plugins", "list", "--format", "json", "--plugin", bench.folder / "toy.py")
    listed = json.loads(said.out)
    names = {(entry["kind"], entry["name"]) for entry in listed["methods"]}
    assert {("engine", "pool"), ("generator", "toy"), ("quantizer", "toyq"), ("task", "toytask")} <= names


PRESETS = """
from zsqbench import Auto, auto
from zsqbench.methods import ByDataSet

class Large(Toy):
    name = "large"
    presets = {"paper": {"scale": 2}, "released": {"scale": 3, "shift": "none"}}
    preset: str = "paper"
    scale: Auto[float] = auto(gt=0, description="standard deviation")
    shift: Auto[str] = auto(description="of what")

class Published(ByDataSet, Large):
    name = "published"
    presets = {
        "paper": {"cifar10": {"scale": 1}, "cifar100": {"scale": 1}, "imagenet": {"scale": 2}},
        "released": dict.fromkeys(("cifar10", "cifar100", "imagenet"), {"scale": 3}),
    }
"""


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("large", ["option    paper    released", "scale     2.0      3.0", "shift     null     none"]),
        (
            "published",
            [
                "option    paper cifar10/cifar100    paper imagenet    released",
                f"scale     1.0{' ' * 23}2.0{' ' * 15}3.0",
            ],
        ),
    ],
)
def test_what_presets_and_data_sets_give_is_a_table(bench, name, table):
    bench.add_plugin(PRESETS)
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "extra.py"]
    said = bench.zsqbench("plugins", "list", name, *arguments)
    title, *lines = said.out.splitlines()[-1 - len(table) :]
    assert title == "    Values of unset options, by preset and for a network of each data set:"
    assert [line.removeprefix(" " * 8) for line in lines] == table


def test_what_presets_and_data_sets_give_is_there_as_json(bench):
    bench.add_plugin(PRESETS)
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "extra.py", "--format", "json"]
    (listed,) = json.loads(bench.zsqbench("plugins", "list", "published", *arguments).out)["methods"]
    assert len(listed["filled_in"]) == 6
    assert listed["filled_in"][2] == {"preset": "paper", "data_set": "imagenet", "options": {"scale": 2.0}}


def test_a_quantizer_is_listed_at_a_scheme(bench):
    lines = bench.zsqbench("plugins", "list", "rtn").out.splitlines()[-3:]
    assert lines == [
        "    Values of unset options, by preset and for a network of each data set, at scheme hw/w4a4:",
        "        option    value",
        "        grid      affine",
    ]


def test_a_broken_plugin_is_listed_with_its_error(bench, broken):
    said = bench.zsqbench("plugins", "list", "--plugin", broken)
    assert (0, f"broken plugin broken  ({broken}): RuntimeError: no luck") == (said.code, said.out.splitlines()[-1])


def test_a_broken_plugin_that_is_asked_for_is_listed_with_its_traceback(bench, broken):
    said = bench.zsqbench("plugins", "list", "broken", "--plugin", broken)
    assert (said.code, "Traceback" in said.out) == (0, True)


def test_a_clash_is_listed_and_stops_no_list(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "twin.py"]
    said = bench.zsqbench("plugins", "list", *arguments)
    assert (said.code, "clash: two plugins provide a generator named 'toy': " in said.out) == (0, True)


def test_a_clash_stops_a_suite(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    said = bench.run("--plugin", bench.folder / "twin.py")
    assert (said.code, said.err.startswith("error: two plugins provide a ")) == (2, True)


def test_a_clash_is_one_line(bench):
    shutil.copy(bench.folder / "toy.py", bench.folder / "twin.py")
    said = bench.run("--plugin", bench.folder / "twin.py")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [
        "lambda_: float = Field(1.0, alias='lambda')",
        "path: Path | None = None",
        "pair: tuple[int, int] = (1, 2)",
        "words: set[str] = set()",
        "required: int",
        "choice: typing.Literal['a', 'b'] = 'a'",
        "limit: float = float('inf')",
        "nested: dict[str, list[int]] = {}",
    ],
)
def test_an_option_of_any_type_can_be_listed(bench, option):
    bench.add_plugin(f"import typing\nfrom pydantic import Field\nclass Mine(Toy):\n    name = 'mine'\n    {option}\n")
    arguments = ["--plugin", bench.folder / "toy.py", "--plugin", bench.folder / "extra.py"]
    said = bench.zsqbench("plugins", "list", "mine", *arguments)
    assert (said.code, option.split(":")[0].rstrip("_") in said.out) == (0, True), said.err


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("kind", ["generator", "quantizer", "task"])
def test_a_new_method_passes_the_checks_that_its_writer_is_told_of(bench, monkeypatch, kind):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench("plugins", "new", kind, "brand_new", "--into", "sub")
    head, check, _, _ = said.out.splitlines()
    assert (said.code, head) == (0, "wrote sub/brand_new.py and sub/test_brand_new.py; next:")
    checked = bench.zsqbench(*check.split()[1:])
    assert (checked.code, checked.out.startswith(f"{kind} brand_new")) == (0, True), checked


@pytest.mark.parametrize("kind", ["generator", "quantizer", "task"])
def test_a_new_method_runs_as_its_writer_is_told(bench, monkeypatch, kind):
    monkeypatch.chdir(bench.folder)
    *_, run = bench.zsqbench("plugins", "new", kind, "brand_new").out.splitlines()
    planned = bench.zsqbench("plan", *run.split()[2:], "--format", "json")
    assert (planned.code, "brand_new" in planned.out) == (0, True), planned.err


FATAL = "import os; os._exit(0)"


@pytest.mark.usefixtures("fatal_plugins")
@pytest.mark.parametrize("source", ["raise KeyboardInterrupt", "raise GeneratorExit", FATAL])
def test_a_command_that_does_not_need_a_broken_plugin_names_it_and_goes_on(bench, caplog, source):
    broken = bench.write("broken.py", source)
    said = bench.plan("--plugin", broken)
    (warning,) = caplog.records
    assert (bool(said["steps"]), warning.getMessage().startswith(f"plugin broken ({broken}) did not load: ")) == (
        True,
        True,
    )


@pytest.mark.usefixtures("fatal_plugins")
@parametrize_briefly("source", ["raise KeyboardInterrupt", "raise GeneratorExit", FATAL], 4)
@pytest.mark.parametrize("command", [["plugins", "list", "mine"], ["plugins", "check", "mine"], ["plan"]])
def test_a_command_that_needs_a_broken_plugin_ends_with_4_and_its_reason(bench, command, source):
    broken = bench.write("broken.py", source)
    bench.matrix("generator: mine")
    arguments = [*command, bench.file] if command == ["plan"] else command
    said = bench.zsqbench(*arguments, "--plugin", broken)
    assert (said.code, len(said.err.splitlines())) == (4, 1)
    assert f"these failed to load: plugin 'broken' ({broken}): " in said.err


@pytest.mark.parametrize(
    "command",
    [
        ["leaderboard", "toy.yaml"],
        ["show", "toy.yaml", "w4a4:0"],
        ["cache", "ls"],
        ["cache", "verify"],
        ["cache", "gc"],
        pytest.param(["mlflow", "sync", "toy.yaml"], marks=pytest.mark.slow("it imports mlflow, which takes seconds")),
        ["schema"],
        ["--version"],
        ["--help"],
    ],
)
def test_a_command_about_what_is_there_loads_no_plugin(ran, monkeypatch, command):
    monkeypatch.chdir(ran.folder)
    monkeypatch.setenv("ZSQBENCH_HOME", str(ran.home))

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr("zsqbench.plugins.load_plugins", refuse)
    monkeypatch.setattr("zsqbench.suite.reader.load_plugins", refuse)
    said = ran.zsqbench(*command)
    assert said.code == 0, said.err


FAULTS = {
    "rejects": ("ToyQuantizer", "def rejects(self, scheme):", "quantizer"),
    "starts_from": ("ToyQuantizer", "@property\n    def starts_from(self):", "quantizer"),
    "keeps_epochs": ("ToyQuantizer", "@property\n    def keeps_epochs(self):", "quantizer"),
    "find_data": ("ToyTask", "def find_data(self, data_root):", "task"),
    "find_model": ("ToyTask", "def find_model(self, model):", "task"),
}


@pytest.mark.parametrize("fault", ["raise KeyError('no')", "sys.exit(0)"])
@pytest.mark.parametrize("asked", FAULTS)
def test_a_method_that_fails_while_it_is_planned_is_one_line(bench, asked, fault):
    base, signature, axis = FAULTS[asked]
    bench.add_plugin(f"class F({base}):\n    name = 'f'\n    {signature}\n        {fault}\n")
    bench.matrix(f"{axis}: f")
    said = bench.run()
    error = "KeyError: 'no'" if "Key" in fault else "SystemExit: 0"
    last = said.err.splitlines()[-1]
    assert (said.code, "Traceback" in said.err) == (4, False), said.err
    assert last.startswith(f"error: {axis} 'f' failed in {asked} (extra.py, line ")
    assert last.endswith(error)
