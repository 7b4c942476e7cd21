import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional
from torchvision.models import swin_transformer, vision_transformer

from zsqbench.quant import activation_quantizers, capture, positions, prepare, roles
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.tensor_roles import reads_by_matrix
from zsqbench.quant.student import tensor_roles
from zsqbench.scheme import PARTS, PLACEMENTS, POSITIONS, Placement, Scheme, parse_scheme

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "schemes.md"
SIZE = (3, 16, 16)


def vit():
    """Two blocks, of 16 channels in 2 heads."""
    torch.manual_seed(0)
    return vision_transformer.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()


def swin():
    return swin_transformer.SwinTransformer([2, 2], 8, [2, 2], [1, 2], [2, 2], num_classes=5).eval()


def parts_of(net, size=SIZE):
    found = {tensor_name(node): tuple(each for each in at if each in PARTS) for node, at in
             positions(capture(net, size)).items()}  # fmt: skip
    return {name: at for name, at in found.items() if at}


def test_the_tensors_of_a_block_have_their_parts():
    found = parts_of(vit())
    block = "encoder.layers.encoder_layer_0"
    assert {name: at for name, at in found.items() if name.startswith(block)} == {
        f"{block}.ln_1": ("layer_norm",),
        f"{block}.self_attention.in_proj": ("query", "key", "value"),
        f"{block}.self_attention.scores": ("scores",),
        f"{block}.self_attention.softmax": ("softmax",),
        f"{block}.self_attention.scaled_dot_product_attention": ("context",),
        f"{block}.add": ("residual",),
        f"{block}.ln_2": ("layer_norm",),
        f"{block}.mlp.1": ("gelu",),
        f"{block}.add_1": ("residual",),
    }


def test_a_swin_has_scaled_queries_and_scores_with_bias_and_mask():
    found = parts_of(swin())
    shifted = {name.removeprefix("features.1.1.attn."): at for name, at in found.items() if "features.1.1.attn" in name}
    assert shifted == {
        "linear": ("query", "key", "value"),
        "mul_2": ("scaled_query",),  # two products of sizes come first
        "matmul": ("scores",),
        "add": ("scores",),
        "add_1": ("masked_scores",),
        "softmax": ("softmax",),
        "matmul_1": ("context",),
    }


def by_hand(net, x):
    x = x.flatten(2)
    query, key, value = net.q(x) * 0.5, net.k(x), net.v(x)
    weights = (torch.bmm(query, key.transpose(1, 2)) / 2).softmax(-1)
    return net.head(net.norm(x + torch.einsum("nij,njc->nic", net.drop(weights), value)).mean(1))


def test_an_attention_that_is_written_by_hand_has_them_too():
    layers = {name: nn.Linear(64, 64) for name in "qkv"}
    net = from_forward(by_hand, **layers, drop=nn.Dropout(), norm=nn.LayerNorm(64), head=nn.Linear(64, 2))
    assert parts_of(net, (3, 8, 8)) == {
        "q": ("query",), "mul": ("scaled_query",), "k": ("key",), "v": ("value",), "bmm": ("unscaled_scores",),
        "truediv": ("scores",), "softmax": ("softmax",), "einsum": ("context",), "add": ("residual",),
        "norm": ("layer_norm",),
    }  # fmt: skip


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.conv(x).softmax(1) * x,  # a gate
        lambda net, x: net.conv(x).softmax(1) @ x,  # of no product
        lambda net, x: (x @ net.conv(x)).softmax(1) + x,  # without values
    ],
)
def test_another_softmax_is_no_attention(forward):
    net = from_forward(
        lambda net, x: net.head(forward(net, x).flatten(1)), conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2)
    )
    assert parts_of(net, (3, 8, 8)) == {}


def test_sums_that_no_layer_normalisation_reads_are_in_no_stream():
    def forward(net, x):
        y = net.conv(x)
        y = y + x
        y = y + net.conv(functional.gelu(y))
        return net.head(y.flatten(1))

    net = from_forward(forward, conv=nn.Conv2d(3, 3, 1), head=nn.Linear(192, 2))
    assert parts_of(net, (3, 8, 8)) == {"gelu": ("gelu",)}


def test_a_stream_goes_through_sums_that_no_layer_normalisation_reads():
    def forward(net, x):
        x = net.embed(x.flatten(2))
        x = x + net.a(x)  # read by an addition and a layer
        x = x + net.b(net.norm(x))
        x = x + net.c(x)
        return net.head(x.mean(1))

    layers = {name: nn.Linear(8, 8) for name in "abc"}
    net = from_forward(forward, embed=nn.Linear(64, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 2), **layers)
    found = parts_of(net, (3, 8, 8))
    assert [name for name, at in found.items() if at == ("residual",)] == ["add", "add_1", "add_2"]


def test_a_part_with_a_width_goes_before_the_role_and_the_first_of_several_counts():
    placement = Placement(softmax="float", layer_norm=6, key=5, value=3)
    scheme = Scheme(name="own/w4a4", placement=placement, weight_bits=4, activation_bits=4)
    student = prepare(vit(), scheme, SIZE)
    bits = {name: quantizer.bits for name, quantizer in activation_quantizers(student)}
    assert not [name for name in bits if name.endswith("softmax")]
    assert len(bits) == 28 - 2
    block = "encoder.layers.encoder_layer_1."
    assert (bits[block + "ln_1"], bits[block + "self_attention.in_proj"], bits[block + "add"]) == (6, 5, 4)
    assert tensor_roles(student)["activation", block + "self_attention.in_proj"] == "key"
    assert {"softmax"} <= {*scheme.left_in_float()}


def test_shipped_schemes_of_all_networks_give_no_part_a_width_so_that_each_tensor_keeps_its_role():
    given = {name: {part for part in PARTS if getattr(placement, part)} for name, placement in PLACEMENTS.items()}
    unused = {"scaled_query", "unscaled_scores", "masked_scores", "softmax"}
    assert {name: parts for name, parts in given.items() if parts} == {"psaq": unused, "repq": {"softmax"}}
    assert set(PARTS) < set(POSITIONS)


def test_the_document_says_what_each_scheme_quantizes_of_a_small_transformer():
    rows = re.findall(r"^\| (\d+) \| ([\w, `]+?) \| `(\w+)` ((?:\| \d+ )+)\|$", DOCUMENT.read_text(), re.MULTILINE)
    said = {title.replace("`", "").replace(",", ""): (int(there), role, [int(n) for n in re.findall(r"\d+", counts)])
            for there, title, role, counts in rows}  # fmt: skip
    captured = capture(vit(), SIZE)
    at = {tensor_name(node): ([part for part in each if part in PARTS] or [""])[0] for node, each in
          positions(captured).items()}  # fmt: skip
    role_of = {tensor_name(node): role for node, role in roles(captured).items()}
    there = Counter((at.get(name) or "others", role) for name, role in role_of.items())
    quantized = {}
    shipped = [name for name, placement in PLACEMENTS.items() if placement.side == "outputs"]
    for name in shipped:
        found = activation_quantizers(prepare(vit(), parse_scheme(f"{name}/w4a4"), SIZE))
        quantized[name] = Counter((at.get(each) or "others", role_of.get(each, kind.role)) for each, kind in found)
    there["others", "preactivation"], there["others", "embedding"] = 2, 1
    assert said == {
        (part if part != "others" else f"others {role}"): (
            number, role, [quantized[name][part, role] for name in shipped]
        )
        for (part, role), number in there.items()
    }  # fmt: skip


def test_the_inputs_of_layers_and_products_are_quantized_for_these_alone():
    student = prepare(vit(), parse_scheme("repq/w4a4"), SIZE)
    found = Counter((quantizer.role, quantizer.bits) for _, quantizer in activation_quantizers(student))
    assert found == {
        ("input", 8): 1, ("other", 4): 5, ("linear", 4): 6, ("softmax", 4): 2, ("product", 4): 2, ("activation", 4): 2
    }  # fmt: skip
    for node in student.graph.nodes:
        quantized = str(node.target).startswith("activation_quantizers")
        if quantized:
            assert all(reads_by_matrix(user) for user in node.users)


def test_learned_embeddings_are_tensors_and_masks_are_none():
    def forward(net, x):
        tokens = net.embed(x.flatten(2)) + net.positions + net.offset
        scores = tokens @ tokens.transpose(1, 2) / 3 + net.bias + net.mask
        return net.head((scores.softmax(-1) @ tokens).mean(1))

    parts = {"embed": nn.Linear(64, 8), "head": nn.Linear(8, 2), "offset": nn.Parameter(torch.randn(8))}
    parts |= {name: nn.Parameter(torch.randn(1, 3, size)) for name, size in (("positions", 8), ("bias", 3))}
    mask = torch.zeros(3, 3)
    mask[0, 1] = -100.0
    net = from_forward(forward, **parts, mask=nn.Parameter(mask))
    student = prepare(net, parse_scheme("psaq/w4a4"), (3, 8, 8))
    found = {name: quantizer.role for name, quantizer in activation_quantizers(student)}
    assert {name for name, role in found.items() if role == "embedding"} == {"positions", "bias"}
    assert "add_3" not in found  # masked
    assert {"add", "truediv", "add_2"} < set(found)
    assert "matmul" not in found  # not scaled yet


def test_a_layer_normalisation_of_which_one_token_is_read_has_the_range_of_this_token():
    student = prepare(vit(), parse_scheme("hw_strict/w8a8"), SIZE)
    quantizer = dict(activation_quantizers(student))["encoder.ln"]
    given = []
    quantizer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].shape))
    student(torch.randn(2, *SIZE))
    assert given == [(2, 16)]


def test_parts_of_one_tensor_that_are_concatenated_are_no_tensor_of_their_own():
    captured = capture(swin(), SIZE)
    assert not [name for name, role in ((tensor_name(node), role) for node, role in roles(captured).items())
                if role == "concat"]  # fmt: skip
