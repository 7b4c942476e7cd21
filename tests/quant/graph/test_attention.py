import math

import pytest
import torch
from brief import parametrize_briefly
from networks import from_forward
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models
from transformernets import CAUSAL, HIDDEN, SIZE, built, of_tokens

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_by,
    calibrate_weights,
    finalize,
    prepare,
    restore,
    weight_quantizers,
)
from zsqbench.quant.graph.attention import causal_softmax, masked_softmax, scores
from zsqbench.quant.graph.operators import tensor_name
from zsqbench.quant.graph.outputs import output_layers
from zsqbench.quant.graph.tensor_roles import check_supported, roles, weight_roles
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.inspection import TOLERANCE, check_student, departure
from zsqbench.scheme import parse_scheme


def captured_equal(net, size=SIZE):
    captured = capture(net, size)
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    assert departure(captured(images), net(images)) < TOLERANCE
    check_supported(captured)
    return captured


def named(captured):
    return {tensor_name(node): role for node, role in roles(captured).items()}


def names_of(net):
    return list(named(captured_equal(net)))


def by_function(net, x, **options):
    query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
    context = functional.scaled_dot_product_attention(query, key, value, **options)
    return net.proj(context.transpose(1, 2).flatten(2))


def of_function(**options):
    layers = {"qkv": nn.Linear(HIDDEN, 3 * HIDDEN), "proj": nn.Linear(HIDDEN, HIDDEN)}
    return of_tokens(lambda net, x: by_function(net, x, **options), **layers)


def of_module(forward=lambda net, x: net.attention(x, x, x)[0], *, batch_first=True, **options):
    def in_its_order(net, x):
        return forward(net, x) if batch_first else forward(net, x.transpose(0, 1)).transpose(0, 1)

    attention = nn.MultiheadAttention(HIDDEN, 2, batch_first=batch_first, **options)
    return of_tokens(in_its_order, attention=attention)


def test_self_attention_becomes_its_parts_with_names_and_roles():
    captured = captured_equal(of_module())
    assert named(captured) == {
        "input": "input",
        "embed": "linear",
        "attention.in_proj": "linear",
        "attention.scores": "product",
        "attention.softmax": "other",
        "attention.scaled_dot_product_attention": "product",
        "attention.out_proj": "linear",
        "mean": "other",
        "head": "logits",
    }
    assert list(weight_roles(captured)) == ["embed", "attention.in_proj", "attention.out_proj", "head"]
    shapes = {tensor_name(node): node.meta["shape"] for node in roles(captured)}
    assert shapes["attention.in_proj"] == (2, 8, 48)
    assert shapes["attention.scores"] == shapes["attention.softmax"] == (2, 2, 8, 8)
    assert shapes["attention.scaled_dot_product_attention"] == (2, 2, 8, 8)


def test_shapes_of_parts_are_those_that_they_have():
    captured = capture(of_module(batch_first=False), SIZE)

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op != "get_attr":
                assert tuple(result.shape) == n.meta["shape"], n
            return result

    Recorder(captured).run(torch.zeros(2, *SIZE))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": False}, {"dropout": 0.5}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_every_form_is_the_module_that_torch_computes(options, need_weights):
    def forward(net, x):
        attended, _ = net.attention(x, x, x, need_weights=need_weights)
        return attended + x

    names_found = names_of(of_module(forward, **options))
    assert "attention.in_proj" in names_found and "attention.out_proj" in names_found  # noqa: PT018


class Few(nn.Module):
    """The first tokens alone."""

    def forward(self, x):
        return x[:, :3]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("forward", "options", "layers"),
    [
        (lambda net, x: net.attention(net.few(x), x, x)[0], {}, ["q_proj", "kv_proj"]),
        (lambda net, x: net.attention(net.few(x), x, 2 * x)[0], {}, ["q_proj", "k_proj", "v_proj"]),
        (lambda net, x: net.attention(x, x, 2 * x)[0], {"bias": False}, ["q_proj", "k_proj", "v_proj"]),
        (
            lambda net, x: net.attention(net.few(x), x[..., :5], x[..., :7])[0],
            {"kdim": 5, "vdim": 7},
            ["q_proj", "k_proj", "v_proj"],
        ),
        (lambda net, x: net.attention(x, x[..., :5], x[..., :5])[0], {"kdim": 5, "vdim": 5, "bias": False},
         ["q_proj", "k_proj", "v_proj"]),
    ],
)  # fmt: skip
def test_cross_attention_has_a_layer_for_each_tensor_that_it_reads(forward, options, layers, batch_first):
    net = of_module(forward, batch_first=batch_first, **options)
    net.few = Few() if batch_first else nn.Identity()
    captured = captured_equal(net)
    found = [path.removeprefix("attention.") for path in weight_roles(captured) if path.startswith("attention.")]
    assert found == [*layers, "out_proj"]


def test_a_module_that_is_called_twice_has_each_layer_once():
    def forward(net, x):
        x = net.attention(x, x, x)[0]
        few = x[:, :4]
        return net.attention(x, x, x)[0] + net.attention(x, few, few)[0]

    captured = captured_equal(of_module(forward))
    assert list(weight_roles(captured)) == [
        "embed", "attention.in_proj", "attention.out_proj", "attention.q_proj", "attention.kv_proj", "head"
    ]  # fmt: skip
    found = list(named(captured))
    assert [each for each in found if "softmax" in each] == [
        "attention.softmax", "attention.softmax_1", "attention.softmax_2"
    ]  # fmt: skip


ONE = torch.zeros(8, 8, dtype=torch.bool).index_fill(1, torch.tensor([2]), value=True)
BIAS = torch.linspace(-1, 1, 64).view(8, 8)


@pytest.mark.parametrize(
    ("mask", "added"),
    [
        (CAUSAL, False),
        (torch.zeros(8, 8).masked_fill(ONE, -math.inf), False),
        (BIAS, True),
    ],
)
@pytest.mark.parametrize("per_head", [False, True])
def test_constant_masks_of_modules(mask, added, per_head):
    def forward(net, x):
        mask = net.mask.repeat(2 * x.shape[0], 1, 1) if per_head else net.mask
        return net.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    net = of_module(forward)
    net.register_buffer("mask", mask)
    found = names_of(net)
    assert ("attention.add" in found) == added
    assert found.count("attention.softmax") == 1


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_causal_module_is_causal(need_weights):
    net = of_module(
        lambda net, x: net.attention(x, x, x, attn_mask=net.mask, need_weights=need_weights, is_causal=True)[0]
    )
    net.register_buffer("mask", CAUSAL)
    assert "attention.softmax" in names_of(net)


def test_attention_by_the_function_has_the_same_parts_and_its_context_the_name_of_the_call():
    captured = captured_equal(of_function())
    assert [name for name in named(captured) if name not in ("input", "embed", "mean", "head")] == [
        "qkv", "scores", "softmax", "scaled_dot_product_attention", "proj"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"scale": 0.3}, False),
        ({"is_causal": True}, False),
        ({"attn_mask": ~CAUSAL}, False),
        ({"attn_mask": torch.zeros(2, 8, 8).masked_fill(ONE, -math.inf)}, False),
        ({"attn_mask": BIAS, "scale": 2.0}, True),
        ({"attn_mask": torch.stack([BIAS, 2 * BIAS])}, True),
        ({"attn_mask": BIAS[None, None], "dropout_p": 0.0}, True),
    ],
)
def test_scales_and_constant_masks_of_the_function(options, added):
    masks = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    net = of_function(**options)
    for mask in masks.values():
        layers = {"qkv": net.qkv, "proj": net.proj}
        held = {name: value for name, value in options.items() if name != "attn_mask"}
        net = of_tokens(lambda net, x: by_function(net, x, attn_mask=net.mask, **held), **layers)  # noqa: B023
        net.register_buffer("mask", mask)
    assert ("add" in names_of(net)) == added


def test_a_bias_that_the_network_computes_is_a_sum():
    net = of_function()
    layers = {"qkv": net.qkv, "proj": net.proj, "bias": nn.Linear(HIDDEN, 8)}
    net = of_tokens(lambda net, x: by_function(net, x, attn_mask=net.bias(x)[:, None]), **layers)
    assert named(captured_equal(net))["add"] == "sum"


def test_a_mask_made_from_sizes_is_constant():
    def forward(net, x):
        mask = x.new_ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return by_function(net, x, attn_mask=mask.expand(x.shape[0], 1, -1, -1))

    net = of_function()
    assert "softmax" in names_of(of_tokens(forward, qkv=net.qkv, proj=net.proj))


def test_keys_that_all_heads_share_are_broadcast():
    def forward(net, x):
        query = net.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        key, value = net.kv(x).unsqueeze(1).chunk(2, -1)
        context = functional.scaled_dot_product_attention(query, key, value)
        return net.proj(context.transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(HIDDEN, HIDDEN), "kv": nn.Linear(HIDDEN, HIDDEN), "proj": nn.Linear(HIDDEN, HIDDEN)}
    captured = captured_equal(of_tokens(forward, **layers))
    assert next(n for n in captured.graph.nodes if tensor_name(n) == "scores").meta["shape"] == (2, 2, 8, 8)


def test_parts_compute_what_torch_defines():
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.rand(5, 7) > 0.5
    mask[0] = False  # a query that sees nothing
    attention = functional.scaled_dot_product_attention
    given = scores(query, key)
    torch.testing.assert_close(given, query @ key.mT / 2)
    torch.testing.assert_close(scores(query, key, 3.0), query @ key.mT * 3)
    torch.testing.assert_close(given.softmax(-1) @ value, attention(query, key, value))
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(masked_softmax(given, mask) @ value, attention(query, key, value, mask))
        torch.testing.assert_close(masked_softmax(given, ~mask, hides=True) @ value, attention(query, key, value, mask))
        torch.testing.assert_close(causal_softmax(given) @ value, attention(query, key, value, is_causal=True))


class Own(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


def hooked():
    net = of_module()
    net.attention.register_forward_hook(lambda _, __, output: output)
    return net


def masked_at_run_time(name):
    def forward(net, x):
        hidden = x.mean(2) > 10
        mask = hidden if name == "key_padding_mask" else hidden[:, None].expand(-1, 2, -1).flatten(0, 1)[:, None]
        return net.attention(x, x, x, **{name: mask.expand(-1, 8, -1) if name == "attn_mask" else mask})[0]

    return of_module(forward)


def by_function_at_run_time(*, infinite):
    def forward(net, x):
        mask = (x.mean(2) < 10)[:, None, None]
        return by_function(net, x, attn_mask=torch.where(mask, -math.inf, 0.0) if infinite else mask)

    net = of_function()
    return of_tokens(forward, qkv=net.qkv, proj=net.proj)


def grouped():
    def forward(net, x):
        query = net.q(x).unflatten(-1, (4, -1)).transpose(1, 2)
        key = net.k(x).unflatten(-1, (2, -1)).transpose(1, 2)
        return functional.scaled_dot_product_attention(query, key, key, enable_gqa=True).transpose(1, 2).flatten(2)

    return of_tokens(forward, q=nn.Linear(HIDDEN, HIDDEN), k=nn.Linear(HIDDEN, HIDDEN // 2))


def fused_kernel():
    def forward(net, x):
        query, key, value = (part.unsqueeze(1) for part in net.qkv(x).chunk(3, -1))
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attention(query, key, value)[0].squeeze(1)

    return of_tokens(forward, qkv=nn.Linear(HIDDEN, 3 * HIDDEN))


def always_training():
    net = of_module(dropout=0.1)
    net.attention.train = lambda mode=True: net.attention  # noqa: ARG005
    net.attention.training = True
    return net


REFUSED = {
    "weights_read": (
        lambda: of_module(lambda net, x: net.attention(x, x, x)[1] @ x),
        r"'attention' \(multiheadattention\) gives its attention weights .* first output alone",
    ),
    "tuple_returned": (
        lambda: from_forward(
            lambda net, x: net.attention(*[x.flatten(2)] * 3), attention=nn.MultiheadAttention(64, 2, batch_first=True)
        ),
        r"gives its attention weights to the network; expected its first output alone",
    ),
    "bias_kv": (lambda: of_module(add_bias_kv=True), r"has add_bias_kv=True; expected False"),
    "zero_attn": (lambda: of_module(add_zero_attn=True), r"has add_zero_attn=True; expected False"),
    "key_padding": (
        lambda: masked_at_run_time("key_padding_mask"), r"is given key_padding_mask at run time.* expected a constant"
    ),
    "attn_mask": (lambda: masked_at_run_time("attn_mask"), r"is given attn_mask at run time, which images decide"),
    "mask_of_truth_values": (lambda: by_function_at_run_time(infinite=False), r"is given attn_mask at run time"),
    "mask_of_infinity": (lambda: by_function_at_run_time(infinite=True), r"is given attn_mask at run time"),
    "dropout": (
        lambda: of_function(dropout_p=0.1), r"\(dropout_p=0.1\); expected dropout_p=0: write .* if self.training"
    ),
    "always_training": (always_training, r"\(dropout=0.1\); expected none: let eval\(\) reach it"),
    "grouped": (grouped, r"fewer heads of keys than of queries .* repeat_interleave"),
    "fused_kernel": (fused_kernel, r"is attention that cannot be taken apart; expected nn.MultiheadAttention without"),
    "hooks": (hooked, r"'attention.multi_head_attention_forward' .* cannot be taken apart; .* without hooks"),
    "own_forward": (
        lambda: of_tokens(lambda net, x: net.attention(x), attention=Own(HIDDEN, 2)), r"cannot be taken apart"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_cannot_be_taken_apart_is_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(ZSQBenchError, match=message) as caught:
        capture(build(), SIZE)
    assert "\n" not in str(caught.value)


def test_weights_that_nothing_reads_change_nothing():
    assert names_of(of_module(lambda net, x: net.attention(x, x, x, need_weights=False)[0])) == names_of(of_module())


def test_a_second_output_that_is_none_may_be_returned():
    net = from_forward(
        lambda net, x: net.attention(*[x.flatten(2)] * 3, need_weights=False)[::1],
        attention=nn.MultiheadAttention(64, 2, batch_first=True),
    )
    with pytest.raises(ZSQBenchError, match="first output alone"):
        capture(net, SIZE)

    def both(net, x):
        attended, weights = net.attention(*[x.flatten(2)] * 3, need_weights=False)
        return attended, weights

    net = from_forward(both, attention=nn.MultiheadAttention(64, 2, batch_first=True))
    assert capture(net, SIZE)(torch.randn(2, *SIZE))[1] is None


def test_an_attention_at_the_end_gives_no_layer_to_hook():
    net = from_forward(
        lambda net, x: net.attention(*[x.flatten(2)] * 3)[0], attention=nn.MultiheadAttention(64, 2, batch_first=True)
    )
    with pytest.raises(ZSQBenchError, match="comes from no convolution or linear layer that is a module"):
        output_layers(capture(net, SIZE))


def test_a_parameter_of_the_module_that_the_network_reads_too_stays():
    net = of_module(lambda net, x: net.attention(x, x, x)[0] * net.attention.in_proj_bias[:HIDDEN].exp() * x.amax())
    captured_equal(net)


# Network, and how many weights and activations are quantized at hw_strict. A block has 4 layers and 11 tensors:
# LayerNorm, qkv, scores, softmax, context, proj, sum, LayerNorm, GELU, fc2, sum. Where the network itself scales
# queries, these are one more; a relative position bias and a mask of shifted windows make a sum each.
NETWORKS = {
    # 2 blocks, patches and head; image, patches, class token, position, last LayerNorm, logits
    "vit": (2 * 4 + 2, 2 * 11 + 6),
    # 4 blocks, merging and ends; two are shifted; image, patches, LayerNorm; LayerNorm, merged; LayerNorm, pooled,
    # logits
    "swin": (4 * 4 + 3, 4 * 13 + 2 + 3 + 2 + 3),
    # one block, embedding and head; image, embedded, pooled, logits
    "encoder_batch_second": (4 + 2, 11 + 4),
    # cross-attention makes 3 layers and 8 tensors more: queries, keys and values, scores to sum, LayerNorm
    "decoder": (2 * (4 + 3) + 2, 2 * (11 + 8) + 4),
    "encoder": (4 + 2, 11 + 4),
    "encoder_norm_first": (4 + 2, 11 + 4),
    "stack": (2 * 4 + 2, 2 * 11 + 4),
    "timm_vit": (2 * 4 + 2, 2 * 11 + 6),
    "timm_deit": (2 * 4 + 2, 2 * 11 + 6),
    # one is shifted
    "timm_swin": (4 * 4 + 3, 4 * 13 + 1 + 3 + 2 + 3),
    # bias and mask are added to each other first
    "timm_swin_fused": (4 * 4 + 3, 4 * 12 + 1 + 3 + 2 + 3),
    # stages without attention: 4 blocks of 3 layers, stem, 3 downsamplings and head
    "timm_convnext": (4 * 3 + 1 + 3 + 1, 36),
}


@parametrize_briefly("name", NETWORKS, 4)
def test_transformers_are_quantized_by_rtn_and_come_back_from_their_artifact(name):
    net, size = built(name)
    scheme = parse_scheme("hw_strict/w8a8")
    student = check_student(net, scheme, size, by_units=True)
    assert (len(weight_quantizers(student)), len(activation_quantizers(student))) == NETWORKS[name]
    images = torch.randn(8, *size, generator=torch.Generator().manual_seed(1))
    calibrate_weights(student, "mse")
    calibrate_activations_by("minmax", student, images, len(images))
    finalize(student)
    again = prepare(net, scheme, size)
    restore(again, student.state_dict())
    assert torch.equal(again.eval()(images), student.eval()(images))


@pytest.mark.slow("the networks have millions of weights, and take some seconds each")
@pytest.mark.parametrize(
    ("name", "weights", "activations"), [("vit_b_16", 12 * 4 + 2, 12 * 11 + 6), ("swin_t", 53, 12 * 13 + 5 + 3 + 6 + 3)]
)
def test_transformers_of_torchvision_are_equal_as_they_are(name, weights, activations):
    torch.manual_seed(0)
    net = models.get_model(name).eval().requires_grad_(requires_grad=False)
    student = check_student(net, parse_scheme("hw_strict/w8a8"), (3, 224, 224))
    assert (len(weight_quantizers(student)), len(activation_quantizers(student))) == (weights, activations)
