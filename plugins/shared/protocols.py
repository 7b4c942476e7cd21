"""Values of released training code, by data set, that several methods share."""

from collections.abc import Mapping
from typing import Any

_HAST_CIFAR: Mapping[str, Any] = {
    "epochs": 147,
    "batch_size": 256,
    "lr": 1e-5,
    "milestones": [16, 36, 56],
    "weight_decay": 1e-4,
    "alpha": 20.0,
}
_IMAGENET: Mapping[str, Any] = {**_HAST_CIFAR, "batch_size": 16, "lr": 1e-6, "milestones": [96]}
_INTRAQ_CIFAR: Mapping[str, Any] = {**_HAST_CIFAR, "lr": 1e-4}

HAST_PROTOCOL: Mapping[str, Mapping[str, Any]] = {
    "cifar10": _HAST_CIFAR,
    "cifar100": _HAST_CIFAR,
    "imagenet": _IMAGENET,
}
"""Training of students in HAST's tables, from the settings of its code."""

RELEASED_PROMOTION: Mapping[str, Any] = {"alignment_weight": 1000.0, "epsilon": 0.01}
"""The values of the parser of HAST's code for all data sets. SynQ's parser took them over."""

HAST_PROMOTION: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {**_HAST_CIFAR, **RELEASED_PROMOTION},
    "cifar100": {**_HAST_CIFAR, "alignment_weight": 2000.0, "epsilon": 0.02},
    "imagenet": {**_IMAGENET, "alignment_weight": 4000.0, "epsilon": 0.01},
}
"""Training of HAST's own students, with the paper's lambda and epsilon."""

INTRAQ_PROTOCOL: Mapping[str, Mapping[str, Any]] = {
    "cifar10": _INTRAQ_CIFAR,
    "cifar100": _INTRAQ_CIFAR,
    "imagenet": _IMAGENET,
}
"""Training of students by IntraQ's code, which differs on CIFAR."""

_GDFQ_CIFAR: Mapping[str, Any] = {
    "epochs": 396,
    "batch_size": 200,
    "lr": 1e-4,
    "milestones": [96, 196, 296],
    "weight_decay": 1e-4,
    "alpha": 1.0,
    "warmup": 800,
}
_GDFQ_IMAGENET: Mapping[str, Any] = {
    **_GDFQ_CIFAR,
    "epochs": 350,
    "batch_size": 16,
    "lr": 1e-6,
    "milestones": [50, 150, 250],
    "warmup": 10_000,
}

GDFQ_PROTOCOL: Mapping[str, Mapping[str, Any]] = {
    "cifar10": _GDFQ_CIFAR,
    "cifar100": _GDFQ_CIFAR,
    "imagenet": _GDFQ_IMAGENET,
}
"""Training by GDFQ's code: 400 epochs. In the first 4 (ImageNet: 50) only the generator learns."""

QIMERA_MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"mixed": 0.4, "mixed_classes": 2, "latent": 64, "embeddings": "random"},
    "cifar100": {"mixed": 0.4, "mixed_classes": 10, "latent": 64, "embeddings": "network"},
    "imagenet": {"mixed": 0.4, "mixed_classes": 500, "latent": 512, "embeddings": "random"},
}
"""Qimera's images of several classes, from its scripts for CIFAR and ResNet-18."""
