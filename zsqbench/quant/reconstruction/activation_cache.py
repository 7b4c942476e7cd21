"""Values of a network for all calibration images, kept on the device, in pinned host memory or on disk."""

import math
import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zsqbench.errors import OutOfResourcesError

GIB = 2**30
"""Bytes of a GiB."""

Storage = Literal["device", "host", "disk"]


@dataclass
class Memory:
    """Bounds of caches in bytes, and their current sizes. Caches that fit in no memory are files.

    On a CPU, device memory is host memory, and only the bound of host memory counts.
    """

    device: torch.device
    device_bytes: int = 4 * GIB
    host_bytes: int = 8 * GIB

    def __post_init__(self) -> None:
        self.used: dict[Storage, int] = {"device": 0, "host": 0, "disk": 0}

    def place(self, size: int) -> Storage:
        """The place for this number of bytes."""
        if self.device.type != "cpu" and self.used["device"] + size <= self.device_bytes:
            return "device"
        return "host" if self.used["host"] + size <= self.host_bytes else "disk"


class ActivationCache:
    """One tensor [count, ...] that is written in parts and read by index. A tensor on disk takes no memory.

    The order of dimensions in memory (channels last or not) is that of the first part.
    """

    def __init__(self, count: int, memory: Memory) -> None:
        self.count = count
        self.memory = memory
        self.written = 0
        self._store: _Resident | _File | None = None
        self._channels_last = False

    @classmethod
    def of(cls, images: Tensor, memory: Memory) -> "ActivationCache":
        """A cache of existing images, in their present place."""
        cache = cls(len(images), memory)
        cache._store = _Resident(images, memory.device)
        cache.written = len(images)
        return cache

    def append(self, part: Tensor) -> None:
        """Write the next images."""
        if self._store is None:
            channels_last = part.dim() == 4 and not part.is_contiguous()  # noqa: PLR2004 - images
            self._channels_last = channels_last and part.is_contiguous(memory_format=torch.channels_last)
        part = self._inner(part.detach()).contiguous()
        if self._store is None:
            size = self.count * part[0].numel() * part.element_size()
            place = self.memory.place(size)
            make = _file if place == "disk" else _resident
            self._store = make((self.count, *part.shape[1:]), part.dtype, self.memory.device, place)
            self.memory.used[place] += size
            weakref.finalize(self, _give_back, self.memory.used, place, size)
        self._store.write(self.written, part)
        self.written += len(part)

    def read(self, index: Tensor | slice) -> Tensor:
        """The images of these indices (int64, on any device), on the device."""
        if self._store is None:
            raise RuntimeError("a cache is read before it is written")
        rows = self._store.read(index)
        return rows.movedim(-1, 1) if self._channels_last else rows

    def _inner(self, part: Tensor) -> Tensor:
        return part.movedim(1, -1) if self._channels_last else part


def batches(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that together cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


LiveTensors = Mapping[str, ActivationCache]
"""The tensors that are live between two units, by the name of the graph node that makes them."""


def _give_back(used: dict[Storage, int], place: Storage, size: int) -> None:
    used[place] -= size


class _Resident:
    """Rows in device memory, or in host memory."""

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self._rows = rows
        self._device = device

    def write(self, start: int, part: Tensor) -> None:
        self._rows[start : start + len(part)].copy_(part)

    def read(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            # always a copy, because the network may change its input in place
            return self._rows[index].to(self._device, non_blocking=True, copy=True)
        rows = self._rows.index_select(0, index.to(self._rows.device))  # a tenth of the time of rows[index] on a CPU
        return rows.to(self._device, non_blocking=True)


class _File:
    """Rows in a file without a name, which disappears when it is closed or the process ends."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._count, self._shape, self._dtype = shape[0], shape[1:], dtype
        self._row = math.prod(shape[1:]) * dtype.itemsize
        self._file = tempfile.TemporaryFile(prefix="zsqbench-")  # noqa: SIM115 - it lives as long as the cache
        weakref.finalize(self, self._file.close)
        os.posix_fallocate(self._file.fileno(), 0, max(1, self._row * shape[0]))

    def write(self, start: int, part: Tensor) -> None:
        rows = part.cpu().contiguous().flatten().view(torch.uint8).numpy()
        self._file.seek(start * self._row)
        self._file.write(rows.tobytes())
        self._file.flush()

    def read(self, index: Tensor | slice) -> Tensor:
        rows = range(*index.indices(self._count)) if isinstance(index, slice) else index.tolist()
        into = torch.empty(len(rows), self._row, dtype=torch.uint8)
        for row, place in zip(into.numpy(), rows, strict=True):
            os.preadv(self._file.fileno(), [row], place * self._row)
        return into.view(self._dtype).view(len(rows), *self._shape).to(self._device)


def _resident(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, place: Storage) -> _Resident:
    where = device if place == "device" else torch.device("cpu")
    return _Resident(torch.empty(shape, dtype=dtype, device=where, pin_memory=where.type != device.type), device)


def _file(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, _: Storage) -> _File:
    try:
        return _File(shape, dtype, device)
    except OSError as error:
        raise OutOfResourcesError(
            f"{math.prod(shape) * dtype.itemsize / GIB:.1f} GiB of cached activations fit neither into memory nor into "
            f"{tempfile.gettempdir()} ({error.strerror or error}): raise host_memory or device_memory, take fewer "
            "images, or set TMPDIR to a larger disk"
        ) from error
