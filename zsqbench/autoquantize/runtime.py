"""A written model in ONNX Runtime: compare it with the simulation, and time it beside the float network."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.export.comparison import Check
    from zsqbench.export.latency import Times
    from zsqbench.methods import Pretrained

FLOAT, QUANTIZED = "float", "quantized"


@dataclass(frozen=True)
class Runtime:
    """The findings of the runtime on a model. Times are for one image, on one thread of this processor."""

    check: "Check"
    quantized: "Times"
    unquantized: "Times"
    float_size_mb: float
    processor: str

    @property
    def saturates(self) -> bool:
        """True if the model needs the session's entry `session.x64quantprecision` on this processor."""
        return self.check.equal_saturating is not None


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads in this process meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(path: Path, student: "fx.GraphModule", network: "Pretrained", images: "torch.Tensor") -> Runtime:
    """Compare a written model with its student, and time it and the float network in turns."""
    from zsqbench.export.exporting import Description, export_float
    from zsqbench.export.latency import latency
    from zsqbench.export.runtime import CPU, processor
    from zsqbench.steps.export import compare_file

    found = compare_file(path, student, images, network, (CPU,))
    with tempfile.TemporaryDirectory() as folder:
        plain = export_float(copy.deepcopy(network.module), Description(network), Path(folder) / "float.onnx")
        size = plain.size_mb
        times = latency({QUANTIZED: path, FLOAT: plain.path}, network.input_size, (1,))[1]
    return Runtime(found, times[QUANTIZED], times[FLOAT], size, processor())
