"""Faults for tests of several files: files that are damaged, disks that are full, methods that misbehave."""

import errno
import json

from zsqbench.store import manifest_text


def flip(path, position=None):
    """Change one bit of a file, in its middle if not told where."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def no_space(*_, **__):
    """The error that writing to a full disk raises."""
    raise OSError(errno.ENOSPC, "No space left on device")


def bad_generator(bench, body):
    """Add a generator `bad` of Gaussian noise x that does this before it returns."""
    bad_generators(bench, {"bad": body})


def bad_generators(bench, bodies):
    """Add such generators by their names."""
    classes = [
        f"""
class {name.capitalize()}(Toy):
    name = "{name}"

    def generate(self, teacher, ctx):
        labels = None
        x = ctx.randn(self.images, *teacher.input_size)
        {body}
        return zsqbench.CalibrationSet(x, labels)
"""
        for name, body in bodies.items()
    ]
    bench.add_plugin("\n".join(["import torch", *classes]))


def rewrite_manifest(folder, **changes):
    """Change a manifest and give it a checksum that fits, as another version of zsqbench might have written it."""
    path = folder / "manifest.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"} | changes
    path.write_text(manifest_text(kept))
