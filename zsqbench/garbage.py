"""Python searches for reference cycles again and again. This wastes time while many lasting objects are made."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turn the search off meanwhile. Use it for short work without cycles, such as a plan or the rows of a file.

    Do not use it for steps. Networks are in cycles, and would keep memory that the next network needs.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
