"""Questions to a method while a suite is planned. A fault in an answer is one line that names the method."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench.errors import MethodFaultError, ZSQBenchError, one_line

if TYPE_CHECKING:
    from zsqbench.methods.base import Method


@contextlib.contextmanager
def asking(method: "Method | type[Method]", what: str) -> Iterator[None]:
    """Raise MethodFaultError for any error of a method inside the block, except ZSQBenchError and KeyboardInterrupt."""
    try:
        yield
    except (ZSQBenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a third-party method may raise anything, or exit
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise MethodFaultError(
            f"{method.kind} {method.name!r} failed in {what} ({place}): {one_line(error)}"
        ) from error
