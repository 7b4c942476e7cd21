"""A suite as data: its resolved names, and its cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zsqbench.export.options import ExportOptions
from zsqbench.hashing import canonical, digest_of, digest_of_texts, file_digest
from zsqbench.methods import Generator, Method, ModelSpec, Network, Quantizer, Settings, Task
from zsqbench.methods.asking import asking
from zsqbench.plugins import Catalog, Plugin
from zsqbench.reports.published import ValueKey
from zsqbench.scheme import Placement, Scheme

if TYPE_CHECKING:
    from zsqbench.reports.results import Result

AXES = ("task", "model", "generator", "quantizer", "scheme", "seed")

NO_GENERATOR = "none"


@dataclass(frozen=True)
class Variant:
    """A method with its options, under the name in the suite."""

    label: str
    method: Method
    plugin: Plugin
    start: "Variant | None" = None
    """The quantizer from whose result this quantizer starts."""
    over: "Variant | None" = None
    """The quantizer that does the work of this quantizer. A variant has a `start`, or an `over`, or neither."""
    given: Method | None = None
    """The method with the options of the suite. `method` has the effective options for a network."""

    def resolved(self, network: Network, scheme: Scheme | None) -> "Variant":
        """The variant with a value for each option that the suite leaves to the method."""
        start = self.start.resolved(network, scheme) if self.start else None
        over = self.over.resolved(network, scheme) if self.over else None
        return replace(self, method=self.method.resolved(network, scheme), start=start, over=over, given=self.method)

    @property
    def quantizer(self) -> Quantizer:
        """Its method, which must be a quantizer."""
        return cast("Quantizer", self.method)

    @cached_property
    def chain(self) -> "tuple[Variant, ...]":
        """The quantizer, the quantizer that it starts from or is over, and so on. The last one prepares the student."""
        before = self.start or self.over
        return (self, *(before.chain if before else ()))

    @cached_property
    def ranking(self) -> "Variant | None":
        """The quantizer in the chain that asks for a ranking of weights. None: no quantizer asks."""
        for link in self.chain:
            with asking(link.method, "ranking_images"):
                images = link.quantizer.ranking_images
            if images is not None:
                return link
        return None

    @cached_property
    def keeps_epochs(self) -> bool:
        """True if the quantizer that does the work keeps epochs."""
        with asking(self.at_work.method, "keeps_epochs"):
            return self.at_work.quantizer.keeps_epochs

    @property
    def at_work(self) -> "Variant":
        """The quantizer that does the work: `over`, or this quantizer."""
        return self.over or self

    def relation(self, link: "Variant") -> str:
        """How it is related to a later quantizer of the chain: `starts from rtn`."""
        return f"{'is over' if any(each.over is link for each in self.chain) else 'starts from'} {link.label}"

    @cached_property
    def input_files(self) -> Mapping[str, Path]:
        """The files that its method reads, by option."""
        return self.method.input_files()

    @cached_property
    def digest(self) -> str:
        """Hash of its identity."""
        return digest_of(self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The data that decides its results: name, version, options, content of files, source of a single-file plugin.

        A quantizer that it starts from or is over is included by its identity, not by its name in the suite.
        """
        files = self.input_files
        options = {
            k: v for k, v in self.method.options().items() if k not in files and k not in self.method.execution_options
        }
        if self.start is not None:
            options["start"] = self.start.identity
        if self.over is not None:
            options["over"] = self.over.identity
        return {
            "method": self.method.name,
            "version": self.method.version,
            "options": options,
            "files": {name: file_digest(path) for name, path in files.items()},
            "source": self.plugin.source,
        }

    def describe(self) -> dict[str, Any]:
        """Name, version and options for people, in a result row."""
        others = {"start": self.start, "over": self.over}
        return {
            "method": self.method.name,
            "version": self.method.version,
            "origin": self.plugin.origin,
            "options": self.method.options(),
            "changed": (self.given or self.method).changed_options(),
            "control": self.method.control,
        } | {name: variant.describe() for name, variant in others.items() if variant is not None}


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix, by the names of the suite."""

    task: str
    model: str
    generator: str | None
    quantizer: str
    scheme: str
    seed: int | None
    """None: neither generator nor quantizer uses the seed."""
    settings: Settings
    reason: str | None = None
    """Why it cannot run or is excluded. None: it can run."""
    excluded: bool = False
    export: ExportOptions | None = field(default=None, compare=False)
    """How its quantized network is exported, checked and timed. None: it is not exported."""
    analyze: bool = field(default=False, compare=False)
    """True if the error of its quantized network is measured for each tensor. It is in no key and no definition."""

    @cached_property
    def name(self) -> str:
        """`task:model:generator:quantizer:scheme:seed`, then the settings that differ from the default."""
        return name_of(self, self.settings)


def name_of(cell: "Cell | Result", settings: Settings) -> str:
    """The name of a cell, or of the cell of a row, with these settings."""
    seed = "-" if cell.seed is None else cell.seed
    generator = cell.generator or NO_GENERATOR
    return f"{cell.task}:{cell.model}:{generator}:{cell.quantizer}:{cell.scheme}:{seed}{_changed(settings)}"


@cache
def _changed(settings: Settings) -> str:
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    return "".join(f":{name}={value}" for name, value in changed.items())


@dataclass(frozen=True)
class Suite:
    """A checked suite: its resolved names, and its cells in the order of the file."""

    name: str
    description: str
    path: Path
    catalog: Catalog
    generators: Mapping[str, Variant]
    quantizers: Mapping[str, Variant]
    tasks: Mapping[str, Variant]
    models: Mapping[str, ModelSpec]
    schemes: Mapping[str, Scheme]
    cells: Sequence[Cell]
    selected: Sequence[Cell]
    """The cells that the expression selects. Only their files were looked for."""
    plugin_files: Sequence[Path] = ()
    notes: Sequence[str] = field(default_factory=list)
    """Notes on possible mistakes: duplicates, collapsed seeds, exclusions that match nothing."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """The shipped placements and those of the suite, used or not."""
    overrides: Sequence[str] = ()
    """Values that override those of the file (`--set`)."""
    published: Mapping[ValueKey, Mapping[str, Any]] = field(default_factory=dict)
    """Values of the published tables that it names, by the parts of a cell's name and the metric."""
    step_timeout: float | None = None
    """Time limit of one step in seconds. None: no limit."""

    def generator(self, cell: Cell) -> Generator | None:
        """The generator of a cell."""
        return cast("Generator", self.generators[cell.generator].method) if cell.generator else None

    def quantizer(self, cell: Cell) -> Quantizer:
        """The quantizer of a cell."""
        return self.quantizers[cell.quantizer].quantizer

    def task(self, label: str) -> Task:
        """The task of this name."""
        return cast("Task", self.tasks[label].method)

    def methods(self, cell: Cell) -> dict[str, Variant]:
        """Task, quantizer and generator of a cell, with the options that the suite sets."""
        methods = {"task": self.tasks[cell.task], "quantizer": self.quantizers[cell.quantizer]}
        return methods | ({"generator": self.generators[cell.generator]} if cell.generator else {})

    def published_of(self, cell: Cell) -> dict[str, Any]:
        """The published values for a cell: value, std, float, source, citation, note. Empty: there are none."""
        metric = self.task(cell.task).metric
        place = (cell.model, cell.generator or NO_GENERATOR, cell.quantizer, cell.scheme, metric)
        return dict(self.published.get(place, {}))

    def definition(self, cell: Cell) -> str:
        """Hash of everything that the suite says of a cell."""
        named = self._named(cell.task, cell.model, cell.quantizer, cell.scheme, cell.generator)
        asked = [] if cell.export is None else [canonical(cell.export.model_dump(mode="json"))]
        return digest_of_texts([named, canonical(cell.seed), self._settings_text(cell.settings), *asked])

    @cached_property
    def _named(self) -> Callable[[str, str, str, str, str | None], str]:
        """The parts of a cell's definition that names of the suite decide, as text. Cells of all seeds share it."""

        def text(task: str, model: str, quantizer: str, scheme: str, generator: str | None) -> str:
            labels = {"task": task, "model": model, "quantizer": quantizer, "scheme": scheme}
            digests = [self._part(axis, label) for axis, label in labels.items()]
            of_generator = self._part("generator", generator) if generator else None
            return ",".join(map(canonical, [*digests, of_generator]))

        return cache(text)

    @cached_property
    def _settings_text(self) -> Callable[[Settings], str]:
        return cache(lambda settings: canonical(settings.model_dump(mode="json")))

    def _part(self, axis: str, label: str) -> str:
        """The part of a cell's definition that one name of the suite decides. Thousands of cells share it."""
        if (axis, label) not in self._parts:
            self._parts[axis, label] = digest_of(self._describe(axis, label))
        return self._parts[axis, label]

    @cached_property
    def _parts(self) -> dict[tuple[str, str], str]:
        return {}

    def _describe(self, axis: str, label: str) -> Any:
        if axis == "task":
            # All options are included: they name the data, and a definition must be known before the data is read.
            return [self.tasks[label].identity, self.tasks[label].method.options()]
        if axis == "model":
            return _without_folders(self.models[label])
        if axis == "scheme":
            return self.schemes[label].model_dump(mode="json")
        return (self.generators if axis == "generator" else self.quantizers)[label].identity


def _without_folders(model: ModelSpec) -> dict[str, Any]:
    """A model as plain data. Files have names but no folders, because the keys hold their content."""
    data = model.model_dump(mode="json")
    return data | {key: Path(data[key]).name for key in ("file", "weights") if data[key]}
