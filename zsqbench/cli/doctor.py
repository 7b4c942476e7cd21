"""`zsqbench doctor`: what is known of a network before a run."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zsqbench.cli.checkup import Tell, check_up
from zsqbench.cli.exitcodes import EXIT_BLOCKED
from zsqbench.cli.networks import LoadedNetwork, load_network
from zsqbench.cli.options import data_root_option, format_option, plugin_options

if TYPE_CHECKING:
    from zsqbench.reports.doctor import Accuracy
    from zsqbench.suite import Suite

PATIENCE = 2.0
"""After so many seconds a command says what it is doing."""


@click.command("doctor")
@click.argument("model")
@click.option("--suite", help="Take models, methods, schemes and tasks of this suite (file or name).")
@click.option("--weights", metavar="FILE", help="A file of weights; 'none' stands for seeded random weights.")
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
    """Examine MODEL before a run. Show if it can be captured and quantized, by which methods, and which parts are hard.

    Exit codes: 0 no blocker, 1 a blocker was found, 2 bad input.
    """
    from zsqbench.plugins import load_plugins
    from zsqbench.reports.doctor import render
    from zsqbench.suite import find_suite, load_suite

    loaded = load_suite(find_suite(suite), plugins, without, data_root=data_root) if suite else None
    catalog = loaded.catalog if loaded else load_plugins(plugins, without)
    tell = _teller()
    network = load_network(model, loaded, data_root, weights)
    made = check_up(network, loaded, catalog, data_root, tell)
    if accuracy and loaded is not None:
        made = replace(made, accuracy=_measure(network, loaded, data_root, tell))
    click.echo(json.dumps(made.as_data(), indent=1) if form == "json" else render(made))
    return EXIT_BLOCKED if made.blockers else 0


def _measure(network: LoadedNetwork, suite: "Suite", data_root: Path | None, tell: Tell) -> "Accuracy":
    """The accuracy of the float network, or why it is not known."""
    import torch

    from zsqbench.errors import ZSQBenchError
    from zsqbench.reports.doctor import Accuracy
    from zsqbench.steps.baseline import check_float_accuracy
    from zsqbench.testing import context

    label = str(network.task)
    task = suite.task(label)
    if network.spec.random_weights:
        return Accuracy(label, task.metric, None, "because its weights are random")
    try:
        task.find_data(data_root)
    except ZSQBenchError as error:
        return Accuracy(label, task.metric, None, f"because {error}")
    tell(f"measuring the float network on {label}")
    try:
        with torch.no_grad():
            metrics = task.evaluate(network.pretrained.module, network.pretrained, context(data_root=data_root)).metrics
        check_float_accuracy(network.spec, task.metric, metrics)
    except ZSQBenchError as error:
        return Accuracy(label, task.metric, None, blocker=str(error))
    return Accuracy(label, task.metric, float(metrics[task.metric]))


def _teller() -> Tell:
    """A function that says on stderr what is being done, if it takes long."""
    started = time.monotonic()
    return lambda text: click.echo(text, err=True) if time.monotonic() - started > PATIENCE else None
