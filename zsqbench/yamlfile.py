"""Read a YAML file as plain data and remember the line of every value, for errors that say where."""

from pathlib import Path
from typing import Any

import yaml

from zsqbench.errors import ZSQBenchError

Location = tuple[str | int, ...]
"""Keys and indices from the top of the document to a value."""

MAX_NODES = 200_000
"""A file that expands to more than this through its aliases is not a suite."""


class YamlFile:
    """The content of a YAML file (safe loader; duplicate keys are errors) and where each value stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Location, int] = {}
        self._nodes = 0
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ZSQBenchError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ZSQBenchError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data = self._convert(node, ()) if node is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise ZSQBenchError(f"{path}{line}: {_problem(error, text)}") from error
        except yaml.YAMLError as error:
            raise ZSQBenchError(f"{path}: {' '.join(str(error).split())}") from error

    def where(self, location: Location) -> str:
        """`file:line` of a value, or of the closest value around it."""
        while location and location not in self._lines:
            location = location[:-1]
        line = self._lines.get(location)
        return f"{self.path}:{line}" if line else str(self.path)

    def _convert(self, node: yaml.Node, location: Location) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ZSQBenchError(f"{self.path}: more than {MAX_NODES} values; is an alias repeated without end?")
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._convert_mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert(item, (*location, index)) for index, item in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # a date is text here
        return yaml.constructor.SafeConstructor().construct_object(node)

    def _convert_mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ZSQBenchError(f"{self.path}:{line}: a key must be a plain word")
            key = key_node.value
            if key in mapping:
                first = self._lines[*location, key]
                raise ZSQBenchError(f"{self.path}:{line}: key {key!r} stands here a second time, first in line {first}")
            self._lines[*location, key] = line
            mapping[key] = self._convert(value_node, (*location, key))
        return mapping


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if mark is not None and text.splitlines()[mark.line : mark.line + 1] and "\t" in text.splitlines()[mark.line]:
        return "a tab; YAML is indented with spaces"
    return " ".join(part for part in (error.context, error.problem) if part)
