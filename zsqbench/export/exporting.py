"""Write a finalized student, or a float network, as an ONNX file."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from zsqbench.compat import tree_places
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.export import IR_VERSION, OPSET
from zsqbench.export.integers import with_integer_biases
from zsqbench.export.options import ExportOptions
from zsqbench.export.storedweights import store_in_four_bits
from zsqbench.export.symbols import with_symbols
from zsqbench.export.tidying import feed_pixels, tidy
from zsqbench.methods import Pretrained
from zsqbench.quant import quantized_layers

MB = 1e6

IMAGE = "image"
"""The name of the network's input."""

_EXAMPLES = 2
"""Number of images for the exporter. The file takes any number."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    outputs: Mapping[str, str]
    """The meaning of each output, by its name: a layer, or a place in the structure that the network returns."""
    notes: Sequence[str] = ()

    @property
    def size_mb(self) -> float:
        """Its size in units of 10^6 bytes."""
        return self.path.stat().st_size / MB


@dataclass(frozen=True)
class Description:
    """The description in a file, besides the network."""

    pretrained: Pretrained
    classes: Sequence[str] = ()
    """Names of the classes, in the order of the outputs."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Its origin, such as the cell."""

    def metadata(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """The description as texts for the file. Values that are not plain texts are JSON."""
        fed = self.pretrained
        feeding = {
            "input_size": fed.input_size,
            "mean": fed.mean,
            "std": fed.std,
            "value_range": fed.value_range,
            **fed.preprocessing,
        }
        found: dict[str, Any] = {"preprocessing": feeding, "outputs": dict(outputs), "origin": dict(self.origin)}
        if self.classes:
            found["classes"] = list(self.classes)
        return {f"zsqbench.{name}": json.dumps(value) for name, value in found.items()}


def export_student(
    student: fx.GraphModule, description: Description, path: Path, options: ExportOptions | None = None
) -> Exported:
    """Write a finalized student as an ONNX file of integers, with QuantizeLinear and DequantizeLinear.

    Raises ZSQBenchError if ONNX has no form for an operator of the network, if a grid does not hold zero, if the
    network was not quantized by `zsqbench.quant`, and if the file cannot be written.
    """
    options = options or ExportOptions()
    if not isinstance(student, fx.GraphModule):
        raise ZSQBenchError(
            f"the quantized network is a {type(student).__name__}, not one that zsqbench.quant.prepare made; only "
            "those can be exported"
        )
    integers = with_integer_biases(student.cpu().eval())
    model, outputs = _exported(with_symbols(integers.student, integers.biases), description, options)
    tidy(model)
    notes = []
    if integers.widened:
        notes.append(
            f"{integers.widened} channels have coarser weights, because their biases do not fit on a finer scale"
        )
    if options.weights == "int4":
        bits = {name: layer.weight_quantizer.bits for name, layer in quantized_layers(student)}
        stored = store_in_four_bits(model, lambda name: bits.get(name, 32))
        notes.append(
            f"{stored} layers have weights of 4 bits, which runtimes turn into floats: these layers run in float"
        )
    return _written(model, outputs, description, path, options, notes)


def export_float(
    module: nn.Module, description: Description, path: Path, options: ExportOptions | None = None
) -> Exported:
    """Write a float network as an ONNX file, to compare with. Raises ZSQBenchError as `export_student` does."""
    options = options or ExportOptions()
    return _written(*_exported(module.cpu().eval(), description, options), description, path, options, [])


def _exported(
    module: nn.Module, description: Description, options: ExportOptions
) -> tuple[ir.Model, Mapping[str, str]]:
    """The graph of a module from torch's exporter, for any number of images, and a description of its outputs."""
    shown = torch.zeros(_EXAMPLES, *description.pretrained.input_size)
    try:
        outputs = output_names(module, description.pretrained)
        with _quiet():
            program = torch.onnx.export(
                module,
                (shown,),
                dynamo=True,
                opset_version=options.opset,
                input_names=[IMAGE],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        raise ZSQBenchError(f"the network cannot be written as ONNX: {_cause(error)}") from error
    assert program is not None  # noqa: S101 - the exporter writes no file itself
    return program.model, outputs


def output_names(module: nn.Module, pretrained: Pretrained) -> dict[str, str]:
    """The outputs of a network by their names in a file, each with its layer or its place."""
    with torch.no_grad():
        returned = outputs_of(module, pretrained)
    places = [place or "the output" for place in tree_places(returned)]
    told = list(pretrained.outputs) if len(pretrained.outputs) == len(places) else places
    return {f"output_{index}" if len(places) > 1 else "output": name for index, name in enumerate(told)}


@torch.no_grad()
def outputs_of(module: nn.Module, pretrained: Pretrained) -> Any:
    """The outputs of a network for an image of zeros, in its own structure. A symbolic student also returns zeros."""
    return module(torch.zeros(1, *pretrained.input_size))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages of torch's exporter on its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The line in the exporter's long message that names the obstacle."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _written(
    model: ir.Model,
    outputs: Mapping[str, str],
    description: Description,
    path: Path,
    options: ExportOptions,
    notes: list[str],
) -> Exported:
    model.ir_version = max(IR_VERSION, model.ir_version if options.opset > OPSET else IR_VERSION)
    model.producer_name, model.producer_version = "zsqbench", ""
    _forget_traces(model)
    model.metadata_props.update(description.metadata(outputs))
    if options.input == "uint8":
        feed_pixels(model, *_pixels(description.pretrained))
    try:
        ir.save(model, path)
    except OSError as error:
        raise ZSQBenchError(f"cannot write {path}: {error.strerror or error}; give another file") from error
    return Exported(path, outputs, notes)


def _forget_traces(model: ir.Model) -> None:
    """Remove the data that torch's exporter adds on itself and on the machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for each in (model, graph, *graph, *values):
        each.metadata_props.clear()
        each.doc_string = None


def _pixels(pretrained: Pretrained) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each channel, the pixel that is zero in the network's space, and the step of a pixel there."""
    black, white = pretrained.value_range
    step = (white - black) / 255
    mean, std = np.array(pretrained.mean), np.array(pretrained.std)
    return (mean - black) / step, step / std
