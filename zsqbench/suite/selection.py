"""Selection of cells by an expression over their names (`-k`)."""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from zsqbench.errors import ZSQBenchError


class Named(Protocol):
    """A cell, or another object with the name of a cell."""

    @property
    def name(self) -> str:
        """`task:model:generator:quantizer:scheme:seed`."""


Entry = TypeVar("Entry", bound=Named)


def select(entries: Sequence[Entry], expression: str | None, where: str = "-k") -> list[Entry]:
    """The cells whose names match an expression: words in the name, with `and`, `or`, `not` and parentheses.

    None: all cells. Raises ZSQBenchError for an invalid expression, and says where it was given.
    """
    if expression is None:
        return list(entries)
    matches = _matcher(expression, where)
    try:
        return [entry for entry in entries if matches(entry.name)]
    except (SyntaxError, RecursionError) as error:
        raise _unreadable(expression, where) from error


def expression_for(names: Sequence[str], chosen: Sequence[str]) -> str | None:
    """A short expression that selects exactly the chosen names.

    None: all or no names are chosen, or no expression of their parts selects them.
    """
    others = [name for name in names if name not in set(chosen)]
    if not chosen or not others:
        return None
    tries = [("not ({})", _cover(others, chosen)), ("{}", _cover(chosen, others))]
    texts = [form.format(" or ".join(words)) for form, words in tries if words]
    texts = [text.replace("not (", "not ").removesuffix(")") if " or " not in text else text for text in texts]
    for text in sorted(texts, key=len):
        matches = _matcher(text, "-k")
        if [name for name in names if matches(name)] == [name for name in names if name in set(chosen)]:
            return text
    return None


def _cover(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Few parts of names, or whole names. Each of these names has one of them, and no other name has any."""
    parts = {part for name in names for part in (*name.split(":"), name)}
    own = {part: {name for name in names if part in name} for part in parts if not any(part in each for each in others)}
    words, left = [], set(names)
    while left and own:
        best = max(own, key=lambda part: (len(own[part] & left), -len(part), part))
        if not own[best] & left:
            return []
        words.append(best)
        left -= own[best]
    return [] if left else words


def _matcher(expression: str, where: str) -> Callable[[str], bool]:
    words: dict[str, str] = {}
    code = [
        token if token in {"and", "or", "not", "(", ")"} else words.setdefault(token, f"word{len(words)}")
        for token in re.findall(r"[()]|[^\s()]+", expression)
    ]
    by_name = {name: word for word, name in words.items()}

    def holds(node: ast.expr, name: str) -> bool:
        match node:
            case ast.Name(id=word):
                return by_name[word] in name
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not holds(operand, name)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(holds(value, name) for value in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(holds(value, name) for value in values)
        raise SyntaxError

    try:
        tree = ast.parse(" ".join(code), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:  # MemoryError: thousands of "not"
        raise _unreadable(expression, where) from error
    return lambda name: holds(tree, name)


def _unreadable(expression: str, where: str) -> ZSQBenchError:
    expected = "words joined by and, or, not, with parentheses, such as 'zeroq and not w8a8'"
    return ZSQBenchError(f"cannot read {where} {expression!r}; expected {expected}")
