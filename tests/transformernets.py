"""Small forms of the transformers that the field quantizes, and of a ConvNeXt."""

import pytest
import torch
from networks import from_forward
from torch import nn
from torchvision.models import convnext, swin_transformer, vision_transformer

from zsqbench import Pretrained

SIZE = (3, 8, 8)
HIDDEN = 16
CAUSAL = torch.ones(8, 8, dtype=torch.bool).triu(1)
CLASSES = 5


def tokens(x):
    """The rows of images as tokens [N, 8, 24]."""
    return x.permute(0, 2, 1, 3).flatten(2)


def of_tokens(forward, **modules):
    """A network that embeds the rows of an image, calls `forward` with itself and tokens [N, 8, 16], and classifies."""
    torch.manual_seed(0)
    layers = {"embed": nn.Linear(24, HIDDEN), "head": nn.Linear(HIDDEN, CLASSES)} | modules
    net = from_forward(lambda net, x: net.head(forward(net, net.embed(tokens(x))).mean(1)), **layers)
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:  # biases begin as zeros, so that a lost one would not show
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0)
    return net


def _vit():
    return vision_transformer.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES
    )


def _swin(**options):
    return swin_transformer.SwinTransformer([2, 2], 8, [2, 2], [1, 2], [2, 2], num_classes=CLASSES, **options)


def _swin_v2():
    return _swin(
        block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2, mlp_ratio=2.0
    )


def _encoder(**options):
    layer = nn.TransformerEncoderLayer(HIDDEN, 2, 32, **options)
    return of_tokens(lambda net, x: net.encoder(x), encoder=layer)


def _stack():
    layer = nn.TransformerEncoderLayer(HIDDEN, 2, 32, batch_first=True)
    net = of_tokens(
        lambda net, x: net.encoder(x, mask=net.mask), encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    )
    net.register_buffer("mask", CAUSAL)
    return net


def _decoder():
    layer = nn.TransformerDecoderLayer(HIDDEN, 2, 32, batch_first=True)
    return of_tokens(lambda net, x: net.decoder(x[:, :4], x), decoder=nn.TransformerDecoder(layer, 2))


def _convnext():
    blocks = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=CLASSES)


def _timm(name, **options):
    created = pytest.importorskip("timm", reason="networks of timm need it: pip install 'zsqbench[timm]'").create_model
    return created(name, num_classes=CLASSES, **options)


def _timm_vit(name="vit_tiny_patch16_224", **options):
    return _timm(name, img_size=16, patch_size=8, depth=2, embed_dim=16, num_heads=2, **options)


def _timm_swin(*, fused=False):
    net = _timm(
        "swin_tiny_patch4_window7_224", img_size=16, window_size=2, depths=(2, 2), num_heads=(1, 2), embed_dim=8
    )
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return net


FORMS = {
    "vit": (_vit, 16),
    "swin": (_swin, 16),
    "swin_v2": (_swin_v2, 16),
    "encoder": (lambda: _encoder(batch_first=True), 8),
    "encoder_norm_first": (lambda: _encoder(batch_first=True, norm_first=True, activation="gelu"), 8),
    "encoder_batch_second": (_encoder, 8),
    "stack": (_stack, 8),
    "decoder": (_decoder, 8),
    "convnext": (_convnext, 16),
    "timm_vit": (_timm_vit, 16),
    "timm_deit": (lambda: _timm_vit("deit_tiny_patch16_224"), 16),
    "timm_deit_distilled": (lambda: _timm_vit("deit_tiny_distilled_patch16_224"), 16),
    # no class token, LayerScale, and queries and keys that are normalised
    "timm_vit_pooled": (lambda: _timm_vit(class_token=False, global_pool="avg", init_values=0.1, qk_norm=True), 16),
    "timm_swin": (_timm_swin, 16),
    "timm_swin_fused": (lambda: _timm_swin(fused=True), 16),
    "timm_convnext": (lambda: _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), 32),
}
"""The function that builds each network, and the side of its images."""


def built(name):
    """A network in eval mode whose biases and norms have random values, and the size of its images."""
    build, side = FORMS[name]
    torch.manual_seed(0)
    net = build().eval().requires_grad_(False)
    for path, parameter in net.named_parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, 1.0 if "norm" in path and path.endswith("weight") else 0.0, 0.5)
    return net, (3, side, side)


def pretrained(name):
    """The same as a task hands it out."""
    net, size = built(name)
    return Pretrained(net, size, (0.5,) * 3, (0.25,) * 3, classes=CLASSES)
