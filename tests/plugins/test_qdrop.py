import numpy as np
import pytest
import torch
from zsqbench_plugins.qdrop import QDrop

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import effective_map, fake_quantize
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"iterations": 6, "batch_size": 8}


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("scheme", ["hw/w4a4", "hw/w2a4", "academic_intended/w3a3", "hast/w4a4"])
def test_it_is_a_quantizer(scheme):
    check_quantizer(QDrop(**SHORT), scheme, tiny_teacher())


@pytest.mark.usefixtures("briefly")
def test_dropping_changes_what_is_learned():
    first, second = (
        check_quantizer(QDrop(**SHORT, drop=drop), teacher=tiny_teacher()).state_dict() for drop in (0.0, 0.5)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_activation_ranges_come_from_the_float_network():
    teacher = tiny_teacher()
    from zsqbench import CalibrationSet
    from zsqbench.quant import activation_quantizers, range_search

    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    quantizer = QDrop(iterations=0, batch_size=8)
    student = quantizer.prepare(teacher, parse_scheme("hw/w2a3"))
    quantizer.quantize(student, teacher, CalibrationSet(images), context())
    name, logits = activation_quantizers(student)[-1]
    assert name
    scale, _ = range_search(teacher.module(images), 3)
    torch.testing.assert_close(logits.scale, scale, rtol=1e-4, atol=0)


def test_it_needs_images():
    teacher = tiny_teacher()
    student = QDrop().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        QDrop().quantize(student, teacher, None, context())


def test_pot_is_not_its_grid():
    assert "grid" in QDrop().rejects(parse_scheme("pot/w8a8"))


@pytest.mark.usefixtures("briefly")
def test_the_schemes_widths_are_kept():
    student = check_quantizer(QDrop(**SHORT), "academic/w2a4", tiny_teacher())
    widths = [entry.bits for entry in effective_map(student) if entry.kind == "weight"]
    assert (widths[0], widths[-1]) == (8, 8)
    assert set(widths[1:-1]) <= {2}


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("tensor", ["act", "act_signed"])
def test_released_step_sizes_have_these_gradients(golden, tensor, bits):
    stored = golden("qdrop_a")
    take = lambda name: torch.from_numpy(np.asarray(stored[name]))  # noqa: E731
    key = f"lsq_{tensor}_{bits}_gs0_"
    x = take(tensor).clone().requires_grad_()
    scale = take(f"{key}scale").reshape(()).clone().requires_grad_()
    output = fake_quantize(x, scale, take(f"{key}zero").float().reshape(()), bits)
    (output * take(f"lsq_{tensor}_upstream")).sum().backward()
    torch.testing.assert_close(output.detach(), take(f"{key}out"), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, take(f"{key}grad_x"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scale.grad, take(f"{key}grad_scale").reshape(()), rtol=1e-4, atol=1e-5)
    scaled = float(stored[f"lsq_{tensor}_{bits}_gs1_grad_scale"].reshape(()))
    assert scale.grad.item() / (x.numel() * (2**bits - 1)) ** 0.5 == pytest.approx(scaled, rel=1e-4)
