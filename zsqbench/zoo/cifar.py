"""Read the python batches of CIFAR-10 and CIFAR-100. They are pickles, but no code in them is run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqbench.errors import ZSQBenchError

if TYPE_CHECKING:
    import numpy as np

BATCHES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{index}" for index in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}
"""File names of each data set's parts in its archive."""

ARCHIVE_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""The folder to which each archive unpacks."""

IMAGES = 10_000
"""Number of images in each published batch, except the training batch of CIFAR-100, which holds 50,000."""

_ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # python 3 writes bytes so in the protocol of the batches
}
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers. Any other name in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise ZSQBenchError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return super().find_class(module, name)


def read_batch(path: Path) -> "tuple[np.ndarray, list[int]]":
    """Images, uint8 [N, 32, 32, 3], and labels (fine ones for CIFAR-100) of a python batch.

    Raises ZSQBenchError if the file is damaged, is not a batch, or asks for more than arrays. No code is run.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except ZSQBenchError as error:
        raise ZSQBenchError(f"{path} is refused as a CIFAR batch: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise ZSQBenchError(f"{path} is not a readable CIFAR batch: {error or type(error).__name__}") from error
    entries = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    data: Any = entries.get("data")
    labels: Any = entries.get("fine_labels", entries.get("labels"))
    is_array = isinstance(data, np.ndarray) and isinstance(labels, list)
    if not is_array or data.dtype != np.uint8 or data.shape[1:] != (_PIXELS,) or len(labels) != len(data):
        raise ZSQBenchError(f"{path} is not a CIFAR batch: expected uint8 'data' [N, {_PIXELS}] and as many labels")
    return data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), [int(label) for label in labels]


def _text(key: object) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
