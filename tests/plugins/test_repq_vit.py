import re

import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from networks import GoldenViT, stored_tensor
from torch import nn
from zsqbench_plugins.repq_vit import RepQViT, calibrate, rescalable, rescale

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import activation_quantizers, finalize, prepare, quantized_layers, switched, weight_quantizers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher
from zsqbench.testing.networks import tiny_transformers

SCHEME = parse_scheme("repq/w4a4")


@pytest.fixture
def vectors(shared):
    return lambda name: np.load(shared / "golden" / "vit" / f"{name}.npz")


def golden_vit(vectors):
    """The small ViT of the golden vectors with those of RepQ-ViT."""
    weights = vectors("tinyvit_a")
    return GoldenViT(weights), (3, *[int(weights["_img_size"])] * 2), vectors("repq_vit_a")


def golden_swin(vectors):
    """The small Swin of the golden vectors; newer versions of timm give merging and classifier other names."""
    swin = pytest.importorskip("timm.models.swin_transformer", reason="the network is timm's")
    stored = vectors("repq_swin_a")
    network = swin.SwinTransformer(
        img_size=32, patch_size=2, num_classes=10, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4,
        mlp_ratio=2.0,
    ).double()  # fmt: skip
    names = {"layers.0.downsample": "layers.1.downsample", "head.": "head.fc."}
    state = {}
    for key in (each.removeprefix("weights.") for each in stored if each.startswith("weights.")):
        renamed = next((key.replace(old, new) for old, new in names.items() if key.startswith(old)), key)
        state[renamed] = stored_tensor(stored, f"weights.{key}")
    network.load_state_dict(state)
    return network, (3, 32, 32), stored


def close(found, stored, name):
    """Compare with an array of this precision, in any shape; some of double precision are stored in single.

    The release computes positions of quantiles in the precision of values, and this code always in double.
    """
    single = found.dtype == torch.float32
    expected = stored[name if single else f"{name}_f64"]
    tolerance = 5e-4 if single else 1e-7 if expected.dtype == np.float32 else 1e-9
    expected = torch.from_numpy(expected).to(found.dtype).view_as(found)
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=tolerance)


def names_in(stored, pattern):
    """Names that the pattern finds among arrays, in their order, which is that of the network."""
    return [found[1] for found in (re.fullmatch(pattern, key) for key in stored) if found]


def check_first_pass(student, stored):
    """Compare all scales and zero points before a layer normalisation is rescaled."""
    activations = iter(activation_quantizers(student))
    layers = names_in(stored, r"before\.(.*)\.weight_quantizer\.delta_f64")
    for name, (_, layer) in zip(layers, quantized_layers(student), strict=True):
        quantizers = {"weight_quantizer": layer.weight_quantizer, "input_quantizer": next(activations)[1]}
        found = {f"{name}.{part}": quantizer for part, quantizer in quantizers.items()}
        if name.endswith("qkv"):  # queries, keys, attention weights and values come before the next layer's input
            places = [f"matmul{number}.quantizer_{side}" for number in "12" for side in "AB"]
            found |= {f"{name.removesuffix('qkv')}{place}": next(activations)[1] for place in places}
        for place, quantizer in found.items():
            close(quantizer.scale, stored, f"before.{place}.delta")
            if not place.endswith("matmul2.quantizer_A"):  # the logarithmic grid has none
                close(quantizer.zero_point, stored, f"before.{place}.zero")


def check_rescaled(student, pairs, stored):
    """Compare layer normalisations, the layers behind them, and their grids after they were rescaled."""
    norms = names_in(stored, r"after\.(.*norm\d?)\.weight_f64")
    layers = names_in(stored, r"after\.(.*)\.input_quantizer\.delta_f64")
    for norm, name, pair in zip(norms, layers, pairs, strict=True):
        layer, (quantizer,) = student.get_submodule(pair.layers[0]), pair.quantizers
        for each, place in ((student.get_submodule(pair.norm), norm), (layer, name)):
            if f"after.{place}.weight" in stored or each.weight.dtype == torch.float64:
                close(each.weight, stored, f"after.{place}.weight")
                close(each.bias, stored, f"after.{place}.bias")
        for each, place in ((quantizer, "input"), (layer.weight_quantizer, "weight")):
            close(each.scale, stored, f"after.{name}.{place}_quantizer.delta")
            close(each.zero_point, stored, f"after.{name}.{place}_quantizer.zero")
        assert quantizer.zero_point != quantizer.zero_point.round()


@pytest.mark.parametrize(
    ("golden", "dtype"), [(golden_vit, torch.float64), (golden_vit, torch.float32), (golden_swin, torch.float64)]
)
def test_grids_and_logits_are_those_of_the_release_in_each_pass(vectors, golden, dtype):
    network, size, stored = golden(vectors)
    network = network.to(dtype).eval().requires_grad_(requires_grad=False)
    images, others = (stored_tensor(stored, f"{name}_images").to(dtype) for name in ("calibration", "test"))
    close(network(images), stored, "logits_float_calibration")
    student = prepare(network, SCHEME, size).to(dtype)
    pairs = rescalable(student)
    calibrate(student, images, [pair.quantizers[0] for pair in pairs])
    check_first_pass(student, stored)
    close(student(images), stored, "logits_channelwise_calibration")
    for pair in pairs:
        rescale(student, pair, round_zero_point=False)
    check_rescaled(student, pairs, stored)
    close(student(images), stored, "logits_reparam_calibration")
    close(student(others), stored, "logits_reparam_test")
    quantizers = [quantizer for _, quantizer in (*weight_quantizers(student), *activation_quantizers(student))]
    with switched(quantizers, enabled=False):  # the float network is what it was
        close(student(others), stored, "logits_reparam_quantizers_off_test")
        close(student(others), stored, "logits_float_test")


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["repq/w4a4", "hw_strict/w8a8", "psaq/w4a8", "hast/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    for teacher in (*tiny_transformers().values(), tiny_teacher()):
        check_quantizer(RepQViT(search_images=8), scheme, teacher)


def student_of(scheme=SCHEME, **options):
    """A student of a small transformer, quantized on noise, with its teacher."""
    teacher = next(iter(tiny_transformers().values()))
    student = prepare(teacher.module, scheme, teacher.input_size)
    data = zsqbench.CalibrationSet(torch.randn(8, *teacher.input_size, generator=torch.Generator().manual_seed(0)))
    ctx = context(scheme=scheme)
    RepQViT(**options).quantize(student, teacher, data, ctx)
    return student, teacher, data.images


def test_rescaling_keeps_the_float_network_and_gives_a_layer_without_bias_one():
    teacher = next(iter(tiny_transformers().values()))
    student = prepare(teacher.module, SCHEME, teacher.input_size)
    pair = rescalable(student)[0]
    layer, norm = student.get_submodule(pair.layers[0]), student.get_submodule(pair.norm)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    layer.bias = None
    images = torch.randn(4, *teacher.input_size)
    student, images = student.double(), images.double()
    before = student(images)
    calibrate(student, images, [pair.quantizers[0]])
    rescale(student, pair, round_zero_point=True)
    assert layer.bias is not None
    (quantizer,) = pair.quantizers
    assert quantizer.scale.dim() == 0
    assert quantizer.zero_point == quantizer.zero_point.round()
    quantizers = [each for _, each in (*weight_quantizers(student), *activation_quantizers(student))]
    with switched(quantizers, enabled=False):
        torch.testing.assert_close(student(images), before, rtol=1e-12, atol=1e-12)


def test_an_artifact_keeps_a_zero_point_between_two_codes():
    student, _, images = student_of()
    expected = student(images)
    finalize(student)
    torch.testing.assert_close(student(images), expected, rtol=1e-5, atol=1e-5)
    shared = [quantizer.zero_point.item() for _, quantizer in activation_quantizers(student)]
    assert any(zero_point != round(zero_point) for zero_point in shared)


def test_rounded_zero_points_are_codes():
    student, *_ = student_of(round_zero_point=True)
    assert all(quantizer.zero_point == quantizer.zero_point.round() for _, quantizer in activation_quantizers(student))


def test_without_reparametrization_weights_and_normalisations_stay():
    student, teacher, _ = student_of(reparametrize=False)
    for path, layer in quantized_layers(student):
        assert torch.equal(layer.weight, teacher.module.get_submodule(path).weight)


def test_it_reads_the_first_images_alone():
    one, *_ = student_of(search_images=2)
    other, *_ = student_of(search_images=8)
    scales = [[quantizer.scale.item() for _, quantizer in activation_quantizers(each)] for each in (one, other)]
    assert scales[0] != scales[1]


def test_it_needs_images():
    teacher = tiny_teacher()
    student = prepare(teacher.module, SCHEME, teacher.input_size)
    with pytest.raises(ZSQBenchError, match="repq_vit"):
        RepQViT().quantize(student, teacher, None, context(scheme=SCHEME))
