"""PD-Quant: Post-Training Quantization Based on Prediction Difference Metric (Liu et al., CVPR 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.scheme import Grid, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import ActivationQuantizer, Unit
    from zsqbench.quant.reconstruction import UnitBatch

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "mobilenet": {"temperature": 1.0, "correction_scale": 0.005, "regularizer": 0.1},
    "regnet": {"correction_scale": 0.01},
    "mnasnet": {"temperature": 1.0, "correction_scale": 0.001, "regularizer": 0.2},
}
"""The values of the release's script for families of networks, by the beginning of their names."""
USUAL: Mapping[str, float] = {"temperature": 4.0, "correction_scale": 0.02, "regularizer": 0.01}
"""Its values for ResNets, which other networks have here, too."""
EPS = 1e-6
"""Added to both variances under the root by the correction."""
PLATEAU = 0.1, 100, 1e-5
"""Factor, patience and smallest value of the correction's learning rate."""


class PDQuant(zsqbench.ReconstructionQuantizer):
    """QDrop with a loss on what the network predicts, on inputs that were moved towards the statistics of BN layers.

    A unit's loss is the squared error of its output and KL(softmax(t / T) || softmax(q / T)) / `prediction_scale`. It
    runs once on twice the batch: on inputs behind the quantized units before it, mixed element by element with float
    ones, whose output is compared, and on the quantized ones as they are, whose output goes through the float rest of
    the network to the logits q; t are those of the float network. Elements behind activation quantizers stay float at
    random in both halves.

    Float inputs are corrected first, for each unit by itself: `correction_steps` of Adam on the inputs of each batch
    bring mean and deviation of each image, in the unit's BN layers, closer to those stored there; the squared distance
    from where they began, divided by `correction_scale`, holds them back. The float unit's output for corrected inputs
    is the target. T, `correction_scale` and the rounding regulariser are those of the release's script (commit e12038e)
    for families of networks, and those of ResNets for others. Paper and release do not differ as far as could be looked
    up, so there is no preset.

    Weights have QDrop's ranges; activations of a unit get theirs when its turn comes, on `search_images` images behind
    the quantized units before it. Rates of step sizes are not scaled as LSQ's are.

    Deviations: which tensors have which bits is the scheme's matter (the release has 8 bits for first and last weights
    and the classifier's input, logits in float). Images that fill no batch are corrected, too, and not dropped. Maps of
    one place have no deviation to correct (the release makes NaN of it). A unit that learning made worse on the
    calibration images, by its loss on quantized inputs, keeps what it had before, and step sizes stay above a
    thousandth of what they were. It needs a network with batch normalisation even where nothing is corrected. Real
    images are not augmented.
    """

    name = "pd_quant"
    needs_bn = True
    needs_classes = True
    least_classes = 2
    weight_grids: ClassVar[tuple[Grid, ...]] = ("affine", "symmetric")

    iterations: int = Field(20_000, ge=0, description="iterations for each unit")
    rounding_lr: float = Field(3e-3, gt=0, description="learning rate of the rounding variables (Adam)")
    rounding_weight: Auto[float] = auto(ge=0, description="weight of the regulariser (lambda)")
    scale_lr: float = Field(4e-5, gt=0, description="learning rate of step sizes (Adam, cosine to zero)")
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an element stays float")
    temperature: Auto[float] = auto(gt=0, description="T, the temperature of the predictions that are compared")
    prediction_scale: float = Field(0.1, gt=0, description="divisor of the difference of predictions (lamb_r)")
    correction_steps: int = Field(
        500, ge=0, description="steps of Adam that correct float inputs; 0 leaves the inputs as they are"
    )
    correction_lr: float = Field(1e-3, gt=0, description="learning rate of the correction (on a plateau)")
    correction_scale: Auto[float] = auto(
        gt=0, description="divisor of the distance from uncorrected inputs (lamb_c); a smaller one allows less change"
    )
    search_images: int = Field(256, gt=0, description="images on which activation ranges are chosen")

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:  # noqa: ARG002 - needs no scheme
        """The release's values for the family that a network's published definition is of."""
        name = (network.architecture or "").rpartition("/")[2]
        own = next((values for family, values in PUBLISHED.items() if name.startswith(family)), {})
        values = {**USUAL, **own}
        return {"rounding_weight": values.pop("regularizer"), **values}

    def quantize(
        self,
        student: "fx.GraphModule",
        teacher: "Pretrained",
        data: "CalibrationSet | None",
        ctx: "StepContext",
    ) -> None:
        """Choose ranges and learn, unit by unit. Raises ZSQBenchError without images, classes or BN layers."""
        from zsqbench.quant import Reconstruction, Stage, StepSizes, range_search, search_weights
        from zsqbench.synthesis import batch_norms

        self, images, scheme = self.resolved(teacher, ctx.scheme), self.images_of(data), self.scheme_of(ctx)
        if not batch_norms(teacher.module):
            raise zsqbench.ZSQBenchError(
                f"quantizer {self.name!r} corrects inputs towards what batch normalisation stores, and the network has "
                "none of it"
            )
        stage = Stage(
            self.iterations,
            self.batch_size,
            rounding=self.rounding(),
            step_sizes=StepSizes(self.scale_lr),
            quantize_activations=True,
            source="mixed",
            drop=self.drop,
            loss=self.loss,
            doubled=True,
            draws="replacement",
        )
        engine = Reconstruction(
            student,
            images,
            ctx,
            {"joint": stage},
            memory=self.memory(ctx.device),
            before_unit=_choose_ranges,
            before_images=self.search_images,
            correct=self._correction(teacher, scheme) if self.correction_steps else None,
        )
        search_weights(student, range_search)
        engine.run("joint")

    def loss(self, batch: "UnitBatch") -> "Tensor":
        """The squared error of a unit's output and the difference of predictions that it makes."""
        expected, found = batch.float_prediction(), batch.prediction()
        return batch.distance() + prediction_difference(found, expected, self.temperature) / self.prediction_scale

    def _correction(
        self, teacher: "Pretrained", scheme: Scheme
    ) -> "Callable[[Unit, Sequence[Tensor]], Sequence[Tensor] | None]":
        """A function that corrects a unit's inputs, by the same unit of a network whose BN layers are not folded."""
        from zsqbench.quant import find_units, prepare
        from zsqbench.synthesis import batch_norms

        unfolded = scheme.model_copy(update={"placement": scheme.placement.model_copy(update={"fold_bn": False})})
        network = prepare(teacher.module, unfolded, teacher.input_size, self.grids_at(scheme))
        modules = {unit.name: unit.module for unit in find_units(network) if batch_norms(unit.module)}

        def correct(unit: "Unit", inputs: "Sequence[Tensor]") -> "Sequence[Tensor] | None":
            module = modules.get(unit.name)
            if module is None:
                return None
            return corrected(
                module, inputs, steps=self.correction_steps, lr=self.correction_lr, scale=self.correction_scale
            )

        return correct


def prediction_difference(logits: "Tensor", expected: "Tensor", temperature: float) -> "Tensor":
    """KL(softmax(expected / T) || softmax(logits / T)), a mean over images [N, classes]."""
    from torch.nn import functional

    found, wanted = (each / temperature for each in (logits, expected))
    return functional.kl_div(found.log_softmax(1), wanted.softmax(1), reduction="batchmean")


def corrected(
    module: "fx.GraphModule", inputs: "Sequence[Tensor]", *, steps: int, lr: float, scale: float
) -> "list[Tensor]":
    """The inputs of a unit, moved so that what its BN layers see of each image is closer to what they store.

    Per image and channel, squared gaps of means and of deviations are summed over channels and layers, and averaged
    over images; so is the squared distance of the inputs from where they began, which is divided by `scale`.
    """
    import torch

    from zsqbench.quant.reconstruction import reconstruction_loss
    from zsqbench.synthesis import ZEROQ, BNLoss, Plateau

    statistics = replace(ZEROQ, eps_images=EPS, eps_bn=EPS, input_term="none", hook_point="bn_input")
    moved = [values.detach().clone().requires_grad_() for values in inputs]
    plateau = Plateau(lr, *PLATEAU)
    optimizer = torch.optim.Adam(moved, lr=lr)
    with BNLoss(_taking_a_list(module), statistics) as gap, torch.enable_grad():
        for _ in range(steps):
            anchor = torch.stack([reconstruction_loss(*pair) for pair in zip(moved, inputs, strict=True)]).sum()
            loss: Tensor = gap(cast("Tensor", moved)).total + anchor / scale  # the list is handed on as it is
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            plateau.step(loss.item())
            optimizer.param_groups[0]["lr"] = plateau.lr
    return [values.detach() for values in moved]


def _taking_a_list(module: "fx.GraphModule") -> Any:
    """A unit that takes its inputs as one argument, for what measures a network of one input."""
    from torch import nn

    class OfOneArgument(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = module

        def forward(self, inputs: "list[Tensor]") -> Any:
            # copies, since what the unit does may be in place
            return self.unit(*(values.clone() for values in inputs))

    return OfOneArgument()


def _choose_ranges(unit: "Unit", inputs: "Sequence[Tensor]") -> None:
    from zsqbench.quant import calibrate_unit

    calibrate_unit(unit, inputs, _range)


def _range(quantizer: "ActivationQuantizer", values: "Tensor") -> "tuple[Tensor, Tensor]":
    from zsqbench.quant import range_search

    return range_search(values, quantizer.bits)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `pd_quant`."""
    return [PDQuant]
