import pytest
import torch

from zsqbench import CalibrationSet, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.testing import check_generator, context, tiny_teacher

Real = load_plugins().find("generator", "real").method


@pytest.mark.slow("test_contract.py makes the same checks on one network each time")
def test_real_keeps_the_contract_of_generators():
    check_generator(Real(images=4))


def test_real_hands_on_the_images_and_labels_of_the_task():
    ctx = context()
    ctx.real_images = CalibrationSet(torch.ones(2, 3, 8, 8), torch.tensor([1, 2]))
    assert Real(images=4).generate(tiny_teacher(), ctx) is ctx.real_images
    assert Real.uses_real_data


def test_without_real_images_there_is_one_clear_error():
    with pytest.raises(ZSQBenchError, match="needs a task that hands out calibration images"):
        Real().generate(tiny_teacher(), context())
