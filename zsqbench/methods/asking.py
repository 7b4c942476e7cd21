"""Ask a method something while a suite is planned: a fault in its answer is one line that names it."""

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
    """Raise MethodFaultError for whatever a method raises within, except ZSQBenchError, and a KeyboardInterrupt."""
    try:
        yield
    except (ZSQBenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a stranger's method may raise anything, or exit
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise MethodFaultError(
            f"{method.kind} {method.name!r} failed in {what} ({place}): {one_line(error)}"
        ) from error
