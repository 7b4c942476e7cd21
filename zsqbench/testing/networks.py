"""Tiny networks with seeded random weights and believable BN statistics, one for each way that networks are built."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.methods import Detection, Pretrained


class _TinyNet(nn.Module):
    """Convolutions with batch normalisation, a residual sum, a depthwise convolution, pooling and a classifier."""

    def __init__(self, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = input_size[0]
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.classifier = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = torch.relu(self.inner(features) + features)
        logits: Tensor = self.classifier(self.depthwise(features).mean((2, 3)))
        return logits


class _BranchNet(nn.Module):
    """Two branches with SiLU, one of them residual, concatenated, as detectors have them; then a classifier."""

    def __init__(self, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = input_size[0]

        def layer(width: int, out: int, side: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(width, out, side, stride, padding=side // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(out), nn.SiLU())

        self.stem = layer(channels, 8, 3)
        self.left, self.right, self.inner = layer(8, 4, 1), layer(8, 4, 1), layer(4, 4, 3)
        self.join = layer(8, 8, 3, stride=2)
        self.classifier = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        left, right = self.left(features), self.right(features)
        features = self.join(torch.cat([left + self.inner(left), right], 1))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class _DecoderNet(nn.Module):
    """An encoder, a transposed convolution back to the image's size, and a convolution along columns; a classifier."""

    def __init__(self, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = input_size[0]
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.line = nn.Sequential(nn.Conv1d(8, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4))
        self.classifier = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        decoded = self.up_norm(self.up(self.down(features), output_size=images.shape[-2:])).clamp(min=0) + features
        line = torch.maximum(self.line(decoded.amax(3)), decoded.new_zeros(()))
        logits: Tensor = self.classifier(torch.cat([decoded.mean((2, 3)), line.mean(2)], 1))
        return logits


class _Block(nn.Module):
    """Attention and an MLP, each behind a layer normalisation and added to what came before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        rows, count, width = tokens.shape
        joined = self.qkv(self.norm(tokens)).reshape(rows, count, 3, self.heads, width // self.heads)
        queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (queries @ keys.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        tokens = tokens + self.proj((weights @ values).transpose(1, 2).reshape(rows, count, width))
        mixed: Tensor = tokens + self.mlp(tokens)
        return mixed


class _TokenNet(nn.Module):
    """A vision transformer of 4 x 4 patches behind a class token."""

    def __init__(self, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_size
        self.patches = nn.Conv2d(channels, 8, (height // _CUTS, width // _CUTS), (height // _CUTS, width // _CUTS))
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 1 + _CUTS**2, 8))
        self.blocks = nn.Sequential(_Block(8, 2), _Block(8, 2))
        self.norm, self.classifier = nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens))[:, 0])
        return logits


class _WindowNet(nn.Module):
    """A transformer that looks within four windows of 2 x 2 patches, without a class token."""

    def __init__(self, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_size
        self.patches = nn.Conv2d(channels, 8, (height // _CUTS, width // _CUTS), (height // _CUTS, width // _CUTS))
        self.block, self.norm, self.classifier = _Block(8, 2), nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        half = _CUTS // 2
        cut = self.patches(images).reshape(images.shape[0], 8, 2, half, 2, half).permute(0, 2, 4, 3, 5, 1)
        tokens = self.block(cut.reshape(4 * images.shape[0], half * half, 8)).reshape(
            images.shape[0], 4 * half * half, 8
        )
        logits: Tensor = self.classifier(self.norm(tokens).mean(1))
        return logits


_CUTS = 4
"""Patches along each side of the image in the tiny transformers."""


def tiny_teacher(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> Pretrained:
    """The network with plain BN: a residual sum, a depthwise convolution, ReLU and ReLU6."""
    return _pretrained(_TinyNet, input_size, classes)


def tiny_teachers(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> dict[str, Pretrained]:
    """The networks that a method has to work on, by what is special about them."""
    frozen = tiny_teacher(input_size, classes)
    _replace_norms(frozen.module, _frozen)
    return {
        "plain BN": tiny_teacher(input_size, classes),
        "FrozenBN": frozen,
        "residual, concat and SiLU": _pretrained(_BranchNet, input_size, classes),
        "transposed and 1-d convolutions": _pretrained(_DecoderNet, input_size, classes),
    }


def tiny_teacher_without_bn(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> Pretrained:
    """The network of `tiny_teacher` without its batch normalisation."""
    teacher = tiny_teacher(input_size, classes)
    _replace_norms(teacher.module, _identity)
    return teacher


def tiny_transformer(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> Pretrained:
    """A vision transformer with a class token, whose attention is written out; it has no batch normalisation."""
    return _pretrained(_TokenNet, input_size, classes)


def tiny_transformers(input_size: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> dict[str, Pretrained]:
    """The networks that a method has to work on that looks at attention, by what is special about them."""
    return {
        "a class token": tiny_transformer(input_size, classes),
        "windows": _pretrained(_WindowNet, input_size, classes),
    }


def _pretrained(
    build: Callable[[tuple[int, int, int], int], nn.Module], input_size: tuple[int, int, int], classes: int
) -> Pretrained:
    channels = input_size[0]
    return Pretrained(
        copy.deepcopy(_trained(build, input_size, classes)),
        input_size,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        classes=classes,
        detection=Detection(tuple(range(1, classes + 1)), _boxes_loss, _boxes),
    )


def _boxes_loss(raw: Tensor, _: object, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Of a classifier that is taken for a detector: cross-entropy of its logits [N, classes] with labels 1, 2, ...

    So methods that train on boxes are checked on the networks of all others.
    """
    owners = [number for number, each in enumerate(targets) for _ in each["labels"]]
    if not owners:
        return 0 * raw.float().sum()
    return functional.cross_entropy(raw.float()[owners], torch.cat([each["labels"] for each in targets]) - 1)


def _boxes(raw: Tensor, size: tuple[int, int], score: float, _: float) -> list[dict[str, Tensor]]:
    """A box in the middle of an image for each class whose probability is above the score."""
    height, width = size
    middle = torch.tensor([0.25, 0.25, 0.75, 0.75]) * torch.tensor([width, height, width, height])
    found = []
    for probabilities in raw.float().softmax(1).cpu():
        labels = (probabilities > score).nonzero().flatten()
        found.append({"boxes": middle.expand(len(labels), 4), "scores": probabilities[labels], "labels": labels + 1})
    return found


@cache  # a check needs each network some ten times
def _trained(
    build: Callable[[tuple[int, int, int], int], nn.Module], input_size: tuple[int, int, int], classes: int
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build(input_size, classes)
        for _ in range(20):  # running statistics of what the network computes on noise
            module(torch.randn(32, *input_size))
    return module.eval().requires_grad_(False)


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    frozen: nn.Module = FrozenBatchNorm2d(norm.num_features, eps=norm.eps).eval()
    frozen.load_state_dict({name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"})
    return frozen


def _identity(_: nn.BatchNorm2d) -> nn.Module:
    return nn.Identity().eval()


def _replace_norms(module: nn.Module, replace: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for path, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            module.set_submodule(path, replace(part))
