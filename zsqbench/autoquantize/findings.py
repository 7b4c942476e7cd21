"""The findings of a search: the candidates that were tried, and the chosen one."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.autoquantize.candidates import NOISE, Candidate, Level
from zsqbench.statistics import differs

if TYPE_CHECKING:
    from zsqbench.reports.results import Result

NEAR = 5.0
"""For networks that are not classifiers, fewer bits may cost so many points of fidelity."""


@dataclass(frozen=True)
class Tried:
    """A candidate that was run."""

    candidate: Candidate
    row: "Result"
    seconds: float
    """Seconds of all its steps, even of earlier runs. Candidates that share images each count their time."""

    @property
    def is_done(self) -> bool:
        """True if it was judged."""
        return self.row.status == "done"

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: the metric of the task, then the fidelity of the outputs."""
        return self.row.value or 0.0, self.fidelity

    @property
    def fidelity(self) -> float:
        """How near the outputs are to those of the float network, at most 100."""
        return self.row.metrics.get("fidelity", 0.0)

    @property
    def bits(self) -> float:
        """The mean bits of its weights."""
        return self.row.tensors.get("mean_weight_bits", 0.0)

    @property
    def weights_mb(self) -> float:
        """The size of its weights in 10^6 bytes."""
        return self.row.tensors.get("size_mb", 0.0)

    def is_told_from(self, other: "Tried") -> bool:
        """True if chance rarely gives such a large difference in agreement (`differ`).

        For networks that are not classifiers, any difference in fidelity counts.
        """
        if self.row.metric != "agreement":
            return self.rank != other.rank
        return differ(self.row, other.row)

    def is_near(self, best: "Tried") -> bool:
        """True if fewer bits or a higher fidelity may put it before the candidate with the highest rank.

        For a classifier, a test must not tell the two candidates apart. Other networks have no such test: their
        fidelity must be at most `NEAR` points less.
        """
        if self.row.metric != "agreement":
            return best.fidelity - self.fidelity <= NEAR
        return not self.is_told_from(best)

    def is_worse_than(self, other: "Tried") -> bool:
        """True if the other candidate has the higher rank and this one is not near it."""
        return other.rank > self.rank and not self.is_near(other)


@dataclass(frozen=True)
class Found:
    """The findings of a search."""

    suite: Path
    """The suite file of the candidates."""
    results: Path
    """The folder of their rows."""
    level: Level
    held_out: Path
    """The synthetic images for judging."""
    generators: Sequence[str]
    """The generators of these images. Each made the same number."""
    images: bool
    """True if images of the user were also used for judging. Then they decide."""
    tried: Sequence[Tried]
    left_out: dict[str, str]
    """Why candidates were not tried, by name."""
    seconds: float
    signal: int | None = None
    """The signal that ended the search. None: no signal."""

    @property
    def ranking(self) -> list[Tried]:
        """The candidates that may be chosen, the best first. The control is in the list only if it is chosen.

        The control is chosen if all candidates are worse (`is_worse_than`), unless only noise was used for judging
        (`at_home`). Otherwise candidates compete that are near the highest agreement and not worse than the control.
        Among them the fewest bits win, because the target asks for a small file. Then the highest fidelity wins. It is
        a mean over all outputs, so chance moves it less than a count of a few images.
        """
        able, near, control = self._able, self.near, self.control
        chosen = [control] if able and not near and control is not None else near
        return [*chosen, *(tried for tried in able if tried not in chosen)]

    @property
    def near(self) -> list[Tried]:
        """The candidates of which one is chosen, the best first. Empty: all are worse than the control."""
        able, bar = self._able, None if self.at_home else self.control
        near = [tried for tried in able if tried.is_near(able[0])]
        if bar is not None:
            near = [] if able and able[0].is_worse_than(bar) else [one for one in near if not one.is_worse_than(bar)]
        return sorted(near, key=lambda tried: (tried.bits, -tried.fidelity))

    @property
    def _able(self) -> list[Tried]:
        """The judged candidates without the control, by rank."""
        able = [tried for tried in self.tried if tried.is_done and not tried.candidate.control]
        return sorted(able, key=lambda tried: tried.rank, reverse=True)

    @property
    def at_home(self) -> bool:
        """True if only noise was used for judging. The control is calibrated on noise, so its lead means nothing."""
        return not self.images and list(self.generators) == [NOISE]

    @property
    def sizes_differ(self) -> bool:
        """True if some candidates have more bits than others."""
        return len({tried.bits for tried in self.ranking}) > 1

    @property
    def control(self) -> Tried | None:
        """The control, if it was run."""
        return next((tried for tried in self.tried if tried.candidate.control and tried.is_done), None)


def differ(one: "Result", other: "Result") -> bool:
    """True if one of two rows of the same images agrees with the float network on significantly more images.

    Only images count on which one agrees and the other does not.
    """
    first, second = (int.from_bytes(base64.b64decode(row.correct or "")) for row in (one, other))
    return differs((first & ~second).bit_count(), (second & ~first).bit_count())
