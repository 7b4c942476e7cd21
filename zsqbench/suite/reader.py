"""Make a suite from a suite file: resolve each name once among the installed methods, then expand the matrix."""

import fnmatch
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from zsqbench.errors import MethodFaultError, ZSQBenchError, did_you_mean, unknown
from zsqbench.export.options import ExportOptions
from zsqbench.methods import Generator, Kind, Method, ModelSpec, Quantizer, Settings, Task
from zsqbench.methods.asking import asking
from zsqbench.plugins import Catalog, load_plugins
from zsqbench.reports.published import ValueKey, read_source
from zsqbench.scheme import FLOAT, PLACEMENTS, Placement, Scheme, parse_scheme
from zsqbench.suite.files import parse_suite, settings_of
from zsqbench.suite.schema import SuiteFile
from zsqbench.suite.selection import select
from zsqbench.suite.suite import AXES, NO_GENERATOR, Cell, Suite, Variant
from zsqbench.suite.validation import existing_part, parse
from zsqbench.suite.yamlfile import Location, YamlFile


def load_suite(
    path: Path,
    plugin_files: Sequence[Path] = (),
    without: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    expression: str | None = None,
    *,
    find_files: bool = True,
) -> Suite:
    """Read, check and expand a suite file.

    `overrides` are `a.b=value` texts that replace values of the file. `expression` selects cells (`-k`). Files that
    selected cells need are looked for beside the suite, then below the data root. With `find_files` false, a missing
    file is not an error yet. Raises ZSQBenchError (one line, with file and line number) for any invalid value.
    """
    source, file = parse_suite(path, overrides)
    own = [path.parent / plugin for plugin in file.plugins]
    for index, plugin in enumerate(own):
        if not plugin.is_file():
            place = source.where(("plugins", index))
            raise ZSQBenchError(f"{place}: cannot read plugin file {plugin}: No such file or directory")
    catalog = load_plugins([*plugin_files, *own], without)
    catalog.check()
    folders = [path.parent] + ([data_root] if data_root else [])
    suite = _SuiteBuilder(source, file, catalog, [*plugin_files, *own], folders).suite(expression, find_files)
    for broken in catalog.broken:  # none of the suite's methods needs these
        logging.getLogger("zsqbench").warning(
            "plugin %s (%s) did not load: %s", broken.name, broken.origin, broken.error
        )
    return replace(suite, overrides=tuple(overrides))


class _SuiteBuilder:
    """Makes a suite from a parsed file: resolves each name once, then expands the matrix."""

    def __init__(
        self,
        source: YamlFile,
        file: SuiteFile,
        catalog: Catalog,
        plugin_files: Sequence[Path],
        folders: Sequence[Path],
    ) -> None:
        self.folders = folders
        self.source = source
        self.file = file
        self.catalog = catalog
        self.plugin_files = plugin_files
        self.notes: list[str] = []
        self._declared = cache(self._declare)
        """Asked once for all models, tasks and seeds."""
        self.placements = dict(PLACEMENTS) | {
            name: self._placement(name, given) for name, given in file.schemes.items()
        }
        self.models = {name: self._model(name, given) for name, given in file.models.items()}
        self.schemes: dict[str, Scheme] = {}
        self._in_matrix: dict[str, Location] = {}
        """The first place of each model in the matrix."""
        self.variants: dict[Kind, dict[str, Variant]] = {"task": {}, "generator": {}, "quantizer": {}}
        sections: dict[Kind, dict[str, dict[str, Any]]]
        sections = {"task": file.tasks, "generator": file.generators, "quantizer": file.quantizers}
        for kind, section in sections.items():
            for label, given in section.items():
                self.variants[kind][label] = self._variant(kind, label, given, (f"{kind}s", label))
        for label in file.quantizers:
            self._link(label, ("quantizers", label))

    def suite(self, expression: str | None, find_files: bool) -> Suite:
        cells = self._exclude(self._distinct(self._expand()))
        self._note_floats(cells)
        selected = select(cells, expression)
        if find_files:
            self._find_files(selected, whole=expression is None)
        suite = Suite(
            name=self.file.name,
            description=self.file.description,
            path=self.source.path,
            catalog=self.catalog,
            generators=self.variants["generator"],
            quantizers=self.variants["quantizer"],
            tasks=self.variants["task"],
            models=self.models,
            schemes=self.schemes,
            cells=cells,
            selected=selected,
            plugin_files=[file.resolve() for file in self.plugin_files],
            notes=self.notes,
            placements=self.placements,
            published=self._published(),
            step_timeout=self.file.step_timeout,
        )
        if suite.published and not any(map(suite.published_of, cells)):
            place = self.source.where(("published",))
            self.notes.append(
                f"{place}: these tables have no value for any cell; name the parts of a cell as the tables do"
            )
        return suite

    def _published(self) -> dict[ValueKey, dict[str, Any]]:
        found: dict[ValueKey, dict[str, Any]] = {}
        for index, reference in enumerate(self.file.published):
            places = {key: self._place("published", index, key) for key in ("source", "table")}
            try:
                source = read_source(reference.source)
            except ZSQBenchError as error:
                raise ZSQBenchError(f"{places['source']}: {error}") from error
            tables = [str(table) for table in reference.table]
            for table in tables:
                if table not in source.tables:
                    text = unknown(f"table of {reference.source}", table, source.tables)
                    raise ZSQBenchError(f"{places['table']}: {text}")
            found = source.find(tables) | found
        return found

    def _place(self, *location: str | int) -> str:
        return self.source.where(existing_part(self.source.data, location))

    def _expand(self) -> Iterator[tuple[int, Cell]]:
        for index, block in enumerate(self.file.matrix):
            where: Location = ("matrix", index)
            settings = settings_of(self.source, self.file, index)
            export = block.export or self.file.export
            analyze = self.file.analyze if block.analyze is None else block.analyze
            for axis in AXES[:-1]:
                for label in getattr(block, axis):
                    self._resolve(axis, label, (*where, axis))
            for model in block.model:
                self._in_matrix.setdefault(model, (*where, "model"))
            for values in itertools.product(*(getattr(block, axis) for axis in AXES)):
                named = dict(zip(AXES, values, strict=True))
                yield index, self._cell(**named, settings=settings, export=export, analyze=analyze)

    def _cell(
        self,
        *,
        task: str,
        model: str,
        generator: str,
        quantizer: str,
        scheme: str,
        seed: int,
        settings: Settings,
        export: ExportOptions | None,
        analyze: bool,
    ) -> Cell:
        seeded, reason = self._declared(generator, quantizer, scheme)
        return Cell(
            task=task,
            model=model,
            generator=None if generator == NO_GENERATOR else generator,
            quantizer=quantizer,
            scheme=scheme,
            seed=seed if seeded else None,
            settings=settings,
            reason=reason,
            export=export,
            analyze=analyze,
        )

    def _declare(self, generator: str, quantizer: str, scheme: str) -> tuple[bool, str | None]:
        """True if a cell's methods use the seed, and why they cannot run together (None: they can)."""
        maker = self.variants["generator"][generator].method if generator != NO_GENERATOR else None
        variant = self.variants["quantizer"][quantizer]
        seeded = any(link.method.seeded for link in variant.chain) or (maker is not None and maker.seeded)
        return seeded, _impossible(cast("Generator | None", maker), variant, self.schemes[scheme])

    def _distinct(self, cells: Iterator[tuple[int, Cell]]) -> list[Cell]:
        """The union of the blocks. Notes name repeated cells, and seeds that make no difference.

        A cell is exported or analyzed if any block asks for it.
        """
        first: dict[Cell, int] = {}
        repeated: Counter[tuple[int, int]] = Counter()
        collapsed: Counter[tuple[str, str]] = Counter()
        exported: dict[Cell, ExportOptions] = {}
        analyzed: set[Cell] = set()
        for index, cell in cells:
            if cell.analyze:
                analyzed.add(cell)
            if cell.export is not None:
                exported.setdefault(cell, cell.export)
            known = len(first)
            before = first.setdefault(cell, index)  # one lookup, because each lookup hashes the cell again
            if len(first) > known:
                continue
            if cell.seed is None and before == index and len(set(self.file.matrix[index].seed)) > 1:
                collapsed[cell.generator or NO_GENERATOR, cell.quantizer] += 1
            else:
                repeated[index, before] += 1
        for (index, before), count in repeated.items():
            other = "in the same block" if index == before else f"in block {before + 1}"
            place = self.source.where(("matrix", index))
            self.notes.append(f"{place}: {_count(count, 'cell')} of block {index + 1} already appeared {other}")
        for (generator, quantizer), count in collapsed.items():
            pair = f"{_count(count, 'cell')} of {generator} with {quantizer}"
            self.notes.append(f"{pair} left out: neither uses the seed, so one cell stands for all seeds")
        if not exported and not analyzed:
            return list(first)
        return [
            replace(cell, export=exported.get(cell), analyze=cell in analyzed)
            if cell in exported or cell in analyzed
            else cell
            for cell in first
        ]

    def _exclude(self, cells: list[Cell]) -> list[Cell]:
        matched = [0] * len(self.file.exclude)
        kept = []
        for cell in cells:
            reason, excluded = cell.reason, False
            for index, rule in enumerate(self.file.exclude):
                if all(_matches(getattr(cell, axis), getattr(rule, axis)) for axis in AXES):
                    matched[index] += 1
                    reason, excluded = rule.because, True
            kept.append(_replace(cell, reason, excluded))
        for index, count in enumerate(matched):
            if not count:
                self.notes.append(f"{self.source.where(('exclude', index))}: this exclusion matches no cell")
        return kept

    def _note_floats(self, cells: Sequence[Cell]) -> None:
        """Note for each scheme of an exported cell which layers it, and so a runtime, leaves in float."""
        for name in dict.fromkeys(cell.scheme for cell in cells if cell.export is not None):
            scheme = self.schemes[name]
            left = [] if scheme.is_float else scheme.left_in_float()
            if left:
                self.notes.append(
                    f"exported files at {name} run layers in float that make or read these: {', '.join(left)}; "
                    "qdq leaves none"
                )

    def _find_files(self, cells: Sequence[Cell], *, whole: bool) -> None:
        """Find the files that these cells need. If they are the whole suite, find all files that it names."""
        for kind, section in (("generator", self.file.generators), ("quantizer", self.file.quantizers)):
            labels = {getattr(cell, kind) for cell in cells}
            for label in (label for label in section if whole or label in labels):
                self._options(cast("Kind", kind), label, section[label], (f"{kind}s", label), files_exist=True)
        models = {cell.model for cell in cells}
        for model in (model for model in self.file.models if whole or model in models):
            self._model(model, self.file.models[model], files_exist=True)
        for task, model in dict.fromkeys((cell.task, cell.model) for cell in cells):
            self._find_model(task, model)

    def _find_model(self, task: str, model: str) -> None:
        """Let the task reject an unknown model now."""
        try:
            method = cast("Task", self.variants["task"][task].method)
            with asking(method, "find_model"):
                method.find_model(self.models[model])
        except MethodFaultError:
            raise
        except ZSQBenchError as error:
            place = self.source.where(("models", model) if model in self.file.models else self._in_matrix[model])
            raise ZSQBenchError(f"{place}: {error}") from error

    def _resolve(self, axis: str, label: str, where: Location) -> None:
        """Resolve a name in the matrix, once."""
        place = self.source.where(where)
        if ":" in label:
            raise ZSQBenchError(f"{place}: {axis} {label!r} has a ':', which separates the parts of a cell's name")
        if axis == "scheme":
            if label not in self.schemes:
                try:
                    self.schemes[label] = parse_scheme(label, self.placements)
                except ZSQBenchError as error:
                    raise ZSQBenchError(f"{place}: {error}") from error
        elif axis == "model":
            if label not in self.models:
                self.models[label] = ModelSpec(name=label, base=label)
        elif label not in self.variants[cast("Kind", axis)] and not (axis == "generator" and label == NO_GENERATOR):
            self.variants[cast("Kind", axis)][label] = self._variant(cast("Kind", axis), label, {}, where)
            if axis == "quantizer":
                self._link(label, where)

    def _link(self, label: str, where: Location, before: tuple[str, ...] = ()) -> Variant:
        """Resolve the quantizer from which this one starts, or which this one is over, and its own links.

        `before` are the quantizers whose links lead here.
        """
        self._link_over(label, where)
        quantizers, place = self.variants["quantizer"], self.source.where((*where, "start"))
        variant = quantizers[label]
        with asking(variant.method, "starts_from"):
            start = variant.quantizer.starts_from
        if start is None or variant.start is not None:
            return variant
        way = (*before, label)
        if start in way:
            circle = ", ".join(f"{one} starts from {other}" for one, other in itertools.pairwise((*way, start)))
            raise ZSQBenchError(f"{place}: a quantizer cannot start from its own result: {circle}")
        if start not in quantizers:
            quantizers[start] = self._variant("quantizer", start, {}, (*where, "start"))
        quantizers[label] = replace(variant, start=self._link(start, ("quantizers", start), way))
        return quantizers[label]

    def _link_over(self, label: str, where: Location) -> None:
        """Resolve the quantizer that does the work of this one."""
        quantizers, place = self.variants["quantizer"], self.source.where((*where, "over"))
        variant = quantizers[label]
        with asking(variant.method, "works_over"):
            over = variant.quantizer.works_over
        if over is None or variant.over is not None:
            return
        if over not in quantizers:
            quantizers[over] = self._variant("quantizer", over, {}, (*where, "over"))
        found = quantizers[over]
        with asking(found.method, "works_over and starts_from"):
            again, start = found.quantizer.works_over, found.quantizer.starts_from
        if again is not None:
            raise ZSQBenchError(f"{place}: {label} cannot be over {over}, which is itself over another quantizer")
        if start is not None:
            raise ZSQBenchError(
                f"{place}: {label} cannot be over {over}, which starts from {start}; let {over} start from {label}, "
                f"and {label} be over {start}"
            )
        quantizers[label] = replace(variant, over=found)

    def _variant(self, kind: Kind, label: str, given: Mapping[str, Any], where: Location) -> Variant:
        name = given.get("method", label)
        if not isinstance(name, str):
            raise ZSQBenchError(f"{self.source.where((*where, 'method'))}: expected the name of a {kind}, got {name!r}")
        named = {*self.variants[kind]} - {label}
        place = self.source.where((*where, "method") if "method" in given else where)
        if name == label and (kind, name) not in self.catalog.provided and (close := did_you_mean(name, named)):
            raise ZSQBenchError(f"{place}: unknown {kind} {name!r}{close}")
        provided = self.catalog.find(kind, name, place)
        return Variant(label, self._options(kind, label, given, where), provided.plugin)

    def _options(
        self, kind: Kind, label: str, given: Mapping[str, Any], where: Location, *, files_exist: bool = False
    ) -> Method:
        """A method with the options that the suite sets. Files that the options name need not exist yet."""
        name = given.get("method", label)
        method = self.catalog.find(kind, name).method
        options = {key: value for key, value in given.items() if key != "method"}
        what = f"option of {name}"
        with asking(method, "the check of its options"):
            return parse(method, options, self.source, where, self.folders, what, files_exist=files_exist)

    def _model(self, name: str, given: Mapping[str, Any], *, files_exist: bool = False) -> ModelSpec:
        if "name" in given:
            raise ZSQBenchError(f"{self.source.where(('models', name, 'name'))}: the name of a model is its key")
        data = {"name": name, **given}
        return parse(ModelSpec, data, self.source, ("models", name), self.folders, files_exist=files_exist)

    def _placement(self, name: str, given: Mapping[str, Any]) -> Placement:
        where = ("schemes", name)
        if name in PLACEMENTS or name == FLOAT.name:
            raise ZSQBenchError(f"{self.source.where(where)}: scheme {name!r} is shipped; give yours a name of its own")
        base = str(given.get("base", ""))
        if base not in PLACEMENTS:
            text = unknown("scheme", base, PLACEMENTS) if base else "expected 'base', the scheme to change"
            raise ZSQBenchError(f"{self.source.where((*where, 'base'))}: {text}")
        changes = {key: value for key, value in given.items() if key != "base"}
        return parse(Placement, PLACEMENTS[base].model_dump() | changes, self.source, where)


def _impossible(generator: Generator | None, quantizer: Variant, scheme: Scheme) -> str | None:
    """Why generator, scheme and the chain of quantizers cannot go together, as the methods declare. None: they can."""
    if reason := _misfit(generator, quantizer.quantizer, scheme):
        return reason
    for link in quantizer.chain[1:]:
        images = generator if link.quantizer.needs_images else None
        if reason := _misfit(images, link.quantizer, scheme):
            return f"{quantizer.label} {quantizer.relation(link)}, and {reason}"
    return None


def _misfit(generator: Generator | None, quantizer: Quantizer, scheme: Scheme) -> str | None:
    """Why a quantizer cannot go with a generator and a scheme. None: it can."""
    with asking(quantizer, "rejects"):
        reason = quantizer.rejects(scheme)
    if reason:
        return f"{quantizer.name} rejects {scheme.name}: {reason}"
    if generator is None and quantizer.needs_images is True:
        return f"{quantizer.name} needs calibration images, but the generator is none"
    if generator is not None and not quantizer.needs_images:
        return f"{quantizer.name} reads no calibration images, so its generator must be none"
    if generator is not None and quantizer.needs_labels and not generator.gives_labels:
        return f"{quantizer.name} needs labels, but {generator.name} gives no labels"
    return None


def _matches(value: object, patterns: Sequence[object]) -> bool:
    text = NO_GENERATOR if value is None else str(value)
    return any(fnmatch.fnmatchcase(text, str(pattern)) for pattern in patterns)


def _replace(cell: Cell, reason: str | None, excluded: bool) -> Cell:
    if reason == cell.reason and excluded == cell.excluded:
        return cell
    return replace(cell, reason=reason, excluded=excluded)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
