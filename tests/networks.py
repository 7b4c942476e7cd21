"""Networks that tests of several files need."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from zsqbench import Pretrained
from zsqbench.quant import finalize
from zsqbench.testing.networks import _Block
from zsqbench.zoo.resnet import CifarResNet


def from_forward(forward, **modules):
    """A module in eval mode with these submodules and this forward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x):
            return forward(self, x)

    return Net().eval().requires_grad_(False)


def called_twice():
    """A network that calls its one layer, `conv`, twice."""
    return from_forward(lambda net, x: net.conv(net.conv(x).relu()), conv=nn.Conv2d(3, 3, 3, padding=1))


def state_of(student):
    """The artifact of a student, which stays as it is."""
    kept = copy.deepcopy(student)
    finalize(kept)
    return kept.state_dict()


def same(first, second):
    """True if two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Cifar:
    """The published CIFAR-10 ResNet-20 with the 846 lossless test images beside the checkout; skips without them."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, checkout):
        data = checkout.parent / "shared" / "data"
        if not data.is_dir():
            pytest.skip("no CIFAR-10 images beside this checkout")
        module = CifarResNet(20).eval().requires_grad_(False)
        module.load_state_dict(load_file(data / "models" / "resnet20_cifar10.safetensors"), strict=False)
        self.teacher = Pretrained(module, (3, 32, 32), self.mean, self.std, classes=10)
        classes = sorted((data / "cifar10" / "test").iterdir())
        files = [(file, label) for label, folder in enumerate(classes) for file in sorted(folder.iterdir())]
        self.images = self.read(file for file, _ in files)
        self.labels = torch.tensor([label for _, label in files])
        self.train_files = sorted((data / "cifar10" / "train").glob("*/*.png"))

    def read(self, files):
        """Images of these files as the network takes them."""
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
        return ((pixels / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(0, 3, 1, 2).contiguous()

    def right(self, module):
        """How many of the test images a network classifies right."""
        with torch.no_grad():
            outputs = torch.cat([module(batch) for batch in self.images.split(128)])
        return int((outputs.argmax(1) == self.labels).sum())


def detector():
    """A detector with two levels of a pyramid, a head that they share, and outputs that it decodes."""

    def forward(net, x):
        fine = net.norm(net.stem(x)).relu()
        levels = [fine, net.down(fine).relu()]
        heads = [net.tower(level).relu() for level in levels]
        scores = torch.cat([net.score(head).flatten(2) for head in heads], 2).sigmoid()
        boxes = torch.cat([net.box(head).flatten(2) for head in heads], 2)
        return {"scores": scores, "boxes": boxes}

    return from_forward(
        forward,
        stem=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        down=nn.Conv2d(4, 4, 3, 2, padding=1),
        tower=nn.Conv2d(4, 4, 3, padding=1),
        score=nn.Conv2d(4, 2, 1),
        box=nn.Conv2d(4, 4, 1),
    )


class GoldenViT(nn.Module):
    """The network of the golden vectors: pre-norm blocks, a class token, the weights' names those of timm."""

    def __init__(self, stored):
        super().__init__()
        self.width, self.depth, self.heads = (int(stored[f"_{name}"]) for name in ("embed_dim", "depth", "num_heads"))
        self.patches = nn.Conv2d(3, self.width, int(stored["_patch_size"]), int(stored["_patch_size"]))
        self.cls_token, self.pos_embed = (
            nn.Parameter(stored_tensor(stored, name)) for name in ("cls_token", "pos_embed")
        )
        eps = float(stored["_ln_eps"])
        self.blocks = nn.ModuleList([self.block(stored, f"blocks.{number}.", eps) for number in range(self.depth)])
        self.norm, self.head = nn.LayerNorm(self.width, eps), nn.Linear(self.width, int(stored["_num_classes"]))
        _take(stored, {"patch_embed.proj.": self.patches, "norm.": self.norm, "head.": self.head})

    def block(self, stored, at, eps):
        block = _Block(self.width, self.heads)
        block.norm.eps = block.mlp[0].eps = eps
        norm, first, _, second = block.mlp
        names = {"norm1.": block.norm, "attn.qkv.": block.qkv, "attn.proj.": block.proj, "norm2.": norm}
        _take(stored, {at + name: part for name, part in (names | {"mlp.fc1.": first, "mlp.fc2.": second}).items()})
        return block

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), tokens], 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


def stored_tensor(stored, name):
    """An array of golden vectors, in float64."""
    return torch.from_numpy(np.asarray(stored[name])).double()


def _take(stored, parts):
    for at, part in parts.items():
        part.weight, part.bias = (nn.Parameter(stored_tensor(stored, at + name)) for name in ("weight", "bias"))
