"""The data-free pipelines that are tried, in the order in which they are, and about how long each takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

from zsqbench.autoquantize.request import Target
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.diagnose import Diagnose
from zsqbench.steps.evaluate import Evaluate
from zsqbench.steps.generate import Generate
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.sensitivity import Sensitivity

NOISE, SYNTHETIC, MIXED = "noise", "dgh", "mixed"

WITHOUT_BN = IMAGE_PRIOR, PSAQ_VIT = "image_prior", "psaq_vit"
"""The generators for networks without batch normalisation, in place of `SYNTHETIC`, which needs it."""

CHECKED = 16
"""How many images a written file and its simulation are compared on, at most."""

RANKED = 32
"""How many images the sensitivity of layers is measured on, at most."""


@dataclass(frozen=True)
class Level:
    """How much is spent on images and on learning."""

    images: int
    iterations: int
    """Of the generator, for each batch."""
    learning: int
    """Iterations of brecq on weights, for each unit; half as many on activations."""

    @property
    def batch(self) -> int:
        """Images that are optimised or learnt on together."""
        return min(16, self.images)


LEVELS = (
    Level(16, 20, 20),
    Level(32, 25, 30),
    Level(64, 30, 50),
    Level(64, 100, 100),
    Level(128, 125, 150),
    Level(128, 250, 250),
    Level(256, 500, 500),
)
"""From the cheapest on."""


@dataclass(frozen=True)
class Candidate:
    """A quantizer, and what makes its images, if it reads any."""

    quantizer: str
    generator: str | None = None
    control: bool = False
    """True for what every other one must beat; it is not chosen."""
    part: Fraction = Fraction(0)
    """The part of the layers, the most sensitive ones, whose weights get 8 bits instead of the target's."""

    @property
    def name(self) -> str:
        """For people."""
        mixed = f"{MIXED} {self.part} over " if self.part else ""
        return f"{mixed}{self.quantizer} {f'on {self.generator}' if self.generator else 'without images'}"

    @property
    def label(self) -> str:
        """The quantizer's name in a suite."""
        return f"{MIXED}_{self.part.numerator}_{self.part.denominator}" if self.part else self.quantizer

    @property
    def words(self) -> list[str]:
        """The methods whose names stand in the candidate's name."""
        return [*([MIXED] if self.part else []), self.quantizer, *([self.generator] if self.generator else [])]


_FIRST = (Candidate("squant"), Candidate("dfq"), Candidate("rtn", SYNTHETIC))
_MIXED = tuple(Candidate("rtn", SYNTHETIC, part=part) for part in (Fraction(1, 3), Fraction(1, 2)))
_LAST = (Candidate("hptq", SYNTHETIC), Candidate("rtn", NOISE, control=True), Candidate("brecq", SYNTHETIC))

CANDIDATES: Mapping[Target, tuple[Candidate, ...]] = {"int8": (*_FIRST, *_LAST), "int4": (*_FIRST, *_MIXED, *_LAST)}
"""Cheap ones come first, and `mixed` early, for at 4 bits it gains most.

`repq_vit` is none of them: it takes weights on affine grids alone, which files run many times slower than float.
"""


def on_images_of(generators: Sequence[str], candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """These candidates; those on `SYNTHETIC` images are on those of each of the generators instead."""
    return tuple(
        replace(candidate, generator=generator)
        for candidate in candidates
        for generator in (generators if candidate.generator == SYNTHETIC else [candidate.generator])
    )


ABOUT = {
    "squant": "rounds each weight up or down so that the errors of a channel cancel",
    "dfq": "takes the ranges of activations from the network's batch normalisations, and corrects biases",
    "rtn": "rounds each weight to the nearest step, and takes the ranges of activations from its images",
    "hptq": "takes ranges that are powers of two from its images, and corrects biases",
    "brecq": "learns on its images, block by block, which weights to round up and which down",
    MIXED: (
        "gives 8 bits to a part of the layers, those that change the outputs most when they alone are quantized, and "
        "lets another quantizer do the work"
    ),
    SYNTHETIC: "makes images for which the network's batch normalisations see what they saw in training",
    IMAGE_PRIOR: "makes smooth images that the network takes for classes",
    PSAQ_VIT: "makes images that the network takes for classes, and whose patches its attention tells apart",
    NOISE: "makes images of random pixels",
}
"""Sentences on methods, each of which begins with the method's name."""


def generators(level: Level) -> dict[str, dict[str, Any]]:
    """The generators of a suite."""
    made = {"images": level.images, "batch_size": level.batch}
    # The learning rate rises in the part of a phase that published options have, and psaq_vit has two phases.
    phase = max(1, level.iterations // 2)
    return {
        NOISE: {"images": level.images},
        SYNTHETIC: {**made, "iterations": level.iterations},
        IMAGE_PRIOR: {**made, "iterations": level.iterations, "warmup": level.iterations // 20},
        PSAQ_VIT: {**made, "iterations": phase, "warmup": phase // 5},
    }


def quantizers(level: Level, target: Target, *, relu6: bool) -> dict[str, dict[str, Any]]:
    """The quantizers of a suite, by the labels of candidates.

    Where the network has ReLU6, dfq leaves out equalization and absorption, which would move its bound: without a bound
    EfficientNet-Lite0 loses 16 points, and a bound for each channel is no operator that runs with integers.
    """
    dfq = {"per_channel": True} | ({"equalization": False, "absorption": False} if relu6 else {})
    brecq = {
        "weight_iterations": level.learning,
        "activation_iterations": level.learning // 2,
        "batch_size": level.batch,
    }
    mixed = {
        candidate.label: {
            "method": MIXED,
            "over": candidate.quantizer,
            "layers": float(candidate.part),
            "images": RANKED,
        }
        for candidate in CANDIDATES[target]
        if candidate.part
    }
    return {"squant": {}, "dfq": dfq, "rtn": {}, "hptq": {}, "brecq": brecq, **mixed}


@dataclass(frozen=True)
class Costs:
    """About how long steps take, in seconds, from how long the float network takes for an image.

    The numbers of passes are rough. Measurements correct them (`Search`), and steps that ran before with another
    seed or scheme are not estimated by them at all.
    """

    image: float
    """Seconds of the float network for an image."""
    parameters: int
    layers: int
    """Layers whose weights are quantized."""
    judged: int
    """Images that are judged on."""

    START: ClassVar[float] = 2.0
    """Seconds of any step besides."""
    ITERATION: ClassVar[float] = 0.01
    """Seconds of an iteration of a generator besides its passes."""
    PASSES: ClassVar[Mapping[str, float]] = {SYNTHETIC: 4.0, IMAGE_PRIOR: 4.0, PSAQ_VIT: 8.0}
    """Passes that an iteration of a generator costs for each image; of others, none."""
    FLOAT: ClassVar[float] = 2.0
    """Passes that judging the float network costs for each image."""
    STUDENT: ClassVar[float] = 6.0
    """Passes that judging a candidate costs for each image."""
    DELIVERY: ClassVar[float] = 12.0
    """Seconds of timing both files, and of all else that is no writing and no comparison."""
    WRITING: ClassVar[float] = 0.4
    """Seconds of writing both files for each layer."""
    CHECK: ClassVar[float] = 30.0
    """Passes that the comparison of a file with its student costs for each image."""

    def of(self, kind: str, candidate: Candidate, level: Level) -> float:
        """Seconds of a step of this kind."""
        seconds = self.START + self.image * self._passes(kind, candidate, level) + self._weights(kind, candidate)
        if kind == Generate.kind and candidate.generator in self.PASSES:
            seconds += self.ITERATION * level.iterations * level.images / level.batch
        return seconds

    def generate(self, level: Level, generator: str = SYNTHETIC) -> float:
        """Seconds of making the images of a generator."""
        return self.of(Generate.kind, Candidate("rtn", generator), level)

    @property
    def delivery(self) -> float:
        """Seconds of writing a file, of comparing it with its simulation and of timing it."""
        compared = self.CHECK * self.image * min(self.judged, CHECKED)
        return self.DELIVERY + self.WRITING * self.layers + compared

    def judged_in(self, seconds: float, candidates: int) -> int:
        """How many images so many candidates can be judged on in so many seconds."""
        return int(seconds / (self.image * (self.FLOAT + self.STUDENT * candidates)))

    def _passes(self, kind: str, candidate: Candidate, level: Level) -> float:
        if kind == Quantize.kind:
            learning = 1.5 * level.learning * level.batch * 6
            return {
                "squant": 32 * 20.0,
                "dfq": 0.0,
                "rtn": 25.0 * min(level.images, 64),
                "hptq": 40.0 * level.images,
                "brecq": 40.0 * level.images + learning,
            }[candidate.quantizer]
        passes: Mapping[str, float] = {
            Baseline.kind: self.FLOAT * self.judged,
            Generate.kind: self.PASSES.get(candidate.generator or "", 0.0) * level.images * level.iterations,
            Evaluate.kind: self.STUDENT * self.judged,
            Diagnose.kind: 6.0 * level.images,
            Sensitivity.kind: min(level.images, RANKED) * (1 + 0.6 * self.layers),
        }
        return passes.get(kind, 8.0)

    def _weights(self, kind: str, candidate: Candidate) -> float:
        if kind == Sensitivity.kind:
            return self.parameters / 1e6
        per_million = {"squant": 2.0, "dfq": 1.0, "rtn": 1.0, "hptq": 2.0, "brecq": 1.0}
        return per_million[candidate.quantizer] * self.parameters / 1e6 if kind == Quantize.kind else 0.0
