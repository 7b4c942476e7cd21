"""A suite: a YAML file of matrices, checked against what is installed and expanded into cells."""

import ast
import fnmatch
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from zsqbench.errors import ZSQBenchError, did_you_mean, unknown
from zsqbench.methods import Generator, Kind, Method, ModelSpec, Quantizer, Settings, Task
from zsqbench.plugins import Catalog, Plugin, load_plugins
from zsqbench.published import Place, read_source
from zsqbench.scheme import FLOAT, PLACEMENTS, Placement, Scheme, parse_scheme
from zsqbench.store import digest_of, file_digest
from zsqbench.yamlfile import Location, YamlFile

AXES = ("task", "model", "generator", "quantizer", "scheme", "seed")
NO_GENERATOR = "none"

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Seeds = Annotated[list[Seed], BeforeValidator(_as_list, json_schema_input_type=Seed | list[Seed])]
Tables = Annotated[list[int | str], BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str])]
SeedPatterns = Annotated[list[int | str], BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str])]


class Block(BaseModel):
    """One full product of the matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Names = Field(min_length=1)
    model: Names = Field(min_length=1)
    generator: Names = Field([NO_GENERATOR], min_length=1)
    quantizer: Names = Field(min_length=1)
    scheme: Names = Field(min_length=1)
    seed: Seeds = Field([0], min_length=1)
    settings: dict[str, Any] = {}


class Exclusion(BaseModel):
    """Cells that are left out, each axis a name or a pattern (`hw/*`), and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    because: str = Field(min_length=1)
    task: Names = ["*"]
    model: Names = ["*"]
    generator: Names = ["*"]
    quantizer: Names = ["*"]
    scheme: Names = ["*"]
    seed: SeedPatterns = ["*"]


class Reference(BaseModel):
    """Tables of a paper whose values stand beside the measured ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="a file of results/published")
    table: Tables = Field(min_length=1)


References = Annotated[list[Reference], BeforeValidator(_as_list, json_schema_input_type=Reference | list[Reference])]


class SuiteFile(BaseModel):
    """The keys of a suite file; `zsqbench schema` prints their JSON schema for editors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.-]+$", description="names the result files and the MLflow experiment")
    description: str = ""
    settings: dict[str, Any] = Field({}, description="precision, layout, compile, threads of generate and quantize")
    generators: dict[str, dict[str, Any]] = Field({}, description="a name for a method with options")
    quantizers: dict[str, dict[str, Any]] = Field({}, description="a name for a method with options")
    tasks: dict[str, dict[str, Any]] = Field({}, description="a name for a method with options")
    models: dict[str, dict[str, Any]] = Field({}, description="a user's own network, or a variant of a named one")
    schemes: dict[str, dict[str, Any]] = Field({}, description="a name for a shipped placement with changes")
    matrix: list[Block] = Field(min_length=1, description="each block is a full product, the suite is their union")
    exclude: list[Exclusion] = []
    plugins: list[str] = Field([], description="single-file plugins, relative to the suite")
    published: References = Field([], description="tables of papers whose values stand beside the measured ones")


@dataclass(frozen=True)
class Variant:
    """A method with its options, as a suite names it."""

    label: str
    method: Method
    plugin: Plugin
    start: "Variant | None" = None
    """The quantizer from whose result this one goes on."""

    @property
    def quantizer(self) -> Quantizer:
        """Its method, where that is a quantizer."""
        return cast("Quantizer", self.method)

    @cached_property
    def chain(self) -> "tuple[Variant, ...]":
        """The quantizer itself, the one that it starts from, the one that that starts from, and so on."""
        return (self, *(self.start.chain if self.start else ()))

    @cached_property
    def digest(self) -> str:
        """Hash of its identity."""
        return digest_of(self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides its results: name, version and options, files by content, a single-file plugin by its source.

        A quantizer that it starts from is there as what it is, not as what the suite calls it.
        """
        files = self.method.input_files()
        options = {k: v for k, v in self.method.options().items() if k not in files and k not in self.method.incidental}
        if self.start is not None:
            options["start"] = self.start.identity
        return {
            "method": self.method.name,
            "version": self.method.version,
            "options": options,
            "files": {name: file_digest(path) for name, path in files.items()},
            "source": self.plugin.source,
        }

    def describe(self) -> dict[str, Any]:
        """The same for people, in a result row."""
        return {
            "method": self.method.name,
            "version": self.method.version,
            "origin": self.plugin.origin,
            "options": self.method.options(),
            "changed": self.method.changed_options(),
        } | ({"start": self.start.describe()} if self.start else {})


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

    @cached_property
    def name(self) -> str:
        """`task:model:generator:quantizer:scheme:seed`, then the settings that are not the default."""
        seed = "-" if self.seed is None else str(self.seed)
        parts = [self.task, self.model, self.generator or NO_GENERATOR, self.quantizer, self.scheme, seed]
        return ":".join(parts + _changed(self.settings))


@cache
def _changed(settings: Settings) -> list[str]:
    return [f"{name}={value}" for name, value in settings.model_dump(mode="json", exclude_defaults=True).items()]


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
    plugin_files: Sequence[Path] = ()
    notes: Sequence[str] = field(default_factory=list)
    """What a reader of the file may not have meant: duplicates, collapsed seeds, exclusions that match nothing."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """The shipped placements and the suite's own, whether its matrix uses them or not."""
    published: Mapping[Place, Mapping[str, Any]] = field(default_factory=dict)
    """What the tables that it names say, by the names of a cell's parts and the metric."""

    def generator(self, cell: Cell) -> Generator | None:
        """The generator of a cell."""
        return cast("Generator", self.generators[cell.generator].method) if cell.generator else None

    def quantizer(self, cell: Cell) -> Quantizer:
        """The quantizer of a cell."""
        return self.quantizers[cell.quantizer].quantizer

    def task(self, label: str) -> Task:
        """The task of this name."""
        return cast("Task", self.tasks[label].method)

    def published_of(self, cell: Cell) -> dict[str, Any]:
        """What a paper says of a cell: value, std, float, source, citation, note; or nothing."""
        metric = self.task(cell.task).metric
        place = (cell.model, cell.generator or NO_GENERATOR, cell.quantizer, cell.scheme, metric)
        return dict(self.published.get(place, {}))

    def definition(self, cell: Cell) -> str:
        """Hash of all that the suite says of a cell."""
        generator = self._parts["generator", cell.generator] if cell.generator else None
        parts = [self._parts["task", cell.task], self._parts["model", cell.model], generator]
        parts += [self._parts["quantizer", cell.quantizer], self._parts["scheme", cell.scheme]]
        return digest_of([*parts, cell.seed, cell.settings.model_dump(mode="json")])

    @cached_property
    def _parts(self) -> dict[tuple[str, str], str]:
        """What each name of the suite contributes to the definition of its cells."""
        parts: dict[tuple[str, str], Any] = {
            # Incidental options, too: they say which data is meant, and a definition is known before the data is read.
            ("task", label): [variant.identity, variant.method.options()]
            for label, variant in self.tasks.items()
        }
        parts |= {("generator", label): variant.identity for label, variant in self.generators.items()}
        parts |= {("quantizer", label): variant.identity for label, variant in self.quantizers.items()}
        parts |= {("model", label): _without_folders(model) for label, model in self.models.items()}
        parts |= {("scheme", label): scheme.model_dump(mode="json") for label, scheme in self.schemes.items()}
        return {name: digest_of(part) for name, part in parts.items()}


def _without_folders(model: ModelSpec) -> dict[str, Any]:
    """A model as plain data in which files have names but no places: their content is in the keys."""
    data = model.model_dump(mode="json")
    return data | {key: Path(data[key]).name for key in ("file", "weights") if data[key]}


def shipped_suites() -> dict[str, Path]:
    """The suites that come with zsqbench, by name (`smoke`, `paper/dgh_table2`): in a checkout, or in a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "suites", package.parent / "suites"):
        if folder.is_dir():
            return {
                str(path.relative_to(folder).with_suffix("").as_posix()): path
                for path in sorted(folder.rglob("*.yaml"))
            }
    return {}


def find_suite(text: str) -> Path:
    """A suite file by path, or a shipped one by its bare name. Raises ZSQBenchError where there is none."""
    path = Path(text)
    if path.is_file():
        return path
    shipped = shipped_suites()
    if text in shipped:
        return shipped[text]
    if path.is_dir():
        raise ZSQBenchError(f"suite {text} is a folder; name a YAML file in it")
    close = did_you_mean(text, shipped) or did_you_mean(path.stem, shipped) or ";"
    raise ZSQBenchError(f"there is no suite file {text}{close} shipped: {', '.join(shipped)}")


def load_suite(
    path: Path,
    plugin_files: Sequence[Path] = (),
    without: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
) -> Suite:
    """Read, check and expand a suite file.

    `overrides` are `a.b=value` texts that replace values of the file. Files that the suite names are looked for beside
    it, then below the data root. Raises ZSQBenchError (one line, with file and
    line number) for anything that cannot be meant.
    """
    source = YamlFile(path)
    if not isinstance(source.data, dict):
        raise ZSQBenchError(f"{path}: expected a suite with keys such as name and matrix, got {_shape(source.data)}")
    for override in overrides:
        source.override(override)
    file = _parse(SuiteFile, source.data, source, ())
    own = [path.parent / plugin for plugin in file.plugins]
    for index, plugin in enumerate(own):
        if not plugin.is_file():
            place = source.where(("plugins", index))
            raise ZSQBenchError(f"{place}: cannot read plugin file {plugin}: No such file or directory")
    catalog = load_plugins([*plugin_files, *own], without)
    catalog.check()
    folders = [path.parent] + ([data_root] if data_root else [])
    return _Reader(source, file, catalog, [*plugin_files, *own], folders).suite()


def suite_name(path: Path) -> str:
    """Only the name in a suite file: all that a leaderboard needs of it."""
    source = YamlFile(path)
    name = source.data.get("name") if isinstance(source.data, dict) else None
    if not isinstance(name, str):
        raise ZSQBenchError(f"{path}: expected a suite with a name, got {_shape(name)}")
    return name


class _Reader:
    """Turns a parsed file into a suite: resolves each name once, then expands the matrix."""

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
        self.settings = self._settings(file.settings, ("settings",))
        self.placements = dict(PLACEMENTS) | {
            name: self._placement(name, given) for name, given in file.schemes.items()
        }
        self.models = {name: self._model(name, given) for name, given in file.models.items()}
        self.schemes: dict[str, Scheme] = {}
        self.variants: dict[Kind, dict[str, Variant]] = {"task": {}, "generator": {}, "quantizer": {}}
        sections: dict[Kind, dict[str, dict[str, Any]]]
        sections = {"task": file.tasks, "generator": file.generators, "quantizer": file.quantizers}
        for kind, section in sections.items():
            for label, given in section.items():
                self.variants[kind][label] = self._variant(kind, label, given, (f"{kind}s", label))
        for label in file.quantizers:
            self._link(label, ("quantizers", label))

    def suite(self) -> Suite:
        cells = self._exclude(self._distinct(self._expand()))
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
            plugin_files=[file.resolve() for file in self.plugin_files],
            notes=self.notes,
            placements=self.placements,
            published=self._published(),
        )
        if suite.published and not any(map(suite.published_of, cells)):
            place = self.source.where(("published",))
            self.notes.append(f"{place}: these tables say nothing of a cell; parts of a cell must be called as there")
        return suite

    def _published(self) -> dict[Place, dict[str, Any]]:
        found: dict[Place, dict[str, Any]] = {}
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
        return self.source.where(_existing(self.source.data, location))

    def _expand(self) -> Iterator[tuple[int, Cell]]:
        for index, block in enumerate(self.file.matrix):
            where: Location = ("matrix", index)
            settings = self._settings(self.settings.model_dump() | block.settings, (*where, "settings"))
            for axis in AXES[:-1]:
                for label in getattr(block, axis):
                    self._resolve(axis, label, (*where, axis))
            for task, model in itertools.product(block.task, block.model):
                self._find_model(task, model, (*where, "model"))
            for values in itertools.product(*(getattr(block, axis) for axis in AXES)):
                yield index, self._cell(**dict(zip(AXES, values, strict=True)), settings=settings)

    def _cell(
        self, *, task: str, model: str, generator: str, quantizer: str, scheme: str, seed: int, settings: Settings
    ) -> Cell:
        maker = self.variants["generator"][generator].method if generator != NO_GENERATOR else None
        variant = self.variants["quantizer"][quantizer]
        seeded = any(link.method.seeded for link in variant.chain) or (maker is not None and maker.seeded)
        return Cell(
            task=task,
            model=model,
            generator=None if maker is None else generator,
            quantizer=quantizer,
            scheme=scheme,
            seed=seed if seeded else None,
            settings=settings,
            reason=_impossible(cast("Generator | None", maker), variant, self.schemes[scheme]),
        )

    def _distinct(self, cells: Iterator[tuple[int, Cell]]) -> list[Cell]:
        """The union of the blocks; says what stood there twice and which seeds made no difference."""
        first: dict[Cell, int] = {}
        repeated: Counter[tuple[int, int]] = Counter()
        collapsed: Counter[tuple[str, str]] = Counter()
        for index, cell in cells:
            if cell not in first:
                first[cell] = index
            elif cell.seed is None and first[cell] == index and len(set(self.file.matrix[index].seed)) > 1:
                collapsed[cell.generator or NO_GENERATOR, cell.quantizer] += 1
            else:
                repeated[index, first[cell]] += 1
        for (index, before), count in repeated.items():
            other = "in the same block" if index == before else f"in block {before + 1}"
            place = self.source.where(("matrix", index))
            self.notes.append(f"{place}: {_count(count, 'cell')} of block {index + 1} already stood {other}")
        for (generator, quantizer), count in collapsed.items():
            pair = f"{_count(count, 'cell')} of {generator} with {quantizer}"
            self.notes.append(f"{pair} left out: neither uses the seed, so one cell stands for all seeds")
        return list(first)

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

    def _find_model(self, task: str, model: str, where: Location) -> None:
        """Let the task say now that it does not know a model."""
        try:
            cast("Task", self.variants["task"][task].method).find_model(self.models[model])
        except ZSQBenchError as error:
            place = self.source.where(("models", model) if model in self.file.models else where)
            raise ZSQBenchError(f"{place}: {error}") from error

    def _resolve(self, axis: str, label: str, where: Location) -> None:
        """Give a name in the matrix its meaning, once."""
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
        """Give a quantizer the one that it starts from, and that one its own; `before` are those that lead here."""
        quantizers, place = self.variants["quantizer"], self.source.where((*where, "start"))
        variant = quantizers[label]
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

    def _variant(self, kind: Kind, label: str, given: Mapping[str, Any], where: Location) -> Variant:
        name = given.get("method", label)
        if not isinstance(name, str):
            raise ZSQBenchError(f"{self.source.where((*where, 'method'))}: expected the name of a {kind}, got {name!r}")
        named = {*self.variants[kind]} - {label}
        place = self.source.where((*where, "method") if "method" in given else where)
        if name == label and (kind, name) not in self.catalog.provided and (close := did_you_mean(name, named)):
            raise ZSQBenchError(f"{place}: unknown {kind} {name!r}{close}")
        provided = self.catalog.find(kind, name, place)
        options = {key: value for key, value in given.items() if key != "method"}
        method = _parse(provided.method, options, self.source, where, folders=self.folders, what=f"option of {name}")
        return Variant(label, method, provided.plugin)

    def _model(self, name: str, given: Mapping[str, Any]) -> ModelSpec:
        if "name" in given:
            raise ZSQBenchError(f"{self.source.where(('models', name, 'name'))}: the name of a model is its key")
        data = {"name": name, **given}
        return _parse(ModelSpec, data, self.source, ("models", name), folders=self.folders)

    def _placement(self, name: str, given: Mapping[str, Any]) -> Placement:
        where = ("schemes", name)
        if name in PLACEMENTS or name == FLOAT.name:
            raise ZSQBenchError(f"{self.source.where(where)}: scheme {name!r} is shipped; give yours a name of its own")
        base = str(given.get("base", ""))
        if base not in PLACEMENTS:
            text = unknown("scheme", base, PLACEMENTS) if base else "expected 'base', the scheme to change"
            raise ZSQBenchError(f"{self.source.where((*where, 'base'))}: {text}")
        changes = {key: value for key, value in given.items() if key != "base"}
        return _parse(Placement, PLACEMENTS[base].model_dump() | changes, self.source, where)

    def _settings(self, given: Mapping[str, Any], where: Location) -> Settings:
        return _parse(Settings, given, self.source, where)


def select(cells: Sequence[Cell], expression: str) -> list[Cell]:
    """The cells whose names match: words that the name contains, with `and`, `or`, `not` and parentheses."""
    words: dict[str, str] = {}
    code = [
        token if token in {"and", "or", "not", "(", ")"} else words.setdefault(token, f"word{len(words)}")
        for token in re.findall(r"[()]|[^\s()]+", expression)
    ]
    by_name = {name: word for word, name in words.items()}

    def holds(node: ast.expr, cell: str) -> bool:
        match node:
            case ast.Name(id=name):
                return by_name[name] in cell
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not holds(operand, cell)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(holds(value, cell) for value in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(holds(value, cell) for value in values)
        raise SyntaxError

    try:
        tree = ast.parse(" ".join(code), mode="eval").body
        return [cell for cell in cells if holds(tree, cell.name)]
    except (SyntaxError, RecursionError, MemoryError) as error:  # the latter for thousands of "not"
        expected = "words joined by and, or, not, with parentheses, such as 'zeroq and not w8a8'"
        raise ZSQBenchError(f"cannot read -k {expression!r}; expected {expected}") from error


def _impossible(generator: Generator | None, quantizer: Variant, scheme: Scheme) -> str | None:
    """Why these, or what the quantizer starts from, cannot go together, from what the methods declare, or none."""
    if reason := _misfit(generator, quantizer.quantizer, scheme):
        return reason
    for start in quantizer.chain[1:]:
        images = None if start.quantizer.data_free else generator
        if reason := _misfit(images, start.quantizer, scheme):
            return f"{quantizer.label} starts from {start.label}, and {reason}"
    return None


def _misfit(generator: Generator | None, quantizer: Quantizer, scheme: Scheme) -> str | None:
    """Why a quantizer cannot go with a generator and a scheme, or none."""
    if reason := quantizer.rejects(scheme):
        return f"{quantizer.name} rejects {scheme.name}: {reason}"
    if generator is None and not quantizer.data_free:
        return f"{quantizer.name} needs calibration images, and the generator is none"
    if generator is not None and quantizer.data_free:
        return f"{quantizer.name} reads no calibration images: its generator is none"
    if generator is not None and quantizer.needs_labels and not generator.gives_labels:
        return f"{quantizer.name} needs labels, and {generator.name} gives none"
    return None


def _matches(value: object, patterns: Sequence[object]) -> bool:
    text = NO_GENERATOR if value is None else str(value)
    return any(fnmatch.fnmatchcase(text, str(pattern)) for pattern in patterns)


def _replace(cell: Cell, reason: str | None, excluded: bool) -> Cell:
    if reason == cell.reason and excluded == cell.excluded:
        return cell
    values = {axis: getattr(cell, axis) for axis in AXES}
    return Cell(**values, settings=cell.settings, reason=reason, excluded=excluded)


Model = TypeVar("Model", bound=BaseModel)


def _parse(
    model: type[Model],
    data: Mapping[str, Any],
    source: YamlFile,
    where: Location,
    folders: Sequence[Path] = (),
    what: str = "key",
) -> Model:
    """Validate as JSON in strict mode: a number is not text, text is not a number, but text is a path."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True, context={"folders": folders})
    except ValidationError as error:
        raise ZSQBenchError("\n".join(_explain(model, data, error, source, where, what))) from error


def _explain(
    model: type[BaseModel],
    data: Mapping[str, Any],
    error: ValidationError,
    source: YamlFile,
    where: Location,
    what: str,
) -> list[str]:
    """Validation errors in our words, one line for each value: where, what was given, what was expected."""
    misspelt: dict[Location, list[str]] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            misspelt.setdefault(item["loc"][:-1], []).append(str(item["loc"][-1]))
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        around, last = item["loc"][:-1], item["loc"][-1] if item["loc"] else ""
        location = _existing(data, item["loc"])
        place, path = source.where((*where, *location)), ".".join(map(str, (*where, *location)))
        if item["type"] == "extra_forbidden":
            lines[f"{place}: {unknown(what, str(last), _fields_at(model, around))}"] = []
        elif item["type"] == "missing" and isinstance(last, str):
            if not any(did_you_mean(name, [last]) for name in misspelt.get(around, ())):
                lines[f"{place}: {what} {last!r} is missing"] = []
        elif item["type"] == "too_short":
            lines[f"{place}: {path} is empty; expected at least one value"] = []
        elif item["type"] == "missing":
            lines[f"{place}: {path} has too few values, got {_shape(item['input'])}"] = []
        else:
            given = f"{place}: {f'{path}: ' if path else ''}%s, got {_shape(item['input'])}"
            message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
            alternatives = lines.setdefault(given, [])
            alternatives.append(message.removeprefix("expected ") if alternatives else message)
    return [line % " or ".join(dict.fromkeys(messages)) if messages else line for line, messages in lines.items()]


def _existing(data: Any, location: Location) -> Location:
    """The part of a location that is in the data.

    pydantic adds the names of the types that it tried, and an index where a single value stands for a list of it.
    """
    found: list[str | int] = []
    for part in location:
        if part == 0 and not isinstance(data, list):
            continue
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not inside:
            break
        data = data[part]
        found.append(part)
    return tuple(found)


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the fields of the model that stands at this location below a model."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            nested = getattr(annotation, "__args__", (annotation,))
            model = next((kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _shape(value: object) -> str:
    """A given value, short."""
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - fits a line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
