import gc

import pytest
import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.reconstruction.activation_cache import ActivationCache, Memory, batches

CPU = torch.device("cpu")


def values(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def filled(stored, memory, size=4):
    cache = ActivationCache(len(stored), memory)
    for part in batches(len(stored), size):
        cache.append(stored[part])
    return cache


@pytest.mark.parametrize("host_bytes", [2**20, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written(host_bytes, dtype):
    stored = values(10, 3, 5, 5).to(dtype)
    memory = Memory(CPU, host_bytes=host_bytes)
    cache = filled(stored, memory)
    index = torch.tensor([7, 0, 7, 3])
    assert torch.equal(cache.read(index), stored[index])
    assert torch.equal(cache.read(slice(8, 12)), stored[8:])
    assert (memory.used["disk"] > 0) == (host_bytes == 0)


@pytest.mark.parametrize("host_bytes", [2**20, 0], ids=["memory", "disk"])
def test_the_order_in_memory_stays(host_bytes):
    stored = values(6, 4, 5, 5).to(memory_format=torch.channels_last)
    read = filled(stored, Memory(CPU, host_bytes=host_bytes)).read(torch.tensor([1, 5]))
    assert read.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(read, stored[[1, 5]])


def test_what_does_not_fit_goes_to_disk():
    memory = Memory(CPU, host_bytes=1000)
    first, second = filled(values(10, 20), memory), filled(values(10, 20), memory)
    assert memory.used == {"device": 0, "host": 800, "disk": 800}
    assert torch.equal(first.read(slice(0, 10)), second.read(slice(0, 10)))


def test_a_cache_that_nobody_holds_gives_its_memory_back():
    memory = Memory(CPU)
    cache = filled(values(10, 20), memory)
    assert memory.used["host"] == 800
    del cache
    gc.collect()
    assert memory.used["host"] == 0


def test_images_that_are_there_take_no_more_memory():
    images = values(4, 3)
    memory = Memory(CPU)
    assert torch.equal(ActivationCache.of(images, memory).read(slice(1, 3)), images[1:3])
    assert memory.used["host"] == 0


@pytest.mark.parametrize("index", [slice(0, 4), torch.tensor([0, 1, 2, 3])])
def test_what_is_done_to_values_that_were_read_does_not_reach_the_cache(index):
    images = values(4, 3)
    cache = ActivationCache.of(images.clone(), Memory(CPU))
    cache.read(index).zero_()
    assert torch.equal(cache.read(index), images)


def test_reading_before_writing_is_an_error():
    with pytest.raises(RuntimeError, match="before it is written"):
        ActivationCache(3, Memory(CPU)).read(slice(0, 1))


def test_a_full_disk_names_the_options(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ZSQBenchError, match=r"No space left on device.*host_memory"):
        filled(values(4, 3), Memory(CPU, host_bytes=0))


def test_a_device_has_three_places():
    memory = Memory(torch.device("cuda"), device_bytes=100, host_bytes=100)
    places = []
    for _ in range(3):
        places.append(memory.place(80))
        memory.used[places[-1]] += 80
    assert places == ["device", "host", "disk"]
