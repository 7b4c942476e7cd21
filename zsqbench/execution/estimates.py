"""Estimates of how long steps will take, from what steps took that are like them to some degree."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, get_args

from zsqbench.execution.timings import Timing, Timings
from zsqbench.steps.step import Step, Work

Basis = Literal["measured", "scaled", "probed", "rough"]
"""Such a step ran, with another seed or scheme at most; or one of its method, with more or less to do or on another
network; or a shortened one on this network, to probe it; or only other methods of its kind."""

WORDS: Mapping[Basis, str] = {
    "measured": "measured on such steps",
    "scaled": "scaled from others of the same methods",
    "probed": "from probes",
    "rough": "rough, from other methods",
}
"""For people."""

APART = 1.2
"""Numbers of images that differ by less say nothing of what one takes."""


@dataclass(frozen=True)
class Estimate:
    """How long a step may take."""

    seconds: float
    basis: Basis


@dataclass(frozen=True)
class Line:
    """Seconds of a step as a function of its work."""

    fixed: float
    slope: float
    """Seconds of one image."""

    def at(self, images: float) -> float:
        """Seconds for so many images."""
        return self.fixed + self.slope * images


@dataclass
class _Like:
    """The times of steps of one kind and method on one network."""

    cost: float
    """Of the network, for one image."""
    measured: list[tuple[float, float]] = field(default_factory=list)
    """Images and seconds of steps of runs."""
    probed: list[tuple[float, float]] = field(default_factory=list)

    @property
    def points(self) -> list[tuple[float, float]]:
        """All of them."""
        return self.measured + self.probed


class Estimates:
    """Estimates by what is remembered: the nearest basis that there is."""

    def __init__(self, timings: Timings) -> None:
        self.timings = timings
        self._by_method: dict[_Way, dict[str, _Like]] = {}
        self._lines: dict[tuple[_Way, str], Line] = {}
        self._found: dict[str, Estimate | None] = {}
        for timing in timings.all:
            if timing.work is not None and timing.work.images:
                self._add(timing, timing.work)

    def _add(self, timing: Timing, work: Work) -> None:
        networks = self._by_method.setdefault(_way(work), {})
        like = networks.setdefault(work.network, _Like(work.cost))
        (like.probed if timing.probed else like.measured).append((work.images, timing.seconds))

    def knows(self, step: Step) -> bool:
        """True if such a step ran, or one of its method on its network, whole or to probe it."""
        exact, work = self.timings.estimate(step), step.work
        return exact is not None or (work is not None and work.network in self._by_method.get(_way(work), {}))

    def of(self, step: Step) -> Estimate | None:
        """How long a step may take; none where no step of its kind ran, or its network is not known yet."""
        if step.key not in self._found:
            exact = self.timings.estimate(step)
            if exact is not None:
                self._found[step.key] = Estimate(exact, "measured")
            else:
                self._found[step.key] = None if step.work is None else self.of_work(step.work)
        return self._found[step.key]

    def total(self, steps: Iterable[Step]) -> "Total":
        """The time of all these."""
        return Total.of(map(self.of, steps))

    def of_work(self, work: Work) -> Estimate | None:
        """How long so much work may take; where only the other of compiled and not is known, as long as that."""
        ways = [way for way in (_way(work), _way(replace(work, compiled=not work.compiled))) if way in self._by_method]
        for way in ways:
            if work.network in self._by_method[way]:
                basis: Basis = "scaled" if self._by_method[way][work.network].measured else "probed"
                return Estimate(self._line(way, work.network).at(work.images), basis)
        return Estimate(self._elsewhere(work, ways[0]), "scaled") if ways else self._of_others(work)

    def compiled(self, work: Work) -> float | None:
        """Seconds of so much work where it is compiled, or none where its method never was, on its network, here."""
        way = _way(replace(work, compiled=True))
        known = work.network in self._by_method.get(way, {})
        return self._line(way, work.network).at(work.images) if known else None

    def _of_others(self, work: Work) -> Estimate | None:
        """By other methods of the kind, on this network if there are any.

        Those of which two amounts are known come first. One amount tells what is fixed, but not what an image takes,
        which is then that of any kind.
        """
        others = [
            like for (kind, *_), known in self._by_method.items() if kind == work.kind for like in _near(known, work)
        ]
        lines = [(line, like) for like in others if (line := _through(like.points)) is not None]
        if not lines:
            slope = self._any_slope(work)
            lines = [(fit(like.points, None if slope is None else slope * like.cost), like) for like in others]
        seconds = [line.at(work.images) * work.cost / like.cost for line, like in lines]
        return Estimate(statistics.median(seconds), "rough") if seconds else None

    def _any_slope(self, work: Work) -> float | None:
        """Seconds of an image for each operation, in steps of whatever kind; none where none is known."""
        likes = [like for known in self._by_method.values() for like in _near(known, work)]
        slopes = [line.slope / like.cost for like in likes if (line := _through(like.points)) is not None]
        return statistics.median(slopes) if slopes else None

    def _elsewhere(self, work: Work, way: "_Way") -> float:
        """The median of what it would take by the times of its method on these networks."""
        return statistics.median(
            self._line(way, network).at(work.images) * work.cost / like.cost
            for network, like in self._by_method[way].items()
        )

    def _line(self, way: "_Way", network: str) -> Line:
        place = (way, network)
        if place not in self._lines:
            networks = self._by_method[way]
            like = networks[network]
            slopes = [
                line.slope * like.cost / other.cost
                for name, other in networks.items()
                if name != network and (line := _through(other.points)) is not None
            ]
            self._lines[place] = fit(like.points, statistics.median(slopes) if slopes else None)
        return self._lines[place]


def _near(networks: Mapping[str, _Like], work: Work) -> list[_Like]:
    """The times on the network of this work, or else on all."""
    return [networks[work.network]] if work.network in networks else list(networks.values())


_Way = tuple[str, str, bool]
"""Kind and method of steps, and whether they were compiled."""


def _way(work: Work) -> _Way:
    return work.kind, work.method, work.compiled


def fit(points: Sequence[tuple[float, float]], slope: float | None = None) -> Line:
    """The line through images and seconds, by medians; it never falls, and begins at 0 s at least.

    Where all have about as many images, its slope is the given one, as far as seconds allow; without one, seconds are
    taken as proportional to it.
    """
    found = _through(points)
    if found is not None:
        return found
    images = statistics.median(each for each, _ in points)
    seconds = statistics.median(each for _, each in points)
    steepest = seconds / images
    slope = steepest if slope is None else min(slope, steepest)
    return Line(seconds - slope * images, slope)


def _through(points: Sequence[tuple[float, float]]) -> Line | None:
    """The line through points of which two are apart: the median of slopes, and what remains."""
    levels: dict[float, list[float]] = {}
    for images, seconds in points:
        levels.setdefault(images, []).append(seconds)
    medians = sorted((images, statistics.median(seconds)) for images, seconds in levels.items())
    slopes = [
        (after - before) / (more - less)
        for (less, before), (more, after) in combinations(medians, 2)
        if more > APART * less
    ]
    if not slopes:
        return None
    steepest = statistics.median(seconds / images for images, seconds in medians)
    slope = min(max(statistics.median(slopes), 0.0), max(steepest, 0.0))
    return Line(max(statistics.median(seconds - slope * each for each, seconds in medians), 0.0), slope)


@dataclass(frozen=True)
class Total:
    """The time of many steps, by what it is known from."""

    seconds: Mapping[Basis, float]
    steps: Mapping[Basis, int]
    unknown: int = 0
    """Steps of which nothing is known."""

    @classmethod
    def of(cls, estimates: Iterable[Estimate | None]) -> "Total":
        """Add up."""
        seconds: dict[Basis, float] = dict.fromkeys(get_args(Basis), 0.0)
        steps: dict[Basis, int] = dict.fromkeys(get_args(Basis), 0)
        unknown = 0
        for estimate in estimates:
            if estimate is None:
                unknown += 1
            else:
                seconds[estimate.basis] += estimate.seconds
                steps[estimate.basis] += 1
        return cls(seconds, steps, unknown)

    @property
    def known(self) -> int:
        """Steps of which something is known."""
        return sum(self.steps.values())

    @property
    def sum(self) -> float:
        """Seconds of all of them, one after the other."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        """For people."""
        if not self.known:
            unknown = f"unknown: no step like these {self.unknown} has run yet"
            return unknown if self.unknown else "nothing to do"
        of = [f"{self.seconds[basis]:.0f} s {WORDS[basis]} ({count})" for basis, count in self.steps.items() if count]
        parts = f": {', '.join(of)}" if self.steps["measured"] < self.known else ""
        text = f"about {self.sum:.0f} s on one worker for {self.known} steps{parts}"
        return text + (f"; unknown for {self.unknown} more" if self.unknown else "")
