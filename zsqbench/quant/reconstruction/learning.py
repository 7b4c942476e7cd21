"""Learning one unit: the rounding of its weights and the step sizes of its activations, by gradient descent."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.graph.units import Unit
from zsqbench.quant.grids.affine import levels
from zsqbench.quant.grids.fake_quant import ActivationQuantizer, QuantizedLayer, TensorQuantizer, WeightQuantizer
from zsqbench.quant.ranges.calibration import switched
from zsqbench.quant.reconstruction.activation_cache import Cache, Frontier, Memory, batches
from zsqbench.quant.reconstruction.losses import Fisher, reconstruction_loss
from zsqbench.quant.reconstruction.rounding import Annealing, SoftRounding

F = TypeVar("F", bound=Callable[..., Any])

POINTS = 200
"""Points of a curve that are kept for each unit."""

SMALLEST_STEP = 1e-3
"""A learned scale stays above this part of what it was at first: Adam could take it through zero."""

Draws = Literal["permutation", "epoch", "replacement"]
"""How images of a batch are drawn: the first of a new permutation, in turn through a permutation, or independently."""

Source = Literal["quantized", "float", "mixed"]
"""What a unit reads while it learns: outputs of the quantized units before it, of the float ones, or of both."""


class Context(Protocol):
    """What of a step's context reconstruction uses."""

    device: torch.device
    rng: torch.Generator

    def log(self, name: str, value: float | Tensor, step: int = 0) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Say how far it is."""

    def note(self, line: str) -> None:
        """Keep a line for people."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state."""

    def resume(self) -> dict[str, Any] | None:
        """The state that was kept last."""

    def compile(self, function: F) -> F:
        """Compile where the settings say so."""


@dataclass(frozen=True)
class Rounding:
    """How weights learn whether to round up or down."""

    lr: float = 1e-3
    regularizer: float = 0.01
    annealing: Annealing = field(default_factory=Annealing)
    scale_lr: float | None = None
    """Learn the weights' scales, too, with this rate, annealed by a cosine (GENIE-M)."""


@dataclass(frozen=True)
class StepSizes:
    """How activations learn their step sizes; rates are annealed by a cosine to zero."""

    lr: float = 4e-4
    lsq: bool = False
    """Multiply gradients by 1 / sqrt(elements * largest code), as LSQ does."""


@dataclass(frozen=True)
class Recipe:
    """What is learned in a stage of reconstruction, and how."""

    iterations: int
    batch_size: int = 32
    rounding: Rounding | None = None
    step_sizes: StepSizes | None = None
    quantize_activations: bool = False
    source: Source = "quantized"
    drop: float = 0.0
    """Probability of an element to stay float: behind each activation quantizer and, where `mixed`, of the input."""
    power: float = 2.0
    """p of the loss sum |y' - y|^p over channels, averaged over images and places."""
    fisher: Fisher | None = None
    draws: Draws = "permutation"
    layer_draws: Draws | None = None
    """The same for units of one layer, where that differs."""


@dataclass
class Learning:
    """One unit in one stage, with what it reads and is to give. Its loss is that of the recipe, over all images."""

    unit: Unit
    recipe: Recipe
    ctx: Context
    memory: Memory
    inputs: Frontier
    """What the unit reads."""
    plain: Frontier
    """The same values of the float network."""
    targets: Mapping[str, Cache]
    """What its outputs are to be: what they are in the float network."""
    layers: Sequence[QuantizedLayer]
    """Those whose rounding is learned."""
    later: Sequence[Unit]
    curve: str
    """Name of the stage and the unit, for the log."""
    tick: Callable[[], None]
    """Called after each iteration."""

    def run(self, needed: set[str]) -> tuple[float, float, dict[str, Cache]]:
        """Learn, and keep what was learned unless it is worse.

        Returns the loss before and after, and what is live and needed behind the unit.
        """
        rounded = [layer.weight_quantizer for layer in self.layers]
        steps = [quantizer.scale.clone() for quantizer in self._learned_quantizers()]
        with quantized(self.unit, self.recipe):
            soft = self._soften()
            weights = self._fisher_weights() if self.recipe.fisher else None
            self._use(rounded)
            before, _ = self._loss(weights, set())
            self._use(soft)
            self._optimize(soft, weights)
            self._harden(soft)
            after, following = self._loss(weights, needed)
            if not after <= before:
                self._use(rounded)
                for quantizer, step in zip(self._learned_quantizers(), steps, strict=True):
                    quantizer.set_parameters(step, quantizer.zero_point)
                self.ctx.note(
                    f"{self.curve}: what was there is kept, for what was learned is worse on the calibration images: "
                    f"{after:.4g} against {before:.4g}"
                )
                del following  # before its place is needed again
                after, following = self._loss(weights, needed)
        return before, after, following

    def _learned_quantizers(self) -> list[ActivationQuantizer]:
        return [quantizer for quantizer in self.unit.quantizers if quantizer.enabled and self.recipe.step_sizes]

    def _use(self, quantizers: Sequence[WeightQuantizer]) -> None:
        for layer, quantizer in zip(self.layers, quantizers, strict=True):
            layer.weight_quantizer = quantizer

    def _soften(self) -> list[SoftRounding]:
        learn_scale = self.recipe.rounding is not None and self.recipe.rounding.scale_lr is not None
        soft = [SoftRounding(layer.weight_quantizer, layer.weight, learn_scale=learn_scale) for layer in self.layers]
        self._use(soft)
        return soft

    @property
    def _count(self) -> int:
        return next(iter(self.targets.values())).count

    def _loss(self, weights: Frontier | None, needed: set[str]) -> tuple[float, dict[str, Cache]]:
        """The loss on all images and, of the same pass, what is needed behind the unit."""
        total = 0.0

        def add(outputs: Mapping[str, Tensor], part: slice) -> None:
            nonlocal total
            total += self._distance(outputs, part, weights).item() * (part.stop - part.start)

        following = push(self.unit, self.inputs, needed, self.recipe.batch_size, self.memory, add)
        if not math.isfinite(total):
            raise self._diverged()
        return total / self._count, following

    def _distance(self, outputs: Mapping[str, Tensor], index: Tensor | slice, weights: Frontier | None) -> Tensor:
        """The loss of a batch, summed over the outputs that are reconstructed."""
        losses = []
        for name, target in self.targets.items():
            weight = None if weights is None else weights[name].read(index)
            loss = reconstruction_loss(outputs[name], target.read(index), self.recipe.power, self.recipe.fisher, weight)
            losses.append(loss)
        return torch.stack(losses).sum()

    def _optimize(self, soft: Sequence[SoftRounding], weights: Frontier | None) -> None:
        recipe, iterations = self.recipe, self.recipe.iterations
        steps = [quantizer.scale for quantizer in self._learned_quantizers()]
        scales = [*steps, *(rounding.scale for rounding in soft if rounding.scale.requires_grad)]
        lowest = [SMALLEST_STEP * scale.detach() for scale in scales]
        groups = self._parameters(soft, steps)
        if not groups:  # its quantizers are not calibrated, or its layers were learned in another unit
            for _ in range(iterations):
                self.tick()
            return
        optimizer = torch.optim.Adam(groups, fused=True)
        run = self.ctx.compile(self.unit.module)
        indices = draw(self._count, recipe.batch_size, self._draws(), self.ctx)
        every = max(1, iterations // POINTS)
        with contextlib.ExitStack() as until_learned:
            for step in steps:
                until_learned.callback(step.requires_grad_(True).requires_grad_, False)
            sizes = self._watch(until_learned)
            for iteration, index in zip(range(1, iterations + 1), indices, strict=False):
                outputs = dict(zip(self.unit.outputs, run(*self._drawn_inputs(index)), strict=True))
                loss = self._distance(outputs, index, weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._adjust_gradients(soft, sizes, iteration)
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"]((iteration - 1) / iterations)
                optimizer.step()
                sizes.clear()
                with torch.no_grad():
                    for scale, floor in zip(scales, lowest, strict=True):
                        torch.maximum(scale, floor, out=scale)
                if iteration % every == 0:
                    self.ctx.log(self.curve, loss, iteration)
                self.tick()
        learned = [parameter for group in groups for parameter in group["params"]]
        if not all(bool(parameter.isfinite().all()) for parameter in learned):
            raise self._diverged()

    def _parameters(self, soft: Sequence[SoftRounding], steps: Sequence[Tensor]) -> list[dict[str, Any]]:
        rounding, step_sizes = self.recipe.rounding, self.recipe.step_sizes
        groups = []
        if rounding and soft:
            groups.append(_group([quantizer.logits for quantizer in soft], rounding.lr, is_annealed=False))
            if rounding.scale_lr is not None:
                groups.append(_group([quantizer.scale for quantizer in soft], rounding.scale_lr, is_annealed=True))
        if step_sizes and steps:
            groups.append(_group(steps, step_sizes.lr, is_annealed=True))
        return groups

    def _adjust_gradients(
        self, soft: Sequence[SoftRounding], sizes: Mapping[TensorQuantizer, int], iteration: int
    ) -> None:
        rounding = self.recipe.rounding
        beta = rounding.annealing(iteration, self.recipe.iterations) if rounding else None
        if rounding and beta is not None:
            for quantizer in soft:
                quantizer.add_regularizer_gradient(rounding.regularizer, beta)
        for step, size in sizes.items():
            if step.scale.grad is not None:
                step.scale.grad.div_(math.sqrt(size * levels(step.bits)))

    def _watch(self, until_learned: contextlib.ExitStack) -> dict[TensorQuantizer, int]:
        """Drop quantization at random behind the quantizers, and note the sizes of what they round, where wanted."""
        sizes: dict[TensorQuantizer, int] = {}
        scales_gradients = self.recipe.step_sizes is not None and self.recipe.step_sizes.lsq

        def hook(quantizer: TensorQuantizer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if scales_gradients:
                sizes[quantizer] = sizes.get(quantizer, 0) + output.numel()  # a shared head is called for each level
            return self._mixed(output, inputs[0]) if self.recipe.drop else output

        if scales_gradients or self.recipe.drop:
            for quantizer in self.unit.quantizers:
                until_learned.callback(quantizer.register_forward_hook(hook).remove)
        return sizes

    def _read(self, frontier: Frontier, index: Tensor | slice) -> list[Tensor]:
        return [frontier[name].read(index) for name in self.unit.inputs]

    def _drawn_inputs(self, index: Tensor) -> list[Tensor]:
        values = self._read(self.inputs, index)
        if self.recipe.source != "mixed":
            return values
        return [self._mixed(*pair) for pair in zip(values, self._read(self.plain, index), strict=True)]

    def _mixed(self, rounded: Tensor, plain: Tensor) -> Tensor:
        return torch.where(keep_mask(rounded.shape, 1 - self.recipe.drop, self.ctx), rounded, plain)

    def _draws(self) -> Draws:
        return (self.recipe.layer_draws if self.unit.kind == "layer" else None) or self.recipe.draws

    def _harden(self, soft: Sequence[SoftRounding]) -> None:
        for layer, rounding in zip(self.layers, soft, strict=True):
            rounding.scale.requires_grad_(False)
            layer.choose(rounding.hard_codes())

    def _fisher_weights(self) -> dict[str, Cache]:
        """|g| + 1 for each element of the unit's outputs, g being the gradient there of KL(float || quantized logits).

        The network is quantized up to and including this unit, whose weights are still soft, and float behind it.
        """
        caches = {name: Cache(self._count, self.memory) for name in self.targets}
        own = {layer.weight_quantizer for _, layer in self.unit.layers}  # a later unit may call one of these layers
        later = [quantizer for unit in self.later for quantizer in _quantizers(unit) if quantizer not in own]
        with switched(later, enabled=False):
            for part in batches(self._count, self.recipe.batch_size):
                with torch.no_grad():
                    values = self._following(self.inputs, part)
                    with in_float(self.unit):
                        expected = self._logits(self._following(self.plain, part))
                outputs = {name: values[name].float().requires_grad_() for name in caches}
                logits = self._logits(values | outputs)
                divergence = functional.kl_div(logits.log_softmax(1), expected.softmax(1), reduction="batchmean")
                gradients = torch.autograd.grad(divergence, list(outputs.values()))
                for cache, gradient in zip(caches.values(), gradients, strict=True):
                    cache.append(gradient.abs().add_(1))
        return caches

    def _following(self, frontier: Frontier, part: slice) -> dict[str, Tensor]:
        values = {name: cache.read(part) for name, cache in frontier.items()}
        return values | self.unit.run(*(values[name] for name in self.unit.inputs))

    def _logits(self, values: dict[str, Tensor]) -> Tensor:
        last = self.unit
        for last in self.later:
            values = values | last.run(*(values[name] for name in last.inputs))
        logits = values[last.targets[0]]
        if logits.dim() != 2 or len(last.outputs) != 1:  # noqa: PLR2004 - images and classes
            raise ZSQBenchError("the loss fisher needs a classifier, with one output [N, classes]; take the loss mse")
        return logits.float()

    def _diverged(self) -> ZSQBenchError:
        return ZSQBenchError(
            f"{self.curve}: the loss is not finite: lower the learning rates, or look whether the network itself gives "
            "finite outputs for the calibration images"
        )


def in_float(unit: Unit) -> contextlib.AbstractContextManager[None]:
    """Let a unit compute what the float network does."""
    return switched(_quantizers(unit), enabled=False)


def quantized(unit: Unit, recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """Let a unit compute what it does in a stage: with rounded weights, and rounded activations if the recipe says."""
    return switched(() if recipe.quantize_activations else unit.quantizers, enabled=False)


@torch.no_grad()
def push(
    unit: Unit,
    frontier: Frontier,
    needed: set[str],
    batch_size: int,
    memory: Memory,
    look: Callable[[Mapping[str, Tensor], slice], None] | None = None,
) -> dict[str, Cache]:
    """Run a unit on all images, and return what of all that is live then is needed; `look` sees the outputs."""
    count = next(iter(frontier.values())).count
    made = {name: Cache(count, memory) for name in unit.outputs if name in needed}
    for part in batches(count, batch_size) if made or look else ():
        outputs = unit.run(*(frontier[name].read(part) for name in unit.inputs))
        if look is not None:
            look(outputs, part)
        for name, cache in made.items():
            cache.append(outputs[name])
    return {name: cache for name, cache in frontier.items() if name in needed} | made


def draw(count: int, size: int, how: Draws, ctx: Context) -> Iterator[Tensor]:
    """Indices of batch after batch, without end."""
    while True:
        if how == "replacement":
            yield torch.randint(count, (size,), generator=ctx.rng, device=ctx.device)
            continue
        order = torch.randperm(count, generator=ctx.rng, device=ctx.device)
        for start in range(0, size if how == "permutation" else count - size + 1, size):
            yield order[start : start + size]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def keep_mask(shape: torch.Size, probability: float, ctx: Context) -> Tensor:
    """A mask that is true with this probability."""
    if probability != 0.5:  # noqa: PLR2004 - the published one, for which a bit of each byte is enough
        return torch.rand(shape, generator=ctx.rng, device=ctx.device) < probability
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=ctx.device).random_(generator=ctx.rng)
    return words.view(torch.uint8)[:count].bitwise_and_(1).view(torch.bool).view(shape)


def _quantizers(unit: Unit) -> list[TensorQuantizer]:
    return [*unit.quantizers, *(layer.weight_quantizer for _, layer in unit.layers)]


def _group(parameters: Sequence[Tensor], lr: float, *, is_annealed: bool) -> dict[str, Any]:
    """Parameters of an optimiser with their rate as a function of the part of the iterations that is over."""

    def rate(done: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * done)) if is_annealed else lr

    return {"params": parameters, "lr": lr, "rate": rate}
