"""A suite as data: what its names mean, and its cells."""

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
    """A method with its options, as a suite names it."""

    label: str
    method: Method
    plugin: Plugin
    start: "Variant | None" = None
    """The quantizer from whose result this one goes on."""
    over: "Variant | None" = None
    """The quantizer that this one leaves its work to. A variant has a start, or one that it is over, or neither."""
    given: Method | None = None
    """The method as the suite says it, where `method` has what holds for a network."""

    def resolved(self, network: Network, scheme: Scheme | None) -> "Variant":
        """The same with a value for each option that the suite leaves to the method."""
        start = self.start.resolved(network, scheme) if self.start else None
        over = self.over.resolved(network, scheme) if self.over else None
        return replace(self, method=self.method.resolved(network, scheme), start=start, over=over, given=self.method)

    @property
    def quantizer(self) -> Quantizer:
        """Its method, where that is a quantizer."""
        return cast("Quantizer", self.method)

    @cached_property
    def chain(self) -> "tuple[Variant, ...]":
        """The quantizer itself, the one that it starts from or is over, and so on; the last prepares the student."""
        before = self.start or self.over
        return (self, *(before.chain if before else ()))

    @cached_property
    def ranking(self) -> "Variant | None":
        """The quantizer that asks for a ranking of weights: this one, or one that it starts from, or none."""
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
        """The quantizer that does the work: the one that this is over, or this one."""
        return self.over or self

    def relation(self, link: "Variant") -> str:
        """How a later one of the chain is related to it: `starts from rtn`."""
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
        """What decides its results: name, version and options, files by content, a single-file plugin by its source.

        A quantizer that it starts from, or is over, is there as what it is, not as what the suite calls it.
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
        """The same for people, in a result row."""
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
    """One entry of the matrix, by the names that the suite uses."""

    task: str
    model: str
    generator: str | None
    quantizer: str
    scheme: str
    seed: int | None
    """None where neither generator nor quantizer uses the seed."""
    settings: Settings
    reason: str | None = None
    """Why it cannot or shall not run."""
    excluded: bool = False
    export: ExportOptions | None = field(default=None, compare=False)
    """How its quantized network is exported, checked and timed, if it is."""
    analyze: bool = field(default=False, compare=False)
    """True if the error of its quantized network is measured tensor by tensor; in no key and no definition."""

    @cached_property
    def name(self) -> str:
        """`task:model:generator:quantizer:scheme:seed`, then the settings that are not the default."""
        return name_of(self, self.settings)


def name_of(cell: "Cell | Result", settings: Settings) -> str:
    """The name of a cell, or of that of a row which says these settings."""
    seed = "-" if cell.seed is None else cell.seed
    generator = cell.generator or NO_GENERATOR
    return f"{cell.task}:{cell.model}:{generator}:{cell.quantizer}:{cell.scheme}:{seed}{_changed(settings)}"


@cache
def _changed(settings: Settings) -> str:
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    return "".join(f":{name}={value}" for name, value in changed.items())


@dataclass(frozen=True)
class Suite:
    """A checked suite: what its names mean, and its cells in the order of the file."""

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
    """Those that the expression selects, of which alone the files were looked for."""
    plugin_files: Sequence[Path] = ()
    notes: Sequence[str] = field(default_factory=list)
    """What a reader of the file may not have meant: duplicates, collapsed seeds, exclusions that match nothing."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """The shipped placements and the suite's own, whether its matrix uses them or not."""
    overrides: Sequence[str] = ()
    """Values of the file that were given otherwise (`--set`)."""
    published: Mapping[ValueKey, Mapping[str, Any]] = field(default_factory=dict)
    """What the tables that it names say, by the names of a cell's parts and the metric."""
    step_timeout: float | None = None
    """Seconds that one step may take; without a limit if None."""

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
        """What a paper says of a cell: value, std, float, source, citation, note; or nothing."""
        metric = self.task(cell.task).metric
        place = (cell.model, cell.generator or NO_GENERATOR, cell.quantizer, cell.scheme, metric)
        return dict(self.published.get(place, {}))

    def definition(self, cell: Cell) -> str:
        """Hash of all that the suite says of a cell."""
        named = self._named(cell.task, cell.model, cell.quantizer, cell.scheme, cell.generator)
        asked = [] if cell.export is None else [canonical(cell.export.model_dump(mode="json"))]
        return digest_of_texts([named, canonical(cell.seed), self._settings_text(cell.settings), *asked])

    @cached_property
    def _named(self) -> Callable[[str, str, str, str, str | None], str]:
        """The parts of the definition of cells that names of the suite decide, as text; cells of all seeds share it."""

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
        """The part of the definition of cells that a name of the suite decides; thousands share it."""
        if (axis, label) not in self._parts:
            self._parts[axis, label] = digest_of(self._describe(axis, label))
        return self._parts[axis, label]

    @cached_property
    def _parts(self) -> dict[tuple[str, str], str]:
        return {}

    def _describe(self, axis: str, label: str) -> Any:
        if axis == "task":
            # All options: they say which data is meant, and a definition is known before the data is read.
            return [self.tasks[label].identity, self.tasks[label].method.options()]
        if axis == "model":
            return _without_folders(self.models[label])
        if axis == "scheme":
            return self.schemes[label].model_dump(mode="json")
        return (self.generators if axis == "generator" else self.quantizers)[label].identity


def _without_folders(model: ModelSpec) -> dict[str, Any]:
    """A model as plain data in which files have names but no places: their content is in the keys."""
    data = model.model_dump(mode="json")
    return data | {key: Path(data[key]).name for key in ("file", "weights") if data[key]}
