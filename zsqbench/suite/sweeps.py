"""Sweeps: an option `{each: [a, b]}` of a suite makes a variant for each value, as if written by hand.

The name of a variant contains its values, as `dgh-images-16`. The `-` is safe: names of options do not contain it,
a shell and `-k` give it no meaning, and it is not a pattern in exclusions.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zsqbench.errors import ZSQBenchError
from zsqbench.suite.schema import Block, Exclusion, SuiteFile
from zsqbench.suite.validation import shape
from zsqbench.suite.yamlfile import Location, YamlFile

EACH = "each"
"""The only key of a swept option."""

MOST = 1000
"""The most variants of one name. Many more are a mistake, and would take all memory."""

WORD = re.compile(r"[\w.+/-]+")
"""The pattern of texts that can be part of a name."""

Options = dict[str, Any]
"""The options of a variant, as the file gives them."""

LINKS = ("start", "over")
"""The options by which a quantizer names another quantizer."""


def expand(source: YamlFile, file: SuiteFile) -> SuiteFile:
    """The suite without `each`: variants replace each sweep, and their names replace the name of the sweep.

    Raises ZSQBenchError for a list or a value that cannot make variants, and for names that already exist.
    """
    sections = {
        "generator": _Section(source, "generators", file.generators),
        "quantizer": _Section(source, "quantizers", file.quantizers, LINKS),
    }
    variants = {axis: section.expanded() for axis, section in sections.items()}
    if not any(section.swept for section in sections.values()):
        return file

    def renamed(part: Block | Exclusion) -> dict[str, list[str]]:
        return {axis: section.names(getattr(part, axis)) for axis, section in sections.items()}

    changes = {
        "generators": variants["generator"],
        "quantizers": variants["quantizer"],
        "matrix": [block.model_copy(update=renamed(block)) for block in file.matrix],
        "exclude": [rule.model_copy(update=renamed(rule)) for rule in file.exclude],
    }
    return file.model_copy(update=changes)


@dataclass(frozen=True)
class _Section:
    """Generators or quantizers of a file."""

    source: YamlFile
    key: str
    given: Mapping[str, Options]
    links: Sequence[str] = ()
    """Options that name another variant of the section. If that variant is swept, they mean all its variants."""
    swept: dict[str, str] = field(default_factory=dict)
    """The sweep that made a variant, by its label."""
    _done: dict[str, dict[str, Options]] = field(default_factory=dict)

    def expanded(self) -> dict[str, Options]:
        """All variants in the order of the file."""
        found: dict[str, Options] = {}
        for name in self.given:
            for label, options in self._expand(name).items():
                if label in found or (label in self.given and label != name):
                    raise ZSQBenchError(self._collision(name, label))
                found[label] = options
        return found

    def names(self, names: Sequence[str]) -> list[str]:
        """These names, with the name of each sweep replaced by the labels of its variants."""
        return [label for name in names for label in self._labels(name)]

    def _labels(self, name: str) -> list[str]:
        return [label for label, swept in self.swept.items() if swept == name] or [name]

    def _expand(self, name: str, way: tuple[str, ...] = ()) -> dict[str, Options]:
        """The variants of one name. `way` are the variants whose links lead here."""
        if name not in self._done:
            self._done[name] = dict(self._variants(name, (*way, name)))
        return self._done[name]

    def _variants(self, name: str, way: tuple[str, ...]) -> Iterator[tuple[str, Options]]:
        given = self.given[name]
        values = {option: found for option in given if (found := self._values(name, option, way)) is not None}
        if not values:
            yield name, dict(given)
            return
        count = math.prod(map(len, values.values()))
        if count > MOST:
            raise ZSQBenchError(
                f"{self._place(name)}: {self.key}.{name} makes {count} variants; at most {MOST} are possible"
            )
        for chosen in itertools.product(*values.values()):
            picked = {option: value for option, (value, _) in zip(values, chosen, strict=True)}
            label = "-".join([name, *(f"{option}-{_word(value)}" for option, value in picked.items())])
            if label in self.swept:
                raise ZSQBenchError(self._collision(name, label))
            self.swept[label] = name
            self.source.stands_at((self.key, label), (self.key, name))
            for option, (_, place) in zip(values, chosen, strict=True):
                self.source.stands_at((self.key, label, option), place)
            yield label, {"method": name, **given, **picked}

    def _values(self, name: str, option: str, way: tuple[str, ...]) -> list[tuple[object, Location]] | None:
        """The values of a swept option, and the place of each. None: the option is not swept."""
        where: Location = (self.key, name, option)
        given = self.given[name][option]
        is_swept = _is_swept(given)
        values = list(self._listed(given[EACH], (*where, EACH))) if is_swept else [(given, where)]
        if option in self.links:
            values = [(label, place) for value, place in values for label in self._linked(value, place, way)]
        return values if is_swept or len(values) > 1 or values[0][0] != given else None

    def _linked(self, value: object, where: Location, way: tuple[str, ...]) -> Sequence[object]:
        """The labels that a link means: all variants of a sweep."""
        if not isinstance(value, str) or value not in self.given:
            return [value]
        if value in way:
            circle = way[way.index(value) :]
            if any(map(_is_swept, (option for name in circle for option in self.given[name].values()))):
                names = ", ".join(circle)
                raise ZSQBenchError(f"{self.source.where(where)}: a quantizer cannot lead to itself: {names}, {value}")
            return [value]
        self._expand(value, way)
        return self._labels(value)

    def _listed(self, values: object, where: Location) -> Iterator[tuple[object, Location]]:
        place, path = self.source.where(where), ".".join(map(str, where))
        if not isinstance(values, list):
            raise ZSQBenchError(f"{place}: {path}: expected a list of values, got {shape(values)}")
        if not values:
            raise ZSQBenchError(f"{place}: {path} is empty; expected at least one value")
        for index, value in enumerate(values):
            at = self.source.where((*where, index))
            if isinstance(value, dict | list) or (isinstance(value, str) and not WORD.fullmatch(value)):
                expected = "expected numbers, true, false, null, or texts of letters, digits and ._+-/"
                raise ZSQBenchError(
                    f"{at}: {path}.{index}: {expected}, because values name variants, got {shape(value)}; "
                    "write a variant with this value under its own name"
                )
            if any(_same(value, other) for other in values[:index]):
                raise ZSQBenchError(f"{at}: {path} has {shape(value)} twice")
            yield value, (*where, index)

    def _collision(self, name: str, label: str) -> str:
        kind = self.key.removesuffix("s")
        other = f"the suite already has a {kind} of this name" if label in self.given else "so does another value"
        return f"{self._place(name)}: the sweep {name} makes a {kind} {label!r}; {other}; rename one"

    def _place(self, name: str) -> str:
        return self.source.where((self.key, name))


def _is_swept(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {EACH}


def _same(first: object, second: object) -> bool:
    """True for 1 and 1.0, which are the same value of an option. False for 1 and true."""
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


def _word(value: object) -> str:
    """A value as a part of a name."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
