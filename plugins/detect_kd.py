"""Distillation of detectors with step sizes that learn (Li et al., ICCV 2025)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from zsqbench_plugins.shared.boxes import rows, targets

import zsqbench
from zsqbench.methods import DATA_SETS, Auto, auto

if TYPE_CHECKING:
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Detection, Pretrained, StepContext
    from zsqbench.quant import FineTuning

NMS_SCORE, NMS_OVERLAP = 0.001, 0.6
"""Suppression of the float network's boxes, where they are the target boxes."""

MAPS = 4
"""Dimensions of a map."""


_USUAL = {"epochs": 100, "batch_size": 16, "weight_decay": 0.0}


class DetectKD(zsqbench.StepSizeQuantizer):
    """A detector that learns from its float network and from boxes, with LSQ's learned step sizes.

    The loss is alpha KL + feature_weight (1/M) sum MSE(features) + det_weight L_det. KL compares the predictions of the
    heads. At each level of the pyramid, all maps of an image, boxes included, are one distribution at temperature 4. KL
    is averaged over images and summed over levels, without a factor T^2. Features are the outputs of all convolutions,
    linear layers and normalisations; M is their number. L_det is the detector's own training loss towards the boxes of
    the set. A set without boxes gets those that the float network finds with a score above `score`. Images are used as
    they are.

    The default preset is `released`, the settings of the toolkit for YOLO11 (DFQ-Dojo/dfq-toolkit): Adam, rate 1e-5,
    weights 0.01, 0.1 and 1. `paper` has the paper's settings for YOLOv5: rate 1e-4 and weight 0.04. Both train for 100
    epochs in batches of 16. For 2,000 images, an epoch is 125 updates.

    Deviations:

    - The last epoch is the result. The release chooses by mAP on COCO val, and stops when mAP does not rise for 10
      epochs; this looks at evaluation data.
    - Batch normalisation and dropout stay in eval mode.
    - Levels are told apart by the sizes of maps, so two levels of one size count as one.
    - The scheme decides how first and last layers are quantized. The release leaves them float.
    - The rate is constant and there is no weight decay, because the available sources say nothing else.
    - Step sizes begin at LSQ's rule.
    - The method is seeded.
    """

    name = "detect_kd"
    version = 2
    needs_training_loss = True
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": {name: {**_USUAL, "lr": 1e-4, "alpha": 0.04} for name in DATA_SETS},
        "released": {name: {**_USUAL, "lr": 1e-5, "alpha": 0.01} for name in DATA_SETS},
    }

    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    updates_per_epoch: int = Field(125, gt=0, description="updates of an epoch, for any number of images")
    optimizer: Literal["sgd", "adam"] = Field("adam", description="SGD with Nesterov's momentum, or Adam without")
    annealing: Literal["steps", "cosine"] = Field(
        "steps", description="learning rate: cut at milestones, or lowered from epoch to epoch along a cosine"
    )
    augment: bool = Field(
        False, description="crop images, which would need other boxes; allowed only with det_weight 0"
    )
    temperature: float = Field(4.0, gt=0, description="T, the temperature of maps in the distillation loss")
    feature_weight: float = Field(0.1, ge=0, description="weight of the mean squared error of features")
    det_weight: float = Field(1.0, ge=0, description="weight of the detector's training loss")
    boxes: Literal["set", "teacher"] | None = Field(
        None,
        description="source of boxes: the set, or the float network; unset: the set where it has boxes, else "
        "the float network",
    )
    score: float = Field(0.2, ge=0, le=1, description="lower bound of the score of the float network's boxes")
    alpha: Auto[float] = auto(ge=0, description="weight of the distillation loss")

    def quantize(
        self, student: "fx.GraphModule", teacher: "Pretrained", data: "CalibrationSet | None", ctx: "StepContext"
    ) -> None:
        """Set step sizes, then train.

        Raises ZSQBenchError for a network without a training loss, and for images that are cropped away from their
        boxes. Also raises it for a set without boxes where `boxes` is set.
        """
        import copy

        from zsqbench.quant import with_features

        self = self.resolved(teacher, ctx.scheme)
        detection, images = teacher.detection, self.images_of(data)
        assert data is not None  # noqa: S101 - it has images
        if detection is None:
            raise zsqbench.ZSQBenchError(
                f"quantizer {self.name!r} needs a detector whose task hands out its training loss, and "
                f"{type(teacher.module).__name__} is not one"
            )
        if self.det_weight and self.augment:
            raise zsqbench.ZSQBenchError("augment crops images but not boxes: set augment: false or det_weight: 0")
        boxes = self._boxes(teacher, detection, data, ctx) if self.det_weight else None
        network = copy.deepcopy(student)  # quantizers round nothing before they are calibrated
        learned = _Learned.of(network, teacher.output_layers)
        ctx.note(f"{len(learned.features)} features are compared, and predictions of {len(learned.levels)} levels")
        taught = with_features(network, learned.nodes)
        numbered = zsqbench.CalibrationSet(images, _numbers(len(images)))  # the numbers find the boxes of a batch
        names = [node.name for node in learned.nodes]

        def begin(engine: "FineTuning") -> "Callable[..., Mapping[str, Tensor]]":
            return self._gradients(engine, taught, learned, detection, boxes, ctx)

        self.train_on(student, teacher, numbered, ctx, begin, features=names)

    def adjustment(self, engine: "FineTuning") -> Callable[[int], None] | None:
        """A function that changes nothing, where there is a training loss; else the base's.

        Updates are then not recorded on a GPU, because a training loss reads the values that it matches.
        """
        return (lambda _: None) if self.det_weight else super().adjustment(engine)

    def _boxes(
        self, teacher: "Pretrained", detection: "Detection", data: "CalibrationSet", ctx: "StepContext"
    ) -> "Tensor":
        """The target boxes [M, 6], in the format of a calibration set."""
        import torch

        if data.boxes is not None and self.boxes != "teacher":
            return data.boxes.to(ctx.device)
        if self.boxes == "set":
            raise zsqbench.ZSQBenchError(
                "the training loss needs boxes of the calibration set, which has none: take a generator that makes "
                "boxes (task_boxes), or set boxes: teacher or det_weight: 0"
            )
        if self.boxes is None:
            ctx.note("boxes are those that the float network finds, because the calibration set has none")
        size = teacher.input_size[1:]
        found: list[Mapping[str, Tensor]] = []
        with torch.no_grad():
            for batch in torch.split(data.images, self.batch_size):
                found += detection.decode(teacher.module(batch.to(ctx.device)), size, NMS_SCORE, NMS_OVERLAP)
        boxes = rows(found, self.score, size).to(ctx.device)
        boxes = boxes[(boxes[:, 4:] > 0).all(1)]
        ctx.note(f"the float network finds {len(boxes)} boxes in {len(data)} images")
        return boxes

    def _gradients(
        self,
        engine: "FineTuning",
        network: "fx.GraphModule",
        learned: "_Learned",
        detection: "Detection",
        boxes: "Tensor | None",
        ctx: "StepContext",
    ) -> "Callable[[Tensor, Tensor], Mapping[str, Tensor]]":
        """A function that puts gradients on the parameters, for images and their numbers."""
        import torch
        from torch.nn import functional

        from zsqbench.quant import map_divergence, split_features

        def compare(images: "Tensor") -> "tuple[Tensor, Tensor, Any]":
            with torch.no_grad():
                expected, theirs = split_features(network(images))
            raw, ours = split_features(engine.network(images))
            kl = map_divergence(learned.maps(raw, ours), learned.maps(expected, theirs), self.temperature)
            errors = [functional.mse_loss(ours[i].float(), theirs[i].float()) for i in learned.features]
            return kl, torch.stack(errors).mean() if errors else kl.new_zeros(()), raw

        compiled = ctx.compile(compare)

        def gradients(images: "Tensor", numbers: "Tensor") -> "Mapping[str, Tensor]":
            kl, features, raw = compiled(images)
            loss = self.alpha * kl + self.feature_weight * features
            curves = {"kl": kl, "features": features}
            if boxes is not None:
                height, width = images.shape[2:]
                wanted = targets(boxes, numbers.tolist(), (height, width))
                curves["det_loss"] = detection.training_loss(raw, (height, width), wanted)
                loss = loss + self.det_weight * curves["det_loss"]
            torch.autograd.backward(loss)
            return {"loss": loss, **curves}

        return gradients


class _Learned:
    """Nodes of a graph that are compared, in graph order: features, and the heads' predictions of each level."""

    def __init__(self, nodes: "Sequence[fx.Node]", features: Sequence[int], levels: Sequence[Sequence[int]]) -> None:
        """`features` and `levels` are indices of nodes. A network may have no levels."""
        self.nodes, self.features, self.levels = nodes, features, levels

    @classmethod
    def of(cls, network: "fx.GraphModule", output_layers: Sequence[str]) -> "_Learned":
        """All layers and normalisations, and the calls that give raw outputs, grouped by the size of their maps."""
        from zsqbench.quant.graph import is_batch_norm, is_layer

        features = [node for node in network.graph.nodes if is_layer(node) or is_batch_norm(node)]
        given = [_rounded(network, node) for node in features if str(node.target) in output_layers]
        nodes = [node for node in network.graph.nodes if node in {*features, *given}]
        place = {node: number for number, node in enumerate(nodes)}
        levels: dict[tuple[int, ...], list[int]] = {}
        for node in given:
            shape = node.meta["shape"]
            levels.setdefault(tuple(shape[2:]) if len(shape) == MAPS else (), []).append(place[node])
        return cls(nodes, [place[node] for node in features], list(levels.values()))

    def maps(self, raw: Any, given: "Sequence[Tensor]") -> "list[Tensor]":
        """The predictions of each level [N, values]; each output of a network without levels."""
        import torch

        from zsqbench.synthesis import flat_outputs

        if not self.levels:
            return flat_outputs(raw)
        return [torch.cat([given[place].flatten(1) for place in level], 1) for level in self.levels]


def _rounded(network: "fx.GraphModule", node: "fx.Node") -> "fx.Node":
    """The quantizer behind a layer, whose output is the network's prediction; the layer where there is none."""
    from zsqbench.quant import ActivationQuantizer

    behind = [user for user in node.users if user.op == "call_module"]
    rounds = [user for user in behind if isinstance(network.get_submodule(str(user.target)), ActivationQuantizer)]
    return rounds[0] if rounds else node


def _numbers(count: int) -> "Tensor":
    import torch

    return torch.arange(count)


@zsqbench.hookimpl
def register_quantizers() -> list[type[zsqbench.Quantizer]]:
    """Provide `detect_kd`."""
    return [DetectKD]
