"""The data-free pipelines that are tried, in the order in which they are, and about how long each takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from zsqbench.steps.baseline import Baseline
from zsqbench.steps.diagnose import Diagnose
from zsqbench.steps.evaluate import Evaluate
from zsqbench.steps.generate import Generate
from zsqbench.steps.quantize import Quantize

NOISE, SYNTHETIC = "noise", "dgh"

CHECKED = 32
"""How many images a written file and its simulation are compared on, at most."""


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

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.quantizer} on {self.generator}" if self.generator else f"{self.quantizer} without images"

    @property
    def words(self) -> list[str]:
        """The methods whose names stand in the candidate's name."""
        return [self.quantizer, self.generator] if self.generator else [self.quantizer]


CANDIDATES = (
    Candidate("squant"),
    Candidate("dfq"),
    Candidate("rtn", SYNTHETIC),
    Candidate("hptq", SYNTHETIC),
    Candidate("rtn", NOISE, control=True),
    Candidate("brecq", SYNTHETIC),
)
"""The cheap ones come first, and those that share images one after the other."""

ABOUT = {
    "squant": "rounds each weight up or down so that the errors of a channel cancel",
    "dfq": "takes the ranges of activations from the network's batch normalisations, and corrects biases",
    "rtn": "rounds each weight to the nearest step, and takes the ranges of activations from its images",
    "hptq": "takes ranges that are powers of two from its images, and corrects biases",
    "brecq": "learns on its images, block by block, which weights to round up and which down",
    SYNTHETIC: "makes images for which the network's batch normalisations see what they saw in training",
    NOISE: "makes images of random pixels",
}
"""Sentences on methods, each of which begins with the method's name."""


def generators(level: Level) -> dict[str, dict[str, Any]]:
    """The generators of a suite."""
    dgh = {"images": level.images, "batch_size": level.batch, "iterations": level.iterations}
    return {NOISE: {"images": level.images}, SYNTHETIC: dgh}


def quantizers(level: Level, *, relu6: bool) -> dict[str, dict[str, Any]]:
    """The quantizers of a suite.

    Where the network has ReLU6, dfq leaves out equalization and absorption, which would move its bound: without a bound
    EfficientNet-Lite0 loses 16 points, and a bound for each channel is no operator that runs with integers.
    """
    dfq = {"per_channel": True} | ({"equalization": False, "absorption": False} if relu6 else {})
    brecq = {
        "weight_iterations": level.learning,
        "activation_iterations": level.learning // 2,
        "batch_size": level.batch,
    }
    return {"squant": {}, "dfq": dfq, "rtn": {}, "hptq": {}, "brecq": brecq}


@dataclass(frozen=True)
class Costs:
    """About how long steps take, in seconds, from how long the float network takes for an image.

    The numbers of passes are rough. Measurements correct them (`Search`), and steps that ran before with another
    seed or scheme are not estimated by them at all.
    """

    image: float
    """Seconds of the float network for an image."""
    parameters: int
    judged: int
    """Images that are judged on."""

    START: ClassVar[float] = 2.0
    """Seconds of any step besides."""
    ITERATION: ClassVar[float] = 0.01
    """Seconds of an iteration of a generator besides its passes."""
    FLOAT: ClassVar[float] = 2.0
    STUDENT: ClassVar[float] = 6.0
    DELIVERY: ClassVar[float] = 20.0
    """Seconds of writing both files and of timing them."""
    CHECK: ClassVar[float] = 30.0
    """Passes that the comparison of a file with its student costs for each image."""
    """Passes that judging costs for each image, of the float network's own figures and of each candidate's."""

    def of(self, kind: str, candidate: Candidate, level: Level) -> float:
        """Seconds of a step of this kind."""
        seconds = self.START + self.image * self._passes(kind, candidate, level) + self._weights(kind, candidate)
        if kind == Generate.kind and candidate.generator == SYNTHETIC:
            seconds += self.ITERATION * level.iterations * level.images / level.batch
        return seconds

    def generate(self, level: Level) -> float:
        """Seconds of making the synthetic images."""
        return self.of(Generate.kind, Candidate("rtn", SYNTHETIC), level)

    @property
    def delivery(self) -> float:
        """Seconds of writing a file, of comparing it with its simulation and of timing it."""
        return self.DELIVERY + self.CHECK * self.image * CHECKED

    def judged_in(self, seconds: float) -> int:
        """How many images all candidates can be judged on in so many seconds."""
        return int(seconds / (self.image * (self.FLOAT + self.STUDENT * len(CANDIDATES))))

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
            Generate.kind: 4.0 * level.images * level.iterations if candidate.generator == SYNTHETIC else 0.0,
            Evaluate.kind: self.STUDENT * self.judged,
            Diagnose.kind: 6.0 * level.images,
        }
        return passes.get(kind, 8.0)

    def _weights(self, kind: str, candidate: Candidate) -> float:
        per_million = {"squant": 2.0, "dfq": 1.0, "rtn": 1.0, "hptq": 2.0, "brecq": 1.0}
        return per_million[candidate.quantizer] * self.parameters / 1e6 if kind == Quantize.kind else 0.0
