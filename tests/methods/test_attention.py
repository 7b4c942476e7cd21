import pytest
import torch
from networks import from_forward
from torch import nn
from torchvision.models import VisionTransformer

from zsqbench import Pretrained
from zsqbench.methods import open_attention
from zsqbench.synthesis import MapForm
from zsqbench.testing import tiny_teacher, tiny_teacher_without_bn, tiny_transformer
from zsqbench.testing.networks import tiny_transformers

SIZE = (3, 8, 8)


def pretrained(module, size=SIZE):
    return Pretrained(module.eval().requires_grad_(False), size, (0.5,) * 3, (0.5,) * 3, classes=4)


def attending(layer, size=SIZE, extra=0):
    """Attention on what a layer makes of an image, behind so many learned tokens, and a classifier."""

    def forward(net, images):
        tokens = net.layer(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([net.tokens.expand(images.shape[0], -1, -1), tokens], 1) if extra else tokens
        return net.head((torch.softmax(tokens @ tokens.mT, -1) @ tokens).mean(1))

    net = from_forward(forward, layer=layer, head=nn.Linear(8, 4))
    net.tokens = nn.Parameter(torch.randn(1, max(1, extra), 8), requires_grad=False)
    return pretrained(net, size)


def test_a_class_token_looks_at_the_patches_that_the_first_convolution_cuts():
    opened = open_attention(tiny_transformer(SIZE))
    assert (opened.blocks, opened.drop_first) == (("blocks.0", "blocks.1"), True)
    assert opened.form == MapForm(1, (4, 4))


def test_a_network_in_windows_has_similarities_and_no_maps():
    opened = open_attention(tiny_transformers(SIZE)["windows"])
    assert (opened.blocks, opened.drop_first) == (("block",), True)
    assert opened.form == "the last block attends within windows, and the graph does not give their places in the image"


@pytest.mark.parametrize(
    ("layer", "size", "extra", "form"),
    [
        (nn.Conv2d(3, 8, 2, 2), SIZE, 0, MapForm(0, (4, 4))),
        (nn.Conv2d(3, 8, (2, 4), (2, 4)), SIZE, 0, MapForm(0, (4, 2))),
        (nn.Conv2d(3, 8, 2, 2), SIZE, 3, MapForm(3, (4, 4))),
        (nn.Conv2d(3, 8, 3, 2, 1), (3, 8, 16), 1, MapForm(1, (4, 8))),
        (nn.Conv2d(3, 8, 3, 1, 0), (3, 8, 8), 0, MapForm(0, (6, 6))),
        (
            nn.Conv2d(3, 8, (1, 3), 1, 0),
            (3, 8, 8),
            0,
            "the 48 tokens that the last block attends to are not a grid over 8 x 8 pixels",
        ),
    ],
    ids=["patches", "oblong patches", "several tokens", "overlapping", "a stem", "no grid"],
)
def test_tokens_are_laid_over_the_image(layer, size, extra, form):
    opened = open_attention(attending(layer, size, extra))
    assert (opened.form, opened.drop_first) == (form, bool(extra))


def test_the_network_itself_stays_as_it_is():
    teacher = tiny_transformer(SIZE)
    before = teacher.digest()
    outputs, values = open_attention(teacher).network(torch.zeros(3, *SIZE))
    torch.testing.assert_close(outputs, teacher.module(torch.zeros(3, *SIZE)))
    assert [tuple(value.shape) for value in values] == [(3, 2, 17, 4), (3, 2, 17, 4), (3, 2, 17, 17)]
    assert teacher.digest() == before


def test_fused_attention_of_both_libraries_is_opened():
    timm = pytest.importorskip("timm", reason="one of the networks is timm's")
    of_timm = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4)
    of_torchvision = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
    for module in (of_timm, of_torchvision):
        opened = open_attention(pretrained(module, (3, 32, 32)))
        assert (len(opened.blocks), opened.drop_first, opened.form) == (2, True, MapForm(1, (4, 4)))


def test_a_network_without_attention_says_so():
    lack = "it needs attention that capture takes apart, softmax and product with the values, and _TinyNet has none"
    assert open_attention(tiny_teacher_without_bn(SIZE)) == lack


def test_a_network_with_batch_normalisation_is_not_opened():
    why = open_attention(tiny_teacher(SIZE))
    assert why.startswith("_TinyNet has batch normalisation: the distance from its statistics is measured")


def test_a_network_that_is_no_graph_says_why():
    branching = from_forward(lambda net, x: net.layer(x) if x.sum() > 0 else x, layer=nn.Conv2d(3, 3, 1))
    assert open_attention(pretrained(branching)).startswith("it needs the network as a graph: ")
