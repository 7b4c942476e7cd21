"""`zsqbench plugins list`: list methods, their options, and the values that methods fill in for unset options."""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.options import format_option, plugin_options

if TYPE_CHECKING:
    from zsqbench.methods import Method
    from zsqbench.plugins import Provided

SCHEME = "hw/w4a4"
"""Values that depend on the scheme are shown for this scheme."""


@dataclass(frozen=True)
class FilledIn:
    """The values that a method fills in for unset options, for a preset and a network of a data set."""

    preset: str | None
    data_set: str
    options: Mapping[str, Any]


@click.command("list")
@click.argument("name", required=False)
@plugin_options
@format_option
def plugins_list(name: str | None, plugins: Sequence[Path], without: Sequence[str], form: str) -> int:
    """List the installed methods, one a line, and each plugin that did not load with its error.

    With the NAME of a method or a plugin, show its origin, its options with their defaults and meanings, and the values
    that each preset fills in for each data set of the papers.
    """
    from zsqbench.errors import unknown
    from zsqbench.plugins import load_plugins

    catalog = load_plugins(plugins, without)
    provided = [entry for _, entry in sorted(catalog.provided.items())]
    listed = [entry for entry in provided if name in (None, entry.method.name, entry.plugin.name)]
    if name is not None and not listed and not any(plugin.name == name for plugin in catalog.plugins):
        raise catalog.lack(unknown("method or plugin", name, {entry.method.name for entry in provided}))
    broken = [plugin for plugin in catalog.broken if name in (None, plugin.name)]
    if name is None and form == "text":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo("\n".join(_overview(listed, width)))
        listed = []
    methods = [_describe(entry, detailed=name is not None) for entry in listed]
    if form == "json":
        failures = [{"name": plugin.name, "origin": plugin.origin, "error": plugin.error} for plugin in broken]
        click.echo(json.dumps({"methods": methods, "broken": failures, "clashes": catalog.clashes}, indent=1))
        return 0
    for method in methods:
        click.echo("\n".join(_lines(method)))
    for plugin in broken:
        click.echo(f"broken plugin {plugin.name}  ({plugin.origin}): {plugin.error}")
        if name is not None and plugin.traceback:
            click.echo(plugin.traceback)
    for clash in catalog.clashes:
        click.echo(f"clash: {clash}")
    return 0


def _overview(provided: "Sequence[Provided]", width: int | None) -> Iterator[str]:
    """A line for each method, below its kind, cut to so many characters: name, version, summary."""
    longest = max((len(entry.method.name) for entry in provided), default=0)
    for kind, entries in groupby(provided, key=lambda entry: entry.method.kind):
        yield f"{kind}s, with their versions"
        for method, plugin in ((entry.method, entry.plugin) for entry in entries):
            origin = "" if plugin.shipped else f"({plugin.origin}) "
            line = f"    {method.name:{longest}}  {method.version}  {origin}{_summary(method)}".rstrip()
            yield line if width is None or len(line) <= width else f"{line[: width - 3]}..."
    yield "`zsqbench plugins list NAME` shows the options of one"


def _summary(method: "type[Method]") -> str:
    """The first line of its docstring."""
    return next(iter((method.__doc__ or "").strip().splitlines()), "")


def _describe(provided: "Provided", *, detailed: bool) -> dict[str, Any]:
    """A method with its options, as plain data. In detail, it also has the values that the method fills in."""
    method = provided.method
    properties = method.model_json_schema()["properties"] if method.model_fields else {}
    options = [
        {
            "name": option,
            "type": _type_name(properties[option]),
            "default": None if info.is_required() else properties[option].get("default"),
            "required": info.is_required(),
            "description": info.description or "",
        }
        for option, info in ((info.alias or field, info) for field, info in method.model_fields.items())
    ]
    return {
        "kind": method.kind,
        "name": method.name,
        "version": method.version,
        "plugin": provided.plugin.name,
        "origin": provided.plugin.origin,
        "summary": _summary(method),
        "options": options,
    } | ({"filled_in": [asdict(found) for found in _filled_in(method)]} if detailed else {})


def _filled_in(method: "type[Method]") -> Iterator[FilledIn]:
    """The options that a method fills in, for each preset and each data set. Empty: it fills in none."""
    from zsqbench.methods import DATA_SETS
    from zsqbench.scheme import parse_scheme

    if any(info.is_required() for info in method.model_fields.values()):
        return  # and there is no method to ask
    for preset in method.presets or [""]:
        given = method.model_validate({"preset": preset} if preset else {})
        for name, network in DATA_SETS.items():
            found = given.resolved(network, parse_scheme(SCHEME)).options()
            options = {option: found[option] for option, value in given.options().items() if value != found[option]}
            if options:
                yield FilledIn(preset or None, name, options)


def _lines(method: Mapping[str, Any]) -> Iterator[str]:
    """A method for people."""
    yield f"{method['kind']} {method['name']}  (version {method['version']}, {method['origin']})"
    yield f"    {method['summary']}"
    for option in method["options"]:
        default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
        yield f"    {option['name']}: {option['type']}, {default}  {option['description']}".rstrip()
    if method.get("filled_in"):
        at = f", at scheme {SCHEME}" if method["kind"] == "quantizer" else ""
        yield f"    Values of unset options, by preset and for a network of each data set{at}:"
        yield from (f"        {line}" for line in _table(FilledIn(**found) for found in method["filled_in"]))


def _table(filled_in: Iterable[FilledIn]) -> list[str]:
    """A line for each option, a column for each preset and data set. Data sets with the same values share a column."""
    from tabulate import tabulate

    from zsqbench.methods import DATA_SETS

    columns: list[tuple[str | None, list[str], Mapping[str, Any]]] = []
    for found in filled_in:
        same = [sets for preset, sets, options in columns if (preset, options) == (found.preset, found.options)]
        if same:
            same[0].append(found.data_set)
        else:
            columns.append((found.preset, [found.data_set], found.options))
    titles = [
        " ".join(filter(None, (preset, "/".join(sets) if len(sets) < len(DATA_SETS) else ""))) or "value"
        for preset, sets, _ in columns
    ]
    names = dict.fromkeys(name for _, _, options in columns for name in options)
    rows = [[name, *(_as_text(options.get(name)) for _, _, options in columns)] for name in names]
    table = tabulate(rows, ["option", *titles], tablefmt="plain", disable_numparse=True)
    return [line.rstrip() for line in table.splitlines()]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _type_name(schema: dict[str, Any]) -> str:
    """The type of an option, in the words of YAML."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type_name(part) for part in schema["anyOf"]))
    if schema.get("format") == "path":
        return "path"
    names = {"string": "text", "null": "none", "array": "list"}
    kind = str(schema.get("type", "any"))
    return names.get(kind, kind)
