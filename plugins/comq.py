"""COMQ: A Backpropagation-Free Algorithm for Post-Training Quantization (Zhang et al., IEEE Access 2025)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, auto
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Grids, QuantizedLayer

COLUMNS = 32
"""Number of columns that are visited before the effect of their moves on all others is added up."""
PANEL = 256
"""Rows of a Gram matrix that are computed at a time. Half of the matrix follows by symmetry."""
PLACES = 2**12
"""Positions whose products are summed in float32, before the sum is added to a Gram matrix in float64."""


class COMQ(zsqbench.UnitQuantizer):
    """Coordinate descent on |X (W - Q)|^2 layer by layer, without gradients; activations as in `rtn`.

    Each output channel w has the grid from its smallest to its largest value. `scalar` shrinks the step of the grid
    after its first point round(min / step) was found. A sweep starts from Q = W and visits each column j once. It puts
    Q_j on the grid point nearest to Q_j + X_j'X (w - Q) / |X_j|^2. There the error of the channel is least while all
    other columns stay. X are the layer's inputs in the float network, all positions of all images. Only the Gram matrix
    X'X is kept, in float64. `greedy` visits the columns of each channel in descending |w_j| |X_j|. Activation ranges
    are chosen at the end, with all weights quantized.

    The default preset is `paper`, whose text could not be read beyond abstracts and summaries. It covers convolutions,
    whose inputs are unfolded, and linear layers alike. The step is one more coordinate, which is set to the least error
    after each sweep. `released` is the code (commit fecf9ea). The code has no licence, so it was written anew from a
    description. It covers linear layers alone, and steps stay. Layers left out are rounded to nearest on the same
    grids.

    Deviations:

    - The scheme decides the bits of each tensor. The code leaves activations, the classifier and convolutions in float.
      It finds the classifier by a number that holds for one version of a library.
    - X comes from the calibration set. The code draws 1,024 training images anew for each layer and augments them.
    - In the code steps do not learn.
    - A scheme may demand symmetric grids, which the code does not have. The grid is then the finest one that holds the
      channel, with its middle at zero.
    - A column whose inputs are all zero is rounded to nearest. The code divides 0 by 0.
    - Each group of a convolution has its own Gram matrix, so depthwise convolutions need no special case.
    - A layer that reads its own earlier output is searched at its first call.
    - Sums over moved columns are sums of float32 products.
    - The fine-tuning of norms and biases with labels (`--batchtuning`) is not implemented, because it needs labels.
      Published values at 2 bits may include it.
    """

    name = "comq"
    seeded = False
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")
    activation_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric", "power_of_two")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"layers": "all", "update_scale": True},
        "released": {"layers": "linear", "update_scale": False},
    }

    preset: Literal["paper", "released"] = Field("paper", description="values of the options that are not given")
    layers: Auto[Literal["all", "linear"]] = auto(
        description="layers whose codes are searched: convolutions and linear ones, or linear ones alone"
    )
    update_scale: Auto[bool] = auto(description="set the steps of weights to the least error after each sweep")
    sweeps: int = Field(1, ge=0, description="visits of each column; 0: weights are rounded to nearest")
    greedy: bool = Field(True, description="visit the columns of a channel in descending |w_j| |X_j|; false: in order")
    scalar: float = Field(1.0, gt=0, le=1, description="factor of the steps of weights")
    per_channel: bool = Field(
        True, description="true: a grid for each output channel of a weight; false: one grid for the weight"
    )
    batch_size: int = Field(32, gt=0, description="images of a forward pass")
    activation_range: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="method that chooses activation ranges"
    )
    search_images: int = Field(
        64, gt=0, description="images on which activation ranges are chosen; without effect with minmax"
    )

    def grids_at(self, scheme: Scheme) -> "Grids":
        """The grids that the scheme demands, for channels or whole weights."""
        return replace(super().grids_at(scheme), per_channel=self.per_channel)

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Choose the codes of each layer, then activation ranges. Raises ZSQBenchError without calibration images."""
        import torch

        from zsqbench.quant import calibrate_activations_by, check_images, memory_errors

        self, images = self.resolved(teacher, ctx.scheme), self.images_of(data)
        check_images(images, teacher.input_size)
        bounds = {"batch_size": self.batch_size, "host_memory": self.host_memory, "device_memory": self.device_memory}
        with memory_errors(ctx.device, bounds), torch.no_grad():
            self._quantize_weights(student, images, ctx)
        with memory_errors(ctx.device, {"search_images": self.search_images}):
            calibrate_activations_by(
                self.activation_range, student, images, self.search_images, batch_size=self.batch_size
            )

    def _quantize_weights(self, student: "fx.GraphModule", images: "Tensor", ctx: "StepContext") -> None:
        """Go through the float network unit by unit, so that only the inputs of one unit are kept."""
        from zsqbench.quant import find_units
        from zsqbench.quant.reconstruction.activation_cache import ActivationCache, LiveTensors
        from zsqbench.quant.reconstruction.propagation import in_float, push

        memory, units, done = self.memory(ctx.device), find_units(student, "layer"), set[str]()
        placeholder = next(node.name for node in student.graph.nodes if node.op == "placeholder")
        live: LiveTensors = {placeholder: ActivationCache.of(images, memory)}
        for place, unit in enumerate(units):
            needed = {tensor for later in units[place + 1 :] for tensor in later.inputs}
            found = {path: layer for path, layer in unit.layers if path not in done}
            searched = {path: layer for path, layer in found.items() if self.sweeps and self._searches(layer)}
            with in_float(unit), gram_matrices(searched) as grams:
                live = push(unit, live, needed, self.batch_size, memory, lambda *_: None)
            for path, layer in found.items():
                self._set_grid(layer)
                if path in searched:
                    ctx.log(f"error/{path}", self._search(layer, grams.pop(path)))
            done |= found.keys()
            ctx.progress(place + 1, len(units))

    def _searches(self, layer: "QuantizedLayer") -> bool:
        from torch import nn

        return self.layers == "all" or isinstance(layer, nn.Linear)

    def _set_grid(self, layer: "QuantizedLayer") -> None:
        from zsqbench.quant import affine_parameters, minmax

        quantizer = layer.weight_quantizer
        low, high = minmax(layer.weight.double(), quantizer.axis)
        if quantizer.grid == "symmetric":
            quantizer.set_range(low, high)
            quantizer.set_parameters(quantizer.scale * self.scalar, quantizer.zero_point)
        else:
            scale, zero_point = affine_parameters(low, high, quantizer.bits)
            quantizer.set_parameters(scale * self.scalar, zero_point)

    def _search(self, layer: "QuantizedLayer", gram: "Tensor") -> float:
        """Choose the codes of a layer. Returns the error of its outputs, divided by the outputs' norm."""
        quantizer, rows = layer.weight_quantizer, layer.weight.flatten(1).double()
        scale, zero_point = (values.double().view(-1, 1) for values in (quantizer.scale, quantizer.zero_point))
        codes, scale, error = descend(
            rows,
            gram,
            scale,
            zero_point,
            quantizer.bits,
            sweeps=self.sweeps,
            greedy=self.greedy,
            update_scale=bool(self.update_scale),
        )
        quantizer.set_parameters(scale, zero_point)
        layer.choose(codes.view_as(layer.weight))
        return error


@contextmanager
def gram_matrices(layers: "dict[str, QuantizedLayer]") -> "Iterator[dict[str, Tensor]]":
    """X'X of the inputs of each layer until the block ends: float64 [groups, weights, weights], by path.

    X are the unfolded inputs of all calls. The inputs themselves are not changed.
    """
    import torch

    grams: dict[str, Tensor] = {}

    def adding(path: str) -> Any:
        def add(layer: Any, given: "tuple[Tensor, ...]", named: "dict[str, Any]") -> None:
            x, *rest = given
            places = layer.unfolded(x[:1], *rest, **named).shape[-1]
            for part in torch.split(x, max(1, PLACES // places)):
                taps = layer.unfolded(part, *rest, **named).float().movedim(0, 2).flatten(2)
                if path not in grams:
                    grams[path] = taps.new_zeros(len(taps), taps.shape[1], taps.shape[1], dtype=torch.float64)
                for start in range(0, taps.shape[1], PANEL):
                    rows = slice(start, start + PANEL)
                    grams[path][:, rows, start:] += taps[:, rows] @ taps[:, start:].mT

        return add

    hooks = [layer.register_forward_pre_hook(adding(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()
    for gram in grams.values():
        upper = gram.triu(1)
        gram.triu_().add_(upper.mT)


def descend(
    weight: "Tensor",
    gram: "Tensor",
    scale: "Tensor",
    zero_point: "Tensor",
    bits: int,
    *,
    sweeps: int = 1,
    greedy: bool = True,
    update_scale: bool = False,
) -> "tuple[Tensor, Tensor, float]":
    """The codes [out, columns] of a weight of this shape, their steps, and the error |X (W - Q)| / |X W|.

    All are float64. `gram` [groups, columns, columns] is X'X of each group of channels. Steps and zero points are those
    of the grid, whose codes are 0 .. 2^bits - 1. Their shape is [out, 1], or [1, 1] for one grid.
    """
    import torch
    from torch.nn import functional

    from zsqbench.quant import quantize

    groups, columns, _ = gram.shape
    members = len(weight) // groups
    table, products = gram.flatten(0, 1), gram.flatten(0, 1).float()
    first = (torch.arange(groups, device=weight.device) * columns).repeat_interleave(members)[:, None]
    squares = gram.diagonal(dim1=1, dim2=2).repeat_interleave(members, 0)  # |X_j|^2
    rank = weight.abs() * squares.sqrt() if greedy else -torch.arange(columns, device=weight.device).expand_as(weight)
    order = rank.argsort(dim=1, descending=True, stable=True)
    point, pull = weight.clone(), torch.zeros_like(weight)  # Q, and X'X (w - Q)
    codes = quantize(weight, scale, zero_point, bits)
    target = _times(weight, gram)
    for _ in range(sweeps):
        for visited in torch.split(order, COLUMNS, 1):
            among = table[
                (first + visited)[:, :, None], visited[:, None]
            ]  # block of the columns that are visited together
            values, forces, norms = (each.gather(1, visited) for each in (point, pull, squares))
            chosen, moves = torch.empty_like(values), torch.empty_like(values)
            for place in range(visited.shape[1]):
                norm = norms[:, place, None]
                best = values[:, place, None] + torch.where(norm > 0, forces[:, place, None] / norm, 0)
                chosen[:, place, None] = quantize(best, scale, zero_point, bits)
                moves[:, place, None] = values[:, place, None] - (chosen[:, place, None] - zero_point) * scale
                forces[:, place + 1 :] += moves[:, place, None] * among[:, place, place + 1 :]
            codes.scatter_(1, visited, chosen)
            point.scatter_(1, visited, values - moves)
            rows, amounts = (first + visited), moves.float()
            pull += functional.embedding_bag(rows, products, per_sample_weights=amounts, mode="sum")
        if update_scale:
            scale = _best_scale(codes - zero_point, target, gram, scale)
        point = (codes - zero_point) * scale
        pull = target - _times(point, gram)  # exact again
    error = ((weight - point) * pull).sum() / (weight * target).sum()
    return codes, scale, max(0.0, error.nan_to_num().item()) ** 0.5


def _times(rows: "Tensor", gram: "Tensor") -> "Tensor":
    """Rows [out, columns] times the Gram matrix of their group."""
    return (rows.view(len(gram), -1, rows.shape[1]) @ gram).view_as(rows)


def _best_scale(steps: "Tensor", target: "Tensor", gram: "Tensor", scale: "Tensor") -> "Tensor":
    """The s > 0 of each grid with the least |x (w - s q)|^2: q'Gw / q'Gq; without such an s, the old scale."""
    import torch

    wanted = (steps * target).sum(1, keepdim=True)
    length = (steps * _times(steps, gram)).sum(1, keepdim=True)
    if len(scale) == 1:
        wanted, length = wanted.sum(0, keepdim=True), length.sum(0, keepdim=True)
    best = wanted / length
    return torch.where((wanted > 0) & best.isfinite(), best, scale)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `comq`."""
    return [COMQ]
