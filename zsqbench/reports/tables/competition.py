"""The competition in a column: the competing methods, those that beat the negative control, and the best."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from zsqbench.reports.tables.axes import Column, Row
from zsqbench.scheme import FLOAT

Place = tuple[Row, Column]

NEGATIVE = frozenset({"negative control"})
POSITIVE = frozenset({"positive control", "real data, not data-free"})

BELOW_CONTROL = "below the negative control"
"""The footnote of a method that is worse than a negative control, such as noise, with the same quantizer."""

NOT_TOLD = "cannot be told from the negative control"
"""The footnote of a method that is not worse than the control, but whose lead is not significant."""


@dataclass(frozen=True)
class Standing:
    """A method's place in its column."""

    letters: tuple[str, ...] = ()
    """Letters. Methods that share a letter do not differ significantly. Empty: the method was not compared."""
    without: str | None = None
    """Why it was not compared."""

    def ties_with(self, other: "Standing") -> bool:
        """True if no test tells both apart."""
        return not (self.letters and other.letters) or not set(self.letters).isdisjoint(other.letters)


@dataclass(frozen=True)
class Standings:
    """The places of all methods of a column."""

    of: Mapping[Row, Standing]
    detectable: float | None = None
    """The difference in points that is found in 80 of 100 cases, as the median over all pairs."""
    few_seeds: bool = False
    """True if methods were compared only for their seeds, because there are too few for a statement on other seeds."""
    untold: tuple[str, ...] = ()
    """Why pairs share a letter although they were not compared, each reason once."""

    def tie(self, first: Row, second: Row) -> bool:
        """True if no test tells both methods apart."""
        return self.of[first].ties_with(self.of[second])


@dataclass(frozen=True)
class Competition:
    """The results of a table, and their comparisons."""

    means: Mapping[Place, float]
    """Means at the shown precision, so that methods that look equal are equal."""
    incomplete: frozenset[Place]
    """Entries whose mean is only over the seeds that are done."""
    random_models: frozenset[str] = frozenset()
    standings: Mapping[Column, Standings] = field(default_factory=dict)
    """The standings of columns in which methods were compared."""

    @cached_property
    def negative(self) -> dict[Place, Place]:
        """The best negative control of each method that has one. A control may be its own control."""
        return self._best_of(NEGATIVE)

    @cached_property
    def positive(self) -> dict[Place, Place]:
        """The best control with real images, for each method that has one."""
        return self._best_of(POSITIVE)

    def _best_of(self, controls: Collection[str]) -> dict[Place, Place]:
        """The best of these controls for each method, with the same quantizer and settings, in the same column."""
        best: dict[tuple[tuple[str, str, str], Column], Place] = {}
        for (row, column), mean in self.means.items():
            if row.control in controls:
                key = row.apart_from_images, column.unsized
                if key not in best or mean > self.means[best[key]]:
                    best[key] = row, column
        keys = {(row, column): (row.apart_from_images, column.unsized) for row, column in self.means}
        return {place: best[key] for place, key in keys.items() if key in best}

    @cached_property
    def below_control(self) -> dict[Place, bool]:
        """True if a method is worse than its best negative control.

        An entry is missing if the method or the control has no mean.
        """
        return {
            place: place[0].control != "negative control" and self.means[place] < self.means[control]
            for place, control in self.negative.items()
        }

    @cached_property
    def told_from_control(self) -> dict[Place, bool]:
        """True if a method differs significantly from its negative control."""
        return {
            place: self.differ(place, control)
            for place, control in self.negative.items()
            if place[0].control != "negative control"
        }

    def differ(self, first: Place, second: Place) -> bool:
        """True if both differ significantly. In columns of different sizes, only the means decide."""
        return first[1] != second[1] or not self._tie(first[1], first[0], second[0])

    def _tie(self, column: Column, first: Row, second: Row) -> bool:
        """True if no test tells both apart. Without a comparison, the means must be equal."""
        if column not in self.standings:
            return self.means[first, column] == self.means[second, column]
        return self.standings[column].tie(first, second)

    def beats_control(self, place: Place) -> bool:
        """True if a method is significantly better than its negative control, or has none."""
        return not self.below_control.get(place) and self.told_from_control.get(place, True)

    @cached_property
    def best(self) -> frozenset[Place]:
        """The best data-free method of each column, and all data-free methods that do not differ significantly from it.

        These do not compete: controls; methods that do not beat their negative control; methods that a negative control
        with another quantizer beats; means over only some of the seeds; methods that could not be compared. For a
        network that was never trained, no method is best.
        """
        means = {place: mean for place, mean in self.means.items() if self._competes(*place)}
        top: dict[Column, Row] = {}
        for (row, column), mean in means.items():
            if column not in top or mean > means[top[column], column]:
                top[column] = row
        return frozenset(
            (row, column) for row, column in means if row == top[column] or self._tie(column, row, top[column])
        )

    def _competes(self, row: Row, column: Column) -> bool:
        is_data_free_method = row.control is None and column.scheme != FLOAT.name
        counts = column.model not in self.random_models and (row, column) not in self.incomplete
        is_compared = column not in self.standings or bool(self.letters(row, column))
        stands = self.beats_control((row, column)) and not self._is_beaten_by_control(row, column)
        return is_data_free_method and counts and is_compared and stands

    def _is_beaten_by_control(self, row: Row, column: Column) -> bool:
        """True if the column's best negative control, with any quantizer, is significantly better than a method."""
        control = self._best_control.get(column)
        if control is None or self.means[control, column] <= self.means[row, column]:
            return False
        return not self._tie(column, row, control)

    @cached_property
    def _best_control(self) -> dict[Column, Row]:
        """The negative control with the highest mean of each column."""
        best: dict[Column, Row] = {}
        for (row, column), mean in self.means.items():
            if row.control in NEGATIVE and (column not in best or mean > self.means[best[column], column]):
                best[column] = row
        return best

    def beside_control(self, row: Row, column: Column) -> str | None:
        """The footnote of a method that does not beat its negative control."""
        if self.below_control.get((row, column)):
            return BELOW_CONTROL
        is_told = self.told_from_control.get((row, column), True)
        return NOT_TOLD if self.letters(row, column) and not is_told else None

    def letters(self, row: Row, column: Column) -> str:
        """The letters of a method in a column. Empty: it was not compared."""
        found = self.standings.get(column)
        return "".join(found.of[row].letters) if found and row in found.of else ""
