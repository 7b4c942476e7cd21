"""LSQ: Learned Step Size Quantization (Esser et al., ICLR 2020), trained towards the float network."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from zsqbench_plugins.shared.distillation import check_labels, label_gradients

import zsqbench
from zsqbench.methods import Network, auto
from zsqbench.methods.base import Auto
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import FineTuning

_BYTE = 8

_DECAYS = {2: 0.25e-4, 3: 0.5e-4}
_USUAL_DECAY = 1e-4


class LSQ(zsqbench.StepSizeQuantizer):
    """A student whose step sizes learn with its weights, from its float network and from labels.

    Each weight and each activation has one step size, on symmetric grids, with LSQ's gradients and start. The loss is
    the paper's distillation loss: cross-entropy and the divergence from the float network at temperature 1, with equal
    weights. Training is SGD with a cosine without restarts for 90 epochs. The rate is 0.01, and 0.001 at 8 bits. Weight
    decay is 1e-4, half of it at 3 bits and a quarter at 2.

    For a network that is not a classifier, such as a detector, the loss is the divergence alone, at `map_temperature`.
    Each tensor that the network returns is one distribution for each image, boxes included. `detect_kd` does this at
    each level.

    Deviations:

    - Images are those of the calibration set. Labels are those of the set, or the float network's predictions.
    - An epoch is 200 updates.
    - The momentum is Nesterov's.
    - Rates fall from epoch to epoch.
    - The scheme decides the bits of each tensor. In the paper, first and last layer have 8 bits.
    - Batch normalisation keeps its statistics, and is folded first where the scheme says so.

    The paper released no code, and its text could not be looked up. Start, first batch, SGD, rate, cosine and 8 bits at
    first and last layers come from a reproduction (zhutmost/lsq-net, README), which has weight decays from 1e-5 to
    1e-4. From memory are the decay for each number of bits, the rate at 8 bits, epochs and distillation.
    """

    name = "lsq"
    version = 2
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "": {name: {"epochs": 90, "batch_size": 256, "alpha": 1.0} for name in ("cifar10", "cifar100", "imagenet")}
    }

    temperature: float = Field(1.0, gt=0, description="T, the temperature of logits in the distillation loss")
    map_temperature: float = Field(4.0, gt=0, description="the temperature for a network that is not a classifier")
    ce_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the cross-entropy towards labels; without effect on a network that is not a classifier",
    )
    labels: Literal["set", "teacher"] | None = Field(
        None,
        description="source of labels: the set, or the float network; unset: the set where it has labels, "
        "else the float network",
    )
    lr: Auto[float] = auto(ge=0, description="learning rate at the start; unset: 0.01, and 0.001 for weights of 8 bits")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The paper's values. Rate and decay depend on the bits of weights."""
        found = super().automatic(network, scheme)
        if scheme is None:
            return found
        bits = scheme.weight_bits
        return {
            **found,
            "lr": 1e-2 if bits < _BYTE else 1e-3,
            "weight_decay": _DECAYS.get(bits, _USUAL_DECAY),
        }

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set step sizes, then train. Raises ZSQBenchError for a set without labels where it is to have them."""
        self = self.resolved(teacher, ctx.scheme)
        if teacher.classes is None:
            self.train_on(student, teacher, data, ctx, lambda engine: self._to_outputs(engine, teacher, ctx))
            return
        check_labels(self, data, ctx)
        self.train_on(student, teacher, data, ctx, lambda engine: label_gradients(self, engine, teacher, ctx))

    def _to_outputs(
        self, engine: "FineTuning", teacher: "Pretrained", ctx: "StepContext"
    ) -> "Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]":
        """A function that puts gradients on the parameters of a network that is not a classifier."""
        import torch

        from zsqbench.quant import map_divergence
        from zsqbench.synthesis import flat_outputs

        def compare(images: "Tensor") -> "Tensor":
            with torch.no_grad():
                expected = flat_outputs(teacher.module(images))
            return map_divergence(flat_outputs(engine.network(images)), expected, self.map_temperature)

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", _: "Tensor | None") -> "Mapping[str, Tensor]":
            kl = compiled(images)
            loss = self.alpha * kl
            torch.autograd.backward(loss)
            return {"loss": loss, "kl": kl}

        return gradients


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `lsq`."""
    return [LSQ]
