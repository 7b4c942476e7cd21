"""Selection of cells by an expression over their names (`-k`)."""

import ast
import re
from collections.abc import Sequence

from zsqbench.errors import ZSQBenchError
from zsqbench.suite.suite import Cell


def select(cells: Sequence[Cell], expression: str) -> list[Cell]:
    """The cells whose names match: words that the name contains, with `and`, `or`, `not` and parentheses."""
    words: dict[str, str] = {}
    code = [
        token if token in {"and", "or", "not", "(", ")"} else words.setdefault(token, f"word{len(words)}")
        for token in re.findall(r"[()]|[^\s()]+", expression)
    ]
    by_name = {name: word for word, name in words.items()}

    def holds(node: ast.expr, cell: str) -> bool:
        match node:
            case ast.Name(id=name):
                return by_name[name] in cell
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not holds(operand, cell)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(holds(value, cell) for value in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(holds(value, cell) for value in values)
        raise SyntaxError

    try:
        tree = ast.parse(" ".join(code), mode="eval").body
        return [cell for cell in cells if holds(tree, cell.name)]
    except (SyntaxError, RecursionError, MemoryError) as error:  # the latter for thousands of "not"
        expected = "words joined by and, or, not, with parentheses, such as 'zeroq and not w8a8'"
        raise ZSQBenchError(f"cannot read -k {expression!r}; expected {expected}") from error
