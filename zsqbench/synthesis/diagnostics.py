"""Diagnostics of a calibration set, as its network sees it, and of real images beside it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis.attention_diagnostics import (
    PATCH_IMAGES,
    Attended,
    AttentionMaps,
    OpenAttention,
    PatchSimilarity,
    attend,
)
from zsqbench.synthesis.channel_moments import merge
from zsqbench.synthesis.outputs import RawOutputs, difficulty
from zsqbench.synthesis.penultimate_features import PenultimateFeatures
from zsqbench.synthesis.probes import Probes, batch_norms, frozen

if TYPE_CHECKING:
    from zsqbench.methods import CalibrationSet, Pretrained

T = TypeVar("T")

DIFFICULTY_BINS = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_VALUES_AT_ONCE = 2**22
"""Number of image values in a forward pass: 27 images of 3 x 224 x 224, at most `_IMAGES_AT_ONCE` small ones."""
_IMAGES_AT_ONCE = 256
_ROUNDING = 1e-5
"""Tolerance of the valid range, as a part of it, because float32 rounds mean and deviation."""


@dataclass(frozen=True)
class LayerGap:
    """Distance of the images from one batch normalisation's stored statistics, in its standard deviations."""

    layer: str
    """Its path."""
    mean: float
    """Root mean square over channels of (mean of the images - stored mean) / stored deviation."""
    std: float
    """Root mean square over channels of (deviation of the images - stored deviation) / stored deviation."""
    gap: float
    """sqrt(mean^2 + std^2) of the two: the 2-Wasserstein distance of two normal distributions."""


@dataclass(frozen=True)
class OutputRange:
    """Largest minus smallest value of a raw output, image by image."""

    output: str
    mean: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""


@dataclass(frozen=True)
class Difficulty:
    """Difficulty 1 - p of samples as in GHM and HAST (Eq. 7): the gradient's norm."""

    by: str
    """Class whose probability is p: the `label`, or the `predicted class` where there are no labels to compare."""
    mean: float
    counts: tuple[int, ...]
    """Images in bins of equal width from 0 to 1."""


@dataclass(frozen=True)
class ClassBalance:
    """Number of images of each class. Entropies are divided by log(classes), that of equal numbers."""

    predicted: tuple[int, ...]
    predicted_entropy: float
    labels: tuple[int, ...] | None
    labels_entropy: float | None


@dataclass(frozen=True)
class Diversity:
    """Mean distances of pairs of images in the space of penultimate features."""

    layer: str
    """Path of the layer that reads these features."""
    cosine: float
    euclidean: float
    cosine_within: float | None
    """Pairs within one class only: of the label, or of the predicted class where there are no labels."""
    euclidean_within: float | None


@dataclass(frozen=True)
class FeatureDistance:
    """Distance of a set from real images in the space of penultimate features."""

    layer: str
    """Path of the layer that reads these features."""
    cosine: float
    """Mean over all pairs of an image of the set and a real one."""
    euclidean: float
    """The same."""
    energy: float | None
    """Szekely and Rizzo's coefficient of inhomogeneity (2 B - S - R) / 2 B, B being `euclidean` and S and R the mean
    Euclidean distances of pairs within the set and within real images: about 0 for the same distribution, at most 1."""


@dataclass(frozen=True)
class Pixels:
    """Values of pixels in the network's normalised space."""

    outside: float
    """Share of the values that no image can have."""
    mean: tuple[float, ...]
    """Per channel."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageStatistics:
    """All statistics of one set of images. Where one is None, `absent` gives the reason."""

    images: int
    pixels: Pixels
    bn_gaps: tuple[LayerGap, ...] | None
    """In order of registration."""
    patch_similarities: tuple[PatchSimilarity, ...] | None
    """Of each block, in networks without batch normalisation; of the first images, as many as there are real ones."""
    attention_maps: AttentionMaps | None
    """Of the last block, in networks without batch normalisation."""
    output_ranges: tuple[OutputRange, ...] | None
    difficulty: Difficulty | None
    class_balance: ClassBalance | None
    diversity: Diversity | None
    not_finite: int
    """Images with an output that is not finite; difficulty and class balance leave them out."""
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnostics:
    """A calibration set and, where there are some, real images."""

    set: ImageStatistics
    real: ImageStatistics | None
    output_range_ratio: tuple[float, ...] | None
    """Mean output range of the set divided by that of real images, for each output."""
    feature_distance: FeatureDistance | None
    absent: dict[str, str] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """The same as plain data for JSON, without maps of attention.

        A number that is not finite becomes None, and `absent` says so.
        """
        data = asdict(self)
        parts: dict[str, Any] = {name: _finite_part(data.pop(name)) for name in ("set", "real")}
        return parts | (_finite_part(data) or {})


def diagnose(
    teacher: "Pretrained",
    data: "CalibrationSet",
    real: "CalibrationSet | None" = None,
    why_no_real: str = "",
    attention: OpenAttention | str = "attention was not looked at",
) -> Diagnostics:
    """Run the network once over a calibration set and over real images, in eval mode and without gradients.

    Labels are used only where both have labels, so that both sets' numbers have the same meaning. `attention` is the
    network's attention from `zsqbench.methods.open_attention`, or the reason why it is absent.
    """
    both = [data] if real is None else [data, real]
    labelled = all(each.labels is not None for each in both)
    compared = min(PATCH_IMAGES, *map(len, both))
    found = [
        _statistics(teacher, each, _attended(attention, each.images[:compared]), labelled=labelled) for each in both
    ]
    of_set, *rest = [statistics for statistics, _ in found]
    absent: dict[str, str] = {}
    ratio = distance = None
    if real is None:
        why = why_no_real or "no real images were given"
        absent |= dict.fromkeys(("real", "output_range_ratio", "feature_distance"), why)
    else:
        ratio = _range_ratio(of_set, rest[0], absent)
        distance = _feature_distance(found[0][1], found[1][1], absent)
    return Diagnostics(of_set, rest[0] if rest else None, ratio, distance, absent)


def penultimate_features(teacher: "Pretrained", images: Tensor) -> Tensor:
    """The penultimate features of images [N, C, H, W], float64 [N, F].

    Raises ZSQBenchError where the network has none.
    """
    try:
        found = _Pass(teacher, images, None)
        return found.of_all("features", found.features)
    except _AbsentError as why:
        raise ZSQBenchError(f"there are no features to compare: {why}") from why


class _AbsentError(Exception):
    """The reason why a number is absent."""


class _Pass:
    """Results of one forward pass over all images, in batches, and reasons for absent results."""

    def __init__(self, teacher: "Pretrained", images: Tensor, probes: Probes | None) -> None:
        self.moments: list[tuple[Tensor, Tensor]] = []
        """Moments of each batch, [n, T]."""
        self.ranges: list[list[Tensor]] = []
        """Ranges of each batch, for each output [n]."""
        self.logits: list[Tensor] = []
        self.features: list[Tensor] = []
        self.layer = ""
        self.absent: dict[str, str] = {}
        module = teacher.module
        with ExitStack() as block:
            block.enter_context(torch.no_grad())
            features = block.enter_context(PenultimateFeatures(module))
            raw = block.enter_context(RawOutputs(module, teacher.output_layers))
            block.enter_context(frozen(module) if probes is None else probes)
            device = next(chain(module.parameters(), module.buffers()), images).device
            for batch in _batches(images):
                if probes is None:
                    outputs = module(batch.to(device))
                else:
                    seen = probes(batch.to(device))
                    self.moments.append((seen.mean.cpu(), seen.variance.cpu()))
                    outputs = seen.outputs
                self._keep("output_ranges", self.ranges, _ranges, raw, outputs, len(batch))
                self._keep("logits", self.logits, _logits, outputs, len(batch), teacher.classes)
                self._keep("features", self.features, _features, features, len(batch))
            if self.features:
                self.layer = features.layer

    def of_all(self, name: str, batches: Sequence[Tensor]) -> Tensor:
        """The rows of all batches together. Raises _AbsentError where there are none."""
        if name in self.absent:
            raise _AbsentError(self.absent[name])
        return torch.cat(list(batches))

    def _keep(self, name: str, kept: list[T], compute: Callable[..., T], *arguments: Any) -> None:
        if name not in self.absent:
            try:
                kept.append(compute(*arguments))
            except (ZSQBenchError, _AbsentError) as why:
                self.absent[name] = str(why)


def _attended(attention: OpenAttention | str, images: Tensor) -> Attended | str:
    return attention if isinstance(attention, str) else attend(attention, _batches(images))


def _statistics(
    teacher: "Pretrained", data: "CalibrationSet", attended: Attended | str, *, labelled: bool
) -> tuple[ImageStatistics, _Pass]:
    absent: dict[str, str] = {}
    try:
        found = _Pass(teacher, data.images, Probes(teacher.module))
    except ZSQBenchError as error:  # no batch normalisation, or one that the pass does not reach
        absent["bn_gaps"] = str(error)
        found = _Pass(teacher, data.images, None)

    def part(name: str, compute: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return compute(*arguments)
        except _AbsentError as why:
            absent[name] = str(why)
            return None

    labels = part("labels", _labels, data, teacher.classes)
    compared = labels if labelled else None
    statistics = ImageStatistics(
        images=len(data),
        pixels=_pixels(teacher, data.images),
        bn_gaps=None if "bn_gaps" in absent else _bn_gaps(teacher.module, found),
        patch_similarities=part("patch_similarities", _patch_similarities, attended),
        attention_maps=part("attention_maps", _attention_maps, attended),
        output_ranges=part("output_ranges", _output_ranges, found, teacher.outputs),
        difficulty=part("difficulty", _difficulty, found, compared),
        class_balance=part("class_balance", _class_balance, found, labels),
        diversity=part("diversity", _diversity, found, compared, absent),
        not_finite=int(sum((~torch.stack(ranges).isfinite()).any(0).sum() for ranges in found.ranges)),
        absent=absent,
    )
    return statistics, found


def _batches(images: Tensor) -> Iterator[Tensor]:
    size = max(1, min(_IMAGES_AT_ONCE, _VALUES_AT_ONCE // max(1, images[0].numel())))
    yield from torch.split(images, size)


def _ranges(raw: RawOutputs, outputs: Any, images: int) -> list[Tensor]:
    rows = [output.cpu() for output in raw.of(outputs) if len(output) == images and output.shape[1]]
    if not rows:
        raise _AbsentError("no output of the network has a row for each image")
    return [output.amax(1) - output.amin(1) for output in rows]


def _logits(outputs: Any, images: int, classes: int | None) -> Tensor:
    if classes is None:
        raise _AbsentError("the network is no classifier")
    if not isinstance(outputs, Tensor) or outputs.shape != (images, classes):
        raise _AbsentError(f"the network returns no single tensor [images, {classes}]")
    return outputs.double().cpu()


def _features(features: PenultimateFeatures, images: int) -> Tensor:
    last = features.last
    if len(last) != images:
        raise _AbsentError(f"layer {features.layer!r} reads {len(last)} rows for {images} images")
    return last.double().cpu()


def _labels(data: "CalibrationSet", classes: int | None) -> Tensor:
    """One class for each image: of soft labels the largest."""
    if data.labels is None:
        raise _AbsentError("the images have none")
    labels = (data.labels.argmax(1) if data.labels.dim() > 1 else data.labels).long().cpu()
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise _AbsentError(f"some are not in 0 .. {classes - 1}")
    return labels


def _bn_gaps(module: nn.Module, found: _Pass) -> tuple[LayerGap, ...]:
    norms = batch_norms(module)
    of_images = [torch.cat(batches) for batches in zip(*found.moments, strict=True)]
    mean, variance = (each[0] for each in merge(of_images[0], of_images[1]))
    gaps = []
    sizes = [len(norm.running_mean) for norm in norms.values()]
    for (name, norm), m, v in zip(norms.items(), torch.split(mean, sizes), torch.split(variance, sizes), strict=True):
        # With eps, as in the layer: a constant channel then has no gap.
        sigma = (norm.running_var.double().cpu() + norm.eps).sqrt()
        of_mean = _root_mean_square((m.double() - norm.running_mean.double().cpu()) / sigma)
        of_std = _root_mean_square((v.double() + norm.eps).sqrt() / sigma - 1)
        gaps.append(LayerGap(name, of_mean, of_std, math.hypot(of_mean, of_std)))
    return tuple(gaps)


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _patch_similarities(attended: Attended | str) -> tuple[PatchSimilarity, ...]:
    if isinstance(attended, str):
        raise _AbsentError(attended)
    return attended.similarities


def _attention_maps(attended: Attended | str) -> AttentionMaps:
    maps = attended if isinstance(attended, str) else attended.maps
    if isinstance(maps, str):
        raise _AbsentError(maps)
    return maps


def _output_ranges(found: _Pass, names: Sequence[str]) -> tuple[OutputRange, ...]:
    if "output_ranges" in found.absent:
        raise _AbsentError(found.absent["output_ranges"])
    outputs = [torch.cat(batches).double() for batches in zip(*found.ranges, strict=True)]
    if len(names) != len(outputs):
        names = [f"output {number}" for number in range(len(outputs))]
    points = torch.tensor(QUANTILES, dtype=torch.float64)
    return tuple(
        OutputRange(name, float(values.mean()), tuple(torch.quantile(values, points).tolist()))
        for name, values in zip(names, outputs, strict=True)
    )


def _finite_logits(found: _Pass) -> tuple[Tensor, Tensor]:
    """The finite rows of logits, and a mask of these rows."""
    logits = found.of_all("logits", found.logits)
    finite = logits.isfinite().all(1)
    if not finite.any():
        raise _AbsentError("no image has outputs that are finite")
    return logits[finite], finite


def _difficulty(found: _Pass, labels: Tensor | None) -> Difficulty:
    logits, finite = _finite_logits(found)
    classes = logits.argmax(1) if labels is None else labels[finite]
    hard = difficulty(logits, classes)
    bins = (hard * DIFFICULTY_BINS).long().clamp_max(DIFFICULTY_BINS - 1)
    counts = torch.bincount(bins, minlength=DIFFICULTY_BINS).tolist()
    return Difficulty("predicted class" if labels is None else "label", float(hard.mean()), tuple(counts))


def _class_balance(found: _Pass, labels: Tensor | None) -> ClassBalance:
    logits, _ = _finite_logits(found)
    predicted = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    given = None if labels is None else torch.bincount(labels, minlength=logits.shape[1])
    return ClassBalance(
        tuple(predicted.tolist()),
        _entropy(predicted),
        None if given is None else tuple(given.tolist()),
        None if given is None else _entropy(given),
    )


def _entropy(counts: Tensor) -> float:
    """Entropy from 0 (one class) to 1 (equal numbers of each class); undefined for a single class."""
    shares = counts.double() / counts.sum()
    return float(torch.special.entr(shares).sum()) / math.log(len(counts)) if len(counts) > 1 else math.nan


def _diversity(found: _Pass, labels: Tensor | None, absent: dict[str, str]) -> Diversity:
    features = found.of_all("features", found.features)
    if len(features) == 1:
        raise _AbsentError("one image has no pairs")
    overall = _distances([features])
    within = None
    try:
        classes = found.of_all("logits", found.logits).argmax(1) if labels is None else labels
        within = _distances([features[classes == each] for each in torch.unique(classes)])
    except _AbsentError as why:
        absent["diversity.within"] = str(why)
    return Diversity(found.layer, *overall, *(within or (None, None)))


def _distances(groups: Sequence[Tensor]) -> tuple[float, float]:
    """Mean cosine distance and Euclidean distance of all pairs within groups [n, F]."""
    pairs, cosine, euclidean = 0, 0.0, 0.0
    for group in groups:
        count = len(group) * (len(group) - 1) // 2
        unit = functional.normalize(group)
        # the square of the sum holds each pair's product twice
        cosine += count - float(unit.sum(0).square().sum() - unit.square().sum()) / 2
        euclidean += sum(torch.cdist(rows, group).sum().item() for rows in torch.split(group, _IMAGES_AT_ONCE)) / 2
        pairs += count
    if not pairs:
        raise _AbsentError("no class has two images")
    return cosine / pairs, euclidean / pairs


def _range_ratio(of_set: ImageStatistics, real: ImageStatistics, absent: dict[str, str]) -> tuple[float, ...] | None:
    if of_set.output_ranges is None or real.output_ranges is None:
        absent["output_range_ratio"] = "there are no output ranges"
        return None
    pairs = zip(of_set.output_ranges, real.output_ranges, strict=True)
    return tuple(ours.mean / theirs.mean if theirs.mean else math.nan for ours, theirs in pairs)


def _feature_distance(of_set: _Pass, real: _Pass, absent: dict[str, str]) -> FeatureDistance | None:
    try:
        ours, theirs = (each.of_all("features", each.features) for each in (of_set, real))
    except _AbsentError as why:
        absent["feature_distance"] = str(why)
        return None
    cosine = 1 - float(functional.normalize(ours).mean(0) @ functional.normalize(theirs).mean(0))
    euclidean = sum(torch.cdist(rows, theirs).sum().item() for rows in torch.split(ours, _IMAGES_AT_ONCE))
    euclidean /= len(ours) * len(theirs)
    energy = None
    if min(len(ours), len(theirs)) == 1:
        absent["feature_distance.energy"] = "one image has no pairs"
    else:
        within = sum(_distances([each])[1] for each in (ours, theirs))
        energy = (2 * euclidean - within) / (2 * euclidean) if euclidean else math.nan
    return FeatureDistance(of_set.layer, cosine, euclidean, energy)


def _pixels(teacher: "Pretrained", images: Tensor) -> Pixels:
    low, high = (bound.double() for bound in teacher.valid_range())
    slack = _ROUNDING * (high - low)
    outside, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in _batches(images):
        values = batch.double().cpu()
        outside += int(((values < low - slack) | (values > high + slack)).sum())
        total = total + values.sum((0, 2, 3))
        squares = squares + values.square().sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return Pixels(outside / images.numel(), tuple(mean.tolist()), tuple(std.tolist()))


def _finite_part(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None:
        return None
    absent = part.pop("absent")
    return {name: _finite(value, name, absent) for name, value in part.items()} | {"absent": absent}


def _finite(value: Any, path: str, absent: dict[str, str]) -> Any:
    """Plain data without tensors, in which numbers that are not finite are None, each with a reason."""
    if isinstance(value, dict):
        plain = {name: each for name, each in value.items() if not isinstance(each, Tensor)}
        return {name: _finite(each, f"{path}.{name}", absent) for name, each in plain.items()}
    if isinstance(value, list | tuple):
        return [_finite(each, f"{path}[{index}]", absent) for index, each in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        absent[path] = f"it is not finite: {value}"
        return None
    return value
