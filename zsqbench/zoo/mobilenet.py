"""A small network like MobileNetV2 (Sandler et al., 2018): inverted residuals with linear bottlenecks."""

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """Expand, filter each channel, and project linearly. The input is added if the shape allows it."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = _conv(channels, hidden, kernel=1)
        self.depthwise = _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = _conv(hidden, out_channels, kernel=1, relu=False)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A stem, inverted residuals in stages (channels, blocks, stride of the first), a 1x1 head, a linear classifier."""

    def __init__(
        self,
        stages: tuple[tuple[int, int, int], ...],
        *,
        stem: int,
        head: int,
        expansion: int = 4,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = _conv(in_channels, stem, kernel=3)
        blocks = []
        channels = stem
        for out_channels, count, stride in stages:
            for index in range(count):
                blocks.append(InvertedResidual(channels, out_channels, stride if index == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, head, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to logits [N, classes]."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _conv(
    channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if relu else nn.Sequential(*layers)
