"""Find, load and check plugins, each on its own, and list what they provide."""

import hashlib
import importlib
import importlib.util
import sys
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pluggy

from zsqbench import hookspecs
from zsqbench.errors import PluginUnavailableError, ZSQBenchError, one_line, unknown
from zsqbench.methods import Engine, Generator, Kind, Method, Quantizer, Task

BASES: dict[Kind, type[Method]] = {"generator": Generator, "quantizer": Quantizer, "task": Task, "engine": Engine}
SHIPPED = "zsqbench_plugins"


@dataclass(frozen=True)
class Plugin:
    """One plugin, loaded or not."""

    name: str
    origin: str
    """The distribution and its version, or the path of a single file."""
    error: str | None = None
    """One line on why it did not load."""
    traceback: str | None = None
    source: str | None = None
    """Hash of a single file; the identity of a distribution's methods is their version."""


@dataclass(frozen=True)
class Provided:
    """A method and the plugin that provides it."""

    method: type[Method]
    plugin: Plugin


@dataclass
class Catalog:
    """What is installed: (kind, name) to class, the plugins, and the hooks to fire."""

    hooks: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    provided: dict[tuple[Kind, str], Provided] = field(default_factory=dict)
    clashes: list[str] = field(default_factory=list)
    """One line for each name that two plugins claim."""

    def names(self, kind: Kind) -> list[str]:
        """Names of the methods of a kind, sorted."""
        return sorted(name for found, name in self.provided if found == kind)

    def find(self, kind: Kind, name: str, where: str = "") -> Provided:
        """The method of this name. Raises ZSQBenchError, or PluginUnavailableError where a broken plugin may be why."""
        provided = self.provided.get((kind, name))
        if provided is not None:
            return provided
        text = unknown(kind, name, self.names(kind), where)
        broken = [plugin for plugin in self.plugins if plugin.error]
        if not broken:
            raise ZSQBenchError(text)
        failures = "; ".join(f"plugin {plugin.name!r} ({plugin.origin}): {plugin.error}" for plugin in broken)
        raise PluginUnavailableError(f"{text}; these failed to load: {failures}")

    def check(self) -> None:
        """Raise ZSQBenchError where two plugins claim one name."""
        if self.clashes:
            raise ZSQBenchError("; ".join(self.clashes))


@cache
def shipped_plugins() -> Catalog:
    """The plugins that are shipped with zsqbench, loaded once in a process; no other is imported for them."""
    return load_plugins(only_shipped=True)


def load_plugins(files: Sequence[Path] = (), without: Sequence[str] = (), *, only_shipped: bool = False) -> Catalog:
    """Load all installed plugins and these files, except the plugins named in `without`.

    A plugin that fails to load is noted in the catalog and stops nothing here. Raises ZSQBenchError where a name in
    `without` is no plugin.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    catalog = Catalog(manager)
    seen = set()
    for origin, entry_point in _entry_points():
        seen.add(entry_point.name)
        if only_shipped and origin.split()[0].rstrip(",") != "zsqbench":
            continue
        if entry_point.name not in without:
            _add(catalog, Plugin(entry_point.name, origin), entry_point.load)
    for name in without:
        if name not in seen:
            raise ZSQBenchError(unknown("plugin", name, seen, "--no-plugin"))
    for path in dict.fromkeys(file.resolve() for file in files):
        source = _source(path)
        _add(catalog, Plugin(path.stem, str(path), source=source), lambda path=path: _import_file(path))
    return catalog


def _source(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ZSQBenchError(f"cannot read plugin file {path}: {error.strerror}") from error


def _add(catalog: Catalog, plugin: Plugin, load: Any) -> None:
    """Register one plugin; on any failure leave no trace of it but the failure."""
    label = f"{plugin.origin}:{plugin.name}"
    try:
        module = load()
        _check_hooks(module)
        catalog.hooks.register(module, name=label)
        catalog.hooks.check_pending()
        classes = [entry for kind in BASES for entry in _registered(catalog.hooks, module, kind)]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's module raises is its failure
        if catalog.hooks.has_plugin(label):
            catalog.hooks.unregister(name=label)
        trace = "".join(traceback.format_exception(error))
        catalog.plugins.append(Plugin(plugin.name, plugin.origin, one_line(error), trace, plugin.source))
        return
    catalog.plugins.append(plugin)
    for method in classes:
        taken = catalog.provided.setdefault((method.kind, method.name), Provided(method, plugin))
        if taken.method is not method:
            both = " and ".join(f"{owner.name!r} ({owner.origin})" for owner in (taken.plugin, plugin))
            claim = f"two plugins provide a {method.kind} named {method.name!r}: {both}"
            catalog.clashes.append(f"{claim}; rename one, or leave one out with --no-plugin")


def _check_hooks(module: object) -> None:
    """Refuse a hook that is misspelt, lacks its mark, or wraps those of others.

    pluggy would say little of the first and nothing of the second; a run calls each observer apart from the others.
    """
    known = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
    for name in dir(module):
        value = getattr(module, name)
        options = getattr(value, f"{hookspecs.PROJECT}_impl", None)
        if options is None:
            if name in known and callable(value) and not hasattr(value, f"{hookspecs.PROJECT}_spec"):
                raise ZSQBenchError(f"{name} is not marked as a hook; put @zsqbench.hookimpl above it")
        elif (options["specname"] or name) not in known and not options["optionalhook"]:
            raise ZSQBenchError(unknown("hook", options["specname"] or name, known))
        elif options["wrapper"] or options["hookwrapper"]:
            raise ZSQBenchError(f"{name} wraps the hooks of other plugins; write it without `wrapper`")


def _registered(manager: pluggy.PluginManager, module: object, kind: Kind) -> Iterator[type[Method]]:
    """The classes of a kind that this plugin returns, checked."""
    hook = getattr(manager.hook, f"register_{kind}s")
    base = BASES[kind]
    for implementation in hook.get_hookimpls():
        if implementation.plugin is not module:
            continue
        returned = implementation.function()
        if not isinstance(returned, list | tuple):
            raise ZSQBenchError(f"register_{kind}s returned {returned!r}; expected a list of {base.__name__} classes")
        for method in returned:
            if not (isinstance(method, type) and issubclass(method, base)):
                raise ZSQBenchError(f"register_{kind}s returned {method!r}; expected subclasses of {base.__name__}")
            if not (isinstance(getattr(method, "name", None), str) and method.name):
                raise ZSQBenchError(f"{method.__name__} has no name; give it a class attribute name = '...'")
            if getattr(method, "__abstractmethods__", None):
                missing = ", ".join(sorted(cast("Any", method).__abstractmethods__))
                raise ZSQBenchError(f"{method.__name__} does not define {missing}")
            yield method


def _import_file(path: Path) -> ModuleType:
    """Import a single file under a name of its own."""
    name = f"zsqbench_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ZSQBenchError(f"{path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _entry_points() -> Iterator[tuple[str, EntryPoint]]:
    """(origin, entry point) of all plugins, zsqbench's own first, then by distribution and name.

    pluggy's own loader is not used: it drops the second of two distributions that use one entry-point name, silently,
    and stops at the first plugin that fails.
    """
    adopted = _adopt_checkout()
    found: dict[tuple[str, str], tuple[str, EntryPoint]] = {}
    for distribution in distributions():
        ours = [entry_point for entry_point in distribution.entry_points if entry_point.group == hookspecs.PROJECT]
        if not ours:
            continue
        project = distribution.name
        if project == "zsqbench" and adopted:
            continue  # a stale egg-info of an uninstalled checkout
        for entry_point in ours:
            # A distribution can be found twice (an egg-info beside an installed copy): the first one is imported.
            found.setdefault((project, entry_point.name), (f"{project} {distribution.version}", entry_point))
    for entry_point in adopted:
        found["zsqbench", entry_point.name] = ("zsqbench, uninstalled checkout", entry_point)
    for key in sorted(found, key=lambda key: (key[0] != "zsqbench", key)):
        yield found[key]


def _adopt_checkout() -> list[EntryPoint]:
    """Make an uninstalled checkout's plugins/ importable and read its table of entry points; nothing if installed."""
    checkout = Path(__file__).resolve().parent.parent
    folder = checkout / "plugins"
    if SHIPPED not in sys.modules:
        if importlib.util.find_spec(SHIPPED) is not None or not folder.is_dir():
            return []
        package = ModuleType(SHIPPED)
        package.__path__ = [str(folder)]
        package.__file__ = None
        sys.modules[SHIPPED] = package
    elif getattr(sys.modules[SHIPPED], "__spec__", None) is not None:
        return []
    table = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    entries = table["project"]["entry-points"][hookspecs.PROJECT]
    return [EntryPoint(name, value, hookspecs.PROJECT) for name, value in entries.items()]
