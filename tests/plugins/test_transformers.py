"""Every shipped quantizer on transformers: it is calibrated and comes back from its artifact, or says why it cannot."""

import pytest
import torch
from brief import parametrize_briefly
from transformernets import pretrained

from zsqbench import CalibrationSet
from zsqbench.errors import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    activation_quantizers,
    finalize,
    layer_pairs,
    prepare,
    rank_weights,
    restore,
    weight_quantizers,
)
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context

IMAGES = 6
LEARNS = {"batch_size": 4}
TRAINS = {"epochs": 1, "updates_per_epoch": 1, "batch_size": 4}
QUANTIZERS = {
    "rtn": ("rtn", {}),
    "rtn-minmax": ("rtn", {"weight_range": "minmax", "activation_range": "minmax"}),
    "rtn-percentile": ("rtn", {"weight_range": "percentile", "activation_range": "percentile"}),
    "hptq": ("hptq", {}),
    "hptq-paper": ("hptq", {"preset": "paper"}),
    "squant": ("squant", {"noise_images": 2}),
    "comq": ("comq", {}),
    "comq-released": ("comq", {"preset": "released"}),
    "repq_vit": ("repq_vit", {}),
    "adaround": ("adaround", {"iterations": 2, **LEARNS}),
    "brecq": ("brecq", {"weight_iterations": 2, "activation_iterations": 2, **LEARNS}),
    "brecq-paper": ("brecq", {"preset": "paper", "weight_iterations": 2, "activation_iterations": 2, **LEARNS}),
    "qdrop": ("qdrop", {"iterations": 2, **LEARNS}),
    "flexround": ("flexround", {"iterations": 2, **LEARNS}),
    "genie_m": ("genie_m", {"iterations": 2, **LEARNS}),
    "mixed": ("mixed", {"over": "rtn", "layers": 2, "images": 4}),
    "ste": ("ste", {**TRAINS, "range_updates": 1}),
    "lsq": ("lsq", TRAINS),
    "plf": ("plf", TRAINS),
    "hast": ("hast", {**TRAINS, "range_updates": 1}),
    "synq": ("synq", {**TRAINS, "range_updates": 1}),
}
"""Methods with options that make them short."""

OF_A_KIND = {
    "rtn-minmax",
    "rtn-percentile",
    "hptq-paper",
    "comq-released",
    "brecq-paper",
    "plf",
    "ste",
    "synq",
    "flexround",
    "qdrop",
}
"""Other options of methods, and those that share their learning with `lsq`, `hast`, `adaround` and `brecq`."""

NEED_BN = {"adadfq": {}, "adasg": {}, "ait": {"host": "gdfq"}, "dfq": {}, "gdfq": {}, "pd_quant": {}, "qimera": {}}
OTHERS = {"detect_kd", "fp32"}
"""One trains detectors on boxes, one quantizes nothing."""

NETWORKS = ("vit", "swin", "swin_v2", "encoder", "encoder_norm_first", "convnext")
OF_TIMM = ("timm_vit", "timm_deit_distilled", "timm_vit_pooled", "timm_swin", "timm_swin_fused")
SCHEMES = ("hw_strict/w4a8", "hw/w4a4", "repq/w4a4", "psaq/w4a8")


def _pairs():
    """A quantizer of each kind on one of the networks at one scheme, by turns; all on all of them on request."""
    for index, name in enumerate(QUANTIZERS):
        for place, network in enumerate((*NETWORKS, *OF_TIMM)):
            for turn, scheme in enumerate(SCHEMES):
                its_turn = place == index % len(NETWORKS) and turn == index % len(SCHEMES)
                brief = its_turn and name not in OF_A_KIND
                marks = () if brief else pytest.mark.slow("all quantizers on all networks take minutes")
                yield pytest.param(name, network, scheme, marks=marks, id=f"{name}-{network}-{scheme}")


def images_of(teacher):
    noise = torch.randn(IMAGES, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    return CalibrationSet(noise, torch.arange(IMAGES) % teacher.classes)


def method_named(name, options=None):
    return load_plugins().find("quantizer", name).method.model_validate(options or {})


def quantized(quantizer, teacher, scheme, over=None):
    """The images that it was calibrated on, its finalized student, and a fresh one with the artifact of that."""
    maker, data, ctx = over or quantizer, images_of(teacher), context(scheme=scheme)
    ctx.over = over
    student = maker.make_student(teacher, scheme)
    quantizer.quantize(student, teacher, data if quantizer.needs_images else None, ctx)
    finalize(student)  # refuses what is not calibrated
    fresh = maker.make_student(teacher, scheme)
    restore(fresh, student.state_dict())
    return data.images, student.eval(), fresh.eval()


@pytest.mark.parametrize(("name", "network", "scheme"), list(_pairs()))
def test_a_transformer_is_quantized_and_comes_back_from_its_artifact(name, network, scheme):
    method, options = QUANTIZERS[name]
    quantizer, teacher, scheme = method_named(method, options), pretrained(network), parse_scheme(scheme)
    assert quantizer.rejects(scheme) is None
    over = method_named(quantizer.works_over) if quantizer.works_over else None
    if over:
        ranked = rank_weights(teacher.module, scheme, teacher.input_size, images_of(teacher).images)
        scheme = quantizer.adapted(scheme, ranked)
    images, student, fresh = quantized(quantizer.resolved(teacher, scheme), teacher, scheme, over)
    with torch.no_grad():
        outputs = student(images)
        assert torch.equal(fresh(images), outputs)
    assert outputs.isfinite().all()
    assert len(outputs.unique()) > 1
    assert min(len(weight_quantizers(student)), len(activation_quantizers(student))) > 5


def test_every_shipped_quantizer_is_tried_here():
    shipped = {name for kind, name in load_plugins().provided if kind == "quantizer"}
    assert {method for method, _ in QUANTIZERS.values()} | NEED_BN.keys() | OTHERS == shipped


@pytest.mark.parametrize("name", NEED_BN)
def test_what_needs_batch_normalisation_declares_it_and_refuses_a_transformer_in_one_line(name):
    quantizer, teacher, scheme = method_named(name, NEED_BN[name]), pretrained("vit"), parse_scheme("hw/w4a4")
    assert quantizer.needs_bn  # so that a plan says it
    quantizer = quantizer.resolved(teacher, scheme)
    with pytest.raises(ZSQBenchError, match=r"no batch normalisation|network has none") as error:
        quantized(quantizer, teacher, scheme)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("network", "between"), [("vit", {"gelu"}), ("swin", {"gelu"}), ("encoder", {"relu"})])
def test_channels_of_an_mlp_can_be_rescaled_where_it_has_relu(network, between):
    teacher = pretrained(network)
    student = prepare(teacher.module, parse_scheme("hw/w4a4"), teacher.input_size)
    assert {pair.operator for pair in layer_pairs(student)} == between  # hptq equalizes over ReLU, and not over GELU


@parametrize_briefly("network", ["encoder", "vit", "swin"], 1)
def test_biases_are_corrected_for_tokens_too(network):
    teacher, scheme = pretrained(network), parse_scheme("hw/w3a8")
    errors = []
    for corrects in (False, True):
        quantizer = method_named("hptq", {"bias_correction": corrects}).resolved(teacher, scheme)
        images, student, _ = quantized(quantizer, teacher, scheme)
        with torch.no_grad():
            errors.append((student(images).mean(0) - teacher.module(images).mean(0)).square().mean())
    assert errors[1] < errors[0] / 2
