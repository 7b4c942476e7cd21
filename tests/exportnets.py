"""Small networks, each with something that an exported file has to get right, and students of them."""

import fcntl
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from networks import from_forward
from torch import nn
from torch.nn import functional
from transformernets import FORMS
from transformernets import pretrained as transformer

from zsqbench import CalibrationSet, Pretrained
from zsqbench.export import exporting
from zsqbench.export.comparison import check
from zsqbench.export.integers import with_integer_biases
from zsqbench.export.options import ExportOptions
from zsqbench.plugins import load_plugins
from zsqbench.quant import finalize
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context

SIZE = (3, 8, 8)
EVEN = ((0.4,) * 3, (0.25,) * 3)
"""Mean and deviation of all channels alike: the codes of the image are its pixels."""
UNEVEN = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def straight():
    """Convolution, depthwise and strided ones with ReLU, a mean over height and width, a linear layer."""

    def forward(net, x):
        x = net.stem_norm(net.stem(x)).relu()
        x = net.deep_norm(net.deep(x)).relu()
        return net.head(net.last(x).relu().mean((2, 3)))

    return from_forward(
        forward,
        stem=nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(8),
        deep=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        deep_norm=nn.BatchNorm2d(8),
        last=nn.Conv2d(8, 12, 1),
        head=nn.Linear(12, 5),
    )


def bounded():
    """Two ReLU6 whose grids end below 6 and above it, a residual addition, adaptive pooling, and no bias at the end."""

    def forward(net, x):
        low = functional.relu6(net.low(x))
        high = functional.relu6(net.high(40 * low))
        y = net.same(high) + high
        return net.head(net.pool(y).flatten(1))

    return from_forward(
        forward,
        low=nn.Conv2d(3, 6, 3, padding=1),
        high=nn.Conv2d(6, 6, 1),
        same=nn.Conv2d(6, 6, 3, padding=1),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Linear(6, 4, bias=False),
    )


def gated():
    """Hard-swish, and a gate that squeezes and excites, with the mean's dimensions kept.

    Two channels of `last` have weights of next to nothing beside biases that are large.
    """

    def forward(net, x):
        y = functional.hardswish(net.stem(x))
        y = y * net.excite(net.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return net.head(net.pool(net.last(y)).flatten(1))

    net = from_forward(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        squeeze=nn.Conv2d(8, 4, 1),
        excite=nn.Conv2d(4, 8, 1),
        last=nn.Conv2d(8, 8, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Linear(8, 4),
    )
    net.last.weight[3:5] *= 1e-12
    net.last.bias[3:5] = torch.tensor([1.5, -0.7])
    return net


def moving():
    """Zero padding of both kinds, max-pooling, split, chunk, slices, channel shuffle and concatenation.

    Behind them are a convolution along a line, and linear layers on tensors of three dimensions.
    """

    def forward(net, x):
        x = net.stem(net.zero(x)).relu()
        left, right = x.chunk(2, 1)
        right = net.right(functional.pad(right, (1, 1, 1, 1))).relu()
        x = torch.cat([left, right], 1)
        x = x.view(-1, 2, 4, 8, 8).transpose(1, 2).flatten(1, 2)
        one, two = x.split([3, 5], 1)
        x = functional.max_pool2d(net.one(one).relu(), 2) + functional.max_pool2d(net.two(two), 2)
        x = net.line(x[:, :, 1:].flatten(2)).relu()
        x = net.first(x.transpose(1, 2)).relu()
        return net.second(x)[:, 0]

    return from_forward(
        forward,
        zero=nn.ZeroPad2d((0, 1, 0, 1)),
        stem=nn.Conv2d(3, 8, 2),
        right=nn.Conv2d(4, 4, 3),
        one=nn.Conv2d(3, 4, 3, padding=1),
        two=nn.Conv2d(5, 4, 3, padding=1),
        line=nn.Conv1d(4, 6, 3, padding=1),
        first=nn.Linear(6, 8),
        second=nn.Linear(8, 5, bias=False),
    )


def shared():
    """A head that two levels share, and outputs in a dictionary that holds a tuple.

    One of them is made by transposed convolutions with and without groups, nearest and bilinear upsampling.
    """

    def forward(net, x):
        fine = net.stem(x).relu()
        coarse = net.down(fine).relu()
        heads = [net.tower(level).relu() for level in (fine, coarse)]
        scores = torch.cat([net.score(head).flatten(2) for head in heads], 2)
        mask = net.up(coarse).relu() + functional.interpolate(coarse, scale_factor=2, mode="nearest")
        mask = functional.interpolate(net.grouped(mask), size=(20, 20), mode="bilinear", align_corners=False)
        return {"scores": scores.sigmoid(), "boxes": tuple(net.box(head) for head in heads), "mask": net.last(mask)}

    return from_forward(
        forward,
        stem=nn.Conv2d(3, 4, 3, padding=1),
        down=nn.Conv2d(4, 4, 3, 2, padding=1),
        tower=nn.Conv2d(4, 4, 3, padding=1),
        score=nn.Conv2d(4, 2, 1),
        box=nn.Conv2d(4, 4, 1),
        up=nn.ConvTranspose2d(4, 4, 2, stride=2),
        grouped=nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        last=nn.Conv2d(4, 2, 1),
    )


NETWORKS = {function.__name__: function for function in (straight, bounded, gated, moving, shared)}


def pretrained(name, feeding=EVEN):
    """A network of random weights whose norms have seen valid pixels, or a transformer."""
    if name in FORMS:
        return transformer(name)
    torch.manual_seed(0)
    module = NETWORKS[name]()
    found = Pretrained(module, SIZE, *feeding)
    module.train()
    with torch.no_grad():
        for seed in range(20):
            module(images(found, seed=seed))
        outputs = module.eval()(images(found))
    if isinstance(outputs, torch.Tensor):
        return Pretrained(module, SIZE, *feeding, classes=outputs.shape[1] if outputs.dim() == 2 else None)
    return found


def pixels(count=16, size=SIZE, seed=0):
    """Valid pixels as bytes [N, C, H, W]: noise over a gradient, so that channels and places differ."""
    generator = torch.Generator().manual_seed(seed)
    steep = torch.rand(count, size[0], 1, 1, generator=generator) * torch.linspace(0, 1, size[2])
    noise = torch.rand(count, *size, generator=generator)
    return (255 * (0.6 * noise + 0.4 * steep)).to(torch.uint8)


def images(of, count=16, seed=0):
    """The same as a network is fed them."""
    low, high = of.valid_range()
    return low + (high - low) * pixels(count, of.input_size, seed) / 255


SMALL = {"input": "uint8", "weights": "int4"}
"""Options of files that take pixels, with weights of four bits."""


@dataclass(frozen=True)
class Exported:
    """A file, the student that it was made of, and that student on the file's biases."""

    of: Pretrained
    scheme: str
    quantizer: str
    place: Path
    """The folder of the file, which all processes of a run of pytest share."""
    options: Mapping[str, object]

    @functools.cached_property
    def student(self):
        """The student, which is the same each time that it is made."""
        return student_of(self.of, self.scheme, self.quantizer)

    @functools.cached_property
    def integer(self):
        """That student on the file's biases."""
        return with_integer_biases(self.student)

    @functools.cached_property
    def file(self):
        """What the exporter told of the file, which the first process that asks makes."""
        path, told = self.place / "model.onnx", self.place / "told.json"
        with (self.place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not told.is_file():
                options = ExportOptions(**self.options)
                made = exporting.export_student(self.student, exporting.Description(self.of), path, options)
                told.write_text(json.dumps([dict(made.outputs), list(made.notes)]), encoding="utf-8")
        return exporting.Exported(path, *json.loads(told.read_text(encoding="utf-8")))

    @property
    def path(self):
        """The file."""
        return self.file.path

    def graph(self):
        """Its operators, anew."""
        return ir.load(self.path).graph

    def check(self, path=None, count=16):
        """The findings of a comparison of it, or of another file."""
        return check(path or self.path, self.student, self.integer, images(self.of, count), self.of)


def student_of(of, scheme, quantizer="rtn", **options):
    """A finalized student."""
    scheme = parse_scheme(scheme)
    method = load_plugins().find("quantizer", quantizer).method(**options).resolved(of, scheme)
    assert method.rejects(scheme) is None
    student = method.make_student(of, scheme)
    data = CalibrationSet(images(of, 32, seed=7)) if method.needs_images else None
    method.quantize(student, of, data, context(scheme=scheme))
    finalize(student)
    return student


FILES: list[Path] = []
"""The one folder of all files; tests/export/conftest.py names it."""


@functools.cache
def exported(name, scheme, quantizer="rtn", feeding=EVEN, **options):
    """A network as a file, made once in a run of pytest, by one of its processes; it is not to be changed."""
    (folder,) = FILES
    place = folder / re.sub(r"\W+", "_", f"{name} {scheme} {quantizer} {feeding} {sorted(options.items())}")
    place.mkdir(parents=True, exist_ok=True)
    return Exported(pretrained(name, feeding), scheme, quantizer, place, options)
