"""The data-free pipelines that are tried, in order, and the estimated time of each."""

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
"""The generators for networks without batch normalisation. `SYNTHETIC` needs batch normalisation."""

CHECKED = 16
"""The most images on which a written file and its simulation are compared."""

RANKED = 32
"""The most images on which the sensitivity of layers is measured."""


@dataclass(frozen=True)
class Level:
    """The effort for images and for learning."""

    images: int
    iterations: int
    """Iterations of the generator for each batch."""
    learning: int
    """Iterations of brecq on weights, for each unit; half as many on activations."""

    @property
    def batch(self) -> int:
        """Images that are optimised together, or used together for learning."""
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
"""The levels, the cheapest first."""


@dataclass(frozen=True)
class Candidate:
    """A quantizer, and the generator of its images, if it reads any."""

    quantizer: str
    generator: str | None = None
    control: bool = False
    """True for the control. Every other candidate must beat it."""
    part: Fraction = Fraction(0)
    """The part of the layers, the most sensitive ones, whose weights get 8 bits instead of those of the target."""

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
        """The methods in the candidate's name."""
        return [*([MIXED] if self.part else []), self.quantizer, *([self.generator] if self.generator else [])]


_FIRST = (Candidate("squant"), Candidate("dfq"), Candidate("rtn", SYNTHETIC))
_MIXED = tuple(Candidate("rtn", SYNTHETIC, part=part) for part in (Fraction(1, 3), Fraction(1, 2)))
_LAST = (Candidate("hptq", SYNTHETIC), Candidate("rtn", NOISE, control=True), Candidate("brecq", SYNTHETIC))

CANDIDATES: Mapping[Target, tuple[Candidate, ...]] = {"int8": (*_FIRST, *_LAST), "int4": (*_FIRST, *_MIXED, *_LAST)}
"""All candidates. Cheap ones come first. `mixed` comes early, because at 4 bits it gains most.

`repq_vit` is not a candidate. It needs weights on affine grids, with which files run many times slower than float.
"""


def on_images_of(generators: Sequence[str], candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """These candidates. A candidate on `SYNTHETIC` images is replaced by one for each of these generators."""
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
"""Ends of sentences on methods. Each sentence begins with the name of the method."""


def generators(level: Level) -> dict[str, dict[str, Any]]:
    """The generators of a suite."""
    made = {"images": level.images, "batch_size": level.batch}
    # The learning rate rises in the same part of a phase as in the published options. psaq_vit has two phases.
    phase = max(1, level.iterations // 2)
    return {
        NOISE: {"images": level.images},
        SYNTHETIC: {**made, "iterations": level.iterations},
        IMAGE_PRIOR: {**made, "iterations": level.iterations, "warmup": level.iterations // 20},
        PSAQ_VIT: {**made, "iterations": phase, "warmup": phase // 5},
    }


def quantizers(level: Level, target: Target, *, relu6: bool) -> dict[str, dict[str, Any]]:
    """The quantizers of a suite, by the labels of candidates.

    If the network has ReLU6, dfq leaves out equalization and absorption, because they would move the bound of ReLU6.
    Without a bound EfficientNet-Lite0 loses 16 points. A bound for each channel has no operator that runs with
    integers.
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
    """Estimated seconds of steps, from the seconds of the float network for an image.

    The numbers of passes are rough. Measurements correct them (`Search`). They are not used for steps that ran before
    with another seed or scheme.
    """

    image: float
    """Seconds of the float network for an image."""
    parameters: int
    layers: int
    """Number of layers whose weights are quantized."""
    judged: int
    """Number of images for judging."""

    START: ClassVar[float] = 2.0
    """Additional seconds of any step."""
    ITERATION: ClassVar[float] = 0.01
    """Seconds of an iteration of a generator in addition to its passes."""
    PASSES: ClassVar[Mapping[str, float]] = {SYNTHETIC: 4.0, IMAGE_PRIOR: 4.0, PSAQ_VIT: 8.0}
    """Passes of an iteration of a generator for each image. A generator that is not listed needs none."""
    FLOAT: ClassVar[float] = 2.0
    """Passes that judging the float network costs for each image."""
    STUDENT: ClassVar[float] = 6.0
    """Passes that judging a candidate costs for each image."""
    DELIVERY: ClassVar[float] = 12.0
    """Seconds of timing both files, and of all work besides writing and comparison."""
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
        """Seconds of writing a file, comparing it with its simulation, and timing it."""
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
