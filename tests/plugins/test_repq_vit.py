import numpy as np
import pytest
import torch
from networks import GoldenViT, stored_tensor
from torch import nn
from zsqbench_plugins.repq_vit import RepQViT, calibrate, rescalable, rescale

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import activation_quantizers, finalize, prepare, switched, weight_quantizers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher, tiny_transformer

SCHEME = parse_scheme("repq/w4a4")


@pytest.fixture
def vectors(shared):
    return lambda name: np.load(shared / "golden" / "vit" / f"{name}.npz")


@pytest.fixture
def golden(vectors):
    """The network of the golden vectors in float64, what they say of it, and a student of it."""
    weights = vectors("tinyvit_a")
    network = GoldenViT(weights).double().eval().requires_grad_(requires_grad=False)
    size = int(weights["_img_size"])
    teacher = zsqbench.Pretrained(network, (3, size, size), (0.5,) * 3, (0.5,) * 3, classes=10)
    return teacher, vectors("repq_vit_a"), prepare(network, SCHEME, teacher.input_size).double()


def close(found, stored, name, rtol=1e-9):
    expected = stored_tensor(stored, name)
    torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=rtol, atol=1e-12, msg=name)


NAMES = {"qkv": "qkv", "proj": "proj", "fc1": "mlp.1", "fc2": "mlp.3"}


def of_release(name):
    """Our path of a layer of the release."""
    start, _, end = name.rpartition(".")
    if end in NAMES:
        return f"{start.rpartition('.')[0]}.{NAMES[end]}"
    return {"patch_embed.proj": "patches"}.get(name, name)


def quantize(golden, **options):
    teacher, stored, student = golden
    images = stored_tensor(stored, "calibration_images")
    pairs = rescalable(student)
    method = RepQViT(**options)
    del method
    return teacher, stored, student, images, pairs


def test_ranges_of_the_first_pass_are_those_of_the_release(golden):
    pass
