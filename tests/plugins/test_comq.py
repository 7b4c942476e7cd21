import itertools
import re

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from zsqbench_plugins.comq import COMQ, descend, gram_matrices

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import affine_parameters, minmax, prepare, quantize, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

CASES = [
    f"bits{bits}_iters{sweeps}_greedy{greedy}_scalar{scalar}"
    for bits, sweeps, greedy, scalar in ((4, 1, 0, 1.0), (4, 3, 0, 1.0), (3, 2, 1, 1.0), (2, 3, 1, 0.9), (2, 1, 0, 0.9))
]


def layer(seed=0, rows=6, columns=12, bits=3):
    """A weight, inputs that are correlated, their Gram matrix, and the grid of each row; all float64."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
    x = torch.randn(64, columns, generator=rng, dtype=torch.float64) @ mixing
    scale, zero_point = affine_parameters(*minmax(weight, 0), bits)
    return weight, x, (x.T @ x)[None], scale[:, None], zero_point[:, None]


def error(weight, x, codes, scale, zero_point):
    return ((weight - (codes - zero_point) * scale) @ x.T).norm().item()


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_the_release(shared, case):
    stored = np.load(shared / "golden" / "2025" / "comq_layer_a.npz")
    bits, sweeps, greedy, scalar = re.fullmatch(r"bits(\d)_iters(\d)_greedy(\d)_scalar([\d.]+)", case).groups()
    weight, x = (torch.from_numpy(stored[name]).double() for name in ("weight", "X"))
    step = torch.from_numpy(stored[f"delta_bits{bits}"])[:, None]
    found = affine_parameters(*minmax(weight, 0), int(bits))
    torch.testing.assert_close(found.scale[:, None], step, rtol=1e-14, atol=0)
    assert torch.equal(found.zero_point, -torch.from_numpy(stored[f"start_bits{bits}"]))
    scale, zero_point = step * float(scalar), found.zero_point[:, None]
    codes, _, part = descend(
        weight, (x.T @ x)[None], scale, zero_point, int(bits), sweeps=int(sweeps), greedy=greedy == "1"
    )
    assert torch.equal(codes, torch.from_numpy(stored[f"{case}_codes"]).double())
    total = float(stored[f"{case}_error_XW"])
    assert error(weight, x, codes, scale, zero_point) == pytest.approx(total, rel=1e-9)
    assert part * (x @ weight.T).norm().item() == pytest.approx(total, rel=1e-9)
    values = (codes - zero_point) * scale
    torch.testing.assert_close(values, torch.from_numpy(stored[f"{case}_Q_f64"]), rtol=1e-12, atol=1e-14)
    assert (weight - values).norm().item() == pytest.approx(float(stored[f"{case}_error_W"]), rel=1e-9)


@pytest.mark.parametrize("update", [False, True])
def test_no_sweep_but_the_first_makes_the_error_grow(update):
    weight, x, gram, scale, zero_point = layer()
    errors = []
    for sweeps in range(1, 6):
        codes, learned, _ = descend(weight, gram, scale, zero_point, 3, sweeps=sweeps, update_scale=update)
        errors.append(error(weight, x, codes, learned, zero_point))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))
    assert errors[0] < error(weight, x, quantize(weight, scale, zero_point, 3), scale, zero_point)


def test_columns_that_do_not_depend_on_each_other_are_rounded_to_nearest():
    weight, _, _, scale, zero_point = layer()
    codes, _, _ = descend(weight, torch.eye(12, dtype=torch.float64)[None], scale, zero_point, 3, sweeps=2)
    assert torch.equal(codes, quantize(weight, scale, zero_point, 3))


def test_a_column_without_inputs_is_rounded_to_nearest():
    weight, x, _, scale, zero_point = layer()
    x[:, 4] = 0
    codes, _, _ = descend(weight, (x.T @ x)[None], scale, zero_point, 3, sweeps=2)
    assert torch.equal(codes[:, 4], quantize(weight, scale, zero_point, 3)[:, 4])


def test_the_greedy_order_is_that_of_falling_columns():
    weight, x, gram, scale, zero_point = layer(rows=1)
    order = (weight.abs() * x.norm(dim=0)).argsort(dim=1, descending=True)[0]
    greedy, _, _ = descend(weight, gram, scale, zero_point, 3)
    in_order, _, _ = descend(weight[:, order], gram[:, order][:, :, order], scale, zero_point, 3, greedy=False)
    assert torch.equal(greedy[:, order], in_order)
    assert not torch.equal(greedy, descend(weight, gram, scale, zero_point, 3, greedy=False)[0])


def test_more_columns_than_are_visited_together_are_visited_as_one_by_one(monkeypatch):
    weight, _, gram, scale, zero_point = layer(columns=70)
    together, _, _ = descend(weight, gram, scale, zero_point, 3)
    monkeypatch.setattr("zsqbench_plugins.comq.COLUMNS", 1)
    assert torch.equal(together, descend(weight, gram, scale, zero_point, 3)[0])


def test_the_step_of_a_whole_weight_is_that_with_the_least_error():
    weight, x, gram, scale, zero_point = layer()
    scale, zero_point = scale.mean().view(1, 1), zero_point.median().view(1, 1)
    codes, found, _ = descend(weight, gram, scale, zero_point, 3, update_scale=True)
    assert found.shape == (1, 1)
    least = error(weight, x, codes, found, zero_point)
    assert all(error(weight, x, codes, found * factor, zero_point) > least for factor in (0.99, 1.01))


def test_the_gram_matrices_of_groups_are_those_of_their_channels():
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2)).eval().requires_grad_(False)
    student = prepare(module, parse_scheme("hw/w4a32"), (4, 5, 5))
    (path, convolution), x = quantized_layers(student)[0], torch.randn(3, 4, 5, 5)
    with gram_matrices({path: convolution}) as grams:
        student(x[:2])
        student(x[2:])
    weight = convolution.weight.double()
    outputs = convolution.computed(x.double(), weight, None)
    for group, rows in enumerate(weight.flatten(1).chunk(2)):
        squares = outputs[:, 3 * group : 3 * group + 3].square().sum((0, 2, 3))
        torch.testing.assert_close((rows @ grams[path][group] * rows).sum(1), squares, rtol=1e-6, atol=0)
    assert torch.equal(grams[path], grams[path].mT)


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hw_strict/w2a8", "hast/w4a4", "academic/w3a4", "qdq/w4a4", "hw/w4a4"], 2)
def test_it_is_a_quantizer(scheme):
    check_quantizer(COMQ(), scheme, tiny_teacher())


def quantized(**options):
    """A student with weights that were quantized on images whose channels are alike."""
    teacher, scheme = tiny_teacher(), parse_scheme("hw/w3a32")
    quantizer = COMQ(**options)
    student = quantizer.prepare(teacher, scheme)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1).contiguous()
    ctx = context(scheme=scheme)
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx)
    return dict(quantized_layers(student)), ctx, images


def test_outputs_are_closer_to_those_of_the_float_layer_than_by_rounding_to_nearest():
    (searched, _, images), (nearest, _, _) = quantized(), quantized(sweeps=0)
    stem = searched["stem.0"]
    wanted = stem.computed(images, stem.weight, None)
    errors = [
        (layers["stem.0"].computed(images, layers["stem.0"].quantized_weight(), None) - wanted).norm().item()
        for layers in (searched, nearest)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_released_searches_linear_layers_alone_and_keeps_steps():
    (released, ctx, _), (nearest, _, _) = quantized(preset="released"), quantized(sweeps=0)
    assert list(ctx.reporter.curves) == ["error/classifier"]
    for path, found in released.items():
        assert torch.equal(found.weight_quantizer.scale, nearest[path].weight_quantizer.scale)
        same = torch.equal(*(each.weight_quantizer.codes(each.weight) for each in (found, nearest[path])))
        assert same == (path != "classifier")


def test_weights_may_have_one_grid():
    layers, _, _ = quantized(per_channel=False)
    assert all(found.weight_quantizer.scale.shape == () for found in layers.values())


def test_it_needs_images():
    teacher = tiny_teacher()
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        COMQ().quantize(COMQ().prepare(teacher, parse_scheme("hw/w4a4")), teacher, None, context())


def test_images_of_another_size_are_refused():
    teacher = tiny_teacher()
    student = COMQ().prepare(teacher, parse_scheme("hw/w4a4"))
    with pytest.raises(ZSQBenchError, match="expected"):
        COMQ().quantize(student, teacher, CalibrationSet(torch.zeros(4, 3, 5, 5)), context())
