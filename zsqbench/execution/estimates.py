"""Estimate the time of steps from the times of similar steps."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, get_args

from zsqbench.execution.timings import Timing, Timings
from zsqbench.steps.step import Step, Work

Basis = Literal["measured", "scaled", "probed", "rough"]
"""The basis of an estimate. `measured`: the step ran, with another seed or scheme at most. `scaled`: its method ran,
with other work or on another network. `probed`: a shortened step ran on this network. `rough`: only other methods of
its kind ran."""

WORDS: Mapping[Basis, str] = {
    "measured": "measured on equal steps",
    "scaled": "scaled from other steps of the same methods",
    "probed": "from probes",
    "rough": "rough, from other methods",
}
"""For people."""

APART = 1.2
"""Numbers of images must differ by at least this factor to give the time of one image."""


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
    """Operations of the network, for one image."""
    measured: list[tuple[float, float]] = field(default_factory=list)
    """Images and seconds of steps of runs."""
    probed: list[tuple[float, float]] = field(default_factory=list)

    @property
    def points(self) -> list[tuple[float, float]]:
        """All pairs of images and seconds."""
        return self.measured + self.probed


class Estimates:
    """Estimates from remembered times, on the nearest basis that exists."""

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
        """True if the step ran, or another step of its method on its network. Probes count, too."""
        exact, work = self.timings.estimate(step), step.work
        return exact is not None or (work is not None and work.network in self._by_method.get(_way(work), {}))

    def of(self, step: Step) -> Estimate | None:
        """How long a step may take. None: no step of its kind ran, or its network is not known yet."""
        if step.key not in self._found:
            exact = self.timings.estimate(step)
            if exact is not None:
                self._found[step.key] = Estimate(exact, "measured")
            else:
                self._found[step.key] = None if step.work is None else self.of_work(step.work)
        return self._found[step.key]

    def total(self, steps: Iterable[Step]) -> "Total":
        """The time of all these steps."""
        return Total.of(map(self.of, steps))

    def of_work(self, work: Work) -> Estimate | None:
        """How long this work may take. If only compiled or only uncompiled times are known, they are used for both."""
        ways = [way for way in (_way(work), _way(replace(work, compiled=not work.compiled))) if way in self._by_method]
        for way in ways:
            if work.network in self._by_method[way]:
                basis: Basis = "scaled" if self._by_method[way][work.network].measured else "probed"
                return Estimate(self._line(way, work.network).at(work.images), basis)
        return Estimate(self._elsewhere(work, ways[0]), "scaled") if ways else self._of_others(work)

    def compiled(self, work: Work) -> float | None:
        """Seconds of this work if it is compiled. None: its method was never compiled on its network in this home."""
        way = _way(replace(work, compiled=True))
        known = work.network in self._by_method.get(way, {})
        return self._line(way, work.network).at(work.images) if known else None

    def _of_others(self, work: Work) -> Estimate | None:
        """An estimate from other methods of the kind, on this network if possible.

        Methods with two known amounts of work come first. One amount gives only the fixed time. The time of an image
        then comes from steps of any kind.
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
        """Seconds of an image for each operation, in steps of any kind. None: not known."""
        likes = [like for known in self._by_method.values() for like in _near(known, work)]
        slopes = [line.slope / like.cost for like in likes if (line := _through(like.points)) is not None]
        return statistics.median(slopes) if slopes else None

    def _elsewhere(self, work: Work, way: "_Way") -> float:
        """The median of the estimates from the times of its method on these networks."""
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
    """The times on the network of this work, or else on all networks."""
    return [networks[work.network]] if work.network in networks else list(networks.values())


_Way = tuple[str, str, bool]
"""Kind and method of steps, and true if they were compiled."""


def _way(work: Work) -> _Way:
    return work.kind, work.method, work.compiled


def fit(points: Sequence[tuple[float, float]], slope: float | None = None) -> Line:
    """The line through images and seconds, by medians. It never falls, and begins at 0 s or above.

    If all steps have about the same number of images, the given slope is used, limited by the seconds. Without a given
    slope, seconds are taken as proportional to images.
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
    """The line through points: the median slope, and the median remainder. None: no two points are far enough apart."""
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
    """The time of many steps, by the basis of each estimate."""

    seconds: Mapping[Basis, float]
    steps: Mapping[Basis, int]
    unknown: int = 0
    """Number of steps with unknown time."""

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
        """Number of steps with a known time."""
        return sum(self.steps.values())

    @property
    def sum(self) -> float:
        """Seconds of all steps in sequence."""
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
