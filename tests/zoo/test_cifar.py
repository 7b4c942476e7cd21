import os
import pickle

import numpy as np
import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.cifar import read_batch


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def write(path, content, protocol=2):
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


def batch(labels="labels"):
    data = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072).astype(np.uint8)
    return {b"data": data, labels.encode(): [3, 4], b"batch_label": b"batch 1 of 5"}


@pytest.mark.parametrize("labels", ["labels", "fine_labels"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_batch_is_images_with_channels_last_and_labels(tmp_path, labels, protocol):
    images, found = read_batch(write(tmp_path / "b", batch(labels), protocol))
    assert images.shape == (2, 32, 32, 3)
    assert images[1, 2, 5, 1] == batch()[b"data"][1, 1024 + 2 * 32 + 5]
    assert found == [3, 4]


def test_text_keys_are_read_too(tmp_path):
    content = {key.decode(): value for key, value in batch().items()}
    assert read_batch(write(tmp_path / "b", content))[1] == [3, 4]


def test_a_batch_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "b", batch() | {b"extra": Bomb()})
    with pytest.raises(ZSQBenchError, match=r"refused.*mkdir"):
        read_batch(path)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_batch_is_told(tmp_path):
    path = write(tmp_path / "b", batch())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ZSQBenchError, match="not a readable CIFAR batch"):
        read_batch(path)


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {},
        {b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3072)), b"labels": [1, 2]},
    ],
)
def test_a_pickle_of_something_else_is_told(tmp_path, content):
    with pytest.raises(ZSQBenchError, match="is not a CIFAR batch: expected"):
        read_batch(write(tmp_path / "b", content))
