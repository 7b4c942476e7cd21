import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.declaration import check_declaration
from zsqbench.plugins import load_plugins

HEAD = """
import math, time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal
from pydantic import ConfigDict, Field, model_validator
import zsqbench
from zsqbench import Auto, auto
from zsqbench.methods import ByDataSet
"""


pytestmark = pytest.mark.filterwarnings("ignore:Field name .* shadows an attribute:UserWarning")


def complaint(body, base="Generator", kind="generator"):
    """The complaint about a class with this body, or none."""
    space = {"__name__": __name__}
    exec(  # noqa: S102 - a class from a table
        f"{HEAD}\nclass Mine(zsqbench.{base}):\n    name = 'mine'\n" + indented(body), space
    )
    space["Mine"].__abstractmethods__ = frozenset()
    try:
        check_declaration(space["Mine"], kind)
    except ZSQBenchError as error:
        return str(error)
    return None


def indented(body):
    return "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(("kind", "name"), load_plugins().provided)
def test_shipped_methods_are_declared_well(kind, name):
    check_declaration(load_plugins().find(kind, name).method, kind)


GOOD = [
    "pair: tuple[int, int] = (1, 2)",
    "words: set[str] = {'a'}",
    "path: Path = Path('x')",
    "file: zsqbench.InputFile = Path('not-there')",
    "choice: Literal['a', 'b'] = 'a'",
    "limit: float = math.inf",
    "rate: float = 1",
    "lambda_: float = Field(1.0, alias='lambda')",
    "required: int",
    "made: list[int] = Field(default_factory=list)",
    "of_another: int = Field(default_factory=lambda data: data['images'])",
    "needs_bn = True",
    "one: int | None = None\n@model_validator(mode='after')\ndef _(self):\n    raise ValueError('give one')",
    "lr: Auto[float] = auto(gt=0, description='x')\npresets = {'': {'lr': 0.1}}",
    "lr: Auto[float] = auto(gt=0, description='x')\npresets = MappingProxyType({'': {'lr': 0.1}})",
    "def automatic(self, network, scheme):\n    raise zsqbench.ZSQBenchError('no values for this network')",
]


@pytest.mark.parametrize("body", GOOD)
def test_a_class_that_is_declared_well_is_taken(body):
    assert complaint(body) is None


BAD = {
    "images: int = Field(0, gt=0)": "the default of option 'images' of Mine is 0: expected greater than 0",
    "size: int = 'x'": "the default of option 'size' of Mine is 'x': expected a valid integer",
    "required: int\nsize: int = Field(0, gt=3)": "the default of option 'size' of Mine is 0: expected greater than 3",
    "path: Path = 'x'": "the default of option 'path' of Mine is 'x': expected an instance of Path",
    "pair: tuple[int, int] = [1, 2]": "the default of option 'pair' of Mine is [1, 2]: expected a valid tuple",
    "loss: Any = print": "the default of option 'loss' of Mine is <built-in function print>, which is not plain data: ",
    "loss: Any = {math}": "the default of option 'loss' of Mine is {<module 'math",
    "rate: float = math.nan": "the default of option 'rate' of Mine is nan, which is not plain data: ValueError: NaN",
    "at: float = Field(default_factory=time.monotonic)": "the default of option 'at' of Mine is different each time",
    "at: float = Field(default_factory=lambda: 1 / 0)": (
        "the default of option 'at' of Mine cannot be made: ZeroDivisionError: division by zero"
    ),
    "loss: Callable[[int], int]": "no suite can give option 'loss' of Mine, whose type is ",
    "@model_validator(mode='after')\ndef _(self):\n    raise TypeError('no')": (
        "the check of the options of Mine raised TypeError: no"
    ),
    "method: str = 'x'": "Mine has an option 'method', the key by which a suite names the method; rename it",
    "resolved: bool = True": "option 'resolved' of Mine hides what its base has by this name; rename it",
    "x: int = Field(1, validation_alias='y')": "option 'x' of Mine is read and written by different names",
    "name = 'a:b'": "Mine is named 'a:b'; expected letters, digits and any of _ . + -",
    "name = 'a b'": "Mine is named 'a b'; expected letters, digits and any of _ . + -",
    "name = 'none'": "Mine is named 'none', which means no generator in a suite; rename it",
    "name: str = 'mine'": "Mine has no name; give it a class attribute name = '...'",
    "version = '2'": "Mine.version is '2': expected a valid integer",
    "version = True": "Mine.version is True: expected a valid integer",
    "version: int = 2": "Mine.version has an annotation, which makes it an option; write version = ... without it",
    "seeded = 'no'": "Mine.seeded is 'no': expected a valid boolean",
    "control = 'maybe'": "Mine.control is 'maybe': expected 'negative', 'positive' or 'float'",
    "kind = 'quantizer'": "Mine.kind is 'quantizer', and it is a generator; leave kind to the base",
    "execution_options = 'images'": "Mine.execution_options is 'images': expected a valid frozenset",
    "execution_options = frozenset({'imags'})": (
        "Mine.execution_options: unknown option 'imags'; did you mean 'images'? known: images"
    ),
    "presets = ['paper']": "Mine.presets is ['paper']: expected a valid dictionary",
    "presets = {'': {'imags': 3}}": "Mine fills in an unknown option 'imags'; did you mean 'images'? known: images",
    "presets = {'': {'images': 'many'}}": "what is filled in for option 'images' of Mine is 'many': expected a valid",
    "preset: Literal['a'] = 'a'\npresets = {'b': {}}": "a name in presets, which option 'preset' of Mine is 'b': ",
    "def automatic(self, network, scheme):\n    return [1]": "Mine.automatic returned [1]; expected values by option",
    "def automatic(self, network, scheme):\n    return 1 / 0": "Mine.automatic raised ZeroDivisionError: division by",
    "model_config = ConfigDict(extra='ignore')": "Mine.model_config must keep frozen=True and extra='forbid'",
}


def test_a_quantizer_says_of_images_one_of_three_things():
    assert complaint("needs_images = 'optional'", "Quantizer", "quantizer") is None
    said = complaint("needs_images = 'no'", "Quantizer", "quantizer")
    assert said == "Mine.needs_images is 'no': expected True, False or 'optional'"


@pytest.mark.parametrize("body", BAD)
def test_a_class_that_would_fail_later_is_refused_in_one_line(body):
    said = complaint(body) or ""
    assert (said.startswith(BAD[body]), said.count("\n")) == (True, 0), said


def test_a_task_without_a_metric_is_refused():
    assert complaint("", "Task", "task") == "Mine has no metric; give it a class attribute metric = ..."


def test_a_grid_that_there_is_not_is_refused():
    for name in ("weight_grids", "activation_grids"):
        said = complaint(f"{name} = ('afine',)", "Quantizer", "quantizer")
        assert said.startswith(f"Mine.{name} is ('afine',): expected ")
