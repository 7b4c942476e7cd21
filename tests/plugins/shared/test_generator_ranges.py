from dataclasses import replace

import pytest
import torch
from zsqbench_plugins.shared.conditional import ConditionalTraining
from zsqbench_plugins.ste import STE

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import MovingRanges, activation_quantizers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context, tiny_teacher

SHORT = {"epochs": 0, "updates_per_epoch": 3, "batch_size": 8, "range_batch_size": 4}


def quantized(teacher=None, **options):
    teacher, quantizer = teacher or tiny_teacher(), STE(**{**SHORT, **options})
    student = quantizer.prepare(teacher, parse_scheme("hast/w3a3"))
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quantizer.quantize(student, teacher, CalibrationSet(images), context())
    return student


def test_ranges_of_a_generator_are_not_those_of_the_set():
    scales = [
        torch.stack([q.scale for _, q in activation_quantizers(quantized(range_source=source, range_updates=5))])
        for source in ("calibration", "generator")
    ]
    assert not torch.allclose(*scales)


@pytest.mark.parametrize(
    ("source", "given", "updates"),
    [("calibration", None, 200), ("generator", None, 800), ("calibration", 3, 3), ("generator", 3, 3)],
)
def test_ranges_are_of_200_batches_of_the_set_or_800_of_a_generator_unless_their_number_is_given(
    source, given, updates, monkeypatch
):
    sizes = []
    monkeypatch.setattr(MovingRanges, "update", lambda _, images: sizes.append(len(images)))
    images = torch.zeros(4, 3, 8, 8)
    monkeypatch.setattr(ConditionalTraining, "step", lambda _: (images, None, None, {}))
    quantized(range_source=source, range_updates=given)
    assert sizes == [4] * updates


def test_the_generator_needs_a_classifier():
    teacher = replace(tiny_teacher(), classes=None)
    with pytest.raises(ZSQBenchError, match="ste trains a generator of images of classes, and the network has none"):
        quantized(teacher, range_source="generator")
