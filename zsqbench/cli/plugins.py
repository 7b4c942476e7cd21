"""`zsqbench plugins`: what is installed (`list`), a start of one's own (`new`), and its `check` (plugins_check.py)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.options import PATH, format_option, plugin_options
from zsqbench.cli.plugins_check import plugins_check

if TYPE_CHECKING:
    from zsqbench.plugins import Catalog


@click.group()
def plugins() -> None:
    """What is installed, and how to add to it."""


plugins.add_command(plugins_check)


@plugins.command("list")
@click.argument("name", required=False)
@plugin_options
@format_option
def plugins_list(name: str | None, plugins: Sequence[Path], without: Sequence[str], form: str) -> int:
    """List plugins and methods: where they come from, their options, defaults and what these mean."""
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.plugins import load_plugins

    catalog = load_plugins(plugins, without)
    methods = [entry for entry in _methods(catalog) if name in (None, entry["name"], entry["plugin"])]
    if name is not None and not methods and not any(plugin.name == name for plugin in catalog.plugins):
        raise ZSQBenchError(unknown("method or plugin", name, {entry["name"] for entry in _methods(catalog)}))
    broken = [plugin for plugin in catalog.plugins if plugin.error and name in (None, plugin.name)]
    if form == "json":
        failures = [{"name": plugin.name, "origin": plugin.origin, "error": plugin.error} for plugin in broken]
        click.echo(json.dumps({"methods": methods, "broken": failures, "clashes": catalog.clashes}, indent=1))
        return 0
    for entry in methods:
        click.echo(f"{entry['kind']} {entry['name']}  (version {entry['version']}, {entry['origin']})")
        click.echo(f"    {entry['summary']}")
        for option in entry["options"]:
            default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
            click.echo(f"    {option['name']}: {option['type']}, {default}  {option['description']}".rstrip())
    for plugin in broken:
        click.echo(f"broken plugin {plugin.name}  ({plugin.origin}): {plugin.error}")
        if name is not None and plugin.traceback:
            click.echo(plugin.traceback)
    for clash in catalog.clashes:
        click.echo(f"clash: {clash}")
    return 0


@plugins.command("new")
@click.argument("kind", type=click.Choice(["generator", "quantizer", "task"]))
@click.argument("name")
@click.option("--into", "folder", type=PATH, default=Path(), help="Folder to write to [default: this one].")
def plugins_new(kind: str, name: str, folder: Path) -> int:
    """Write a small method that runs, NAME.py, and its test, to start your own from."""
    from zsqbench.plugins import load_plugins
    from zsqbench.templates import write_template

    catalog = load_plugins()
    method, test = write_template(kind, name, folder, [taken for found, taken in catalog.provided if found == kind])
    click.echo(f"wrote {method} and {test}; next:")
    if kind == "task":
        model, digits = " --model edges", f"--set matrix.0.task={name} --set matrix.0.model=edges"
    else:
        model, digits = "", f"--set matrix.0.{kind}={name}"
    click.echo(f"    zsqbench plugins check {method}{model}")
    click.echo(f"    pytest {test}")
    click.echo(f"    zsqbench run smoke --plugin {method} {digits} --results tryout")
    return 0


def _methods(catalog: "Catalog") -> list[dict[str, Any]]:
    """Every installed method with its options, as plain data."""
    entries = []
    for (kind, name), provided in sorted(catalog.provided.items()):
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
        summary = (method.__doc__ or "").strip().splitlines()
        entries.append(
            {
                "kind": kind,
                "name": name,
                "version": method.version,
                "plugin": provided.plugin.name,
                "origin": provided.plugin.origin,
                "summary": summary[0] if summary else "",
                "options": options,
            }
        )
    return entries


def _type_name(schema: dict[str, Any]) -> str:
    """The type of an option, as a reader of YAML would say it."""
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
