"""Runs in processes of their own, which tests interrupt and kill."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zsqbench

PATIENCE = 60.0
"""Seconds that a test waits for a run."""


WAITS = """
import time
class Waits(Toy):
    name = "waits"
    def generate(self, teacher, ctx):
        note("waits")
        (HERE / "started").touch()
        while not (HERE / "go").exists():
            time.sleep(0.1)
        return super().generate(teacher, ctx)
"""
"""A generator that goes on where a test says so."""


def check_rows(bench, *engine, workers):
    """The rows of a suite on an engine are those that one process gives."""

    def rows():
        names = ("keys", "metrics", "definition", "status")
        return [[row[name] for name in names] for row in bench.rows().values()]

    bench.matrix("quantizer: [toyq, unseeded]")
    bench.run_anew("here")
    here = rows()
    said = bench.run_anew("there", *engine, workers=workers)
    assert (said.code, rows()) == (0, here), said.err


def simulated(node):
    """The start of a command that runs as on another machine: with a host name and numbers of processes of its own."""
    apart = [shutil.which("unshare"), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*apart, "/bin/sh", "-c", f'hostname {node}; exec "$@"', "sh"]


class Started:
    """A run of a bench's suite with one worker. Its generator `slow` makes the file `started` and does not end."""

    def __init__(self, bench, block, *arguments, more="", node=""):
        self.bench = bench
        bench.add_plugin(
            """
import time
class Slow(Toy):
    name = "slow"
    def generate(self, teacher, ctx):
        note("slow")
        (HERE / "started").touch()
        time.sleep(600)
"""
            + more
        )
        bench.matrix(block)
        bench.write(
            "start.py",
            """
            import signal, sys
            from zsqbench.cli import main
            if __name__ == "__main__":
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it as ignored
                signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does one under nohup
                main(sys.argv[1:])
            """,
        )
        command = ["run", bench.file, "--workers", 1, "--no-plugin", "mlflow", *bench.places(), *arguments]
        self.process = subprocess.Popen(
            [*(simulated(node) if node else ()), sys.executable, bench.folder / "start.py", *map(str, command)],
            env=os.environ | {"PYTHONPATH": str(Path(zsqbench.__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, name):
        """Wait until a plugin has made a file of this name in the folder."""
        self.wait_until((self.bench.folder / name).exists)

    def wait_until(self, holds):
        """Wait until something holds; the test fails where it never does."""
        deadline = time.monotonic() + PATIENCE
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not holds():
            self.process.kill()
            pytest.fail("".join(self.process.communicate()))

    def end(self):
        """Exit code, and all that it said."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out + err
