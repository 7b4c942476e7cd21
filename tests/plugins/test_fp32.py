import pytest
import torch

from zsqbench.plugins import load_plugins
from zsqbench.scheme import FLOAT, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

FP32 = load_plugins().find("quantizer", "fp32").method


@pytest.mark.slow("test_contract.py makes the same checks on one network each time")
def test_fp32_keeps_the_contract_of_quantizers():
    check_quantizer(FP32(), scheme="float")


def test_the_copy_gives_the_same_bits():
    teacher = tiny_teacher()
    student = FP32().prepare(teacher, FLOAT)
    FP32().quantize(student, teacher, None, context())
    images = torch.randn(4, *teacher.input_size)
    assert student is not teacher.module
    assert torch.equal(student(images), teacher.module(images))


def test_it_runs_at_scheme_float_only():
    assert FP32().rejects(FLOAT) is None
    assert "float only" in FP32().rejects(parse_scheme("hw/w8a8"))
    assert not FP32.needs_images
