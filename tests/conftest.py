"""What many tests need: a toy plugin that takes milliseconds, the command line in this process, the shared folder."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest

from zsqbench.cli import main
from zsqbench.execution import worker
from zsqbench.store import Artifact, Store

CHECKOUT = Path(__file__).resolve().parent.parent

BRIEFLY = ("plain BN", "a class token")
"""The network, and the transformer, on which methods are checked in each run; pytest -m slow has the others."""

TOY_PLUGIN = '''
"""A generator, a quantizer and a task that take a millisecond; each call is noted in calls.txt."""

import copy
import multiprocessing
from pathlib import Path
from typing import ClassVar

from pydantic import Field

import zsqbench
from zsqbench.errors import ZSQBenchError, unknown

HERE = Path(__file__).parent


def note(text):
    with (HERE / "calls.txt").open("a") as file:
        file.write(text + "\\n")


def version_of(kind):
    """A version that a test can raise without touching this source."""
    file = HERE / f"{kind}.version"
    return int(file.read_text()) if file.is_file() else 1


class Toy(zsqbench.Generator):
    """Noise."""

    name = "toy"
    version = version_of("generator")
    images: int = Field(4, gt=0, description="how many")
    scale: float = Field(1.0, description="standard deviation")

    def generate(self, teacher, ctx):
        note(f"generate {ctx.seed}")
        ctx.log("loss", 0.5, 0)
        return zsqbench.CalibrationSet(self.scale * ctx.randn(self.images, *teacher.input_size))


class ToyReal(zsqbench.Generator):
    """Real images."""

    name = "toyreal"
    uses_real_data = True
    images: int = 4

    def generate(self, teacher, ctx):
        note("generate real")
        return ctx.real_images


class ToyQuantizer(zsqbench.Quantizer):
    """Adds what it sees to the bias of the last layer."""

    name = "toyq"
    version = version_of("quantizer")
    shift: float = Field(0.0, description="added, too")

    def prepare(self, teacher, scheme):
        return copy.deepcopy(teacher.module)

    def quantize(self, student, teacher, data, ctx):
        note(f"quantize {ctx.seed}")
        student[-1].bias += self.shift + (data.images.mean() if data is not None else 0.0)


class Unseeded(ToyQuantizer):
    """The same, and it says that the seed makes no difference."""

    name = "unseeded"
    seeded = False


class DataFree(ToyQuantizer):
    """The same without calibration images."""

    name = "datafree"
    seeded = False
    needs_images = False


class Keeper(ToyQuantizer):
    """Keeps its only epoch."""

    name = "keeper"

    @property
    def keeps_epochs(self):
        return True

    def quantize(self, student, teacher, data, ctx):
        ctx.keep_epoch(1, student)


class ToyTask(zsqbench.Task):
    """Random images; eval.txt and train.txt hold the seeds that make them."""

    name = "toytask"
    version = version_of("task")
    metric = "top1"
    execution_options: ClassVar = frozenset({"batch_size"})
    batch_size: int = 20
    samples: int = Field(20, gt=0, description="how many images are evaluated")

    def find_data(self, data_root):
        folder = (data_root or HERE) / "data"
        if not folder.is_dir():
            raise ZSQBenchError(f"task {self.name}: there is no folder {folder}")
        files = {name: folder / name for name in ("eval.txt", "train.txt")}
        calibration = {"train.txt": files["train.txt"]} if files["train.txt"].is_file() else {}
        return zsqbench.DataFiles({"eval.txt": files["eval.txt"]}, calibration, folders=[folder])

    def find_model(self, model):
        if model.base not in ("a", "b", "without_bn"):
            raise ZSQBenchError(unknown("model", str(model.base), ["a", "b", "without_bn"]))
        return {"weights": Path(model.weights)} if model.weights not in (None, "none") else {}

    def load(self, model, ctx):
        import torch
        from torch import nn

        note(f"load {model.base}")
        seed = ord(model.base[0]) if model.weights in (None, "none") else int(Path(model.weights).read_text())
        torch.manual_seed(seed)
        norm = nn.Identity() if model.base == "without_bn" else nn.BatchNorm2d(4)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
        return zsqbench.Pretrained(module, (3, 8, 8), model.mean or (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), classes=10)

    def images(self, count, name, ctx):
        import torch

        seed = int(((ctx.data_root or HERE) / "data" / name).read_text())
        return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    def evaluate(self, module, pretrained, ctx):
        note("evaluate")
        right = (module(self.images(self.samples, "eval.txt", ctx)).argmax(1) % 2 == 0).tolist()
        return zsqbench.Evaluation({"top1": 100 * sum(right) / len(right)}, right)

    def calibration_images(self, count, seed, pretrained, ctx):
        return zsqbench.CalibrationSet(self.images(count, "train.txt", ctx))


@zsqbench.hookimpl
def register_generators():
    return [Toy, ToyReal]


@zsqbench.hookimpl
def register_quantizers():
    return [ToyQuantizer, Unseeded, DataFree, Keeper]


@zsqbench.hookimpl
def register_tasks():
    return [ToyTask]


if multiprocessing.parent_process() is not None and not (HERE / "draw").exists():  # matplotlib takes seconds
    from zsqbench.reports import plots

    def blank(*_):
        from types import SimpleNamespace

        return SimpleNamespace(savefig=lambda path, **_: path.write_bytes(b"blank"))

    plots.diagnostics_figure = blank
'''

TOY_SUITE = """
name: toysuite
plugins: [toy.py]
matrix:
  - {task: toytask, model: a, generator: toy, quantizer: toyq, scheme: hw/w4a4, seed: [0, 1]}
"""


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


class Bench:
    """A folder with the toy plugin and a suite, and the command line to run on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.results = folder / "results"
        self._capsys = capsys
        self.write("toy.py", TOY_PLUGIN)
        self.write("data/eval.txt", "7")
        self.write("data/train.txt", "8")
        self.suite(TOY_SUITE)

    @property
    def file(self) -> Path:
        """The suite file."""
        return self.folder / "toy.yaml"

    def write(self, name: str, text: str) -> Path:
        """Write a file into the folder, without the indentation that the text has in the test."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    def suite(self, text: str) -> Path:
        """Replace the suite file."""
        return self.write("toy.yaml", text)

    def matrix(self, *blocks: str, head: str = "") -> Path:
        """Replace the suite file by one of these blocks; an axis that a block does not name is a plain one."""
        axes = {"task": "toytask", "model": "a", "generator": "toy", "quantizer": "toyq", "scheme": "hw/w4a4"}
        lines = []
        for block in blocks:
            named = {part.partition(":")[0].strip() for part in block.split(",")}
            rest = [f"{axis}: {value}" for axis, value in axes.items() if axis not in named]
            lines.append(f"  - {{{', '.join(part for part in (*rest, block) if part)}}}")
        text = "\n".join(["name: toysuite", "plugins: [toy.py, extra.py]", textwrap.dedent(head), "matrix:", *lines])
        if not (self.folder / "extra.py").exists():
            text = text.replace(", extra.py", "")
        return self.suite(text)

    def add_plugin(self, source: str) -> Path:
        """Add a plugin file, extra.py, that may derive from the classes of the toy plugin."""
        head = f"""
import copy, os, sys, zsqbench
from pathlib import Path
HERE = Path(__file__).parent
toy = {str(self.folder / "toy.py")!r}
loaded = next(m for m in reversed(sys.modules.values()) if getattr(m, "__file__", None) == toy)
Toy, ToyQuantizer, ToyTask, Keeper, note = loaded.Toy, loaded.ToyQuantizer, loaded.ToyTask, loaded.Keeper, loaded.note
"""
        tail = """
mine = [v for v in list(vars().values()) if isinstance(v, type) and v.__module__ == __name__]
@zsqbench.hookimpl
def register_generators(): return [c for c in mine if issubclass(c, zsqbench.Generator)]
@zsqbench.hookimpl
def register_quantizers(): return [c for c in mine if issubclass(c, zsqbench.Quantizer)]
@zsqbench.hookimpl
def register_tasks(): return [c for c in mine if issubclass(c, zsqbench.Task)]
"""
        return self.write("extra.py", head + textwrap.dedent(source) + tail)

    def zsqbench(self, *arguments: object) -> Said:
        """Run a command in this process, as if the process were new."""
        worker._session.cache_clear()
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    def run(self, *arguments: object, workers: int = 0) -> Said:
        """`zsqbench run` on the suite."""
        return self.zsqbench(
            "run", self.file, "--workers", workers, "--no-plugin", "mlflow", *self.places(), *arguments
        )

    def run_anew(self, name: str, *arguments: object, workers: int = 0) -> Said:
        """`zsqbench run` on the suite with nothing there yet, into other folders."""
        self.home, self.results = self.folder / f"home-{name}", self.folder / f"results-{name}"
        return self.run(*arguments, workers=workers)

    def plan(self, *arguments: object) -> dict[str, Any]:
        """`zsqbench plan --format json` on the suite."""
        said = self.zsqbench("plan", self.file, "--format", "json", "--no-plugin", "mlflow", *self.places(), *arguments)
        assert said.code == 0, said.err
        plan: dict[str, Any] = json.loads(said.out)
        return plan

    def planned(self, kind: str, *arguments: object) -> dict[str, dict[str, Any]]:
        """The steps of a kind in `zsqbench plan --format json`, by their label."""
        return {step["label"]: step for step in self.plan(*arguments)["steps"] if step["kind"] == kind}

    def error(self, *arguments: object) -> str:
        """The one line that `zsqbench plan` says of a suite that it refuses, without `error: ` and the folder."""
        said = self.zsqbench("plan", self.file, "--no-plugin", "mlflow", *self.places(), *arguments)
        assert said.code == 2, said
        lines = said.err.splitlines()
        assert len(lines) == 1, lines
        return lines[0].removeprefix("error: ").replace(f"{self.folder}/", "")

    def places(self) -> list[object]:
        """Options that keep all that is written in the folder."""
        return ["--home", self.home, "--results", self.results]

    def rows(self) -> dict[str, dict[str, Any]]:
        """The result rows by cell."""
        lines = (self.results / "toysuite.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["cell"]: row for row in map(json.loads, lines)}

    def row(self) -> dict[str, Any]:
        """The only row."""
        (row,) = self.rows().values()
        return row

    def statuses(self) -> dict[str, str]:
        """How each cell ended."""
        return {cell: row["status"] for cell, row in self.rows().items()}

    def calls(self) -> list[str]:
        """What the toy plugin was asked for since the last look."""
        file = self.folder / "calls.txt"
        calls = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return calls

    def artifacts(self, kind: str) -> list[Path]:
        """Folders of the artifacts of a kind."""
        return sorted((self.home / "store" / kind).iterdir())

    def artifact(self, kind: str) -> Artifact:
        """The only artifact of a kind, verified."""
        (folder,) = self.artifacts(kind)
        return Store(self.home).read(kind, folder.name)


def pytest_configure() -> None:
    """Let signals end what tests run: a job in the background inherits SIGINT as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let no garbage collection look at modules again: many tests collect, and what is imported by now stays."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of test_numbers.py and of test_docs.py."""
    parser.addoption("--refresh-numbers", action="store_true", help="write tests/numbers.json anew")
    parser.addoption("--refresh-tables", action="store_true", help="measure the tables of docs/ anew")


class BlankFigure:
    """In place of plots, which take half a second for each calibration set. The toy plugin does the same in workers."""

    def savefig(self, path: Path, **_: Any) -> None:
        """Write something."""
        path.write_bytes(b"blank")


def own_distributions() -> list[Distribution]:
    """The installed distributions with plugins. Each command would look through all distributions again."""
    return _with_plugins(tuple(sys.path))


@cache
def _with_plugins(_: tuple[str, ...]) -> list[Distribution]:
    return [found for found in distributions() if found.entry_points.select(group="zsqbench")]


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A folder with the toy plugin and a suite of two cells, to run commands on."""
    monkeypatch.setattr("zsqbench.reports.plots.diagnostics_figure", lambda *_: BlankFigure())
    # the toy plugin ends no process, and each try of it would copy this one, which holds torch
    monkeypatch.setattr("zsqbench.probe.can_probe", lambda: False)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no test loses power, and each waits for the disk
    monkeypatch.setattr("zsqbench.plugins.distributions", own_distributions)
    return Bench(tmp_path, capsys)


@pytest.fixture
def fatal_plugins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plugins be tried before they are imported, as commands do: those of this test end the process."""
    monkeypatch.setattr("zsqbench.probe.can_probe", lambda: True)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check methods on one network, at one scheme, on few images and from few checkpoints."""
    from zsqbench.testing import checkpoints, conformance, generators, quantizers
    from zsqbench.testing.networks import tiny_teachers, tiny_transformers

    networks = {name: network for name, network in tiny_teachers().items() if name in BRIEFLY}
    transformers = {name: network for name, network in tiny_transformers().items() if name in BRIEFLY}
    monkeypatch.setattr(generators, "tiny_transformers", lambda: transformers)
    for examination in (generators, quantizers):
        monkeypatch.setattr(examination, "tiny_teachers", lambda: networks)
        monkeypatch.setattr(examination, "MEASURED_IMAGES", 8)  # pairs of them still take more than may be kept
    monkeypatch.setattr(checkpoints, "RESUMED", 2)
    monkeypatch.setattr(conformance, "SCHEMES", conformance.SCHEMES[:1])
    monkeypatch.setattr(quantizers, "IMAGES", 16)  # two batches of what is read, as 32 are four


@pytest.fixture
def python(tmp_path: Path):
    """Run Python code in a process of its own, somewhere else, with this checkout on its path."""

    def run(code: str, *, cwd: Path = tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)} | variables
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let networks of random weights be the same whatever ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)  # torch.manual_seed also writes down the stack, for GPUs


@pytest.fixture
def shared() -> Path:
    """The folder of images and networks that are too big for the repository, beside the checkout."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, Any]]:
    """Vectors computed by the original implementations, by the name of their file in tests/golden."""
    import numpy as np

    return lambda name: np.load(CHECKOUT / "tests" / "golden" / f"{name}.npz")


@pytest.fixture
def resnet20(golden: Callable[[str], Mapping[str, Any]]) -> Any:
    """The network that golden vectors were made with: a CIFAR-10 ResNet-20, in eval mode and frozen."""
    import torch

    from zsqbench.zoo.resnet import CifarResNet

    weights = golden("resnet20_weights")
    network = CifarResNet(20).eval().requires_grad_(False)
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights}, strict=False)
    return network
