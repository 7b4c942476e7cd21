"""A written model in ONNX Runtime: is it what was simulated, and how long does it take beside float."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

    from zsqbench.export.comparison import Check
    from zsqbench.export.latency import Times
    from zsqbench.methods import Pretrained

CHECKED = 64
"""How many images are compared at most."""

FLOAT, QUANTIZED = "float", "quantized"


@dataclass(frozen=True)
class Runtime:
    """What the runtime made of a model; times are of one image, on one thread of this processor."""

    check: "Check"
    quantized: "Times"
    unquantized: "Times"
    float_size_mb: float
    processor: str

    @property
    def equal(self) -> float:
        """Percent of images on which it decides as the simulation does."""
        return 100 * self.check.equal / self.check.images


def measure(path: Path, student: "fx.GraphModule", network: "Pretrained", images: "torch.Tensor") -> Runtime:
    """Compare a written model with its student, and time it beside the float network, by turns."""
    from zsqbench.export.comparison import check
    from zsqbench.export.exporting import Description, export_float
    from zsqbench.export.integers import with_integer_biases
    from zsqbench.export.latency import latency
    from zsqbench.export.runtime import processor

    found = check(path, student, with_integer_biases(student), images[:CHECKED], network)
    with tempfile.TemporaryDirectory() as folder:
        plain = export_float(copy.deepcopy(network.module), Description(network), Path(folder) / "float.onnx")
        size = plain.size_mb
        times = latency({QUANTIZED: path, FLOAT: plain.path}, network.input_size, (1,))[1]
    return Runtime(found, times[QUANTIZED], times[FLOAT], size, processor())


def first(output: Any) -> "torch.Tensor":
    """The first tensor of what a network returns."""
    import torch

    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output
