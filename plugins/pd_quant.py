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
"""The script's values for ResNets. Here networks of other families have them too."""
EPS = 1e-6
"""The correction adds this number to both variances under the root."""
PLATEAU = 0.1, 100, 1e-5
"""Factor, patience and smallest value of the correction's learning rate."""


class PDQuant(zsqbench.ReconstructionQuantizer):
    """QDrop with a loss on the network's prediction, on inputs that are moved towards the statistics of BN layers.

    A unit's loss is the squared error of its output plus KL(softmax(t / T) || softmax(q / T)) / `prediction_scale`. The
    unit runs once on twice the batch. The first half are inputs behind the earlier quantized units, mixed element by
    element with float inputs; their output is compared. The second half are the quantized inputs alone; their output
    goes through the float rest of the network to the logits q. t are the logits of the float network. In both halves,
    elements behind activation quantizers stay float at random.

    Float inputs are corrected first, separately for each unit. `correction_steps` of Adam on the inputs of each batch
    bring mean and deviation of each image, in the unit's BN layers, closer to the stored ones. The squared distance
    from the original inputs, divided by `correction_scale`, limits the change. The float unit's output for corrected
    inputs is the target. T, `correction_scale` and the rounding regulariser are those of the release's script (commit
    e12038e) for families of networks. Networks of other families have the values of ResNets. Paper and release do not
    differ as far as could be looked up, so there is no preset.

    Weights have QDrop's ranges. Activations of a unit get their ranges when its turn comes, on `search_images` images
    behind the earlier quantized units. Rates of step sizes are not scaled as in LSQ.

    Deviations:

    - The scheme decides the bits of each tensor. The release has 8 bits for first and last weights and the classifier's
      input, and float logits.
    - Images that fill no batch are also corrected, and not dropped.
    - Maps of one position have no deviation to correct. The release makes NaN of them.
    - A unit that learning made worse on the calibration images, by its loss on quantized inputs, keeps its earlier
      values.
    - Step sizes stay above a thousandth of their initial values.
    - The network needs batch normalisation even where nothing is corrected.
    - Real images are not augmented.
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
        """The release's values for the family of the network's published definition."""
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
                "none"
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
        """The squared error of a unit's output plus the difference of predictions that it causes."""
        expected, found = batch.float_prediction(), batch.prediction()
        return batch.distance() + prediction_difference(found, expected, self.temperature) / self.prediction_scale

    def _correction(
        self, teacher: "Pretrained", scheme: Scheme
    ) -> "Callable[[Unit, Sequence[Tensor]], Sequence[Tensor] | None]":
        """A function that corrects a unit's inputs with the same unit of a network with unfolded BN layers."""
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
    """KL(softmax(expected / T) || softmax(logits / T)) of logits [N, classes], a mean over images."""
    from torch.nn import functional

    found, wanted = (each / temperature for each in (logits, expected))
    return functional.kl_div(found.log_softmax(1), wanted.softmax(1), reduction="batchmean")


def corrected(
    module: "fx.GraphModule", inputs: "Sequence[Tensor]", *, steps: int, lr: float, scale: float
) -> "list[Tensor]":
    """The inputs of a unit, moved so that each image's statistics in its BN layers are closer to the stored ones.

    For each image and channel, squared gaps of means and of deviations are summed over channels and layers, and
    averaged over images. The squared distance of the inputs from their original values is averaged too, and divided by
    `scale`.
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
    """A unit that takes its inputs as one argument, as probes of networks with one input need it."""
    from torch import nn

    class OfOneArgument(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = module

        def forward(self, inputs: "list[Tensor]") -> Any:
            # copies, since the unit may work in place
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
