"""`zsqbench plugins check`: check that methods keep the contract."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from zsqbench.cli.exitcodes import EXIT_FAILED_CELLS
from zsqbench.cli.options import data_root_option, format_option, plugin_options

if TYPE_CHECKING:
    from zsqbench.methods import Method
    from zsqbench.scheme import Scheme
    from zsqbench.testing.conformance import Conformance


@click.command("check")
@click.argument("given", metavar="FILE_OR_NAME")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="An option of the method.")
@click.option("--model", help="For a task: the name of a network that it can load.")
@click.option("--scheme", "schemes", multiple=True, help="For a quantizer: a scheme, as hw/w4a4 (may be repeated).")
@click.option("--suite", help="A suite (a file, or a shipped one) whose schemes may be named, too.")
@click.option("--verbose", "-v", is_flag=True, help="Say of each error in which line it arose, with its traceback.")
@data_root_option
@plugin_options
@format_option
def plugins_check(
    given: str,
    settings: Sequence[str],
    model: str | None,
    schemes: Sequence[str],
    suite: str | None,
    verbose: bool,
    data_root: Path | None,
    plugins: Sequence[Path],
    without: Sequence[str],
    form: str,
) -> int:
    """Check that methods keep the contract: the methods of a plugin FILE, or of an installed plugin with this NAME.

    NAME may also be a method. Each method runs on tiny networks on the CPU, with small values of its options.
    """
    from zsqbench.methods import ModelSpec

    file = [Path(given)] if Path(given).suffix == ".py" else []
    methods = _methods_to_check(given, [*plugins, *file], without)
    options = _options_of(methods, settings)
    spec = None if model is None else ModelSpec(name=model, base=model)
    parsed = _schemes(methods, schemes, suite, plugins, without, data_root)
    from zsqbench.testing.conformance import check_method, reduce_options

    reduced = [reduce_options(*each, data_root) for each in zip(methods, options, strict=True)]
    checked = []
    for each in reduced:
        checked.append(check_method(*each, spec, data_root, parsed))
        if form == "text":
            _print_conformance(checked[-1], verbose)
    if form == "json":
        click.echo(json.dumps([_conformance_as_data(result) for result in checked], indent=1))
    return 0 if all(result.passed for result in checked) else EXIT_FAILED_CELLS


def _methods_to_check(given: str, files: Sequence[Path], without: Sequence[str]) -> "list[type[Method]]":
    """The generators, quantizers and tasks of a plugin file, or of this name, or of the plugin of this name."""
    from zsqbench.errors import ZSQBenchError, unknown
    from zsqbench.plugins import load_plugins

    catalog = load_plugins(files, without)
    catalog.check()
    origin = str(Path(given).resolve()) if Path(given).suffix == ".py" else None
    for plugin in catalog.broken:
        if plugin.origin == origin or (origin is None and plugin.name == given):
            listing = f"--plugin {given}" if origin else given
            raise ZSQBenchError(
                f"plugin {plugin.name} did not load: {plugin.error}; "
                f"`zsqbench plugins list {plugin.name}{f' {listing}' if origin else ''}` prints the traceback"
            )
    provided = {key: entry for key, entry in sorted(catalog.provided.items()) if key[0] != "engine"}
    found = [
        entry.method
        for (_, name), entry in provided.items()
        if (entry.plugin.origin == origin if origin else given in (name, entry.plugin.name))
    ]
    if not found and origin:
        raise ZSQBenchError(f"{given} provides no generator, quantizer or task; return its classes from a hook")
    if not found:
        raise catalog.lack(unknown("method", given, {name for _, name in provided}))
    return found


def _schemes(
    methods: "Sequence[type[Method]]",
    given: Sequence[str],
    suite: str | None,
    plugins: Sequence[Path],
    without: Sequence[str],
    data_root: Path | None,
) -> "list[Scheme]":
    """The schemes of these names. Raises ZSQBenchError for one that is unknown, or where nothing quantizes."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.scheme import PLACEMENTS, parse_scheme
    from zsqbench.suite import find_suite, load_suite

    if suite is not None and not given:
        raise ZSQBenchError("--suite is where schemes are looked for; name one of them with --scheme")
    if given and not any(method.kind == "quantizer" for method in methods):
        raise ZSQBenchError(f"--scheme is for quantizers, and there is only {', '.join(each.name for each in methods)}")
    loaded = None if suite is None else load_suite(find_suite(suite), plugins, without, data_root=data_root)
    return [parse_scheme(text, loaded.placements if loaded else PLACEMENTS) for text in dict.fromkeys(given)]


def _options_of(methods: "Sequence[type[Method]]", settings: Sequence[str]) -> list[dict[str, Any]]:
    """Which of these OPTION=VALUE each method takes. An unknown option goes to the first method, which rejects it."""
    import yaml

    from zsqbench.errors import ZSQBenchError

    options: list[dict[str, Any]] = [{} for _ in methods]
    for text in settings:
        option, equals, value = text.partition("=")
        if not (option and equals):
            raise ZSQBenchError(f"--set {text!r}: expected OPTION=VALUE, such as images=64")
        takers = [
            taken
            for taken, method in zip(options, methods, strict=True)
            if option in {info.alias or name for name, info in method.model_fields.items()}
        ]
        for taken in takers or options[:1]:
            try:
                taken[option] = json.loads(value)  # reads 3e-7 as a number, as a suite does
            except json.JSONDecodeError:
                taken[option] = yaml.safe_load(value)
    return options


def _print_conformance(checked: "Conformance", verbose: bool) -> None:
    from zsqbench.testing.report import Outcome

    method, findings = checked.method, checked.findings
    changed = ", ".join(f"{name}={value}" for name, value in checked.reduced.items())
    click.echo(f"{method.kind} {method.name}{f'  (set for the check: {changed})' if changed else ''}")
    for finding in findings:
        click.echo(f"    {finding.outcome:12}{finding.check}{f': {finding.reason}' if finding.reason else ''}")
        if verbose and finding.origin is not None:
            click.echo("\n".join(f"{'':16}{line}" for line in finding.origin.traceback))
    counts = Counter(finding.outcome for finding in findings)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome) if counts[outcome])
    click.echo(f"    {said}, in {checked.seconds:.0f} s")


def _conformance_as_data(checked: "Conformance") -> dict[str, Any]:
    return {
        "kind": checked.method.kind,
        "name": checked.method.name,
        "passed": checked.passed,
        "set": dict(checked.reduced),
        "seconds": checked.seconds,
        "checks": [asdict(finding) for finding in checked.findings],
    }
