"""The findings of a search: candidates that were tried, and which of them is chosen."""

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
"""So much less fidelity, in points, is borne for fewer bits by networks that are no classifiers."""


@dataclass(frozen=True)
class Tried:
    """A candidate that was run."""

    candidate: Candidate
    row: "Result"
    seconds: float
    """All of its steps, whenever they ran; those that share images count them each."""

    @property
    def is_done(self) -> bool:
        """True if it was judged."""
        return self.row.status == "done"

    @property
    def rank(self) -> tuple[float, float]:
        """The higher, the better: the metric of the task, and among equals how near the outputs are."""
        return self.row.value or 0.0, self.fidelity

    @property
    def fidelity(self) -> float:
        """How near the outputs are to the float network's, at most 100."""
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
        """True if a difference in agreement that large would be rare by chance (`differ`).

        Of networks that are no classifiers, any difference in fidelity counts.
        """
        if self.row.metric != "agreement":
            return self.rank != other.rank
        return differ(self.row, other.row)

    def is_near(self, best: "Tried") -> bool:
        """True if fewer bits or a higher fidelity may put it before the one of the highest rank.

        A classifier is where it is not told from that one. Others, for which there is no such test, are where they have
        at most `NEAR` less fidelity.
        """
        if self.row.metric != "agreement":
            return best.fidelity - self.fidelity <= NEAR
        return not self.is_told_from(best)

    def is_worse_than(self, other: "Tried") -> bool:
        """True if the other one has the higher rank, and so much that this one is not near it."""
        return other.rank > self.rank and not self.is_near(other)


@dataclass(frozen=True)
class Found:
    """The findings of a search."""

    suite: Path
    """The suite of the candidates."""
    results: Path
    """The folder of their rows."""
    level: Level
    held_out: Path
    """The synthetic images that were judged on."""
    generators: Sequence[str]
    """The generators that made them, as many each."""
    images: bool
    """True if images of the user's were judged on, too; then they decide."""
    tried: Sequence[Tried]
    left_out: dict[str, str]
    """Why candidates were not tried, by name."""
    seconds: float
    signal: int | None = None
    """The signal that ended it."""

    @property
    def ranking(self) -> list[Tried]:
        """The candidates that may be chosen, the best first; the control stands there only where it is chosen.

        It is where all candidates are worse than it (`is_worse_than`), unless noise alone was judged on (`at_home`).
        Among the candidates that are nearly as good as the one of the highest agreement, and not worse than the
        control, the fewest bits decide, for the target asks for a small file; then the highest fidelity, which is a
        mean over all outputs, and moves less by chance than a count of a few images does.
        """
        able, near, control = self._able, self.near, self.control
        chosen = [control] if able and not near and control is not None else near
        return [*chosen, *(tried for tried in able if tried not in chosen)]

    @property
    def near(self) -> list[Tried]:
        """The candidates of which one is chosen, the best first; none where all are worse than the control."""
        able, bar = self._able, None if self.at_home else self.control
        near = [tried for tried in able if tried.is_near(able[0])]
        if bar is not None:
            near = [] if able and able[0].is_worse_than(bar) else [one for one in near if not one.is_worse_than(bar)]
        return sorted(near, key=lambda tried: (tried.bits, -tried.fidelity))

    @property
    def _able(self) -> list[Tried]:
        """The candidates that were judged, the control apart, by rank."""
        able = [tried for tried in self.tried if tried.is_done and not tried.candidate.control]
        return sorted(able, key=lambda tried: tried.rank, reverse=True)

    @property
    def at_home(self) -> bool:
        """True if all that was judged on is noise, which the control is calibrated on: its lead means nothing then."""
        return not self.images and list(self.generators) == [NOISE]

    @property
    def sizes_differ(self) -> bool:
        """True if some candidates have more bits than others."""
        return len({tried.bits for tried in self.ranking}) > 1

    @property
    def control(self) -> Tried | None:
        """The control, where it was run."""
        return next((tried for tried in self.tried if tried.candidate.control and tried.is_done), None)


def differ(one: "Result", other: "Result") -> bool:
    """True if one of two rows of the same images agrees with the float network on more, beyond what chance explains.

    The images count on which one agrees and the other does not.
    """
    first, second = (int.from_bytes(base64.b64decode(row.correct or "")) for row in (one, other))
    return differs((first & ~second).bit_count(), (second & ~first).bit_count())
