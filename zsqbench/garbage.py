"""Python looks for objects that hang in cycles, again and again; where thousands are made to stay, it looks in vain."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let Python not look meanwhile. It is for what ends soon and leaves no cycles, such as a plan, or rows of a file.

    Not for steps: networks hang in cycles, and take the memory of the next one.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
