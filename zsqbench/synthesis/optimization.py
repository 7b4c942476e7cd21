"""The loop of a generator that optimises images, in batches that each have their own optimiser and schedule.

It reports progress and curves. It keeps checkpoints, from which it resumes with the same results. It stops with a clear
error when a loss is not finite.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zsqbench.errors import DivergedError
from zsqbench.synthesis.generator_networks import part


class OptimizationContext(Protocol):
    """The part of a step's context that the loop uses."""

    def log(self, name: str, value: float | Tensor, step: int = 0) -> None:
        """Add a point to a curve."""

    def progress(self, done: int, total: int) -> None:
        """Report progress."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Offer a state."""


class Rate(Protocol):
    """A learning rate, which losses may change."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""

    def step(self, loss: float) -> None:
        """Take note of a loss."""

    def state(self) -> dict[str, float]:
        """The state that `load` needs."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""


@dataclass
class Plateau:
    """A learning rate that is cut when the loss has not fallen for a while: torch's ReduceLROnPlateau, and DGH's.

    A loss is better if it is below (1 - threshold) times the best loss. The rate is cut after more than `patience`
    losses in a row that are not better. With `reset`, the best loss is then forgotten, so the next loss is the best.
    """

    lr: float
    factor: float
    patience: int
    min_lr: float
    reset: bool = False
    threshold: float = 1e-4
    best: float = math.inf
    bad: int = 0

    def step(self, loss: float) -> None:
        """Take note of a loss."""
        better = loss < self.best * (1 - self.threshold)
        self.best, self.bad = (loss, 0) if better else (self.best, self.bad + 1)
        if self.bad > self.patience:
            lowered = max(self.lr * self.factor, self.min_lr)
            if self.lr - lowered > 1e-8:  # noqa: PLR2004 - torch's eps
                self.lr = lowered
            self.bad = 0
            self.best = math.inf if self.reset else self.best

    def state(self) -> dict[str, float]:
        """The state that `load` needs."""
        return {"lr": self.lr, "best": self.best, "bad": self.bad}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""
        self.lr, self.best, self.bad = (state[name] for name in ("lr", "best", "bad"))


@dataclass
class Cosine:
    """A learning rate that falls along half a cosine to 0 after all steps, whatever the losses are."""

    highest: float
    steps: int
    made: int = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.highest * 0.5 * (1 + math.cos(math.pi * self.made / self.steps))

    def step(self, loss: float) -> None:  # noqa: ARG002 - other rates mind it
        """Count a step."""
        self.made += 1

    def state(self) -> dict[str, float]:
        """The state that `load` needs."""
        return {"made": self.made}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""
        self.made = state["made"]


@dataclass
class WarmedCosine(Cosine):
    """A rate that rises in equal steps to `highest`, then falls along half a cosine; and again after all steps.

    The first `warmup` of `steps` steps are the rise. Where `warmup` is not smaller than `steps`, the rate only rises.
    """

    warmup: int = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        step = self.made % self.steps
        if step < self.warmup:
            return self.highest * (step + 1) / self.warmup
        return self.highest * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


class Batch(Protocol):
    """Images that are optimised together, made in any way."""

    pixels: Tensor
    """The result at the end, which is also kept in checkpoints."""

    @property
    def plateau(self) -> Rate:
        """Its learning rate."""

    def images(self) -> Tensor:
        """The images for the next loss."""

    def step(self, loss: Tensor) -> None:
        """Minimise a loss by one step."""

    def settle(self) -> None:
        """Finish the pending work of the last step."""

    def state(self) -> dict[str, Any]:
        """The state that `load` needs, as tensors and numbers, with `pixels`."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned, if there is one."""


class RectifiedAdam(torch.optim.Adam):
    """`torch.optim.RAdam` (Liu et al., ICLR 2020); with `fused` in one pass over memory, in a fifth of its time.

    It uses torch's Adam, because a rectified step is a step of Adam with another rate. While the variance is too
    uncertain, the denominator must be 1. It is then a very large epsilon, with a rate of the same size.
    """

    _FLAT = 1e15

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters. All must have made the same number of steps."""
        given = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            made = self.state[group["params"][0]].get("step", 0)
            group["lr"], group["eps"] = self._rectified(int(made) + 1, group["lr"], group["eps"], group["betas"][1])
        try:
            return super().step(closure)
        finally:
            for group, (rate, eps) in zip(self.param_groups, given, strict=True):
                group["lr"], group["eps"] = rate, eps

    def _rectified(self, step: int, lr: float, eps: float, beta: float) -> tuple[float, float]:
        decayed = beta**step
        longest = 2 / (1 - beta) - 1
        length = longest - 2 * step * decayed / (1 - decayed)
        if length <= 5:  # noqa: PLR2004 - as in torch; the paper says 4
            return lr * self._FLAT, self._FLAT
        known = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return lr * math.sqrt(known), eps / math.sqrt(1 - decayed)


class PixelBatch:
    """Images that are optimised together: a leaf tensor, its optimiser (Adam or a subclass), and its learning rate.

    `rates` names the options that an error suggests to lower. `betas` are Adam's.
    """

    def __init__(
        self,
        pixels: Tensor,
        optimizer: type[torch.optim.Adam],
        plateau: Rate,
        iterations: int,
        *,
        rates: str = "'lr'",
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.pixels = pixels.detach().requires_grad_()
        self.plateau = plateau
        self.iteration = 0
        self._iterations = iterations
        self._rates = rates
        fused = True if self.pixels.device.type == "cpu" else None  # one pass over memory
        self._optimizer = optimizer([self.pixels], lr=plateau.lr, betas=betas, fused=fused)
        self._pending: _Underway | None = None

    def images(self) -> Tensor:
        """The pixels."""
        return self.pixels

    def step(self, loss: Tensor) -> None:
        """Minimise a loss by one step. Raises DivergedError where the loss of the step before is not finite.

        A loss decides the learning rate of the next step and is read only then. Reading it now would make a GPU wait.
        """
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.settle()
        for group in self._optimizer.param_groups:
            group["lr"] = self.plateau.lr
        self._optimizer.step()
        self.iteration += 1
        self._pending = _Underway(loss)

    def settle(self) -> None:
        """Read the last loss. Raises DivergedError where it is not finite."""
        if self._pending is None:
            return
        loss = self._pending.read()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at iteration {self.iteration} of {self._iterations}, with a learning rate of "
                f"{self.plateau.lr:g}; try a smaller {self._rates}, or precision fp32 if it is bf16"
            )
        self.plateau.step(loss)
        self._pending = None

    def state(self) -> dict[str, Any]:
        """The state that `load` needs, as tensors and numbers."""
        moments = {name: value for name, value in self._optimizer.state[self.pixels].items() if name != "step"}
        pending = {} if self._pending is None else {"pending": self._pending.value}
        schedule = self.plateau.state()
        return {"pixels": self.pixels.detach(), "iteration": self.iteration, **moments, **pending, **schedule}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned, if there is one. The pixels are those given at the start."""
        if "iteration" not in state:
            return
        self.iteration = state["iteration"]
        self.plateau.load(state)
        if "pending" in state:
            self._pending = _Underway(state["pending"])
        moments = {name: state[name].to(self.pixels) for name in ("exp_avg", "exp_avg_sq") if name in state}
        if moments:
            self._optimizer.state[self.pixels] = {"step": torch.tensor(float(self.iteration)), **moments}


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """The number of images of each memory batch. The last may have fewer."""
    return [min(batch_size, images - first) for first in range(0, images, batch_size)]


def optimize(
    order: Sequence[int],
    begin: Callable[[int, Tensor | None], Batch],
    losses: Callable[[Tensor, int], tuple[Tensor, Mapping[str, Tensor]]],
    ctx: OptimizationContext,
    state: Mapping[str, Any],
    *,
    at_once: bool = False,
    stepped: Callable[[Tensor, int], None] = lambda *_: None,
    keep: Callable[[], Mapping[str, Any]] = dict,
) -> list[Tensor]:
    """Optimise batches of images, one step for each entry of `order`. Returns the pixels of each batch.

    `begin` makes a batch. It gets the pixels of a checkpoint, if there are any, and the batch is then given its state.
    Batches are made when they are first needed, and free their optimiser's memory when they are done, unless all are
    made `at_once`. `losses` gives the loss of a batch's images at a step, and scalars to log. `stepped` is called after
    each step. `state` is the result of `ctx.resume`, or empty. `keep` returns further entries of a checkpoint.

    Raises DivergedError where a loss is not finite.
    """
    names = range(max(order) + 1)
    last = {batch: step for step, batch in enumerate(order)}
    first = state.get("steps", 0)
    batches: dict[int, Batch] = {}
    done: dict[int, Tensor] = {}
    for batch in names:
        pixels = state.get(f"{batch}.pixels")
        if pixels is not None and last[batch] < first:
            done[batch] = pixels
        elif pixels is not None or at_once:
            batches[batch] = begin(batch, pixels)
            batches[batch].load(part(state, f"{batch}."))
    for step in range(first, len(order)):
        batch = order[step]
        if batch not in batches:
            batches[batch] = begin(batch, None)
        current = batches[batch]
        loss, curves = losses(current.images(), step)
        current.step(loss)
        stepped(current.pixels, step)
        for name, value in curves.items():
            ctx.log(name, value.detach(), step)
        ctx.log("lr", current.plateau.lr, step)
        ctx.progress(step + 1, len(order))
        if step == last[batch]:
            current.settle()
            done[batch] = batches.pop(batch).pixels.detach()
        ctx.checkpoint({"steps": step + 1, **_whole(batches, done), **keep()})
    return [done[batch] for batch in names]


def _whole(batches: Mapping[int, Batch], done: Mapping[int, Tensor]) -> dict[str, Any]:
    state = {f"{batch}.pixels": pixels for batch, pixels in done.items()}
    for batch, pixels in batches.items():
        state |= {f"{batch}.{name}": value for name, value in pixels.state().items()}
    return state


class _Underway:
    """A scalar on its way to the CPU."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def read(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self.value)
