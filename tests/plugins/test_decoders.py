"""Shipped quantizers on networks that end in maps: for segmentation, and for super-resolution."""

import torch
from brief import parametrize_briefly
from networks import from_forward
from torch import nn

from zsqbench import CalibrationSet, Pretrained
from zsqbench.plugins import load_plugins
from zsqbench.quant import finalize, quantized_layers, restore
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context
from zsqbench.testing.conformance import reduce_options

SIZE = (3, 9, 9)


def segmenter():
    """An encoder and a decoder with a skip, that gives a score for each class at each place."""

    def forward(net, x):
        fine = net.norm(net.stem(x)).relu()
        coarse = net.norm_down(net.down(fine)).clamp(0, 6)
        decoded = net.norm_up(net.up(coarse, output_size=fine.size()[2:])).relu()
        return net.score(torch.cat([fine, decoded], 1))

    return from_forward(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(6),
        down=nn.Conv2d(6, 8, 3, 2, padding=1, bias=False),
        norm_down=nn.BatchNorm2d(8),
        up=nn.ConvTranspose2d(8, 6, 3, 2, padding=1, groups=2, bias=False),
        norm_up=nn.BatchNorm2d(6),
        score=nn.Conv2d(12, 4, 1),
    )


def upscaler():
    """An image of twice the size, as FSRCNN makes it: the last layer is a transposed convolution."""

    def forward(net, x):
        y = net.act(net.norm(net.features(x)))
        return net.enlarge(net.act_map(net.norm_map(net.map(y))))

    return from_forward(
        forward,
        features=nn.Conv2d(3, 8, 5, padding=2),
        norm=nn.BatchNorm2d(8),
        act=nn.PReLU(8),
        map=nn.Conv2d(8, 8, 3, padding=1),
        norm_map=nn.BatchNorm2d(8),
        act_map=nn.LeakyReLU(0.1),
        enlarge=nn.ConvTranspose2d(8, 3, 9, 2, padding=4, output_padding=1),
    )


def trained(build, images):
    """The network with the statistics of batch normalisation that these images give."""
    torch.manual_seed(0)
    module = build().train()
    for _ in range(50):
        module(images)
    return Pretrained(module.eval(), SIZE, (0.5,) * 3, (0.25,) * 3)


@parametrize_briefly("build", [segmenter, upscaler], 4)
@parametrize_briefly(
    "name, scheme",
    [
        *(("brecq", "hw_strict/w8a8"), ("squant", "hw_strict/w8a8"), ("dfq", "pot/w8a8"), ("hptq", "pot/w8a8")),
        *(("dfq", "hw_strict/w8a8"), ("hptq", "hw_strict/w8a8"), ("rtn", "hw_strict/w8a8"), ("rtn", "pot/w8a8")),
    ],
    4,
)
def test_the_quantized_network_is_close_and_comes_back_from_its_artifact(name, build, scheme):
    images = torch.rand(16, *SIZE, generator=torch.Generator().manual_seed(0)) * 4 - 2
    teacher, scheme = trained(build, images), parse_scheme(scheme)
    quantizer, _ = reduce_options(load_plugins().find("quantizer", name).method, {})
    quantizer, ctx = quantizer.resolved(teacher, scheme), context(scheme=scheme)
    student = quantizer.prepare(teacher, scheme)
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx)
    finalize(student)
    fresh = quantizer.prepare(teacher, scheme)
    restore(fresh, student.state_dict())
    with torch.no_grad():
        expected, found = teacher.module(images), student(images)
        assert torch.equal(fresh(images), found)
    error = ((found - expected).square().mean() / expected.var()).item()
    assert error < 0.005
    assert len(quantized_layers(student)) == sum(hasattr(part, "kernel_size") for part in teacher.module.modules())
