"""Read a YAML file as plain data, and remember the place of each value for error messages."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from zsqbench.errors import ZSQBenchError

Location = tuple[str | int, ...]
"""Keys and indices from the top of the document to a value."""

MAX_NODES = 200_000
"""A file that expands to more than this through its aliases is not a suite."""

MAX_DEPTH = 50
PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{tag}" for tag in ("str", "int", "float", "bool", "null", "map", "seq"))
DATE = "tag:yaml.org,2002:timestamp"
NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+")
"""Texts that are numbers in YAML 1.2 and for people, but not for PyYAML: 3e-7."""


class YamlFile:
    """The content of a YAML file (plain data only; duplicate keys are errors), and the place of each value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[Location, str] = {}
        self._origins: dict[Location, Location] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ZSQBenchError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ZSQBenchError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error
        self.data = _PlainLoader(str(path), lambda line: f"{path}:{line}", self._places).read(text, ())

    def where(self, location: Location) -> str:
        """`file:line` of a value (`--set ...` if it was overridden), or of the closest value around it."""
        for end in range(len(location), 0, -1):
            if location[:end] in self._origins:
                return self.where(self._origins[location[:end]] + location[end:])
        while location and location not in self._places:
            location = location[:-1]
        return self._places.get(location, str(self.path))

    def stands_at(self, location: Location, origin: Location) -> None:
        """Give a value that is not in the file, and its inner values, the place of the value that it was made from."""
        self._origins[location] = origin

    def override(self, text: str) -> None:
        """Replace a value: `a.b=value`. The value is read as YAML. Raises ZSQBenchError for an invalid text."""
        place = f"--set {text!r}"
        path, equals, value = text.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ZSQBenchError(f"{place}: expected a.b=value, such as generators.zeroq.images=64")
        holder: Any = self.data
        location: Location = ()
        for key in keys[:-1]:
            holder, location = _enter(holder, location, key, place)
        key_or_index = _key(holder, location, keys[-1], place)
        location = (*location, key_or_index)
        for old in [known for known in self._places if known[: len(location)] == location]:
            del self._places[old]
        self._places[location] = place
        holder[key_or_index] = _PlainLoader(place, lambda _: place, self._places).read(value, location)


def _enter(holder: Any, location: Location, key: str, place: str) -> tuple[Any, Location]:
    """The list or mapping below a key. It is made if there is nothing yet."""
    known = _key(holder, location, key, place)
    if isinstance(holder, dict) and holder.get(str(known)) is None:
        holder[str(known)] = {}
    return holder[known], (*location, known)


def _key(holder: Any, location: Location, key: str, place: str) -> str | int:
    """A key of a mapping, or a valid index of a list."""
    if isinstance(holder, dict):
        return key
    if isinstance(holder, list):
        if not (key.isdecimal() and int(key) < len(holder)):
            raise ZSQBenchError(f"{place}: {key!r} is not an index of a list of {len(holder)}; the first is 0")
        return int(key)
    raise ZSQBenchError(f"{place}: {'.'.join(map(str, location))} is a single value and has no {key!r}")


def _compose(text: str) -> yaml.Node | None:
    """The tree of a text. The parser in C is 20 times as fast. Errors come from the Python parser, which says more."""
    with contextlib.suppress(yaml.YAMLError):
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return yaml.compose(text, Loader=yaml.SafeLoader)


class _PlainLoader:
    """Makes plain data from YAML text, and notes the place of each value."""

    def __init__(self, source: str, place: Callable[[int], str], places: dict[Location, str]) -> None:
        self.source = source
        self.place = place
        self.places = places
        self.nodes = 0

    def read(self, text: str, location: Location) -> Any:
        try:
            node = _compose(text)
            return None if node is None else self._convert(node, location)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self.place(mark.line + 1) if mark else self.source
            raise ZSQBenchError(f"{place}: {_problem(error)}") from error
        except yaml.YAMLError as error:
            raise ZSQBenchError(f"{self.source}: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise ZSQBenchError(f"{self.source}: nested more than {MAX_DEPTH} deep") from error

    def _convert(self, node: yaml.Node, location: Location, depth: int = 0) -> Any:
        line = node.start_mark.line + 1
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ZSQBenchError(f"{self.source}: more than {MAX_NODES} values; is an alias repeated without end?")
        if depth > MAX_DEPTH:
            raise ZSQBenchError(f"{self.place(line)}: nested more than {MAX_DEPTH} deep; does an alias contain itself?")
        self.places.setdefault(location, self.place(line))
        if node.tag == DATE:
            return node.value  # a date is text here
        if node.tag not in PLAIN_TAGS:
            raise ZSQBenchError(f"{self.place(line)}: a value of type {node.tag}; expected plain text, numbers, lists")
        if isinstance(node, yaml.MappingNode):
            return self._convert_mapping(node, location, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert(item, (*location, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and not node.style and NUMBER.fullmatch(node.value):
            return float(node.value)
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, KeyError) as error:
            raise ZSQBenchError(f"{self.place(line)}: cannot read {str(node.value)[:40]!r} as a number") from error

    def _convert_mapping(self, node: yaml.MappingNode, location: Location, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ZSQBenchError(f"{place}: a key must be a plain word")
            key = key_node.value
            if key in mapping:
                first = self.places[*location, key].rpartition(":")[2]
                raise ZSQBenchError(f"{place}: duplicate key {key!r}; it is first in line {first}")
            self.places.setdefault((*location, key), place)
            mapping[key] = self._convert(value_node, (*location, key), depth + 1)
        return mapping


def _problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    if mark is not None and "\\t" in str(error.problem):
        return "a tab; YAML is indented with spaces"
    return " ".join(part for part in (error.context, error.problem) if part)
