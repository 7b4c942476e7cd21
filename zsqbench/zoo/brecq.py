"""The ImageNet networks of BRECQ's release (yhhhli/BRECQ, v1.0), which DGH's numbers start from, too.

Tensors have the names that they have in its models/resnet.py and models/mobilenetv2.py, and so in the published files.
What is computed is torchvision's: the ResNets stride in the 3x3 convolution, and differ in that each ReLU is a module
of its own; MobileNetV2 has all layers of a block in one sequence, and no dropout.
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
