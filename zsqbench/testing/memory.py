"""How much memory of tensors a call takes: exact and the same each time, unlike that of the process."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch

from zsqbench.compat import TorchDispatchMode, tree_leaves


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators return while it is on, for as long as they live.

    What an operator takes and gives back inside itself is not seen, nor are NumPy's arrays.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return returned

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key and key not in self._known:  # one that is empty, or on meta, takes nothing
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measure_memory(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of the tensors that a call makes: at most at a time, and still there when its result is dropped."""
    counter = _LiveBytes()
    with counter:
        call()
    gc.collect()
    return counter.peak, counter.live
