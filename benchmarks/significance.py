"""Check the statistics by simulation: `python benchmarks/significance.py`. Rates of many simulated comparisons.

Networks are right on an image by a logistic model: level of the network with its seed, difficulty of the image (shared
by all networks, deviation 2 logits), and what the method makes of the image (deviation 1). Images are drawn anew each
time. The level varies with the seed so that the accuracy has the deviation that is asked for. True means are integrals.
Detectors find objects likewise, on images of 1 to 4 objects; their true mAP is that of 100,000 images.
`--quick` takes few comparisons, to see that it runs: its figures mean nothing.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtri, stdtrit
from scipy.stats import binomtest

from zsqbench.statistics import Resampled, Samples, Scope, compare, detectable, resamples, ties
from zsqbench.statistics.resampling import error_of
from zsqbench.zoo.matches import Matches

IMAGES, DIFFICULTY, OWN = 900, 2.0, 1.0
CATEGORIES = 5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
DEVIATIONS = (0.2, 1.0, 2.0, 5.0, 15.0)
OVER: Scope = "over seeds"
THESE: Scope = "for these seeds"


def accuracy(level: np.ndarray) -> np.ndarray:
    """Mean over images, 0 to 1, of a network with this level."""
    return expit(np.asarray(level)[..., None] + math.hypot(DIFFICULTY, OWN) * NODES) @ WEIGHTS


@dataclass(frozen=True)
class Method:
    """A method whose networks reach `mean` percent over all seeds, with a deviation in points over seeds."""

    mean: float
    deviation: float
    seeded: bool = True

    @property
    def parameters(self) -> tuple[float, float]:
        """Its level in logits, and the deviation of that over seeds."""
        return _parameters(self.mean, self.deviation if self.seeded else 0.0)

    def levels(self, rng: np.random.Generator, seeds: int) -> np.ndarray:
        """Levels of its networks, [seeds]; a single one where it uses no seed."""
        level, spread = self.parameters
        return level + spread * rng.standard_normal(seeds if self.seeded else 1)


@cache
def _parameters(mean: float, deviation: float) -> tuple[float, float]:
    def level(spread: float) -> float:
        return brentq(lambda at: accuracy(at + spread * NODES) @ WEIGHTS - mean / 100, -80, 80)

    def reached(spread: float) -> float:
        means = accuracy(level(spread) + spread * NODES)
        return 100 * math.sqrt(WEIGHTS @ (means - mean / 100) ** 2)

    spread = brentq(lambda at: reached(at) - deviation, 0, 12) if deviation else 0.0
    return level(spread), spread


def correct(rng: np.random.Generator, levels: Sequence[np.ndarray], own: float = OWN) -> list[np.ndarray]:
    """Which of new images the networks of each method have right: bool [seeds, IMAGES] for each."""
    difficulty = DIFFICULTY * rng.standard_normal(IMAGES)
    return [
        rng.random((len(level), IMAGES)) < expit(level[:, None] + difficulty + own * rng.standard_normal(IMAGES))
        for level in levels
    ]


def samples(values: np.ndarray, seeds: int) -> Samples:
    """The same as the statistics take it."""
    return Samples(values, tuple(range(seeds)) if len(values) == seeds else ())


@dataclass
class Rate:
    """How often something happened."""

    hits: int = 0
    trials: int = 0

    def add(self, hit: object) -> None:
        """Count a case."""
        self.hits += bool(hit)
        self.trials += 1

    @property
    def share(self) -> float:
        """In percent."""
        return 100 * self.hits / self.trials

    def __str__(self) -> str:
        return f"{self.share:5.1f}"

    def beyond(self, percent: float, side: str) -> bool:
        """True if the true rate is less (or greater) than this, beyond chance at 1 of 1000."""
        return binomtest(self.hits, self.trials, percent / 100, alternative=side).pvalue < 0.001


@dataclass(frozen=True)
class Outcome:
    """How often intervals held the truth, how often p was below 5 %, and the mean half-width in points."""

    coverage: Rate
    significant: Rate
    width: float


def simulate(
    rng: np.random.Generator,
    pair: tuple[Method, Method],
    seeds: int,
    scope: Scope,
    trials: int,
    *,
    shared: bool = False,
) -> Outcome:
    """Compare two methods many times. Shared: both have the same levels, so that no seeds differ in truth."""
    coverage, significant, widths = Rate(), Rate(), []
    for _ in range(trials):
        levels = [method.levels(rng, seeds) for method in pair]
        if shared:
            levels[1] = levels[0]
        first, second = (samples(values, seeds) for values in correct(rng, levels))
        found = compare(first, second, scope)
        if scope == OVER:
            truth = pair[0].mean - pair[1].mean
        else:
            one, other = (100 * accuracy(level).mean() for level in levels)
            truth = one - other
        coverage.add(found.low <= truth <= found.high)
        significant.add(found.p < 0.05)
        widths.append((found.high - found.low) / 2)
    return Outcome(coverage, significant, float(np.mean(widths)))


def checked(rng: np.random.Generator, trials: int) -> None:
    """False positives and coverage, by seeds and their deviation, over three levels of accuracy."""
    for scope, seeds in [(THESE, 1), (THESE, 2), (THESE, 3), (THESE, 10), (OVER, 2), (OVER, 3), (OVER, 5), (OVER, 10)]:
        for deviation in DEVIATIONS:
            false, covered, widths = [], [], []
            for mean in (30.0, 70.0, 90.0):
                same, better = Method(mean, deviation), Method(mean + 2, deviation)
                null = simulate(rng, (same, same), seeds, scope, trials, shared=scope == THESE)
                other = simulate(rng, (better, same), seeds, scope, trials)
                false.append(null.significant)
                covered.append(other.coverage)
                widths.append(other.width)
            broken = any(rate.beyond(5, "greater") for rate in false)
            broken = broken or any(rate.beyond(95, "less") for rate in covered)
            print(
                f"{scope:<15} {seeds:>2} seeds, deviation {deviation:>4}: "
                f"false positives {' '.join(map(str, false))} %, coverage {' '.join(map(str, covered))} %, "
                f"half-width {' '.join(f'{width:.2f}' for width in widths)}"
                f"{'   BROKEN' if broken else ''}"
            )


def unequal(rng: np.random.Generator, trials: int) -> None:
    """A method without seeds beside one whose accuracies are skewed: many seeds are good, few fail."""
    for seeds, deviation in itertools.product((3, 5, 10), (2.0, 5.0, 15.0)):
        pair = Method(90.0, 0.0, seeded=False), Method(90.0, deviation)
        found = simulate(rng, pair, seeds, OVER, trials)
        print(
            f"over seeds, one method without: {seeds:>2} seeds, deviation {deviation:>4}: "
            f"false positives {found.significant} %, coverage {found.coverage} %"
        )


def sparse(rng: np.random.Generator, trials: int) -> None:
    """Networks that are nearly the same: images that differ are few, so that the t test alone knows little."""
    for expected, seeds in itertools.product((0.5, 2, 4, 8), (1, 3)):
        covered, false = Rate(), Rate()
        for _ in range(trials):
            # the same images flip with each seed, for the worse in one simulation, either way in the other
            flips = rng.random(IMAGES) < expected / IMAGES
            base, way = np.ones((seeds, IMAGES), dtype=bool), rng.random(IMAGES) < 0.5
            found = compare(samples(base, seeds), samples(base & ~flips, seeds))
            covered.add(found.low <= 100 * expected / IMAGES <= found.high)
            found = compare(samples(base & ~(flips & way), seeds), samples(base & ~(flips & ~way), seeds))
            false.add(found.p < 0.05)
        print(
            f"{expected:>3} images of {IMAGES} differ, {seeds} seeds that agree: false positives {false} %, "
            f"coverage where all are for the worse {covered} %"
        )


def power(rng: np.random.Generator, trials: int) -> None:
    """Differences that are found in 80 % of cases as computed beforehand, and in how many they are."""
    settings = [(OVER, 3, 0.2), (OVER, 3, 2.0), (OVER, 5, 1.0), (OVER, 10, 0.2), (OVER, 10, 2.0)]
    for scope, seeds, deviation in [(THESE, 1, 0.0), (THESE, 3, 1.0), *settings]:
        same = Method(70.0, deviation)
        found = []
        for _ in range(max(trials // 10, 20)):  # what deviations of a difference are, from a pilot
            one, other = (samples(v, seeds) for v in correct(rng, [same.levels(rng, seeds), same.levels(rng, seeds)]))
            found.append(compare(one, other, scope))
        by_images = math.sqrt(np.mean([each.image_deviation**2 for each in found]))
        by_seeds = math.sqrt(np.mean([(each.seed_deviation or 0.0) ** 2 for each in found]))
        points = detectable(IMAGES, by_images, seeds if scope == OVER else 0, by_seeds)
        if scope == THESE:  # the truth for these seeds is exact where both methods have the same levels but for a shift
            better, rate = Method(70.0 + points, deviation), Rate()
            shift = better.parameters[0] - same.parameters[0]
            for _ in range(trials):
                levels = same.levels(rng, seeds)
                one, other = (samples(v, seeds) for v in correct(rng, [levels + shift, levels]))
                rate.add(compare(one, other, scope).significant)
        else:
            rate = simulate(rng, (Method(70.0 + points, deviation), same), seeds, scope, trials).significant
        print(
            f"power, {scope}, {seeds:>2} seeds, deviation {deviation}: "
            f"{points:5.2f} points, to be found in 80 %, are found in {rate} %"
        )


def columns(rng: np.random.Generator, trials: int) -> None:
    """A column of four methods that tie at 70 %, two at 64 % and two at 50 %: what letters say, by Holm."""
    means = [70.0] * 4 + [64.0] * 2 + [50.0] * 2
    for scope, seeds, deviation in itertools.product((THESE, OVER), (3, 5, 10), (0.2, 1.0)):
        false, exact, apart, far = Rate(), Rate(), Rate(), Rate()
        for _ in range(trials):
            levels = [Method(mean, deviation).levels(rng, seeds) for mean in means]
            if scope == THESE:  # methods that tie for these seeds have the same levels
                levels = [levels[means.index(mean)] for mean in means]
            column = {index: samples(values, seeds) for index, values in enumerate(correct(rng, levels))}
            found = ties(column, scope)
            p = {tuple(sorted(pair)): value for pair, value in found.p.items()}
            false.add(any(value < 0.05 for (one, other), value in p.items() if means[one] == means[other]))
            best = next(iter(found.letters.values()))
            top = {index for index, letters in found.letters.items() if not set(letters).isdisjoint(best)}
            exact.add(top == set(range(4)))
            for (one, other), value in p.items():
                if {means[one], means[other]} == {70.0, 64.0}:
                    apart.add(value < 0.05)
                if {means[one], means[other]} == {70.0, 50.0}:
                    far.add(value < 0.05)
        print(
            f"column of 8, {scope}, {seeds:>2} seeds, deviation {deviation}: "
            f"false claims in {false} % of columns, top group is the four in {exact} %, "
            f"6 points told in {apart} %, 20 points in {far} %"
        )


def bootstrap(rng: np.random.Generator, trials: int, resamples: int) -> None:
    """The two-level bootstrap, seeds and images resampled, percentile interval, beside ours on the same values."""
    weights = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=resamples) / IMAGES
    for seeds, deviation in [(2, 0.2), (2, 2.0), (2, 15.0), (3, 2.0), (5, 2.0), (10, 2.0)]:
        theirs, ours = Rate(), Rate()
        method = Method(70.0, deviation)
        for _ in range(trials):
            one, other = correct(rng, [method.levels(rng, seeds), method.levels(rng, seeds)])
            of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
            means = ((of_seeds @ (one.astype(float) - other)) * weights).sum(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            theirs.add(low <= 0 <= high)
            found = compare(samples(one, seeds), samples(other, seeds), OVER)
            ours.add(found.low <= 0 <= found.high)
        print(f"{seeds:>2} seeds, deviation {deviation:>4}: bootstrap covers {theirs} %, ours over seeds {ours} %")


@dataclass(frozen=True)
class Scene:
    """Images with objects of five categories; how hard each is, is the same for all detectors."""

    images: int
    object_image: np.ndarray
    object_category: np.ndarray
    difficulty: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, images: int) -> Self:
        """Images of 1 to 4 objects."""
        of_image = np.repeat(np.arange(images), rng.integers(1, 5, size=images))
        difficulty = rng.standard_normal(images)[of_image] + rng.standard_normal(len(of_image))
        return cls(images, of_image, rng.integers(0, CATEGORIES, size=len(of_image)), difficulty)

    def found(self, rng: np.random.Generator, level: float) -> Matches:
        """The boxes of a detector: one for each object, the nearer to it the better it sees it, and false ones."""
        quality = level - self.difficulty + rng.standard_normal(len(self.difficulty))
        thresholds = np.clip(np.rint(10 * expit(quality)), 0, 10).astype(int)  # at how many IoUs it is matched
        false = rng.poisson(1.0, size=self.images)
        image = np.concatenate([self.object_image, np.repeat(np.arange(self.images), false)])
        category = np.concatenate([self.object_category, rng.integers(0, CATEGORIES, size=false.sum())])
        score = np.concatenate([quality, rng.standard_normal(false.sum()) - 1]) + rng.standard_normal(len(image))
        matched = np.concatenate([(1 << thresholds) - 1, np.zeros(false.sum(), dtype=int)])
        order = np.lexsort((-score, category))
        truth = np.zeros((CATEGORIES, self.images), dtype=np.int32)
        np.add.at(truth, (self.object_category, self.object_image), 1)
        return Matches(
            category[order].astype(np.int32),
            image[order].astype(np.int32),
            matched[order].astype(np.int16),
            np.zeros(len(order), dtype=np.int16),
            truth,
        )


def detectors(rng: np.random.Generator, trials: int) -> None:
    """The mAP of two detectors on the same images: the jackknife over images, for these networks and over seeds."""
    many = Scene.drawn(rng, 100_000)
    once = np.ones((1, many.images), dtype=np.int32)
    truth = {level: many.found(rng, level).average_precisions(once)["mAP"][0] for level in (0.0, 0.3)}
    apart = truth[0.3] - truth[0.0]
    print(f"detectors, {trials} comparisons for each rate: mAP is {truth[0.0]:.1f} and {truth[0.3]:.1f} %")
    for images, seeds in itertools.product((50, 200, 900), (1, 3)):
        weights = resamples(images)
        false, covered, found_it = Rate(), Rate(), Rate()
        for _ in range(trials):
            scene = Scene.drawn(rng, images)
            first, second, better = (
                _resampled([scene.found(rng, level) for _ in range(seeds)], weights) for level in (0.0, 0.0, 0.3)
            )
            false.add(compare(first, second).significant)
            found = compare(better, first)
            covered.add(found.low <= apart <= found.high)
            found_it.add(found.significant)
        print(
            f"mAP of {images:>3} images, {seeds} seeds: false positives {false} %, coverage {covered} %, "
            f"{apart:.1f} points are found in {found_it} %"
            f"{'   BROKEN' if false.beyond(5, 'greater') or covered.beyond(95, 'less') else ''}"
        )


def bootstrapped(rng: np.random.Generator, trials: int, images: int = 50, draws: int = 500) -> None:
    """Two equal detectors: the jackknife beside the bootstrap, whose draws are the same for all detectors, too."""
    drawn = np.stack([np.bincount(rng.integers(0, images, size=images), minlength=images) for _ in range(draws)])
    left_out = resamples(images)
    weights = np.concatenate([np.ones_like(left_out[:1]), left_out, drawn.astype(np.int32)])
    quantile, points = -stdtrit(images - 1, 0.025), []
    false: dict[str, Rate] = {"jackknife": Rate(), "bootstrap": Rate()}
    errors: dict[str, list[float]] = {name: [] for name in false}
    for _ in range(trials):
        scene = Scene.drawn(rng, images)
        one, other = (scene.found(rng, 0.0).average_precisions(weights)["mAP"] for _ in range(2))
        point, *rest = one - other
        deviations = np.std(rest[:images], ddof=1), float(np.std(rest[images:], ddof=1))
        for name, error in zip(false, (float(error_of(deviations[0], images)), deviations[1]), strict=True):
            false[name].add(abs(point) > quantile * error)
            errors[name].append(error)
        points.append(point)
    for name, found in errors.items():
        ratio = math.sqrt(np.mean(np.square(found))) / np.std(points)
        print(
            f"mAP of {images} images by the {name}, {trials} comparisons: false positives {false[name]} %, standard "
            f"error is {ratio:.3f} of the deviation"
        )


def _resampled(networks: Sequence[Matches], weights: np.ndarray) -> Resampled:
    """As the task and the rows hand them to the statistics."""
    images = weights.shape[1]
    both = [each.average_precisions(np.concatenate([np.ones_like(weights[:1]), weights]))["mAP"] for each in networks]
    values = np.stack(both) / 100
    return Resampled(values[:, 0], values[:, 1:], images, tuple(range(len(networks))) if len(networks) > 1 else ())


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few simulations")
    parser.add_argument("--detection", action="store_true", help="mAP of detectors alone")
    parser.add_argument("--trials", type=int, default=2000, help="simulations of a rate")
    arguments = parser.parse_args()
    trials = 4 if arguments.quick else arguments.trials
    error = -ndtri(0.025) * 100 * math.sqrt(0.05 * 0.95 / trials)
    print(f"{trials} comparisons for each rate: 5 % and 95 % are known to ±{error:.1f} points; {IMAGES} images, seed 0")
    rng = np.random.default_rng(0)
    detectors(rng, max(trials // 5, 2))
    bootstrapped(rng, 3 * trials)
    if arguments.detection:
        return
    checked(rng, trials)
    unequal(rng, trials)
    sparse(rng, trials)
    power(rng, trials)
    columns(rng, max(trials // 4, 2))
    bootstrap(rng, max(trials // 4, 2), 1000 if not arguments.quick else 20)


if __name__ == "__main__":
    main()
