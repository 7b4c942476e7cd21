"""Fine-tuning of a whole student by gradient descent: latent float weights that are rounded once for each update.

This is the engine of `ste`, `hast` and the methods that train a generator beside the student. The method decides the
loss and the data. The engine has updates, schedule, checkpoints, curves and the watch over the loss.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, fx, nn

from zsqbench.errors import DivergedError
from zsqbench.quant.context import TrainingContext
from zsqbench.quant.graph.operators import RELUS, is_batch_norm, is_layer, operator
from zsqbench.quant.grids.affine import (
    dequantize,
    fake_quantize,
    fake_quantize_identity,
    grid_parameters,
    rectify_and_quantize,
)
from zsqbench.quant.grids.fake_quant import (
    HALVES,
    SMALLEST_STEP,
    ActivationQuantizer,
    QuantizedLayer,
    TensorQuantizer,
    WeightQuantizer,
)
from zsqbench.quant.grids.logarithmic import LogQuantizer
from zsqbench.quant.ranges.observers import minmax
from zsqbench.quant.student import quantized_layers
from zsqbench.quant.training.cuda_graphs import RecordedFunction
from zsqbench.quant.training.feature_alignment import with_features

POINTS = 1000
"""Points that are kept of a curve of a run."""

CEILINGS = {"relu": math.inf, "relu6": 6.0}
"""Upper bounds of activation functions that a quantizer can also compute."""

_STUDENT, _FLOOR = "student.", "floor."
_MOMENTS = {"momentum.": "momentum_buffer", "first.": "exp_avg", "second.": "exp_avg_sq"}
"""Optimisers' states of a parameter, by the beginning of their names in a checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """The number and the sizes of updates: SGD with Nesterov's momentum, or Adam."""

    epochs: int
    updates_per_epoch: int
    lr: float
    milestones: Sequence[int] = ()
    """Epochs after which the learning rate is multiplied by `factor`."""
    factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    keep_every: int = 0
    """Keep the student after every so many epochs, and after the last. 0: never."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    annealing: Literal["steps", "cosine"] = "steps"
    """Fall of the learning rate: at milestones, or from epoch to epoch along a cosine that is 0 after the last."""

    @property
    def updates(self) -> int:
        """The number of all updates."""
        return self.epochs * self.updates_per_epoch

    def passed(self, update: int) -> int:
        """The number of milestones before an update."""
        return sum(milestone <= update // self.updates_per_epoch for milestone in self.milestones)

    def lr_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        if self.annealing == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (update // self.updates_per_epoch) / self.epochs))
        return self.lr * self.factor ** self.passed(update)


class TrainedWeight(WeightQuantizer):
    """A weight in training: `renew` rounds the latent weight, and backward passes put their gradients on the result.

    The gradient passes rounding and clamping unchanged, so the latent weight has the gradient of `values`. The grid
    spans the latent weight at each update. An affine grid excludes zero where all of a channel has one sign. With
    `follows` false, the grid stays.
    """

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, *, follows: bool) -> None:
        super().__init__(**quantizer.description())
        self.adopt(quantizer)
        self.follows = follows
        self.values = weight.detach().clone().requires_grad_()
        """The weight on its grid, a leaf of the graph."""

    @torch.no_grad()
    def renew(self, weight: Tensor) -> None:
        """Round the current latent weight."""
        if self.follows:
            _span(self, weight)
        self.values.copy_(dequantize(self.codes(weight), self.scale, self.zero_point))

    def hand_over(self, weight: Tensor) -> None:
        """Copy the gradient of `values` to the latent weight."""
        weight.grad = self.values.grad

    def forward(self, x: Tensor) -> Tensor:
        """The last rounded value of the latent weight."""
        return self.values if self.enabled else x


class LearnedWeight(TrainedWeight):
    """A weight that is trained with the step size of its grid, as in LSQ (Esser et al., ICLR 2020).

    The gradient of the latent weight is zero where it is clamped. The gradient of the step size is not scaled here.
    """

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__(quantizer, weight, follows=False)

    def hand_over(self, weight: Tensor) -> None:
        """Give latent weight and step sizes the gradients that follow from the gradient of `values`."""
        if self.values.grad is None:
            weight.grad = self.scale.grad = None
            return
        with torch.enable_grad():
            rounded = fake_quantize(weight, self.scale, self.zero_point, self.bits, clips_first=True)
        weight.grad, self.scale.grad = torch.autograd.grad(rounded, (weight, self.scale), self.values.grad)


class TrainedActivation(ActivationQuantizer):
    """An activation in training: its gradient passes rounding and clamping unchanged, and its grid stays.

    With a bound (infinity or 6) in `rectifies`, it also does the work of the ReLU (or ReLU6) before it, in place. This
    saves an activation in memory, which costs more on a CPU than its arithmetic.
    """

    rectifies: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """X on the grid, of the same shape."""
        if self.rectifies is not None and self.enabled:
            return rectify_and_quantize(x, self.scale, self.zero_point, self.bits, self.rectifies)
        if self.rectifies is not None:
            x = x.clamp(0, self.rectifies)
        if not self.enabled:
            return x
        return fake_quantize_identity(x.float() if x.dtype in HALVES else x, self.scale, self.zero_point, self.bits)


class FineTuning:
    """Trains all parameters of a prepared student update by update, on activation ranges that are set or in `state`.

    Weights and biases of layers learn, and gains and offsets of batch normalisations that are not folded. Running
    statistics stay. With `learn_steps`, the step sizes of all grids learn by LSQ's gradients, except held grids. The
    student is always in eval mode. Use the class as a context manager. Afterwards nothing requires a gradient, and
    weights are those of the last update.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        ctx: TrainingContext,
        schedule: Schedule,
        state: Mapping[str, Any],
        *,
        follow_weights: bool = True,
        learn_steps: bool = False,
        features: Sequence[str] = (),
        rates: str = "'lr'",
    ) -> None:
        """`state` is the result of `ctx.resume`, or empty. Without `follow_weights` the grids of weights stay.

        With `learn_steps` all grids must be set. Learning begins with them, and grids do not follow their weights.

        `features` are names of nodes of the student's graph, whose values `network` also returns in this order. `rates`
        names the options that an error suggests to lower.
        """
        self.student, self.ctx, self.schedule, self._rates = student.eval(), ctx, schedule, rates
        self.weights: list[tuple[QuantizedLayer, TrainedWeight]] = []
        """Each layer with a quantized weight, and the weight's quantizer."""
        for _, layer in quantized_layers(student):
            if learn_steps:
                quantizer: TrainedWeight = LearnedWeight(layer.weight_quantizer, layer.weight)
            else:
                quantizer = TrainedWeight(layer.weight_quantizer, layer.weight, follows=follow_weights)
            layer.weight_quantizer = quantizer
            self.weights.append((layer, quantizer))
        learned: list[TensorQuantizer] = [
            module
            for module in student.modules()
            if isinstance(module, ActivationQuantizer) and learn_steps and not module.is_held
        ]
        for each in learned:
            each.clips_first = True
        for activation in (*pass_gradients(student, but=learned), *learned):
            activation.enabled = True  # a resumed state loads its grid below
        self.network = _training_network(student, features)
        """Computes the student's output, differentiably; with features a tuple of output and features."""
        self._latent = dict(student.named_parameters())
        working = {id(layer.weight): quantizer.values for layer, quantizer in self.weights}
        self.parameters: list[Tensor] = [working.get(id(latent), latent) for latent in self._latent.values()]
        """Tensors that the student computes with and that receive gradients: rounded weights, and all others."""
        self.parameters += [quantizer.scale for quantizer in learned]
        learned += [quantizer for _, quantizer in self.weights if isinstance(quantizer, LearnedWeight)]
        self._steps = {f"step.{quantizer.kind}.{quantizer.name}": quantizer for quantizer in learned}
        self._floors = {name: state[_FLOOR + name] for name in self._steps if _FLOOR + name in state}
        self._divisors: list[float] = []
        self._renew = ctx.compile(self._renew_eagerly)
        self._first = state.get("updates", 0)
        if state:
            kept = {name.removeprefix(_STUDENT): value for name, value in state.items() if name.startswith(_STUDENT)}
            student.load_state_dict(kept)
        self._learned = self._latent | {name: quantizer.scale for name, quantizer in self._steps.items()}
        """Latent parameters and step sizes, which an update changes."""
        self.optimizer = _optimizer(schedule, list(self._latent.values()), [step.scale for step in learned])
        for name, latent in self._learned.items():
            places = {moment: place + name for place, moment in _MOMENTS.items() if place + name in state}
            moments = {moment: state[place].to(latent) for moment, place in places.items()}
            if moments and schedule.optimizer == "adam":
                moments["step"] = torch.tensor(float(self._first), device=latent.device if latent.is_cuda else "cpu")
            if moments:
                self.optimizer.state[latent] = moments

    def __enter__(self) -> Self:
        for latent in self._learned.values():
            latent.requires_grad_(True)
        elements = _elements(self.student)
        for name, quantizer in self._steps.items():
            weight = next((layer.weight for layer, own in self.weights if own is quantizer), None)
            count = elements[quantizer.name] if weight is None else weight.numel() // quantizer.scale.numel()
            self._divisors.append(math.sqrt(count * quantizer.largest_multiple()))
            floor = self._floors.get(name, SMALLEST_STEP * quantizer.scale.detach())
            self._floors[name] = floor.to(quantizer.scale.device)
        self._renew()
        return self

    def __exit__(self, *_: object) -> None:
        for latent in self._learned.values():
            latent.requires_grad_(False)
            latent.grad = None
        for _layer, rounded in self.weights:
            rounded.values = rounded.values.detach()

    def _renew_eagerly(self) -> None:
        for layer, quantizer in self.weights:
            quantizer.renew(layer.weight)

    def run(
        self,
        draw: Callable[[int], tuple[Sequence[Tensor | None], Mapping[str, Tensor]]],
        gradients: Callable[..., Mapping[str, Tensor]],
        *,
        adjust: Callable[[int], None] | None = None,
        keep: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Make all remaining updates.

        `draw` returns the tensors of an update, with the same shapes each time, and scalars to log. `gradients` is
        given these tensors, puts gradients on `parameters` and returns further scalars. All scalars must be finite. On
        a GPU it is recorded with the update (`RecordedFunction`), unless `adjust` is given. `adjust` may change
        gradients or learning rates of the latent parameters before the update. `keep` returns further entries of a
        checkpoint. Raises DivergedError where a scalar or a weight is not finite.
        """
        schedule, total = self.schedule, self.schedule.updates
        every = max(1, total // POINTS)
        good = self._copy(self._first)

        def learn(lr: float, *inputs: Tensor | None) -> Mapping[str, Tensor]:
            for parameter in self.parameters:
                parameter.grad = None
            curves = gradients(*inputs)
            self._hand_over(lr)
            if adjust is not None:
                adjust(update)
            self.optimizer.step()
            self._bound_steps()
            self._renew()
            return curves

        device = self.parameters[0].device
        make = learn if adjust is not None else RecordedFunction(learn, device, self.ctx.note)
        for update in range(self._first, total):
            inputs, drawn = draw(update)
            curves = {**drawn, **make(schedule.lr_at(update), *inputs)}
            is_last_of_epoch = (update + 1) % schedule.updates_per_epoch == 0
            self.ctx.progress(update + 1, total)
            if (update + 1) % every and not is_last_of_epoch and update:
                continue  # reading a loss makes a GPU wait, and a checkpoint takes time
            self._log(curves, update, good)
            if is_last_of_epoch:
                good = self._copy(update + 1)
                self._keep_epoch((update + 1) // schedule.updates_per_epoch)
            self.ctx.checkpoint({**self._state(update + 1), **keep()})

    def _hand_over(self, lr: float) -> None:
        for layer, quantizer in self.weights:
            quantizer.hand_over(layer.weight)
        for step, divisor in zip(self._steps.values(), self._divisors, strict=True):
            if step.scale.grad is not None:
                step.scale.grad.div_(divisor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def _bound_steps(self) -> None:
        for name, step in self._steps.items():
            torch.maximum(step.scale, self._floors[name], out=step.scale)

    def _log(self, curves: Mapping[str, Tensor], update: int, good: Mapping[str, Any]) -> None:
        values = {name: value.detach() for name, value in curves.items()}
        odd = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if odd is not None or not self._is_finite():
            what = "a weight is not finite" if odd is None else f"{odd} is {float(values[odd])}"
            raise DivergedError(
                f"{what} at update {update + 1} of {self.schedule.updates}, with a learning rate of "
                f"{self.schedule.lr_at(update):g}; try a smaller {self._rates}, or precision fp32 if it is bf16. The "
                f"state of update {good['updates']} is the last good one",
                good,
            )
        for name, value in values.items():
            self.ctx.log(name, value, update + 1)
        self.ctx.log("lr", self.schedule.lr_at(update), update + 1)

    def _is_finite(self) -> bool:
        return bool(torch.stack([latent.detach().isfinite().all() for latent in self._learned.values()]).all())

    def _keep_epoch(self, epoch: int) -> None:
        every = self.schedule.keep_every
        if every and (epoch % every == 0 or epoch == self.schedule.epochs):
            self.ctx.keep_epoch(epoch, self.student)

    def _state(self, updates: int) -> dict[str, Any]:
        states = [(name, self.optimizer.state[latent]) for name, latent in self._learned.items()]
        moments = {
            place + name: state[moment]
            for place, moment in _MOMENTS.items()
            for name, state in states
            if moment in state
        }
        floors = {_FLOOR + name: floor for name, floor in self._floors.items()}
        return {"updates": updates, **student_state(self.student), **moments, **floors}

    def _copy(self, updates: int) -> dict[str, Any]:
        state = self._state(updates)
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def pass_gradients(student: nn.Module, *, but: Sequence[TensorQuantizer] = ()) -> list[ActivationQuantizer]:
    """Replace each activation quantizer, in place, by one that lets gradients pass the rounding unchanged.

    The new quantizers keep grids and all other settings, and are returned. `but` names quantizers that stay as they
    are.
    """
    replaced: list[ActivationQuantizer] = []
    for path, module in list(student.named_modules()):
        if isinstance(module, LogQuantizer):  # already passes gradients
            replaced.append(module)
        elif isinstance(module, ActivationQuantizer) and module not in but:
            trained = TrainedActivation(**module.description())
            trained.adopt(module)
            trained.enabled, trained.is_held = module.enabled, module.is_held
            student.set_submodule(path, trained)
            replaced.append(trained)
    return replaced


def _optimizer(schedule: Schedule, latent: list[Tensor], steps: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of latent parameters and of step sizes. Step sizes do not decay."""
    groups: list[dict[str, Any]] = [{"params": latent}, *([{"params": steps, "weight_decay": 0.0}] if steps else [])]
    if schedule.optimizer == "adam":
        on_gpu = latent[0].is_cuda  # updates are recorded there
        return torch.optim.Adam(groups, lr=schedule.lr, weight_decay=schedule.weight_decay, capturable=on_gpu)
    return torch.optim.SGD(
        groups,
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        nesterov=schedule.momentum > 0,
    )


def _elements(student: fx.GraphModule) -> Counter[str]:
    """The number of values of an image that each activation quantizer rounds in all its calls, by its tensor's name."""
    counts: Counter[str] = Counter()
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            counts[module.name] += math.prod(node.meta["shape"][1:])
    return counts


def _training_network(student: fx.GraphModule, features: Sequence[str]) -> fx.GraphModule:
    """The student with its modules and these features as further outputs. Quantizers replace ReLU before them.

    A ReLU is replaced only where nothing else reads its input or output, and no gradient is computed from its input.
    """
    nodes = {node.name: node for node in student.graph.nodes}
    network = with_features(student, [nodes[name] for name in features])
    for node in list(network.graph.nodes):
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, TrainedActivation):
            continue
        relu = node.all_input_nodes[0]
        source = relu.all_input_nodes[0] if operator(relu) in RELUS else None
        if source is None or len(relu.users) > 1 or len(source.users) > 1:
            continue
        if is_layer(source) or is_batch_norm(source) or operator(source) == "add":
            module.rectifies = CEILINGS[operator(relu)]
            node.args = (source,)
            network.graph.erase_node(relu)
    network.recompile()
    return network


@torch.no_grad()
def span_weights(student: nn.Module) -> None:
    """Set each weight's grid to span its values, as in training. An affine grid may exclude zero."""
    for _, layer in quantized_layers(student):
        _span(layer.weight_quantizer, layer.weight)


def _span(quantizer: WeightQuantizer, weight: Tensor) -> None:
    ends = minmax(weight, quantizer.axis)
    quantizer.set_parameters(*grid_parameters(*ends, quantizer.bits, quantizer.grid, signed=True))


def student_state(student: nn.Module) -> dict[str, Tensor]:
    """A student's entries in a checkpoint."""
    return {_STUDENT + name: value for name, value in student.state_dict().items()}
