import json
import shutil

import pytest


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
    assert title == "    Where these are not given, by preset and for a network of each data set:"
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
        "    Where these are not given, by preset and for a network of each data set, at scheme hw/w4a4:",
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
