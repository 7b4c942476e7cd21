import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from zsqbench_plugins.qdrop import QDrop

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import WeightQuantizer, effective_map, fake_quantize, range_search
from zsqbench.quant.grids.fake_quant import TensorQuantizer
from zsqbench.quant.reconstruction.draws import select
from zsqbench.quant.reconstruction.soft_rounding import SoftRounding, rectified_sigmoid
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SHORT = {"iterations": 6, "batch_size": 8}


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w4a4", "academic_intended/w3a3", "hw/w2a4", "hw/w4a4"], 1)
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
    from zsqbench.quant import activation_quantizers

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


@pytest.fixture
def take(golden):
    stored = golden("qdrop_a")
    return lambda name: torch.from_numpy(np.asarray(stored[name]))


def fake_quantized(values, scale, zero_point, bits):
    """Values on the grid of a released scale and zero point, both of shape [1] or [C]."""
    broadcast = scale.reshape(()) if len(scale) == 1 else scale.view(-1, 1, 1, 1)
    return fake_quantize(values, broadcast, zero_point.float().view_as(broadcast), bits)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("tensor", ["act", "act_signed", "w"])
def test_released_step_sizes_have_these_gradients(take, tensor, bits, scaled):
    key = f"lsq_{tensor}_{bits}_gs{int(scaled)}_"
    x, scale = (take(name).clone().requires_grad_() for name in (tensor, f"{key}scale"))
    signed = tensor == "w"  # symmetric: the released codes go from -2^(b-1) on
    zero_point = take(f"{key}zero") + (2 ** (bits - 1) if signed else 0)
    output = fake_quantized(x, scale, zero_point, bits)
    (output * take(f"lsq_{tensor}_upstream")).sum().backward()
    torch.testing.assert_close(output.detach(), take(f"{key}out"), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, take(f"{key}grad_x"), rtol=1e-4, atol=1e-6)
    quantizer = TensorQuantizer(
        "x", "activation", bits, grid="symmetric" if signed else "affine", axis=None, shape=scale.shape
    )
    quantizer.set_parameters(scale.detach(), zero_point)
    divisor = (x.numel() // len(scale) * quantizer.largest_multiple()) ** 0.5 if scaled else 1
    torch.testing.assert_close(scale.grad / divisor, take(f"{key}grad_scale"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_zero_point_between_codes_rounds_as_released_lsq_plus_does(take, bits):
    key = f"lsqplus_act_signed_{bits}_"
    x, scale = (take(name).clone().requires_grad_() for name in ("act_signed", f"{key}scale"))
    output = fake_quantized(x, scale, take(f"{key}zero").round(), bits)
    (output * take("lsq_act_signed_upstream")).sum().backward()
    torch.testing.assert_close(output.detach(), take(f"{key}out"), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, take(f"{key}grad_x"), rtol=1e-4, atol=1e-6)
    scaled = scale.grad / (x.numel() * (2**bits - 1)) ** 0.5
    torch.testing.assert_close(scaled, take(f"{key}grad_scale"), rtol=1e-4, atol=1e-5)


def test_elements_stay_float_where_the_release_drops_quantization(take):
    x, scale = (take(name).clone().requires_grad_() for name in ("act", "drop_scale"))
    rounded = fake_quantized(x, scale, torch.zeros(1), 4)
    output = select(take("drop_rand") < take("drop_prob"), rounded, x)
    (output * take("lsq_act_upstream")).sum().backward()
    torch.testing.assert_close(output.detach(), take("drop_out"), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, take("drop_grad_x"), rtol=1e-4, atol=1e-6)
    scaled = scale.grad / (x.numel() * 15) ** 0.5
    torch.testing.assert_close(scaled, take("drop_grad_scale"), rtol=1e-4, atol=1e-5)


def test_released_rounding_comes_out(take):
    values = take("w")
    quantizer = WeightQuantizer("w", "weight", 4, axis=0, shape=(len(values), 1, 1, 1))
    quantizer.set_parameters(*range_search(values, 4, 0))
    torch.testing.assert_close(quantizer.scale.flatten(), take("ada_scale"), rtol=1e-5, atol=0)
    assert torch.equal(quantizer.zero_point.flatten(), take("ada_zero"))
    torch.testing.assert_close(quantizer(values), take("ada_nearest"), rtol=0, atol=1e-5)
    rounding = SoftRounding(quantizer, values)
    torch.testing.assert_close(rounding.logits.detach(), take("ada_alpha_init"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rounding(values).detach(), take("ada_soft_init"), rtol=0, atol=1e-5)
    rounding.logits.data = take("ada_alpha").clone()
    torch.testing.assert_close(rectified_sigmoid(rounding.logits.detach()), take("ada_h"), rtol=0, atol=1e-5)
    torch.testing.assert_close(rounding(values).detach(), take("ada_soft"), rtol=0, atol=1e-5)
    hard = (rounding.codes(values) - rounding.zero_point) * rounding.scale
    torch.testing.assert_close(hard, take("ada_hard"), rtol=0, atol=1e-5)
