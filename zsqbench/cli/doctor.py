"""`zsqbench doctor`: what is known of a network before a run."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.exitcodes import EXIT_BLOCKED
from zsqbench.cli.networks import LoadedNetwork, load_network
from zsqbench.cli.options import data_root_option, format_option, plugin_options

if TYPE_CHECKING:
    from zsqbench.methods import Kind, Pretrained
    from zsqbench.plugins import Catalog
    from zsqbench.quant import Examination
    from zsqbench.reports.doctor import Accuracy, Checkup
    from zsqbench.scheme import Inspection, Scheme
    from zsqbench.steps import NetworkFacts
    from zsqbench.suite import Suite, Variant

SCHEMES = ("hw/w4a4", "hw_strict/w8a8", "pot/w8a8")
"""What a network is tried at where no suite says it."""

PATIENCE = 2.0
"""Seconds after which it is said what is being done."""

Tell = Callable[[str], None]


@click.command("doctor")
@click.argument("model")
@click.option("--suite", help="A suite (a file, or a shipped one), whose models, methods, schemes and tasks are meant.")
@click.option("--weights", metavar="FILE", help="Take these weights, or seeded random ones for 'none'.")
@click.option("--accuracy/--no-accuracy", default=True, help="Measure the float network on the task of the suite.")
@data_root_option
@plugin_options
@format_option
def doctor(
    model: str,
    suite: str | None,
    weights: str | None,
    accuracy: bool,
    data_root: Path | None,
    plugins: Sequence[Path],
    without: Sequence[str],
    form: str,
) -> int:
    """Examine MODEL before a run: can it be captured and quantized, by which methods, and what in it is hard.

    Exit codes: 0 nothing is in the way, 1 a blocker was found, 2 bad input.
    """
    from zsqbench.plugins import load_plugins
    from zsqbench.reports.doctor import render
    from zsqbench.suite import find_suite, load_suite

    loaded = load_suite(find_suite(suite), plugins, without, data_root=data_root) if suite else None
    catalog = loaded.catalog if loaded else load_plugins(plugins, without)
    tell = _teller()
    network = load_network(model, loaded, data_root, weights)
    made = _check_up(network, loaded, catalog, tell)
    if accuracy and loaded is not None:
        made = replace(made, accuracy=_measure(network, loaded, data_root, tell))
    click.echo(json.dumps(made.as_data(), indent=1) if form == "json" else render(made))
    return EXIT_BLOCKED if made.blockers else 0


def _check_up(network: LoadedNetwork, suite: "Suite | None", catalog: "Catalog", tell: Tell) -> "Checkup":
    from zsqbench.quant import examine
    from zsqbench.reports.doctor import Checkup
    from zsqbench.scheme import parse_scheme

    pretrained = network.pretrained
    pretrained.module.eval().requires_grad_(requires_grad=False)
    tell("examining the network")
    examination = examine(pretrained.module, pretrained.input_size)
    facts = _facts(network, examination)
    schemes = list(suite.schemes.values()) if suite else [parse_scheme(text) for text in SCHEMES]
    generators, quantizers = (_variants(kind, suite, catalog) for kind in _KINDS)
    students = _Students(examination.blocker, by_units=any(map(_runs_by_units, quantizers.values())))
    for scheme in schemes:
        if not scheme.is_float:
            tell(f"preparing a student at {scheme.name}")
            students.inspect(pretrained, scheme)
    return Checkup(
        model=network.spec.name,
        input_size=pretrained.input_size,
        parameters=facts.parameters,
        random_weights=network.spec.random_weights,
        examination=examination,
        students=students.found,
        generators={label: _lack(each, facts, network.spec.name) for label, each in generators.items()},
        quantizers={
            scheme.name: {
                label: _lack(each, facts, network.spec.name, scheme) or students.lack(each, scheme)
                for label, each in quantizers.items()
            }
            for scheme in schemes
        },
        notes=network.notes,
    )


_KINDS: "tuple[Kind, ...]" = ("generator", "quantizer")


class _Students:
    """The students of a network at its schemes: each is prepared and compared with the network once.

    Its units are compared once for all schemes that fold alike, for they are a matter of the graph and not of widths.
    """

    def __init__(self, blocker: str | None, *, by_units: bool) -> None:
        self.found: dict[str, Inspection] = {}
        self._blocker, self._by_units = blocker, by_units
        self._units: dict[bool, str | None] = {}
        """By whether norms are folded: why the network cannot be run unit by unit, or none."""

    def inspect(self, network: "Pretrained", scheme: "Scheme") -> None:
        """Inspect the student at a scheme, unless it is known that there is none."""
        from zsqbench.quant import inspect
        from zsqbench.scheme import Inspection

        if self._blocker is not None:
            self.found[scheme.name] = Inspection(blocker=self._blocker)
            return
        folds = scheme.placement.fold_bn
        by_units = self._by_units and folds not in self._units
        found = inspect(network.module, scheme, network.input_size, by_units=by_units)
        blocker = found.blocker
        if by_units and blocker is not None:  # of the units, or of the student
            found = inspect(network.module, scheme, network.input_size)
        if by_units and found.blocker is None:
            self._units[folds] = blocker
        self.found[scheme.name] = found

    def lack(self, quantizer: "Variant | str", scheme: "Scheme") -> str | None:
        """Why there is no student for a quantizer at a scheme, or none."""
        if isinstance(quantizer, str) or scheme.is_float or not quantizer.chain[-1].quantizer.needs_graph:
            return None
        if self.found[scheme.name].blocker:
            return "see the blocker"
        return self._units.get(scheme.placement.fold_bn) if _runs_by_units(quantizer) else None


def _facts(network: LoadedNetwork, examination: "Examination") -> "NetworkFacts":
    """What methods may demand; a network that no task loaded is a classifier if it returns one row for each image."""
    from zsqbench.steps.resolve import facts_of

    facts = facts_of(network.pretrained, "")
    shapes = [output.shape for output in examination.outputs]
    if network.task is None and len(shapes) == 1 and len(shapes[0]) == 2:  # noqa: PLR2004 - images, classes
        return replace(facts, classes=shapes[0][1])
    return facts


def _variants(kind: "Kind", suite: "Suite | None", catalog: "Catalog") -> "dict[str, Variant | str]":
    """The generators or quantizers of a suite, or all that are installed; a text says why one has no meaning alone."""
    from zsqbench.suite import Variant

    if suite is not None:
        return dict(suite.generators if kind == "generator" else suite.quantizers)
    found: dict[str, Variant | str] = {}
    for name in catalog.names(kind):
        provided = catalog.find(kind, name)
        options = [info.alias or key for key, info in provided.method.model_fields.items() if info.is_required()]
        if options:
            found[name] = f"needs its option {options[0]!r}, which a suite gives"
        else:
            found[name] = Variant(name, provided.method(), provided.plugin)
    return found


def _runs_by_units(variant: "Variant | str") -> bool:
    return not isinstance(variant, str) and any(link.quantizer.by_units for link in variant.chain)


def _lack(variant: "Variant | str", facts: "NetworkFacts", model: str, scheme: "Scheme | None" = None) -> str | None:
    """Why a method cannot run for a network and, of a quantizer, at a scheme, or none."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.steps.needs import unmet_by_network

    if isinstance(variant, str):
        return variant
    for link in variant.chain:
        unmet = unmet_by_network(link.method, facts, model)
        unmet = link.quantizer.rejects(scheme) or unmet if scheme is not None else unmet
        if unmet is not None:
            start = f"starts from {link.label}, which " if link is not variant else ""
            return start + unmet.removeprefix(f"{link.method.name} ")
    try:
        variant.resolved(facts, scheme)
    except ZSQBenchError as error:  # of options that do not go together for this network
        return str(error)
    return None


def _measure(network: LoadedNetwork, suite: "Suite", data_root: Path | None, tell: Tell) -> "Accuracy":
    """What the float network reaches, or why that is not known."""
    import torch

    from zsqbench.errors import ZSQBenchError
    from zsqbench.reports.doctor import Accuracy
    from zsqbench.steps.baseline import check_float_accuracy
    from zsqbench.testing import context

    label = str(network.task)
    task = suite.task(label)
    if network.spec.random_weights:
        return Accuracy(label, task.metric, None, "for its weights are random")
    try:
        task.find_data(data_root)
    except ZSQBenchError as error:
        return Accuracy(label, task.metric, None, f"for {error}")
    tell(f"measuring the float network on {label}")
    try:
        with torch.no_grad():
            metrics = task.evaluate(network.pretrained.module, network.pretrained, context(data_root=data_root)).metrics
        check_float_accuracy(network.spec, task.metric, metrics)
    except ZSQBenchError as error:
        return Accuracy(label, task.metric, None, blocker=str(error))
    return Accuracy(label, task.metric, float(metrics[task.metric]))


def _teller() -> Tell:
    """What says on stderr what is being done, once it takes long."""
    started = time.monotonic()
    return lambda text: click.echo(text, err=True) if time.monotonic() - started > PATIENCE else None
