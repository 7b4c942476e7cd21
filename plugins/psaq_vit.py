"""PSAQ-ViT: Patch Similarity Aware Data-Free Quantization for Vision Transformers (Li et al., ECCV 2022)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from zsqbench_plugins.shared.attending import AttentionGenerator, aimed_variation
from zsqbench_plugins.shared.jittered import JitteredBatch

import zsqbench

if TYPE_CHECKING:
    from torch import Tensor

    from zsqbench import CalibrationSet, Pretrained, StepContext


class PSAQViT(AttentionGenerator):
    """Images of classes with diverse patches: the entropy of the similarities of patches in attention is high.

    The method minimises L = -sum_l H_l + class_weight CE + variation_weight |TV - R|. H_l is the entropy of block l. It
    comes from attention times values, averaged over heads. Cosines of all ordered pairs of patches of an image give a
    density, by Gaussian kernels at `points` points over the range of the batch. H_l is the mean entropy over images. TV
    is the sum of four norms of differences over the batch, and R is drawn once. All terms are measured on the shifted
    images. There are two phases of 500 iterations, with shifts by up to 15 and 30 pixels. The learning rate rises and
    falls in each. The set contains the labels.

    The class follows the released code. The code uses its 32 images with min-max ranges and round to nearest (`rtn`).
    Ten points and a bandwidth of 0.01 are part of the method. Points are some 19 bandwidths apart. Two thirds of the
    pairs are near no point and have no gradient. Another number of points, or another bandwidth, makes another method.
    In windows (Swin), similarities are computed within each window, and those of an image form one density. The first
    token of each window is left out, as in the release, though it is not a class token. A network with neither windows
    nor a class token keeps all its tokens, and a note says so. A distilled network keeps its second class token, as in
    the release.

    Attention is found in the captured network: a softmax, then its product with the values. The learning rate is 0.25
    for windows and 0.20 for other networks.

    Deviations:

    - R is the release's for 32 images of 224 x 224 pixels. For other sizes it is in proportion to the roots of the
      numbers of differences. Shifts are in proportion to the image.
    - Pixels are clipped to the valid range of the network's own normalisation. The release has ImageNet's for all
      networks.
    - Further batches are made where `images` exceeds `batch_size`.
    - Kernels beyond 6 bandwidths (9 in float64) count as zero where points are far apart.
    - The method is seeded.
    - The second version (TNNLS 2023), which also trains the student, is not implemented.
    """

    name = "psaq_vit"
    compiles = "pixels"

    batch_size: int = Field(32, gt=0, description="images optimised together; they share the range of similarities")
    points: int = Field(10, gt=1, description="number of points of the density; another number makes another method")
    bandwidth: float = Field(
        0.01, gt=0, description="deviation of the density's kernels; another one makes another method"
    )

    def generate(self, teacher: "Pretrained", ctx: "StepContext") -> "CalibrationSet":
        """Optimise batch after batch; an interrupted run resumes from its last checkpoint.

        Raises ZSQBenchError for a network that cannot be captured, and where capture cannot take its attention apart.
        """
        from zsqbench.quant import also_returning, has_class_token

        self, state = self.resolved(teacher), ctx.resume() or {}
        captured, found = self.captured(teacher)
        in_windows = any(each.windows > 1 for each in found)
        drop_first = in_windows or has_class_token(captured)
        if in_windows:
            ctx.note("attention is in windows: the first token of each is left out of similarities, as in the release")
        elif not drop_first:
            ctx.note(f"there is no class token: similarities are those of all {found[0].tokens} tokens")
        network = also_returning(captured, [each.context for each in found]).requires_grad_(requires_grad=False)
        run = ctx.compile(network)
        target = state["variation_target"] if state else self.draw_target(ctx)

        def losses(batch: JitteredBatch) -> "tuple[Tensor, Mapping[str, Tensor]]":
            outputs, contexts = run(batch.images)
            aimed = aimed_variation(target, batch.images.shape)
            return psaq_loss(self, batch.images, outputs, contexts, batch.labels, aimed, drop_first=drop_first)

        lr = self.highest_rate(found)
        return self.synthesize(teacher, ctx, losses, lr, state=state, keep=lambda: {"variation_target": target})


def psaq_loss(
    options: PSAQViT,
    images: "Tensor",
    outputs: Any,
    contexts: "Sequence[Tensor]",
    labels: "Tensor",
    target: float,
    *,
    drop_first: bool,
) -> "tuple[Tensor, dict[str, Tensor]]":
    """The loss of images [N, C, H, W] and its parts, from the network's outputs and the attention in each block.

    `target` is the target of the images' total variation.
    """
    import torch

    from zsqbench.synthesis import class_logits, inception_loss, patch_entropy, patch_features, total_variation

    count = len(images)
    features = (patch_features(each, count, drop_first=drop_first) for each in contexts)
    entropies = [patch_entropy(each, count, options.bandwidth, options.points) for each in features]
    parts = {
        "entropy_loss": -torch.stack(entropies).sum(),
        "inception_loss": inception_loss(class_logits(outputs, labels), labels),
        "variation_loss": (total_variation(images) - target).abs(),
    }
    weighted = options.class_weight * parts["inception_loss"] + options.variation_weight * parts["variation_loss"]
    return parts["entropy_loss"] + weighted, parts


@zsqbench.hookimpl
def register_generators() -> list[type[zsqbench.Generator]]:
    """Provide `psaq_vit`."""
    return [PSAQViT]
