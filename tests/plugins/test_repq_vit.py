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


@pytest.mark.parametrize("golden", [golden_vit, golden_swin])
def test_logits_are_those_of_the_release_in_each_pass(vectors, golden):
    network, size, stored = golden(vectors)
    student = prepare(network.double().eval().requires_grad_(requires_grad=False), SCHEME, size).double()
    images, others = (stored_tensor(stored, f"{name}_images") for name in ("calibration", "test"))

    def close(given, name):
        torch.testing.assert_close(student(given), stored_tensor(stored, f"logits_{name}_f64"), rtol=1e-9, atol=1e-9)

    pairs = rescalable(student)
    calibrate(student, images, [pair.quantizers[0] for pair in pairs])
    close(images, "channelwise_calibration")
    for pair in pairs:
        rescale(student, pair, round_zero_point=False)
    close(images, "reparam_calibration")
    close(others, "reparam_test")
    quantizers = [quantizer for _, quantizer in (*weight_quantizers(student), *activation_quantizers(student))]
    with switched(quantizers, enabled=False):  # the float network is what it was
        close(others, "float_test")


def test_scales_of_a_layer_normalisation_are_those_of_the_release(vectors):
    network, size, stored = golden_vit(vectors)
    student = prepare(network.double().eval().requires_grad_(requires_grad=False), SCHEME, size).double()
    pairs = {pair.layers[0]: pair for pair in rescalable(student)}
    calibrate(student, stored_tensor(stored, "calibration_images"), [pair.quantizers[0] for pair in pairs.values()])

    def close(found, name):
        torch.testing.assert_close(found.flatten(), stored_tensor(stored, f"{name}_f64").flatten(), rtol=1e-7, atol=0)

    for path, name in (("blocks.0.qkv", "blocks.0.attn.qkv"), ("blocks.1.mlp.1", "blocks.1.mlp.fc1")):
        (quantizer,), layer = pairs[path].quantizers, student.get_submodule(path)
        close(quantizer.scale, f"before.{name}.input_quantizer.delta")
        close(layer.weight_quantizer.scale, f"before.{name}.weight_quantizer.delta")
        rescale(student, pairs[path], round_zero_point=False)
        close(quantizer.scale, f"after.{name}.input_quantizer.delta")
        close(quantizer.zero_point, f"after.{name}.input_quantizer.zero")
        close(layer.weight, f"after.{name}.weight")
        close(layer.bias, f"after.{name}.bias")
        close(layer.weight_quantizer.scale, f"after.{name}.weight_quantizer.delta")
        assert quantizer.zero_point != quantizer.zero_point.round()


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
