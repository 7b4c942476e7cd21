"""`zsqbench quantize`: make an ONNX file of integers from a network, without data."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zsqbench.cli.checkup import check_up
from zsqbench.cli.exitcodes import EXIT_BLOCKED, EXIT_SIGNAL
from zsqbench.cli.networks import load_network
from zsqbench.cli.options import PATH, home_option

if TYPE_CHECKING:
    from zsqbench.autoquantize.request import Request


def _numbers(kind: type) -> Any:
    """A callback for an option with numbers between commas."""

    def parse(_: click.Context, parameter: click.Parameter, text: str | None) -> list[Any] | None:
        try:
            return None if text is None else [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a list of numbers such as {parameter.metavar}") from error

    return parse


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=PATH, required=True, help="The ONNX file to write. A page is written beside it.")
@click.option("--images", type=PATH, metavar="FOLDER", help="Judge on these images. Class folders are possible.")
@click.option("--target", type=click.Choice(["int8", "int4"]), default="int8", show_default=True)
@click.option("--budget", default="20m", show_default=True, help="Time that the search may take: 90s, 20m, 1h.")
@click.option("--weights", metavar="FILE", help="A file; 'built': the .py file loads them; 'none': random.")
@click.option("--input-size", metavar="C,H,W", callback=_numbers(int), help="Input size of the network of a .py file.")
@click.option("--mean", metavar="R,G,B", callback=_numbers(float), help="Mean of its training pixels, 0 to 1.")
@click.option("--std", metavar="R,G,B", callback=_numbers(float), help="Standard deviation of these pixels.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of a step.")
@click.option("--workers", type=click.IntRange(0, 1), default=1, hidden=True, help="0: no worker process.")
@home_option
def quantize(
    model: str, output: Path, images: Path | None, target: Any, budget: str, home: Path, **options: Any
) -> int:
    """Quantize MODEL without data. Try candidates within a budget, judge them without labels, write the best as ONNX.

    MODEL is a name, such as torchvision/resnet18, or a .py file with a function build(), which needs --weights. After
    an interruption, run the same command again: it continues. Exit codes: 1 a blocker was found, 2 bad input.
    """
    from zsqbench.autoquantize.delivery import check_extra, check_output
    from zsqbench.autoquantize.request import Request, check_images, model_entry
    from zsqbench.autoquantize.runtime import on_threads
    from zsqbench.durations import parse_duration

    started, seconds = time.monotonic(), parse_duration(budget, "budget")
    check_output(output)
    check_extra()
    if images is not None:
        check_images(images)
    fed = {name: options[name] for name in ("weights", "input_size", "mean", "std")}
    entry = model_entry(model, **fed)
    request = Request(model, entry, target, seconds, home.resolve(), images, options["threads"], options["workers"])
    with on_threads(request.threads):
        return _quantize(request, output, started)


def _quantize(request: "Request", output: Path, started: float) -> int:
    """Examine, search, deliver and report. Returns the exit code. The budget began at `started`."""
    from zsqbench.autoquantize.candidates import LEVELS
    from zsqbench.autoquantize.delivery import all_or_none, deliver, pages_of
    from zsqbench.autoquantize.report import make_page
    from zsqbench.autoquantize.search import Search
    from zsqbench.autoquantize.suites import held_out_suite
    from zsqbench.suite import load_suite

    suite = load_suite(held_out_suite(request, LEVELS[0]))
    network = load_network("network", suite)
    network = replace(network, spec=network.spec.model_copy(update={"name": request.model}))
    by_outputs = replace(network, task=None)  # the task of that suite makes no classifier of any network
    checkup = check_up(by_outputs, suite, suite.catalog, None, _tell)
    if checkup.blockers:
        for line in checkup.blockers:
            click.echo(f"blocker: {line}")
        return EXIT_BLOCKED
    lacks = {name: why for name, why in {**checkup.generators, **checkup.quantizers[request.scheme]}.items() if why}
    shapes = [each.shape for each in checkup.examination.outputs]
    classifies = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1  # noqa: PLR2004 - images, classes
    search = Search(
        request,
        network.pretrained,
        checkup.parameters,
        checkup.students[request.scheme].weights,
        "agreement" if classifies else "fidelity",
        any("relu6" in name.lower() for name in checkup.examination.bounded),
        lacks,
        _tell,
        started,
    )
    found = search.run()
    if found.signal is not None:
        click.echo("interrupted; the same command goes on from what is done", err=True)
        return EXIT_SIGNAL + found.signal
    _tell(f"writing {output}, and running it")
    with all_or_none(output):
        delivered = deliver(request, found, network.pretrained, output)
        page = make_page(request, found, checkup, network.pretrained, delivered)
        for file, content in zip(pages_of(output), (f"{page.text()}\n", page.html()), strict=True):
            file.write_text(content, encoding="utf-8")
    click.echo(page.text())
    return 0


def _tell(text: str) -> None:
    click.echo(text, err=True)
