"""The requirements of cells: data, networks and files, the origin of each, and which are missing."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import ModelSpec
from zsqbench.methods.asking import asking
from zsqbench.reports.published import DataSet
from zsqbench.reports.reproduction.comparability import origin
from zsqbench.suite import Cell, Suite
from zsqbench.zoo.models import DEFINITIONS, LIBRARIES

FEW_FILES = 6
"""Fewer files than this may be archives with many images each."""

EXTRAS = {"efficientnet_lite": "lite"}
PACKAGES = {"efficientnet_lite": "efficientnet_lite_pytorch"}
"""Extras of zsqbench, and packages, whose name differs from that of their library."""


@dataclass(frozen=True)
class Need:
    """A requirement of cells."""

    kind: Literal["data", "calibration", "network", "file"]
    name: str
    """Its name in the suite."""
    source: str
    """A description and the origin, in words."""
    missing: str | None = None
    """Why it is missing, in one line. None: it is here, or only loading it would tell."""
    remark: str | None = None
    """The known difference between this file or data and that of the paper."""


@dataclass(frozen=True)
class Requirements:
    """The requirements of some cells of a suite. The suite was loaded without looking for its files."""

    suite: Suite
    cells: Sequence[Cell]
    data_root: Path | None
    data: Mapping[str, DataSet]
    """The evaluation data of a paper, by task."""

    @cached_property
    def needs(self) -> list[Need]:
        """The requirements of cells that may run, each once."""
        return list(dict.fromkeys(need for cell in self.cells if cell.reason is None for need in self._of(cell)))

    @cached_property
    def runnable(self) -> list[Cell]:
        """The cells that may run and lack nothing."""
        return [cell for cell in self.cells if cell.reason is None and self.missing(cell) is None]

    def missing(self, cell: Cell) -> str | None:
        """The first missing requirement of a cell. None: nothing is missing."""
        return next((need.missing for need in self._of(cell) if need.missing is not None), None)

    def _of(self, cell: Cell) -> Iterator[Need]:
        data, calibration = self._data[cell.task]
        generator = self.suite.generator(cell)
        yield data
        if calibration is not None and generator is not None and generator.uses_real_data:
            yield calibration
        yield self._networks[cell.model]
        for axis, variant in self.suite.methods(cell).items():
            for option, path in variant.input_files.items():
                yield Need("file", f"{axis} {variant.label}", f"{option}: {path}", self._absent(path))

    @cached_property
    def _networks(self) -> dict[str, Need]:
        models = {cell.model: self.suite.models[cell.model] for cell in self.cells}
        return {name: Need("network", name, _whence(model), self._lack_of(model)) for name, model in models.items()}

    @cached_property
    def _data(self) -> dict[str, tuple[Need, Need | None]]:
        """For each task: its data, and missing calibration images."""
        return {task: self._find_data(task) for task in dict.fromkeys(cell.task for cell in self.cells)}

    def _find_data(self, label: str) -> tuple[Need, Need | None]:
        task, known = self.suite.task(label), self.data.get(label)
        source = "as the suite says"
        if known is not None:
            source = f"{known.title} ({known.images:,}) from {known.source}; below the data root as {known.at}"
        try:
            with asking(task, "find_data"):
                found = task.find_data(self.data_root)
        except ZSQBenchError as error:
            return Need("data", label, source, str(error)), None
        count = sum(path.suffix != ".json" for path in found.evaluation.values())  # annotations are not images
        few = known is not None and FEW_FILES <= count < known.images
        remark = f"{count:,} of {known.images:,} images are here" if known is not None and few else None
        lack = found.absent or (None if found.calibration else f"task {label} has no images to calibrate on")
        calibration = Need("calibration", label, "images for the generator real", lack) if lack else None
        return Need("data", label, source, remark=remark), calibration

    def _lack_of(self, model: ModelSpec) -> str | None:
        library = (model.base or "").partition("/")[0]
        package = PACKAGES.get(library, library)
        if library in LIBRARIES and importlib.util.find_spec(package) is None:
            return f"model {model.base!r} needs {library}, which is not installed"
        files = (model.file, model.weights_from)
        return next((lack for path in files if isinstance(path, Path) and (lack := self._absent(path))), None)

    def _absent(self, path: Path) -> str | None:
        """Why a file is missing. A file that was not found has a path beside the suite."""
        if path.is_file():
            return None
        folder = self.suite.path.parent
        if not path.is_relative_to(folder):
            return f"there is no file {path}"
        root = self.data_root or "the data root, which is not given (--data-root)"
        return f"there is no file {path.relative_to(folder)}, neither beside the suite nor below {root}"


def _whence(model: ModelSpec) -> str:
    """The origin of a network and its weights, and how to get them."""
    base = model.base or ""
    library = base.partition("/")[0]
    text = origin(model)
    if base in DEFINITIONS and DEFINITIONS[base].published:
        text += f": {DEFINITIONS[base].published}"
    elif library in LIBRARIES and model.weights_from is None:
        extra = EXTRAS.get(library, library)
        text += f": pip install 'zsqbench[{extra}]'; its weights are downloaded when it is first loaded"
    return text if model.float_accuracy is None else f"{text}; it reaches {model.float_accuracy:.2f} in float"
