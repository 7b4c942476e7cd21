"""Detectors in three parts: preprocessing of an image, the network that is quantized, and postprocessing to boxes.

There are the one-stage detectors of torchvision, each with its own preprocessing, the embedded detector, and detectors
from a file of the user.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from zsqbench.compat import tree_leaves, with_children
from zsqbench.errors import ZSQBenchError, unknown
from zsqbench.zoo.detection import Detection, Size
from zsqbench.zoo.digits import CLASSES
from zsqbench.zoo.libraries import download
from zsqbench.zoo.models import EMBEDDED_DETECTOR, SCENE_DETECTOR, TORCHVISION, Feeding, Weights
from zsqbench.zoo.scenes import SIDE
from zsqbench.zoo.userfile import UserFile
from zsqbench.zoo.weights import build_network

if TYPE_CHECKING:
    from PIL.Image import Image

Found = Mapping[str, Tensor]
"""The boxes of one image: `boxes` [K, 4] (left, top, right, bottom in pixels of the image), `scores` [K], `labels` [K]
(numbers of categories in the data)."""

SIDES: Mapping[str, int] = {
    "ssdlite320_mobilenet_v3_large": 320,
    "retinanet_resnet50_fpn": 800,
    "retinanet_resnet50_fpn_v2": 800,
    "fcos_resnet50_fpn": 800,
}
"""The detectors of torchvision, and the side of images that are generated for them. It is the shorter side of real
images."""

FROZEN_EPS: Mapping[str, float] = {"retinanet_resnet50_fpn": 0.0, "fcos_resnet50_fpn": 1e-5}
"""Detectors whose published weights have a backbone with FrozenBatchNorm2d, and its eps."""


@dataclass(frozen=True)
class Detector:
    """A detector with frozen weights in eval mode."""

    module: nn.Module
    """The tensor part: images [N, C, H, W] to raw outputs, in any form."""
    feeding: Feeding
    """The values of valid pixels, and the size of images that are generated for it."""
    preprocess: "Callable[[Image], Tensor]"
    """A function that makes an image the network's input, [C, h, w]."""
    postprocess: "Callable[[Any, Sequence[Image]], Sequence[Found]]"
    """A function that makes the boxes of these images from their raw outputs, on the CPU."""
    fit: "Callable[[Image], Tensor]"
    """A function like `preprocess` that gives the size of generated images: [C, H, W]."""
    detection: Detection | None = None
    """Its training loss and its boxes. None: they are not available."""


def is_detector(name: str) -> bool:
    """True if a name is that of a detector, here or in torchvision."""
    return name == EMBEDDED_DETECTOR or (name.startswith(TORCHVISION) and name.removeprefix(TORCHVISION) in SIDES)


def named_detector(name: str, weights: Weights | None, size: tuple[int, int, int] | None = None) -> Detector:
    """`scenedetector` or `torchvision/NAME`, see `scene_detector` and `torchvision_detector`."""
    if name == EMBEDDED_DETECTOR:
        return scene_detector(weights)
    return torchvision_detector(name.removeprefix(TORCHVISION), weights, size)


def torchvision_detector(name: str, weights: Weights | None, size: tuple[int, int, int] | None) -> Detector:
    """A detector of torchvision with published weights (None), weights of a file, or ("none") seeded random weights.

    Raises ZSQBenchError for an unknown name, and for weights that cannot be downloaded or do not fit.
    """
    from torchvision.models import detection, get_model_weights

    if name not in SIDES:
        raise ZSQBenchError(unknown("torchvision detector", name, SIDES))
    if weights is None:
        published = get_model_weights(name).DEFAULT
        trained = functools.partial(getattr(detection, name), weights=published)
        model: Any = build_network(lambda: download(f"torchvision/{name}", trained), "none")
    else:
        model = build_network(lambda: _untrained(name), weights)
    transform = model.transform
    feeding = Feeding(size or (3, SIDES[name], SIDES[name]), tuple(transform.image_mean), tuple(transform.image_std))
    return Detector(
        module=_TensorPart(model.backbone, model.head).eval(),
        feeding=feeding,
        preprocess=lambda image: transform([_as_tensor(image)])[0].tensors[0],
        postprocess=_Decoder(model),
        fit=lambda image: _fitted(image, feeding),
        detection=_detection(name, model),
    )


def scene_detector(weights: Weights | None) -> Detector:
    """The embedded detector, with its own weights (None), weights of a file, or ("none") seeded random weights."""
    from zsqbench.zoo import scenedetector as own

    return Detector(
        module=build_network(own.SceneDetector, weights or SCENE_DETECTOR),
        feeding=Feeding((3, SIDE, SIDE), own.MEAN, own.STD),
        preprocess=own.preprocess,
        postprocess=lambda raw, images: own.postprocess(raw, [(image.height, image.width) for image in images]),
        fit=own.preprocess,
        detection=Detection(tuple(range(1, CLASSES + 1)), own.training_loss, own.detect),
    )


def user_detector(file: Path, build: str, weights: Weights, feeding: Feeding) -> Detector:
    """A detector of the user: a file with `build` (by this name), `preprocess` and `postprocess`.

    If the file has `training_loss`, this computes its training loss, for labels in `LABELS`. Raises ZSQBenchError if a
    required function is missing or fails, or returns a wrong value.
    """
    source = UserFile(file)
    module = source.build(build, weights)
    preprocess, postprocess = source.function("preprocess"), source.function("postprocess")

    def prepared(image: "Image") -> Tensor:
        tensor, channels = preprocess(image.convert("RGB")), feeding.input_size[0]
        fits = isinstance(tensor, Tensor) and tensor.dim() == 3 and len(tensor) == channels  # noqa: PLR2004
        if not fits or not tensor.is_floating_point():
            found = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ZSQBenchError(f"preprocess() of {file} returned {found}; expected a float tensor [{channels}, H, W]")
        return cast("Tensor", tensor)

    def fitted(image: "Image") -> Tensor:
        tensor = prepared(image)
        if tuple(tensor.shape) != feeding.input_size:
            raise ZSQBenchError(
                f"preprocess() of {file} returned {tuple(tensor.shape)}, and the model's input_size is "
                f"{feeding.input_size}"
            )
        return tensor

    def decoded(raw: Any, images: "Sequence[Image]") -> Sequence[Found]:
        found = postprocess(raw, [(image.height, image.width) for image in images])
        _check(found, len(images), file)
        return cast("Sequence[Found]", found)

    return Detector(module, feeding, prepared, decoded, fitted, _user_detection(source, file))


def _user_detection(source: UserFile, file: Path) -> Detection | None:
    """The training loss and boxes of a user's file. None: it has no `training_loss`."""
    if not source.has("training_loss"):
        return None
    loss, postprocess, labels = source.function("training_loss"), source.function("postprocess"), source.value("LABELS")
    if not isinstance(labels, Sequence) or not labels or not all(isinstance(label, int) for label in labels):
        raise ZSQBenchError(
            f"model file {file} has training_loss(), for which it must list the labels of boxes: LABELS = [1, 2, ...]"
        )

    def training_loss(raw: Any, size: Size, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        found = loss(raw, targets, size)
        if not isinstance(found, Tensor) or found.numel() != 1:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ZSQBenchError(f"training_loss() of {file} returned {shape}; expected one number, as a tensor")
        return found.reshape(())

    def decode(raw: Any, size: Size, score: float, _: float) -> Sequence[Found]:
        like = next(iter(_tensors(raw)))
        boxes = postprocess(raw, [size] * len(like))
        _check(boxes, len(like), file)
        return [{name: each[name][each["scores"] > score] for name in ("boxes", "scores", "labels")} for each in boxes]

    return Detection(tuple(labels), training_loss, decode)


def _tensors(raw: Any) -> list[Tensor]:
    return [value for value in tree_leaves(raw) if isinstance(value, Tensor)]


def _check(found: Any, images: int, file: Path) -> None:
    expected = f"{images} mappings with tensors 'boxes' [K, 4], 'scores' [K] and 'labels' [K]"
    if not isinstance(found, Sequence) or len(found) != images or not all(isinstance(each, Mapping) for each in found):
        number = f"{len(found)} of them" if isinstance(found, Sequence) else type(found).__name__
        raise ZSQBenchError(f"postprocess() of {file} returned {number}; expected {expected}")
    for each in found:
        values = {key: each.get(key) for key in ("boxes", "scores", "labels")}
        shapes = {key: tuple(value.shape) if isinstance(value, Tensor) else None for key, value in values.items()}
        count = shapes["scores"][0] if shapes["scores"] else -1
        if shapes != {"boxes": (count, 4), "scores": (count,), "labels": (count,)}:
            raise ZSQBenchError(f"postprocess() of {file} returned {shapes}; expected {expected}")


class _TensorPart(nn.Module):
    """Backbone and heads."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the heads over all levels, [N, anchors, values] each, by name."""
        return self.head(list(self.backbone(images).values()))  # type: ignore[no-any-return]


class _Shell:
    """torchvision's own code around a network. Raw outputs replace the network.

    Anchors need the sizes of the levels. A backbone on the meta device gives them without computing.
    """

    def __init__(self, model: Any, **modules: nn.Module) -> None:
        """Make the code. `modules` replace those of the model."""
        sizes = _Sizes(copy.deepcopy(model.backbone).to("meta"))
        self._given = _Given()
        self._given.compute_loss = getattr(model.head, "compute_loss", None)
        self._model = with_children(model, **{"backbone": sizes, "head": self._given, **modules})


class _Decoder(_Shell):
    """Boxes in real images of any size."""

    def __call__(self, raw: Mapping[str, Tensor], images: "Sequence[Image]") -> Sequence[Found]:
        found = []
        for place, image in enumerate(images):
            self._given.outputs = {name: output[place : place + 1] for name, output in raw.items()}
            found += self._model([_as_tensor(image)])
        return found


class _Trainer(_Shell):
    """Training loss, and boxes in images that are not resized again.

    torchvision computes losses only in train mode. The model that is in train mode here has no layers. So batch
    normalisation and dropout, as in SSDLite, are not affected.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, transform=_AsTheyAre())

    def training_loss(self, raw: Mapping[str, Tensor], size: Size, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The sum of the losses of torchvision."""
        losses = self._run(raw, size, [dict(each) for each in targets])
        return torch.stack(list(losses.values())).sum()

    def decode(self, raw: Mapping[str, Tensor], size: Size, score: float, overlap: float) -> Sequence[Found]:
        """The boxes that torchvision finds with these thresholds."""
        self._model.score_thresh, self._model.nms_thresh = score, overlap
        found: Sequence[Found] = self._run(raw, size, None)
        return found

    def _run(self, raw: Mapping[str, Tensor], size: Size, targets: "list[dict[str, Tensor]] | None") -> Any:
        self._given.outputs = {
            name: output.float() for name, output in raw.items()
        }  # the losses do not work in half precision
        first = next(iter(self._given.outputs.values()))
        images = first.new_zeros(()).expand(len(first), 3, *size)
        self._model.training = targets is not None
        return self._model(images, targets)


class _AsTheyAre(nn.Module):
    """Replaces the module that resizes and normalises images."""

    def forward(self, images: Tensor, targets: Any) -> tuple[ImageList, Any]:
        """The unchanged images, all of one size."""
        return ImageList(images, [(images.shape[2], images.shape[3])] * len(images)), targets

    def postprocess(self, found: Any, *_: object) -> Any:
        """The unchanged boxes, in pixels of the images."""
        return found


def _detection(name: str, model: Any) -> Detection:
    """The loss of torchvision's code. Labels without a category (COCO has ten) do not count."""
    from torchvision.models import get_model_weights

    categories = get_model_weights(name).DEFAULT.meta["categories"]
    labels = [label for label, category in enumerate(categories) if category not in ("__background__", "N/A")]
    trainer = _Trainer(model)
    return Detection(tuple(labels), trainer.training_loss, trainer.decode)


class _Sizes(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self._of = functools.lru_cache(maxsize=256)(lambda shape: self._measure(backbone, shape))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Empty maps with the sizes of the levels."""
        shapes = self._of(tuple(images.shape))
        return OrderedDict((name, images.new_zeros(len(images), 0, *shape)) for name, shape in shapes)

    @staticmethod
    def _measure(backbone: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, int]]]:
        with torch.no_grad():
            levels = backbone(torch.empty(shape, device="meta"))
        return [(name, (level.shape[2], level.shape[3])) for name, level in levels.items()]


class _Given(nn.Module):
    outputs: Mapping[str, Tensor]
    compute_loss: Any
    """The loss of the head. It only needs outputs."""

    def forward(self, *_: Any) -> Mapping[str, Tensor]:
        """The given raw outputs."""
        return self.outputs


def _untrained(name: str) -> nn.Module:
    """The network of published weights, without these weights."""
    from torchvision.models import detection

    model: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None)
    if name in FROZEN_EPS:
        backbone: Any = model.backbone
        for path, norm in list(backbone.body.named_modules()):
            if isinstance(norm, nn.BatchNorm2d):
                backbone.body.set_submodule(path, FrozenBatchNorm2d(norm.num_features, FROZEN_EPS[name]))
    return model


def _as_tensor(image: "Image") -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels.float() / 255


def _fitted(image: "Image", feeding: Feeding) -> Tensor:
    """The image, resized without keeping its proportions, and normalised."""
    from torchvision.transforms.functional import normalize, resize

    resized = resize(_as_tensor(image), list(feeding.input_size[1:]))
    fitted: Tensor = normalize(resized, list(feeding.mean), list(feeding.std))
    return fitted
