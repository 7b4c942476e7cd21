"""Images for detectors towards boxes that the detector itself proposes (Li et al., ICCV 2025)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from zsqbench_plugins.shared.boxes import corners, rows, targets

import zsqbench
from zsqbench.methods import Auto, Network, auto
from zsqbench.methods.work import STEP
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Detection, Pretrained, StepContext
    from zsqbench.synthesis import BNGap, BNLoss
    from zsqbench.zoo.detection import Size

ITERATIONS, FIRST, LAST, LOOK = 3000, 800, 2800, 100
"""In the release: steps of a stage, first and last step with refinement, steps between two refinements."""

COARSEST = 32
"""Sides of smaller images are multiples of this number, because of the strides of detectors."""

SMALL, SMALL_SIDE = 0.25, 160
"""Sides of images in the release's first stage, as a part of the final side, and in pixels."""

NMS_SCORE, NMS_OVERLAP = 0.001, 0.6
"""Suppression of the network's boxes before they are proposed."""

SMALLEST_BOX, LARGEST_BOX = 0.2, 0.8
"""Sides of a random box, in parts of the image."""

EPS = 1e-12
"""Added below roots: the slope of a norm at 0 is infinite."""


class TaskBoxes(zsqbench.Generator):
    """Images with target boxes: first boxes are refined on small images, then images are made for them.

    Each image begins with one random box. Pixels minimise L = det_weight n L_det + sum_l w_l (|m_l - mu_l| + |v_l -
    var_l|) + variation_weight TV + norm_weight |x|. L_det is the detector's own training loss, times the n images of a
    batch as in the loss of the release's YOLO11. Norms are not squared. m_l and v_l are mean and biased variance of the
    batch. w_l is bn_weight; the first layer has first_bn_weight in addition. TV is the sum of four norms of differences
    over the whole batch.

    In the first stage images are small (`label_scale`). Every `refine_every` steps between `refine_from` and
    `refine_until`, the detector's boxes above `score` are compared with the present boxes. A box of the detector that
    overlaps with none (IoU below `overlap`) is added, whatever its label, if its area is between `smallest_area` and
    `largest_area`. A present box that overlaps with none of the detector's is dropped, but one box always stays. The
    second stage begins with fresh noise and keeps the boxes. Its result is the pixels with the lowest L_det.

    The default preset is `released`, the settings of the toolkit (DFQ-Dojo/dfq-toolkit, YOLO11). `paper` has the
    paper's settings for YOLO11. The paper's YOLOv5 has det_weight 0.5, bn_weight 0.01, norm_weight 5e-4 and 2,500
    iterations.

    The set contains the boxes. An image keeps its random box if the detector proposes nothing that can be added. A note
    counts the images with a random box where the detector never found anything.

    Deviations:

    - Where the final images are smaller than the release's 640 pixels, images of the first stage keep its 160 pixels or
      have their own size. A quarter of a smaller side would show objects at sizes that the detector does not know.
    - Pixels are optimised between black (0) and white (1), as in the release, and normalised for the network.
    - The batch size, |x| as the mean over images, and the cosine of the preset `paper` are ours, because the available
      sources do not give them.
    - Boxes come from the detector's own decoding, with the release's thresholds where the task takes thresholds.
    - Of boxes that overlap by 0.6 only the best is proposed, whatever their labels. Decodings other than the release's
      give several labels to one place.
    - A batch without any proposal leaves its boxes as they are. The release crashes.
    - The lowest losses are looked for after each hundredth step and after the last.
    - There is an epsilon of 1e-12 below roots.
    - Transformers, for which the paper replaces the statistics, are not supported.
    - The method is seeded.
    """

    name = "task_boxes"
    version = 2
    needs_bn = True
    needs_training_loss = True
    memory_options = ("batch_size",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "det_weight": 1e-3,
            "bn_weight": 1e-3,
            "first_bn_weight": 0.0,
            "variation_weight": 0.0,
            "norm_weight": 5e-5,
            "lr": 1e-2,
            "start": "normal",
        },
        "released": {
            "det_weight": 0.5,
            "bn_weight": 0.05,
            "first_bn_weight": 5.0,
            "variation_weight": 0.002,
            "norm_weight": 0.0,
            "lr": 0.2,
            "start": "uniform",
        },
    }

    images: int = Field(2000, gt=0, description="size of the calibration set")
    batch_size: int = Field(32, gt=0, description="images optimised together")
    preset: Literal["paper", "released"] = Field("released", description="values of the options that are not given")
    iterations: int = Field(ITERATIONS, gt=0, description="Adam steps of each of the two stages, for each batch")
    lr: Auto[float] = auto(
        gt=0, lt=1e30, description="learning rate of Adam at the start; it falls along a cosine to 0"
    )
    start: Auto[Literal["normal", "uniform"]] = auto(
        description="pixels at the start: normal noise, or uniform in 256 steps"
    )
    det_weight: Auto[float] = auto(ge=0, description="weight of the detector's training loss")
    bn_weight: Auto[float] = auto(ge=0, description="weight of the statistics of each layer")
    first_bn_weight: Auto[float] = auto(ge=0, description="further weight of the statistics of the first layer")
    variation_weight: Auto[float] = auto(ge=0, description="weight of the total variation of the batch as a whole")
    norm_weight: Auto[float] = auto(ge=0, description="weight of the images' norm")
    clamp: bool = Field(False, description="hold pixels to valid values after each step; the sources do not")
    label_scale: Auto[float] = auto(
        gt=0,
        le=1,
        description="side of images in the first stage, as a part of the final side, in steps of 32 pixels; "
        "unset: 160 pixels, at least a quarter and at most all of the side",
    )
    refine: bool = Field(True, description="refine boxes in a first stage; false: each image keeps its random box")
    refine_every: Auto[int] = auto(gt=0, description="steps between two looks; unset: 100 of 3,000, in proportion")
    refine_from: Auto[int] = auto(ge=0, description="first step with a look; unset: 800 of 3,000, in proportion")
    refine_until: Auto[int] = auto(ge=0, description="last step with a look; unset: 2,800 of 3,000, in proportion")
    score: float = Field(0.2, ge=0, le=1, description="lower bound of the score of a proposed box")
    overlap: float = Field(0.35, ge=0, le=1, description="intersection over union from which on two boxes count as one")
    smallest_area: float = Field(0.01, ge=0, le=1, description="lower bound of the area of an added box")
    largest_area: float = Field(0.85, ge=0, le=1, description="upper bound of the area of an added box")

    @model_validator(mode="after")
    def _has_room(self) -> "TaskBoxes":
        if self.smallest_area >= self.largest_area:
            raise ValueError(
                f"no area is above smallest_area {self.smallest_area} and below largest_area {self.largest_area}"
            )
        return self

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """The preset's values, looks in proportion to the iterations, and the side of the first stage's images."""
        part = self.iterations / ITERATIONS
        looks = {
            "refine_every": max(1, round(LOOK * part)),
            "refine_from": round(FIRST * part),
            "refine_until": round(LAST * part),
        }
        scale = min(1.0, max(SMALL, SMALL_SIDE / min(network.input_size[1:])))
        return {**super().automatic(network, scheme), **looks, "label_scale": scale}

    def work(self, images: int) -> float:
        """The work of both stages; the first has small images."""
        small = self.label_scale**2 if self.refine else 0.0
        return super().work(images) + small * STEP * self.iterations * images

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Refine boxes, then make images; an interrupted run resumes from its last checkpoint.

        Raises ZSQBenchError for a network without a training loss, and for one that does not take small images. Raises
        DivergedError where a loss is not finite.
        """
        import torch

        from zsqbench.synthesis import DEEP_INVERSION, BNLoss, optimize

        self = self.resolved(teacher)
        if teacher.detection is None:
            raise zsqbench.ZSQBenchError(
                f"generator {self.name!r} needs a detector whose task hands out its training loss, and "
                f"{type(teacher.module).__name__} is not one"
            )
        with BNLoss(teacher.module, DEEP_INVERSION) as bn_loss:
            run = _Run(self, teacher, teacher.detection, ctx, bn_loss)
            made = optimize(run.order, run.begin, run.losses, ctx, run.state, stepped=run.stepped, keep=run.keep)
        with torch.no_grad():
            images = torch.cat([run.normalised(pixels.to(ctx.device)).cpu() for pixels in made[-len(run.sizes) :]])
        kept = run.report() if self.refine else None
        provenance = {"preset": self.preset, "boxes": len(run.boxes), "random_boxes_kept": kept}
        return zsqbench.CalibrationSet(images.contiguous(), provenance=provenance, boxes=run.boxes)


class _Run:
    """The state of one call of `generate` between steps: the boxes of all images, and the best pixels of a batch."""

    def __init__(
        self,
        options: TaskBoxes,
        teacher: "Pretrained",
        detection: "Detection",
        ctx: "StepContext",
        bn_loss: "BNLoss",
    ) -> None:

        from zsqbench.synthesis import batch_sizes

        self.options, self.teacher, self.detection, self.ctx, self.bn_loss = options, teacher, detection, ctx, bn_loss
        self.state: dict[str, Any] = ctx.resume() or {}
        self.sizes = batch_sizes(options.images, options.batch_size)
        stages = 2 if options.refine else 1
        # batch after batch in each stage, so all boxes exist before the first final image
        self.order = [batch for batch in range(stages * len(self.sizes)) for _ in range(options.iterations)]
        low, high = (bound.to(ctx.device) for bound in teacher.valid_range())
        self._black, self._range = low, high - low
        height, width = teacher.input_size[1:]
        self._full = height, width
        self._small = smaller(height, options.label_scale), smaller(width, options.label_scale)
        begun = {name: self.state[name] for name in ("boxes", "random", "found") if name in self.state} or self._begun()
        self.boxes: Tensor = begun["boxes"]
        """[M, 6], on the CPU, in the format of the set."""
        self._random: Tensor = begun["random"]
        self._found: Tensor = begun["found"]
        """True for images whose random box the detector also proposed at some time."""
        self._targets: tuple[int, list[dict[str, Tensor]]] | None = None
        self._best: tuple[float, Tensor] | None = None
        if "best" in self.state:
            self._best = self.state["best_loss"], self.state["best"].to(ctx.device)

    def normalised(self, pixels: "Tensor") -> "Tensor":
        """Pixels between 0 and 1, normalised for the network."""
        return self._black + pixels * self._range

    def begin(self, number: int, pixels: "Tensor | None") -> Any:
        """Draw the pixels of a batch in a stage, or resume with the pixels of a checkpoint."""
        import torch

        from zsqbench.synthesis import Cosine, PixelBatch

        options, (batch, size) = self.options, self._place(number)
        if pixels is None:
            shape = (self.sizes[batch], self.teacher.input_size[0], *size)
            uniform = options.start == "uniform"
            pixels = (self.ctx.rand(*shape) * 256).floor() / 255 if uniform else self.ctx.randn(*shape)
            self._targets = self._best = None
        return PixelBatch(
            pixels.to(self.ctx.device), torch.optim.Adam, Cosine(options.lr, options.iterations), options.iterations
        )

    def losses(self, pixels: "Tensor", step: int) -> "tuple[Tensor, dict[str, Tensor]]":
        """The loss of a step, and its parts."""
        number, gap = self.order[step], self._run(self.normalised(pixels))
        if self._looks(step):
            self._refine(number, gap.seen.outputs)
        det_loss = self._det_loss(number, gap.seen.outputs)
        loss, parts = image_loss(self.options, pixels, gap, len(pixels) * det_loss)
        return loss, {**parts, "det_loss": det_loss}

    def stepped(self, pixels: "Tensor", step: int) -> None:
        """Hold pixels to valid values. In the second stage, also keep the pixels with the lowest training loss."""
        import torch

        made, number = step % self.options.iterations + 1, self.order[step]
        is_last = made == self.options.iterations
        with torch.no_grad():
            if self.options.clamp:
                pixels.clamp_(0, 1)
            if self._refines(number) or (made % self.options.refine_every and not is_last):
                return
            loss = float(self._det_loss(number, self.teacher.module(self.normalised(pixels))))
            if self._best is None or loss < self._best[0]:
                self._best = loss, pixels.detach().clone()
            if is_last:
                self.ctx.log("lowest_det_loss", self._best[0], step)
                pixels.copy_(self._best[1])

    def keep(self) -> dict[str, Any]:
        """The part of a checkpoint besides pixels and optimisers."""
        best = {} if self._best is None else {"best_loss": self._best[0], "best": self._best[1]}
        return {"boxes": self.boxes, "random": self._random, "found": self._found, **best}

    def report(self) -> int:
        """Note the number of images that kept a random box where the detector never found anything."""
        images = self.options.images
        there = (self._random[:, None] == self.boxes).all(2).any(1)
        kept = int((there & ~self._found).sum())
        say = self.ctx.footnote if 2 * kept > images else self.ctx.note
        say(f"{kept} of {images} images keep their random box, at which the detector never found anything")
        self.ctx.note(f"{len(self.boxes)} boxes in {images} images")
        return kept

    def _begun(self) -> "dict[str, Tensor]":
        """A random box in each image."""
        import torch

        draws = self.ctx.rand(self.options.images, 5).cpu()
        labels = torch.tensor(self.detection.labels)
        chosen = labels[(draws[:, 4] * len(labels)).long()].float()
        owners = torch.arange(self.options.images).float()
        boxes = torch.cat([owners[:, None], chosen[:, None], random_boxes(draws[:, :2], 2 * draws[:, 2:4] - 1)], 1)
        return {"boxes": boxes, "random": boxes, "found": torch.zeros(len(boxes), dtype=torch.bool)}

    def _refines(self, number: int) -> bool:
        """True in the first of two stages."""
        return self.options.refine and number < len(self.sizes)

    def _place(self, number: int) -> "tuple[int, Size]":
        """The batch of this number, and the size of its images in this stage."""
        return number % len(self.sizes), self._small if self._refines(number) else self._full

    def _looks(self, step: int) -> bool:
        options, made = self.options, step % self.options.iterations
        inside = options.refine_from <= made <= options.refine_until
        return self._refines(self.order[step]) and inside and made % options.refine_every == 0

    def _run(self, images: "Tensor") -> Any:
        try:
            return self.bn_loss(images, outputs=True)
        except RuntimeError as error:
            if tuple(images.shape[2:]) == self._full:
                raise
            height, width = images.shape[2:]
            raise zsqbench.ZSQBenchError(
                f"{type(self.teacher.module).__name__} does not take images of {height} x {width} pixels, on which "
                f"boxes are refined ({str(error).splitlines()[0]}): raise label_scale ({self.options.label_scale:g})"
            ) from error

    def _refine(self, number: int, raw: Any) -> None:
        """Add and drop boxes of a batch, by the detector's boxes."""
        import torch
        from torchvision.ops import box_iou

        batch, size = self._place(number)
        first = batch * self.options.batch_size
        with torch.no_grad():
            found = self.detection.decode(raw, size, NMS_SCORE, NMS_OVERLAP)
        on_cpu = [{name: value.detach().cpu() for name, value in each.items()} for each in found]
        proposed = rows([one_label(each) for each in on_cpu], self.options.score, size)
        proposed[:, 0] += first
        options, random = self.options, self._random
        overlaps = box_iou(corners(random), corners(proposed)) * (random[:, :1] == proposed[:, 0])
        self._found |= (overlaps >= options.overlap).any(1)
        self.boxes = refined(self.boxes, proposed, options.overlap, (options.smallest_area, options.largest_area))
        self._targets = None

    def _det_loss(self, number: int, raw: Any) -> "Tensor":
        batch, size = self._place(number)
        if self._targets is None or self._targets[0] != number:
            first = batch * self.options.batch_size
            owners = range(first, first + self.sizes[batch])
            self._targets = number, targets(self.boxes.to(self.ctx.device), owners, size)
        return self.detection.training_loss(raw, size, self._targets[1])


def image_loss(
    options: TaskBoxes, pixels: "Tensor", gap: "BNGap", det_loss: "Tensor"
) -> "tuple[Tensor, dict[str, Tensor]]":
    """The loss of pixels [N, C, H, W] between 0 and 1, and its parts; options are resolved."""
    from zsqbench.synthesis import total_variation

    norms = (gap.means + EPS).sqrt() + (gap.moments + EPS).sqrt()
    bn_loss = options.bn_weight * norms.sum() + options.first_bn_weight * norms[0]
    loss = options.det_weight * det_loss + bn_loss
    if options.variation_weight:
        loss = loss + options.variation_weight * total_variation(pixels)
    if options.norm_weight:
        loss = loss + options.norm_weight * pixels.flatten(1).norm(dim=1).mean()
    return loss, {"det_loss": det_loss, "bn_loss": bn_loss, "loss": loss}


def one_label(found: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The boxes of an image without those that overlap with a better box of any label."""
    from torchvision.ops import nms

    kept = nms(found["boxes"], found["scores"], NMS_OVERLAP)
    return {name: values[kept] for name, values in found.items()}


def smaller(side: int, scale: float) -> int:
    """The side of a smaller image: a multiple of 32 pixels, at most the side itself."""
    return min(side, COARSEST * math.ceil(side * scale / COARSEST))


def random_boxes(sides: "Tensor", places: "Tensor") -> "Tensor":
    """Centres, widths and heights [N, 4] of boxes inside the image, from numbers in [0, 1) and in [-1, 1), [N, 2] each.

    Sides are uniform between 0.2 and 0.8. Centres are uniform over all positions that keep the box inside.
    """
    import torch

    spans = SMALLEST_BOX + (LARGEST_BOX - SMALLEST_BOX) * sides
    return torch.cat([0.5 + (0.5 - spans / 2) * places, spans], 1)


def refined(boxes: "Tensor", proposed: "Tensor", overlap: float, area: tuple[float, float]) -> "Tensor":
    """Boxes [M, 6] that overlap with a proposed box, and proposed boxes that overlap with none of the boxes.

    Images are treated separately, labels are ignored, and proposed boxes are not compared with each other. An image
    without a box or without a proposed box stays as it is. If all boxes of an image would be dropped, the one with the
    largest overlap stays. Added boxes have an area between the two limits (both excluded), and come after the boxes
    that stay.
    """
    import torch
    from torchvision.ops import box_iou

    overlaps = box_iou(corners(boxes), corners(proposed))
    overlaps = overlaps.where(boxes[:, :1] == proposed[None, :, 0], -1.0)  # -1: of another image
    stays = torch.ones(len(boxes), dtype=torch.bool)
    added = torch.zeros(len(proposed), dtype=torch.bool)
    areas = proposed[:, 4] * proposed[:, 5]
    fits = (area[0] < areas) & (areas < area[1])
    for image in set(proposed[:, 0].tolist()):
        mine, theirs = boxes[:, 0] == image, proposed[:, 0] == image
        if not mine.any():
            continue
        added |= theirs & fits & (overlaps.amax(0) < overlap)
        best = overlaps.amax(1)
        supported = best >= overlap
        if mine.sum() > 1:
            stays &= ~mine | supported
            if not (mine & supported).any():
                stays[best.where(mine, -1.0).argmax()] = True
    return torch.cat([boxes[stays], proposed[added]])


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `task_boxes`."""
    return [TaskBoxes]
