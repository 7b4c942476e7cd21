"""ResNets for small images, as in He et al. (2016, section 4.2) for CIFAR-10, with parameter-free shortcuts.

Parameters have the names of akamaster/pytorch_resnet_cifar10, so that its published weights load unchanged.
"""

from torch import Tensor, nn
from torch.nn import functional

STAGES = 3


class Subsample(nn.Module):
    """The option-A shortcut: every second pixel, and zero channels on both sides up to the new width."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - channels) // 2
        self.after = out_channels - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, out_channels, ceil(H / 2), ceil(W / 2)]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Each activation function is a separate module, so that it has a name."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else Subsample(channels, out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """A network of 6n + 2 layers: a stem, three stages of n blocks at widths w, 2w and 4w, and a linear classifier."""

    def __init__(self, depth: int, width: int = 16, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks = (depth - 2) // (2 * STAGES)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to logits [N, classes]; any H and W."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(blocks: int, channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
