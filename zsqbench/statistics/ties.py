"""Which methods of a column do not differ significantly: all pairs, adjusted for their number, and group letters."""

import math
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from zsqbench.errors import ZSQBenchError
from zsqbench.statistics.counts import SIGNIFICANT, exact_p
from zsqbench.statistics.difference import Scope, scope_of
from zsqbench.statistics.intervals import p_of
from zsqbench.statistics.power import detectable
from zsqbench.statistics.resampling import error_of
from zsqbench.statistics.samples import Measured, Samples, matched

if TYPE_CHECKING:
    import numpy as np

K = TypeVar("K", bound=Hashable)


COLUMN_SEEDS = 5
"""With fewer seeds a column is compared only for these seeds.

Example: methods are 20 points apart, seeds have a deviation of 1 point, and p is adjusted for 28 pairs. 3 seeds showed
the difference in 39 % of cases, 5 seeds always. With 2 degrees of freedom it takes 24 standard errors, with 4 it takes
7 (benchmarks/significance.py).
"""


@dataclass(frozen=True)
class Ties(Generic[K]):
    """Methods of a column, from the best mean to the worst. Two share a letter exactly if no test tells them apart.

    Holm's adjustment bounds the errors of the whole column: if all methods are equal, any difference is claimed in at
    most 5 of 100 cases. The best method has the letter 'a'.
    """

    letters: Mapping[K, tuple[str, ...]]
    scope: Scope
    p: Mapping[tuple[K, K], float]
    """Holm's p of each pair that can be compared, the higher mean first."""
    detectable: float | None
    """The difference in points that a pair shows with a probability of 80 %, before Holm; the median over pairs."""
    untold: Mapping[tuple[K, K], str]
    """Why a pair cannot be compared. The pair ties, because no test tells it apart."""
    without: Mapping[K, str]
    """Why a method has no letter."""


def ties(methods: Mapping[K, Measured | str], scope: Scope | None = None) -> Ties[K]:
    """Compare all pairs of a column. A method without values is given by a reason, such as "no values per image".

    Methods on other images than most methods are left out. If no scope is given, it is `over seeds` if each method with
    seeds has at least 5. Pairs are computed together: 500 methods have 124,750 pairs.
    """
    import numpy as np

    without = {name: samples for name, samples in methods.items() if isinstance(samples, str)}
    given = {name: samples for name, samples in methods.items() if not isinstance(samples, str)}
    counts = Counter(samples.images for samples in given.values())
    for name, samples in given.items():
        usual = counts.most_common(1)[0][0]
        if samples.images != usual:
            without[name] = f"it was measured on {samples.images} images, others on {usual}"
    ranked = sorted((name for name in given if name not in without), key=lambda name: -given[name].mean)
    seeds = [len(given[name].seeds) for name in ranked if given[name].seeds]
    chosen: Scope = scope or ("over seeds" if min(seeds, default=0) >= COLUMN_SEEDS else "for these seeds")
    pairs = _Pairs.of([given[name] for name in ranked], chosen)
    told = np.nonzero(np.triu(~np.isnan(pairs.p), 1))
    adjusted = np.ones_like(pairs.p)
    adjusted[told] = _holm(pairs.p[told])
    adjusted = np.minimum(adjusted, adjusted.T)
    tie = (adjusted >= SIGNIFICANT) & ~np.eye(len(ranked), dtype=bool)
    return Ties(
        letters=dict(zip(ranked, letters(tie), strict=True)),
        scope=chosen,
        p={(ranked[one], ranked[other]): float(adjusted[one, other]) for one, other in zip(*told, strict=True)},
        detectable=100 * float(np.median(pairs.detectable[told])) if told[0].size else None,
        untold={(ranked[one], ranked[other]): why for (one, other), why in pairs.untold.items()},
        without=without,
    )


@dataclass(frozen=True, eq=False)
class _Tests:
    """The tests of methods against others, [methods, others], each as in `compare`."""

    p: "np.ndarray"
    detectable: "np.ndarray"

    @classmethod
    def of(cls, firsts: Sequence[Measured], seconds: Sequence[Measured], scope: Scope) -> Self:
        """Compare each method with each other. All methods of a group have the same seeds. Raises as `compare`."""
        import numpy as np

        rows, _ = matched(firsts[0], seconds[0])
        one, other = (
            np.stack([each.values[chosen] for each in group])
            for group, chosen in zip((firsts, seconds), rows, strict=True)
        )  # [methods, seeds, images], or resamples instead of images
        count, seeds = one.shape[2], max(one.shape[1], other.shape[1])
        is_seeded = bool(firsts[0].seeds or seconds[0].seeds)
        chosen = scope_of(seeds, scope if is_seeded else None)
        over_seeds, over_seeds_other = one.mean(axis=1), other.mean(axis=1)
        mean = over_seeds.mean(axis=1)[:, None] - over_seeds_other.mean(axis=1)
        squared = _squares(over_seeds)[:, None] + _squares(over_seeds_other) - 2 * over_seeds @ over_seeds_other.T
        deviation = np.sqrt(np.maximum(squared - count * mean**2, 0) / (count - 1))
        if seeds == 1 and one.dtype == other.dtype == bool:
            only_one = np.rint((squared + count * mean) / 2)
            return cls(exact_p(only_one, np.rint(squared) - only_one), detectable(count, deviation))
        images, shares = firsts[0].images, isinstance(firsts[0], Samples)
        by_seed, by_seed_other = (
            np.stack([each.by_seed[chosen] for each in group])
            for group, chosen in zip((firsts, seconds), rows, strict=True)
        )
        by_images = deviation / math.sqrt(images)
        if not shares:
            mean = by_seed.mean(axis=1)[:, None] - by_seed_other.mean(axis=1)
            by_images = error_of(deviation, count)
            deviation = by_images * math.sqrt(images)
        if chosen == "for these seeds":
            return cls(p_of(mean, images, by_images, 0, 0.0, shares=shares), detectable(images, deviation))
        of_seeds = (by_seed[:, None] - by_seed_other).std(axis=2, ddof=1)
        p = p_of(mean, images, by_images, seeds, of_seeds / math.sqrt(seeds), shares=shares)
        return cls(p, detectable(images, deviation, seeds, of_seeds))


def _squares(values: "np.ndarray") -> "np.ndarray":
    import numpy as np

    squares: np.ndarray = np.einsum("mi,mi->m", values, values)
    return squares


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The tests of all pairs, [methods, methods], above the diagonal. NaN: a pair cannot be compared."""

    p: "np.ndarray"
    detectable: "np.ndarray"
    untold: dict[tuple[int, int], str]

    @classmethod
    def of(cls, samples: Sequence[Measured], scope: Scope) -> Self:
        """Groups of methods with the same seeds. Groups are compared at once."""
        import numpy as np

        blocks: dict[tuple[tuple[int, ...], str], list[int]] = {}
        for place, each in enumerate(samples):
            kind = type(each).__name__ + each.values.dtype.kind
            blocks.setdefault((each.seeds, kind), []).append(place)
        empty = np.full((len(samples), len(samples)), np.nan)
        pairs = cls(empty, empty.copy(), {})
        for ones, others in combinations_with_replacement(blocks.values(), 2):
            if ones is not others or len(ones) > 1:
                pairs._fill(samples, ones, others, scope)
        return pairs

    def _fill(self, samples: Sequence[Measured], ones: list[int], others: list[int], scope: Scope) -> None:
        import numpy as np

        try:
            tests = _Tests.of([samples[one] for one in ones], [samples[other] for other in others], scope)
        except ZSQBenchError as error:
            self.untold.update({(min(pair), max(pair)): str(error) for pair in product(ones, others)})
            return
        for into, values in ((self.p, tests.p), (self.detectable, tests.detectable)):
            into[np.ix_(ones, others)] = values
            into[np.ix_(others, ones)] = values.T


def letters(tie: "np.ndarray") -> list[tuple[str, ...]]:
    """Letters of methods from the best to the worst. Two share a letter exactly if they tie, bool [methods, methods].

    A letter is a group of methods that all tie. networkx finds all largest groups (maximal cliques). But if ties do not
    follow the means, there are hundreds of groups, and most add nothing. Therefore each tie without a letter, the best
    methods first, starts a group. The group takes every method that ties with all its methods, again the best first.
    After 'z' comes 'a2'.
    """
    import numpy as np

    # a set of methods is an integer; the lowest bit is the best method
    partners = [int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in tie]
    untold = list(partners)  # the partners of each method with which it shares no letter yet
    groups = [[place] for place, partner in enumerate(partners) if not partner]
    for place in range(len(partners)):
        while untold[place]:
            group = _grown(place, _lowest(untold[place]), partners)
            members = sum(1 << member for member in group)
            for member in group:
                untold[member] &= ~members
            groups.append(group)
    names: list[list[str]] = [[] for _ in partners]
    for index, group in enumerate(sorted(groups)):
        turn, letter = divmod(index, len(string.ascii_lowercase))
        for place in group:
            names[place].append(string.ascii_lowercase[letter] + (str(turn + 1) if turn else ""))
    return [tuple(each) for each in names]


def _grown(one: int, other: int, partners: Sequence[int]) -> list[int]:
    """The group that begins with two methods that tie. The best method that ties with all of it joins, and so on."""
    group, candidates = [one, other], partners[one] & partners[other]
    while candidates:
        group.append(_lowest(candidates))
        candidates &= partners[group[-1]]
    return sorted(group)


def _lowest(members: int) -> int:
    return (members & -members).bit_length() - 1


def _holm(values: "np.ndarray") -> "np.ndarray":
    """Holm's adjusted p: the smallest of n times n, the next times n - 1, and so on. No value is below the one before.

    statsmodels has this function, but its import takes a second and 90 MB, in each run that ends with a table.
    """
    import numpy as np

    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted
