import pytest
import torch

from zsqbench import CalibrationSet, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.testing import check_generator, context, tiny_teacher

File = load_plugins().find("generator", "file").method


@pytest.fixture
def stored(tmp_path):
    def store(images, labels=None):
        path = tmp_path / "images.safetensors"
        CalibrationSet(images, labels, {"by": "hand"}).save(path)
        return path

    return store


def test_file_keeps_the_contract_of_generators(stored):
    check_generator(File(path=stored(torch.randn(5, 3, 8, 8))))
    check_generator(File(path=stored(torch.randn(5, 3, 8, 8)), images=3))


def test_all_images_are_read_with_labels_and_provenance(stored):
    images, labels = torch.randn(5, 3, 8, 8), torch.arange(5)
    found = File(path=stored(images, labels)).generate(tiny_teacher(), context())
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert found.provenance == {"by": "hand"}


def test_a_smaller_number_takes_the_first_images(stored):
    images, labels = torch.randn(5, 3, 8, 8), torch.arange(5)
    found = File(path=stored(images, labels), images=2).generate(tiny_teacher(), context())
    assert torch.equal(found.images, images[:2])
    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (torch.zeros(2, 1, 8, 8), None, r"are float32 \[2, 1, 8, 8\]; the network takes float32 \[N, 3, 8, 8\]"),
        (torch.zeros(3, 8, 8), None, r"are float32 \[3, 8, 8\]"),
        (torch.full((2, 3, 8, 8), float("nan")), None, "not finite"),
        (torch.zeros(2, 3, 8, 8), 3, "holds 2 images, and 3 were asked for"),
        (torch.zeros(0, 3, 8, 8), None, "holds 0 images"),
    ],
)
def test_images_that_do_not_fit_are_one_clear_error(stored, images, count, message):
    with pytest.raises(ZSQBenchError, match=message):
        File(path=stored(images), images=count).generate(tiny_teacher(), context())
