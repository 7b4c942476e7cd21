"""Images whose attention is pulled to random blobs, after the text of SARDFQ (Zhong et al., ICCV 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator
from zsqbench_plugins.shared.attending import AttentionGenerator, aimed_variation
from zsqbench_plugins.shared.jittered import JitteredBatch

import zsqbench
from zsqbench.methods import Network
from zsqbench.methods.work import STEP
from zsqbench.scheme import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx

    from zsqbench import CalibrationSet, Pretrained, StepContext
    from zsqbench.quant import Attention, KeyGrid
    from zsqbench.synthesis import Crops

QUADRANTS = 4
"""Rectangles that a cut makes of an image."""

PART = 0.1
"""Weight of attention's distance from blobs, as a part of the squared number of patches."""


class AttentionPrior(AttentionGenerator):
    """Images of classes for transformers: maps of attention are pulled to random mixtures of blobs.

    The class follows the text of SARDFQ (Zhong et al., ICCV 2025). Its code is not available, and its formulas and
    settings are known from third-party notes only, so this is not a reproduction. It minimises L = prior_weight APA +
    class_weight SL + variation_weight |TV - R|.

    APA compares the class token's attention to the patches with a mixture of Gaussians on their grid. Each image, block
    and head has its own mixture. The mean squared difference is summed over heads, and over the blocks l from L/2 to L
    with weights l/L. Without a class token, the mean attention of all tokens is compared. MSR enlarges up to four
    rectangles of each image, which do not overlap, to the image's size. They are optimised as images beside it, with
    their own blobs and class; their gradients go to their rectangles alone. SL is the cross-entropy towards softmax(Z).
    Z is drawn from 5 to 10 for wanted classes. The wanted classes of an image are the classes of its rectangles. The
    set contains the soft labels.

    The text leaves these choices open; they are ours:

    - Number of components: drawn from 1 to `components`. Each component has the same part of the sum.
    - Centres: anywhere from the first to the last row and column. Deviations: from `narrowest` to `widest` of the
      grid's side, drawn separately for rows and columns.
    - Scale: maps, without the class token's own entry, and mixtures are divided by their sums.
    - Mixtures are drawn once for each image, and nothing is averaged over heads. Blocks count from 1, and block L/2 is
      included.
    - Windows (Swin): the mean over the tokens of all windows, on the grid of one window.
    - `prior_weight`: the text searched it for each network from 1 to 1e5. Here it is a tenth of the square of the
      number of patches, 3,842 for 14 x 14. With the square, a head's term is in parts of even attention, whatever the
      size of the image. The tenth was chosen on an untrained network of two blocks and 16 patches, in 200 steps of one
      seed. All terms fall with it, while with the whole square the gap of total variation does not fall. No accuracy
      was looked at.
    - Rectangles: one row and one column cut the image into four. They are at least `smallest_view` of the side away
      from the borders. 1 to `views` of the rectangles are taken, drawn once for each image. Interpolation is bilinear.
    - Rectangles have terms of APA and SL, as heavy as the image's, and no term of TV. They are neither shifted nor
      flipped.
    - Z is 0 for classes that are not wanted, and is drawn once. Classes are drawn with replacement.
    - TV, its target R, rates, shifts, flips and clipping are those of `psaq_vit`. Its 1,000 iterations are two phases
      of 500.

    The 32 images and the weight 0.05 of TV are also second-hand. The paper's quantizer is not implemented here.
    """

    name = "attention_prior"
    compiles = "pixels"

    prior_weight: float | None = Field(
        None,
        ge=0,
        lt=1e30,
        description="weight of attention's distance from blobs; unset: 0.1 of the squared number of patches",
    )
    components: int = Field(5, gt=0, description="largest number of Gaussians in a blob")
    narrowest: float = Field(0.1, gt=0, le=1, description="smallest deviation of a Gaussian, in parts of the grid")
    widest: float = Field(0.25, gt=0, le=1, description="largest deviation of a Gaussian, in parts of the grid")
    views: int = Field(
        4,
        ge=0,
        le=QUADRANTS,
        description="largest number of an image's rectangles that are optimised as images; 0 disables them",
    )
    smallest_view: float = Field(0.25, gt=0, le=0.5, description="smallest side of a rectangle, in parts of the image")
    least_logit: float = Field(5.0, ge=0, description="smallest logit of a wanted class; other classes have 0")
    most_logit: float = Field(10.0, ge=0, description="largest logit of a wanted class")

    @model_validator(mode="after")
    def _has_intervals(self) -> Self:
        if self.narrowest > self.widest:
            raise ValueError(f"narrowest {self.narrowest:g} is above widest {self.widest:g}")
        if self.least_logit > self.most_logit:
            raise ValueError(f"least_logit {self.least_logit:g} is above most_logit {self.most_logit:g}")
        return self

    def automatic(self, network: Network, scheme: Scheme | None) -> Mapping[str, Any]:
        """Shifts in proportion to the image. Raises ZSQBenchError for images that cannot be cut."""
        height, width = network.input_size[1:]
        if self.views and min(height, width) < 2:  # noqa: PLR2004 - a cut has two sides
            raise zsqbench.ZSQBenchError(
                f"generator {self.name!r} cuts images into four, and images of this network have {height} x {width} "
                "pixels; expected at least 2 pixels a side: set views: 0"
            )
        return super().automatic(network, scheme)

    def work(self, images: int) -> float:
        """The work of all phases, on images and on their rectangles."""
        of_views = (self.views + 1) / 2 if self.views else 0.0
        return super().work(images) + STEP * of_views * self.phases * self.iterations * images

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint.

        Raises ZSQBenchError for a network that is not a classifier or cannot be captured. Also raises it where capture
        cannot take attention apart, or the grid of patches is unknown.
        """
        from zsqbench.quant import also_returning

        self, state = self.resolved(teacher), ctx.resume() or {}
        classes = self.classes_of(teacher)
        captured, found = self.captured(teacher)
        looks = self._looks(teacher, captured, found, ctx)
        network = also_returning(captured, [look.weights for look in looks]).requires_grad_(requires_grad=False)
        run = ctx.compile(network)
        target = state["variation_target"] if state else self.draw_target(ctx)
        drawn = {name: state[name] for name in ("cuts", "blobs")} if state else self._draw_views(looks, ctx)
        cuts = cut(self, drawn["cuts"], teacher.input_size[1:], classes)

        @lru_cache(maxsize=1)
        def views_of(number: int) -> Views:
            first = number * self.batch_size
            batch = slice(first, first + self.batch_size)
            return make_views(self, cuts.of(batch), drawn["blobs"][batch], looks, ctx.device)

        def losses(batch: JitteredBatch) -> "tuple[Tensor, Mapping[str, Tensor]]":
            views = views_of(batch.number)
            outputs, weights = run(views.of(batch.images, batch.pixels))
            aimed = aimed_variation(target, batch.images.shape)
            return prior_loss(self, batch, outputs, weights, views, looks, aimed)

        return self.synthesize(
            teacher,
            ctx,
            losses,
            self.highest_rate(found),
            state=state,
            labels=cuts.labels(),
            keep=lambda: {"variation_target": target, **drawn},
        )

    def _looks(
        self, teacher: "Pretrained", captured: "fx.GraphModule", found: "Sequence[Attention]", ctx: "StepContext"
    ) -> "list[Look]":
        """The attention of the deeper half of all blocks. Raises ZSQBenchError where its grid is unknown."""
        from zsqbench.quant import has_class_token, key_grid, patch_size

        size, patch = teacher.input_size[1:], patch_size(captured)
        of_class, looks = has_class_token(captured), []
        for block, each in enumerate(found, 1):
            if 2 * block < len(found):
                continue
            grid = key_grid(each, size, patch)
            if grid is None or (grid.before and not of_class):
                expected = "a grid of patches" if grid is None else "a class token before all patches"
                raise zsqbench.ZSQBenchError(
                    f"generator {self.name!r} cannot tell where attention looks: block {block} of "
                    f"{type(teacher.module).__name__} has {each.keys} keys, of images of {size[0]} x {size[1]} pixels; "
                    f"expected {expected}: take another generator, such as psaq_vit"
                )
            scale = PART * grid.keys**2 if self.prior_weight is None else self.prior_weight
            looks.append(Look(each.weights, grid, each.heads, scale * block / len(found)))
        if any(not look.grid.before for look in looks):
            ctx.note("blocks without a class token: maps are means of the attention of all tokens")
        return looks

    def _draw_views(self, looks: "Sequence[Look]", ctx: "StepContext") -> "dict[str, Tensor]":
        """Uniform numbers for all images, on the CPU. They decide cuts, classes and blobs."""
        heads = sum(look.heads for look in looks)
        cuts = ctx.rand(self.images, sum(_CHANCES))
        blobs = ctx.rand(self.images, 1 + QUADRANTS, heads, 1 + 4 * self.components)
        return {"cuts": cuts.cpu(), "blobs": blobs.cpu()}


_CHANCES = 1, 2, QUADRANTS, QUADRANTS, 2 * QUADRANTS
"""Uniform numbers of an image: for its number of views, row and column, order of rectangles, classes, logits."""


@dataclass(frozen=True)
class Look:
    """The attention of a block that is compared with blobs."""

    weights: "fx.Node"
    """The softmax."""
    grid: "KeyGrid"
    heads: int
    weight: float
    """Weight in the loss of the mean squared differences of its heads."""


@dataclass(frozen=True)
class Cuts:
    """Cuts of images into four rectangles, with the rectangles that are views and the classes."""

    sides: Sequence[int]
    """Height and width of the images."""
    classes: int
    """Number of classes."""
    count: "Tensor"
    """Number of views of each image: int64 [n]."""
    corner: "Tensor"
    """Row and column of the cut [n, 2]."""
    order: "Tensor"
    """Rectangles in the order of views, numbered row by row: int64 [n, 4]."""
    wanted: "Tensor"
    """The classes of views, in their order: int64 [n, 4]."""
    logits: "Tensor"
    """Logits of these classes: in the image's label, and in those of views [n, 2, 4]."""

    def of(self, images: slice) -> "Cuts":
        """The cuts of some of the images."""
        tensors = (self.count, self.corner, self.order, self.wanted, self.logits)
        return Cuts(self.sides, self.classes, *(each[images] for each in tensors))

    def labels(self) -> "Tensor":
        """Soft labels of the images [n, classes]: the classes of their views; without views, the first class."""
        import torch

        from zsqbench.synthesis import soft_labels

        has = torch.arange(QUADRANTS) < self.count.clamp_min(1)[:, None]
        return soft_labels(self.wanted, self.logits[:, 0] * has, self.classes)

    def view(self, number: int) -> "View":
        """The view with this number, counted from 0, of all images that have it."""
        import torch

        from zsqbench.synthesis import Crops, soft_labels

        owners = (self.count > number).nonzero().flatten()
        place, corner = self.order[owners, number], self.corner[owners]
        height, width = (float(side) for side in self.sides)
        below, right = place >= 2, place % 2 == 1  # noqa: PLR2004 - two rectangles in each row
        row, column = corner.unbind(1)
        crops = Crops(
            torch.where(below, row, 0.0),
            torch.where(right, column, 0.0),
            torch.where(below, height - row, row),
            torch.where(right, width - column, column),
            torch.zeros_like(below),
        )
        which = slice(number, number + 1)
        labels = soft_labels(self.wanted[owners, which], self.logits[owners, 1, which], self.classes)
        return View(owners, crops, labels)


@dataclass(frozen=True)
class View:
    """A rectangle of some of the images of a batch."""

    owners: "Tensor"
    """Numbers of these images, each once: int64 [m]."""
    crops: "Crops"
    labels: "Tensor"
    """Soft labels [m, classes]."""

    def to(self, device: "torch.device") -> "View":
        """The view on this device."""
        crops = type(self.crops)(*(each.to(device) for each in vars(self.crops).values()))
        return View(self.owners.to(device), crops, self.labels.to(device))

    def enlarged(self, pixels: "Tensor") -> "Tensor":
        """The rectangles of images [n, C, H, W], enlarged to the size of the images: [m, C, H, W]."""
        from zsqbench.synthesis import resized_crops

        return resized_crops(pixels.index_select(0, self.owners), self.crops)


@dataclass(frozen=True)
class Views:
    """Everything of a batch that is optimised: first its images, then their rectangles."""

    rectangles: Sequence[View]
    priors: "Sequence[Tensor]"
    """The blobs of each block [views, heads, patches]."""

    def of(self, images: "Tensor", pixels: "Tensor") -> "Tensor":
        """These images, followed by rectangles of these pixels."""
        import torch

        return torch.cat([images, *(view.enlarged(pixels) for view in self.rectangles)])

    def labels(self, of_images: "Tensor") -> "Tensor":
        """Soft labels of images and rectangles, from the soft labels of the images."""
        import torch

        return torch.cat([of_images, *(view.labels for view in self.rectangles)])


def cut(options: AttentionPrior, chances: "Tensor", sides: Sequence[int], classes: int) -> Cuts:
    """Cut images by uniform numbers in [0, 1), [n, 19]."""
    import torch

    count, corner, order, wanted, logits = torch.split(chances, list(_CHANCES), 1)
    whole = torch.tensor(sides)
    least = (options.smallest_view * whole).long().clamp_min(1)
    corner = least + below(corner, whole - 2 * least + 1)
    number = (1 + below(count[:, 0], torch.tensor(options.views))) * (options.views > 0)
    logits = options.least_logit + (options.most_logit - options.least_logit) * logits.view(-1, 2, QUADRANTS)
    wanted = below(wanted, torch.tensor(classes))
    return Cuts(sides, classes, number, corner.to(chances), order.argsort(1), wanted, logits)


def below(chances: "Tensor", count: "Tensor") -> "Tensor":
    """Whole numbers from 0 to count - 1, int64, from numbers in [0, 1). A product may round up to the count."""
    return (chances * count).long().minimum((count - 1).clamp_min(0))


def make_views(
    options: AttentionPrior, cuts: Cuts, blobs: "Tensor", looks: Sequence[Look], device: "torch.device"
) -> Views:
    """The views of a batch with their blobs, drawn by uniform numbers [n, 5, heads, 1 + 4 components]."""
    import torch

    from zsqbench.synthesis import gaussian_mixtures

    rectangles = [cuts.view(number) for number in range(options.views)]
    chosen = [blobs[:, 0], *(blobs[view.owners, number] for number, view in enumerate(rectangles, 1))]
    spread = options.narrowest, options.widest
    of_looks = torch.split(torch.cat(chosen), [look.heads for look in looks], 1)
    priors = [
        gaussian_mixtures(part, look.grid.height, look.grid.width, spread).to(device)
        for part, look in zip(of_looks, looks, strict=True)
    ]
    return Views([view.to(device) for view in rectangles], priors)


def prior_loss(
    options: AttentionPrior,
    batch: JitteredBatch,
    outputs: Any,
    weights: "Sequence[Tensor]",
    views: Views,
    looks: Sequence[Look],
    target: float,
) -> "tuple[Tensor, dict[str, Tensor]]":
    """The loss of a batch and its parts, from the network's outputs for all views and the attention in each block.

    Sums over views are divided by the number of images. `target` is the target of the images' total variation.
    """
    from zsqbench.synthesis import attention_map, class_logits, inception_loss, map_loss, total_variation

    labels = views.labels(batch.labels)
    count, of_all = len(batch.pixels), len(labels)
    attention = batch.pixels.new_zeros(())
    for look, each, prior in zip(looks, weights, views.priors, strict=True):
        attention = attention + look.weight * map_loss(attention_map(each, of_all, look.grid.before), prior).sum()
    parts = {
        "attention_loss": attention / count,
        "soft_loss": inception_loss(class_logits(outputs, labels), labels) * of_all / count,
        "variation_loss": (total_variation(batch.images) - target).abs(),
    }
    weighted = options.class_weight * parts["soft_loss"] + options.variation_weight * parts["variation_loss"]
    return parts["attention_loss"] + weighted, parts


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `attention_prior`."""
    return [AttentionPrior]
