"""The ImageNet networks of BRECQ's release (yhhhli/BRECQ, v1.0). DGH's numbers start from them, too.

Tensors have the same names as in its models/resnet.py and models/mobilenetv2.py, and so as in the published files. The
computation is that of torchvision: the ResNets stride in the 3x3 convolution. Differences: each ReLU of the ResNets is
a separate module, and MobileNetV2 has all layers of a block in one sequence and no dropout.
"""

from itertools import chain

from torch import nn


def build(name: str, classes: int) -> nn.Module:
    """Build resnet18, resnet50 or mobilenetv2 with random weights."""
    from torchvision import models

    if name != "mobilenetv2":
        return models.get_model(name, weights=None, num_classes=classes)  # type: ignore[no-any-return]
    network = models.mobilenet_v2(weights=None, num_classes=classes, dropout=0.0)
    for block in network.features[1:-1]:  # [[conv, bn, relu], ..., conv, bn]
        parts = (part if isinstance(part, nn.Sequential) else (part,) for part in block.conv)
        block.conv = nn.Sequential(*chain.from_iterable(parts))
    return network  # type: ignore[no-any-return]
