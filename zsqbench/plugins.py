"""Find, load and check plugins, each on its own, and list what they provide."""

import hashlib
import importlib
import importlib.util
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from zsqbench import hookspecs
from zsqbench.containment import contain
from zsqbench.errors import PluginUnavailableError, ZSQBenchError, one_line, unknown
from zsqbench.hookchecks import check_hooks
from zsqbench.methods import Engine, Generator, Kind, Method, Quantizer, Task

BASES: dict[Kind, type[Method]] = {"generator": Generator, "quantizer": Quantizer, "task": Task, "engine": Engine}
SHIPPED = "zsqbench_plugins"

Load = Callable[[], Any]
"""Imports a plugin and returns its module, or an object with its hooks."""


@dataclass(frozen=True)
class Plugin:
    """One plugin, loaded or not."""

    name: str
    origin: str
    """The distribution and its version, or the path of a single file."""
    error: str | None = None
    """Why it did not load, in one line. None: it loaded."""
    traceback: str | None = None
    source: str | None = None
    """Hash of a single file. Methods of a distribution are identified by their version instead."""
    shipped: bool = False
    """True if it comes with zsqbench."""

    @property
    def label(self) -> str:
        """The name by which it differs from all other plugins."""
        return f"{self.origin}:{self.name}"


@dataclass(frozen=True)
class Provided:
    """A method and the plugin that provides it."""

    method: type[Method]
    plugin: Plugin


@dataclass
class Catalog:
    """The installed methods, by kind and name, the plugins, and the hooks to call."""

    hooks: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    provided: dict[tuple[Kind, str], Provided] = field(default_factory=dict)
    clashes: list[str] = field(default_factory=list)
    """One line for each name that two plugins claim."""

    def names(self, kind: Kind) -> list[str]:
        """Names of the methods of a kind, sorted."""
        return sorted(name for found, name in self.provided if found == kind)

    def find(self, kind: Kind, name: str, where: str = "") -> Provided:
        """The method of this name. Raises ZSQBenchError, or PluginUnavailableError if a broken plugin may have it."""
        provided = self.provided.get((kind, name))
        if provided is not None:
            return provided
        raise self.lack(unknown(kind, name, self.names(kind), where))

    @property
    def broken(self) -> list[Plugin]:
        """The plugins that did not load."""
        return [plugin for plugin in self.plugins if plugin.error]

    def lack(self, text: str) -> ZSQBenchError:
        """The error for a missing method. It also names the broken plugins, which might provide the method."""
        if not self.broken:
            return ZSQBenchError(text)
        failures = "; ".join(f"plugin {plugin.name!r} ({plugin.origin}): {plugin.error}" for plugin in self.broken)
        return PluginUnavailableError(f"{text}; these failed to load: {failures}")

    def check(self) -> None:
        """Raise ZSQBenchError if two plugins claim one name."""
        if self.clashes:
            raise ZSQBenchError("; ".join(self.clashes))


@cache
def shipped_plugins() -> Catalog:
    """The plugins that are shipped with zsqbench, loaded once in a process. No other plugin is imported."""
    return load_plugins(only_shipped=True)


def load_plugins(files: Sequence[Path] = (), without: Sequence[str] = (), *, only_shipped: bool = False) -> Catalog:
    """Load all installed plugins and these files, except the plugins named in `without`; or only the shipped plugins.

    If a plugin fails to load, the catalog notes it and loading continues. A plugin that is not shipped is first tried
    in a copy of this process, if a copy is possible: see `zsqbench.probe`. Raises ZSQBenchError if a name in `without`
    is not a plugin.
    """
    manager = _Hooks(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    catalog = Catalog(manager)
    found = [(plugin, entry_point.load) for plugin, entry_point in _entry_points()]
    names = {plugin.name for plugin, _ in found}
    for name in without:
        if name not in names:
            raise ZSQBenchError(unknown("plugin", name, names, "--no-plugin"))
    found = [(plugin, load) for plugin, load in found if plugin.name not in without]
    for plugin, load in found:
        if plugin.shipped:
            _add(catalog, plugin, load)
    if not only_shipped:
        _add_strangers(catalog, [entry for entry in found if not entry[0].shipped] + _from_files(files))
    return catalog


class _Hooks(pluggy.PluginManager):
    """Looks only at values of a module that bear the mark of a hook, because pluggy inspects all names."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """The options of a hook, or None if this is no hook."""
        if isinstance(plugin, ModuleType) and not hasattr(vars(plugin).get(name), f"{self.project_name}_impl"):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def installed_plugins() -> list[Plugin]:
    """The installed plugins, not loaded."""
    return [plugin for plugin, _ in _entry_points()]


def _from_files(files: Sequence[Path]) -> list[tuple[Plugin, Load]]:
    paths = dict.fromkeys(file.resolve() for file in files)
    return [(Plugin(path.stem, str(path), source=_source(path)), partial(_import_file, path)) for path in paths]


def _add_strangers(catalog: Catalog, found: Sequence[tuple[Plugin, Load]]) -> None:
    """Add plugins that are not shipped, except plugins that would end this process."""
    from zsqbench.probe import (
        can_probe,
        find_fatal,
    )  # commands without such plugins do not wait for it

    untried = [(plugin, load) for plugin, load in found if plugin not in _harmless]
    endings = find_fatal([partial(_add, catalog, *entry) for entry in untried]) if untried and can_probe() else {}
    fatal = {untried[index][0]: ending for index, ending in endings.items()}
    for plugin, load in found:
        if plugin in fatal:
            catalog.plugins.append(replace(plugin, error=f"its import {fatal[plugin]}"))
        else:
            _add(catalog, plugin, load)
            _harmless.add(plugin)


_harmless: set[Plugin] = set()
"""Plugins whose import did not end this process. The same files need not be tried again."""


def _source(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ZSQBenchError(f"cannot read plugin file {path}: {error.strerror}") from error


def _add(catalog: Catalog, plugin: Plugin, load: Load) -> None:
    """Register one plugin. If this fails, only the failure is kept."""
    classes: list[type[Method]] = []
    with contain() as contained:
        module = load()
        check_hooks(module)
        catalog.hooks.register(module, name=plugin.label)
        catalog.hooks.check_pending()
        for kind in BASES:
            classes += _registered(catalog.hooks, plugin, kind)
        _check_distinct(classes)
    if contained.error is not None:
        if catalog.hooks.has_plugin(plugin.label):
            catalog.hooks.unregister(name=plugin.label)
        trace = "".join(traceback.format_exception(contained.error))
        catalog.plugins.append(replace(plugin, error=one_line(contained.error), traceback=trace))
        return
    catalog.plugins.append(plugin)
    for method in classes:
        taken = catalog.provided.setdefault((method.kind, method.name), Provided(method, plugin))
        if taken.method is not method:
            both = " and ".join(f"{owner.name!r} ({owner.origin})" for owner in (taken.plugin, plugin))
            claim = f"two plugins provide a {method.kind} named {method.name!r}: {both}"
            catalog.clashes.append(f"{claim}; rename one, or leave one out with --no-plugin")


def _check_distinct(classes: Sequence[type[Method]]) -> None:
    """Refuse two classes of one plugin with the same name."""
    named: dict[tuple[Kind, str], type[Method]] = {}
    for method in classes:
        other = named.setdefault((method.kind, method.name), method)
        if other is not method:
            raise ZSQBenchError(
                f"{other.__name__} and {method.__name__} are both a {method.kind} named {method.name!r}; rename one"
            )


def _registered(manager: pluggy.PluginManager, plugin: Plugin, kind: Kind) -> Iterator[type[Method]]:
    """The classes of a kind that this plugin returns, checked. Tests check the classes of shipped plugins."""
    hook = getattr(manager.hook, f"register_{kind}s")
    base = BASES[kind]
    for implementation in hook.get_hookimpls():
        if implementation.plugin_name != plugin.label:
            continue
        returned = implementation.function()
        if not isinstance(returned, list | tuple):
            raise ZSQBenchError(f"register_{kind}s returned {returned!r}; expected a list of {base.__name__} classes")
        for method in returned:
            if not (isinstance(method, type) and issubclass(method, base)):
                raise ZSQBenchError(f"register_{kind}s returned {method!r}; expected subclasses of {base.__name__}")
            if missing := getattr(method, "__abstractmethods__", None):
                raise ZSQBenchError(f"{method.__name__} does not define {', '.join(sorted(missing))}")
            if not plugin.shipped:
                from zsqbench.methods.declaration import check_declaration

                check_declaration(method, kind)
            yield method


def _import_file(path: Path) -> ModuleType:
    """Import a single file under a unique module name."""
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


def _entry_points() -> Iterator[tuple[Plugin, EntryPoint]]:
    """All installed plugins with their entry points: shipped plugins first, then by distribution and name.

    The loader of pluggy is not used. If two distributions use one entry-point name, it silently drops the second. It
    also stops at the first plugin that fails.
    """
    adopted = _adopt_checkout()
    found: dict[tuple[str, str], tuple[str, EntryPoint]] = {}
    for distribution in distributions():
        ours = [entry_point for entry_point in distribution.entry_points if entry_point.group == hookspecs.PROJECT]
        if not ours:
            continue
        project, version = distribution.name, distribution.version  # each access to these reads all metadata
        if project == "zsqbench" and adopted:
            continue  # a stale egg-info of an uninstalled checkout
        for entry_point in ours:
            # A distribution can be found twice (an egg-info beside an installed copy): the first one is imported.
            found.setdefault((project, entry_point.name), (f"{project} {version}", entry_point))
    for entry_point in adopted:
        found["zsqbench", entry_point.name] = ("zsqbench, uninstalled checkout", entry_point)
    for project, name in sorted(found, key=lambda key: (key[0] != "zsqbench", key)):
        origin, entry_point = found[project, name]
        yield Plugin(name, origin, shipped=project == "zsqbench"), entry_point


def _adopt_checkout() -> list[EntryPoint]:
    """Make plugins/ of an uninstalled checkout importable, and read its entry points. Empty: it is installed."""
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
