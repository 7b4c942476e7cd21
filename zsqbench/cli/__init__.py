"""The command line: the only place that sets exit codes and prints results (progress and warnings go to stderr).

A command, or a group of commands, is in the file of its name; `leaderboard`, `show` and `results` are in results.py,
`figure` is in report.py, `schema` in suite.py, and `export-images` in exportimages.py.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence

import click

from zsqbench.cli import (
    cache,
    compare,
    doctor,
    embedding,
    export,
    exportimages,
    landscape,
    merge,
    mlflow,
    plan,
    plugins,
    quantize,
    report,
    reproduce,
    results,
    run,
    scheme,
    suite,
)
from zsqbench.cli.exitcodes import EXIT_INTERNAL, EXIT_SIGNAL

PATIENCE = 5.0
"""A plugin may leave threads and exit handlers behind. After so many seconds the command ends without them."""


def run_command() -> None:
    """Run a command, and end the process with it, even if a plugin left something running. This is the entry point."""
    code: object = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
        raise
    finally:
        threading.Thread(target=_end, args=(code,), daemon=True).start()


def _end(code: object) -> None:
    time.sleep(PATIENCE)
    click.echo("warning: a plugin left a thread or a handler at exit that does not end; it was ended", err=True)
    os._exit(code if isinstance(code, int) else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exceptions become exit codes only here."""
    from zsqbench.errors import ZSQBenchError

    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        code = cli.main(arguments, prog_name="zsqbench", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as interruption:
        click.echo("interrupted", err=True)
        code = EXIT_SIGNAL + getattr(interruption, "number", signal.SIGINT)
    except ZSQBenchError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone away, so nobody would read a message
        code = 0
    except Exception:  # noqa: BLE001 - anything else is a bug of ours: show all of it
        traceback.print_exc()
        click.echo("this is a bug of zsqbench; please report it with the lines above", err=True)
        code = EXIT_INTERNAL
    sys.exit(code if isinstance(code, int) else 0)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from zsqbench.reports.results import package_version

        click.echo(package_version("zsqbench"))
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show it.")
def cli() -> None:
    """A benchmark harness for zero-shot (data-free) quantization.

    Exit codes: 0 all cells are done; 1 a cell failed, a blocker was found, a gate failed or merged numbers differ;
    2 wrong usage or configuration; 3 a bug of zsqbench; 4 a plugin that the suite needs did not load, or it failed
    during planning; 5 nothing was selected; 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
    """


for command in (
    run.run,
    quantize.quantize,
    plan.plan,
    results.leaderboard,
    results.show,
    results.export_results,
    compare.compare,
    report.report,
    report.figure,
    embedding.embedding,
    landscape.landscape,
    reproduce.reproduce,
    export.export,
    exportimages.export_images,
    scheme.scheme,
    doctor.doctor,
    suite.schema,
    plugins.plugins,
    merge.merge,
    cache.cache,
    mlflow.mlflow,
):
    cli.add_command(command)
