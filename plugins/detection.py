"""Object detection on data in COCO's format, measured by COCOeval's box figures from pycocotools."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.zoo import digits, scenes
from zsqbench.zoo.coco import LOW, BoxesAlone, Detections, coco_evaluation
from zsqbench.zoo.imagefiles import NOT_TURNED, eight_bit, is_turned, open_image
from zsqbench.zoo.images import EXTENSIONS, draw, overlap
from zsqbench.zoo.instances import ImageFile, Instances
from zsqbench.zoo.models import EMBEDDED_DETECTOR, SCENE_DETECTOR, TORCHVISION, Feeding, Weights

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from zsqbench.zoo.detectors import Detector, Found

_RESIZING = frozenset({"resize", "crop", "crop_mode", "classes"})
_VALUES = frozenset({"mean", "std", "channels", "value_range"})
_UNUSED = {"file": _RESIZING, TORCHVISION: _RESIZING | _VALUES, EMBEDDED_DETECTOR: _RESIZING | _VALUES | {"input_size"}}
"""Fields of a model that have no effect, by the origin of the model."""

PICTURED, SHOWN, SHOWN_SCORE = 4, 20, 0.3
"""Images of a picture, largest number of boxes of each, and smallest score of a box."""


class COCODetection(zsqbench.Task):
    """Mean average precision of a detector, in percent. Images that are evaluated are never handed out for calibration.

    `coco` is a folder of images and an instances JSON in COCO's format, laid out as val2017 by default. Categories keep
    their numbers, with gaps, and images without annotations count. `scenes` are embedded: coloured digits on 96 x 96
    pixels. Detectors are torchvision's one-stage detectors, the embedded `scenedetector`, or a user's file with
    `build`, `preprocess` and `postprocess`. The file also has `training_loss` for methods that train on boxes.
    Calibration images come from another folder (`calibration`), or from a part of the images that is then not evaluated
    (`holdout`). They are resized to the size in which generators make images. Backbone, pyramid and heads are
    quantized. Resizing, anchors, decoding and suppression of overlapping boxes stay float.
    """

    name: ClassVar[str] = "coco_detection"
    version: ClassVar[int] = 3
    metric: ClassVar[str] = "mAP"
    # The files and the split that these options lead to are in the identity by content.
    execution_options: ClassVar[frozenset[str]] = frozenset(
        {"root", "images", "annotations", "calibration", "holdout", "split_seed"}
    )
    memory_options: ClassVar[tuple[str, ...]] = ("batch_size",)

    data: Literal["coco", "scenes"] = Field("coco", description="kind of data")
    root: Path = Field(Path("coco"), description="folder of the data, under the data root")
    images: Path = Field(Path("val2017"), description="folder of the images, in the folder of the data")
    annotations: Path = Field(
        Path("annotations/instances_val2017.json"), description="the instances JSON, in the folder of the data"
    )
    calibration: Path | None = Field(None, description="another folder of images under the data root, for calibration")
    holdout: int = Field(0, ge=0, description="number of images that are for calibration and are not evaluated")
    split_seed: int = Field(0, description="seed of the choice of held-out images")
    batch_size: int = Field(8, gt=0, description="images evaluated at a time, where they have the same size")

    @model_validator(mode="after")
    def _calibrates_on_one_thing(self) -> "COCODetection":
        if self.calibration is not None and self.holdout:
            raise ValueError("give 'calibration' (another folder) or 'holdout' (a part of this one), not both")
        fields = type(self).model_fields
        where = ("root", "images", "annotations", "calibration", "holdout")
        changed = [name for name in where if getattr(self, name) != fields[name].default]
        if self.data == "scenes" and changed:
            raise ValueError(f"data: scenes is embedded, with a part to calibrate on, and has no {changed[0]!r}")
        return self

    def find_data(self, data_root: Path | None) -> zsqbench.DataFiles:
        """The files of both parts. Raises ZSQBenchError for a folder or annotations that are absent.

        Damaged annotations or images raise no error here, because only cells that evaluate them should fail. They are
        found during evaluation.
        """
        if self.data == "scenes":  # identity: the digits and their places; the files are made on demand
            made_of = {digits.FILE.name: digits.FILE}
            return zsqbench.DataFiles(
                made_of, made_of, {"scenes": scenes.VERSION}, (digits.FILE,), samples=scenes.EVALUATED
            )
        root, annotations, elsewhere = self._places(data_root)
        folders = [root, root / self.images, annotations, *([elsewhere] if elsewhere else [])]
        try:
            found = self._find_coco(data_root)
        except ZSQBenchError:
            return zsqbench.DataFiles({annotations.name: annotations}, {}, folders=folders)
        evaluated = {annotations.name: annotations} | {image.name: path for image, path in found.evaluated}
        split = {"holdout": self.holdout, "split_seed": self.split_seed} if self.holdout else {}
        count = len(found.evaluated)
        return zsqbench.DataFiles(evaluated, dict(found.calibration), split, folders, found.absent, samples=count)

    def find_model(self, model: zsqbench.ModelSpec) -> Mapping[str, Path]:
        """The model file and the weights file, where they exist. Raises ZSQBenchError for an unknown name."""
        files = {} if model.file is None else {"file": model.file}
        if model.file is None and model.base != EMBEDDED_DETECTOR and not (model.base or "").startswith(TORCHVISION):
            raise ZSQBenchError(
                f"model {model.base!r} is not a known detector; expected {EMBEDDED_DETECTOR}, {TORCHVISION}NAME, "
                f"such as {TORCHVISION}ssdlite320_mobilenet_v3_large, or a file of your own"
            )
        given = {name for name, value in model if value is not None}
        source = "file" if model.file else EMBEDDED_DETECTOR if model.base == EMBEDDED_DETECTOR else TORCHVISION
        ignored = sorted(given & _UNUSED[source])
        if ignored:
            raise ZSQBenchError(
                f"model {model.name!r} is a detector that brings its own preprocessing: {ignored[0]!r} has no effect"
            )
        weights = model.weights_from
        if weights is None and model.base == EMBEDDED_DETECTOR:
            weights = SCENE_DETECTOR
        return files | ({"weights": weights} if isinstance(weights, Path) else {})

    def load(self, model: zsqbench.ModelSpec, ctx: zsqbench.StepContext) -> zsqbench.Pretrained:
        """Build the detector and run it on a black image. Raises ZSQBenchError if that or tracing fails."""
        from zsqbench.quant import capture, output_layers

        detector = _detector(model, model.weights_to_load(ctx.note))
        feeding = detector.feeding
        _try(detector, model.name)
        layers = tuple(output_layers(capture(detector.module, feeding.input_size)))
        return zsqbench.Pretrained(
            module=detector.module,
            input_size=feeding.input_size,
            mean=feeding.mean,
            std=feeding.std,
            value_range=feeding.value_range,
            outputs=layers,
            output_layers=layers,
            preprocessing={"channels": feeding.channels},
            architecture=model.base,
            decoding=detector,
            detection=detector.detection,
        )

    def evaluate(
        self, module: "nn.Module", pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.Evaluation:
        """COCOeval's twelve figures, from all images and all boxes that the detector finds in them.

        Raises ZSQBenchError for damaged data, and for boxes of which none has a category of the data.
        """
        import numpy as np
        import torch

        found, detector = self._find(ctx), cast("Detector", pretrained.decoding)
        evaluated = [image for image, _ in found.evaluated]
        rows: list[tuple[int, Found]] = []
        turned = 0
        with torch.no_grad():
            for batch in self._batches(found, detector):
                turned += sum(is_turned(image) for _, image, _ in batch)
                raw = module(torch.stack([tensor for _, _, tensor in batch]).to(ctx.device))
                boxes = detector.postprocess(_on_cpu(raw), [image for _, image, _ in batch])
                rows += zip((entry.id for entry, _, _ in batch), boxes, strict=True)
                ctx.progress(len(rows), len(evaluated))
        if turned:
            ctx.note(NOT_TURNED.format(turned, len(evaluated)))
        detections = Detections.of(rows)
        known = {category.id for category in found.instances.categories}
        seen = set(detections.categories.tolist())
        if seen and not seen & known:
            raise ZSQBenchError(
                f"the detector's labels ({_some(seen)}) are not categories of {found.instances.path} ({_some(known)}): "
                "postprocess must give their numbers as the data has them"
            )
        truth = found.instances.of(evaluated)
        figures, matches = coco_evaluation(truth, detections)
        if self.metric not in figures:
            raise ZSQBenchError(f"{found.instances.path} annotates no box of the {len(evaluated)} evaluated images")
        for note in found.instances.notes:
            ctx.note(note)
        if figures["mAP50"] < LOW and (alone := BoxesAlone.of(truth, detections)).labels_are_chance:
            ctx.note(_of_chance(alone, figures["mAP50"], found.instances.path))
        kept = vars(detections) | {f"matches.{name}": values for name, values in vars(matches).items()}
        resampled = matches.average_precisions(zsqbench.resamples(len(evaluated)))
        return zsqbench.Evaluation(
            {**figures, "samples": len(evaluated)},
            # a resample of few images may have no box to find
            resampled={name: values.tolist() for name, values in resampled.items() if np.isfinite(values).all()},
            tensors={name: torch.from_numpy(values) for name, values in kept.items()},
        )

    def preprocessor(self, pretrained: zsqbench.Pretrained) -> "Callable[[Image], torch.Tensor]":
        """The detector's own preprocessing."""
        detector = cast("Detector", pretrained.decoding)
        return lambda image: detector.preprocess(eight_bit(image))[None]

    def picture(self, module: "nn.Module", pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext) -> "Image":
        """The first evaluated image with the boxes of the float network (left) and of the quantized one."""
        from zsqbench.reports.plots import boxes_side_by_side

        found, detector, rows = self._find(ctx), cast("Detector", pretrained.decoding), []
        names = {category.id: category.name for category in found.instances.categories}
        for _, path in found.evaluated[:PICTURED]:
            image = open_image(path)
            tensor = detector.preprocess(image)[None].to(ctx.device)
            both = [_on_cpu(network(tensor)) for network in (pretrained.module, module)]
            rows.append((image, [_shown(detector.postprocess(raw, [image])[0], names) for raw in both]))
        return boxes_side_by_side(rows)

    def calibration_images(
        self, count: int, seed: int, pretrained: zsqbench.Pretrained, ctx: zsqbench.TaskContext
    ) -> zsqbench.CalibrationSet:
        """A seeded choice, without repetition, of images that are not evaluated.

        Raises ZSQBenchError where there are none.
        """
        import torch

        found = self._find(ctx)
        paths = found.calibration
        if found.absent is not None:
            raise ZSQBenchError(found.absent)
        if not paths:
            raise ZSQBenchError(
                f"{self.root} has no images to calibrate on: set the task's 'calibration' (another folder) or "
                "'holdout' (a number of images of this one)"
            )
        detector, chosen = cast("Detector", pretrained.decoding), draw(list(paths), count, seed)
        images = torch.stack([detector.fit(open_image(paths[name])) for name in chosen])
        source = self.data if self.data == "scenes" else str(self.root)
        provenance = {"source": source, "seed": seed, "images": len(chosen), "available": len(paths)}
        return zsqbench.CalibrationSet(images, provenance=provenance)

    def _places(self, data_root: Path | None) -> tuple[Path, Path, Path | None]:
        """The folder of the data, the annotations, and the other folder to calibrate on, if there is one."""
        if data_root is None:
            raise ZSQBenchError(f"{self.root} needs a data root: give --data-root or set ZSQBENCH_DATA_ROOT")
        root = data_root / self.root
        elsewhere = None if self.calibration is None else data_root / self.calibration
        for what, path in (("folder", root / self.images), ("file", root / self.annotations)):
            if not path.exists():
                raise ZSQBenchError(self._absent(what, path))
        if elsewhere is not None and overlap(elsewhere, root / self.images):
            raise ZSQBenchError(
                f"calibration folder {elsewhere} and evaluated folder {root / self.images} overlap; nothing may be in "
                "both"
            )
        return root, root / self.annotations, elsewhere

    def _absent(self, what: str, path: Path) -> str:
        return f"there is no {what} {path} for task {self.name}; is --data-root (or ZSQBENCH_DATA_ROOT) right?"

    def _find(self, ctx: zsqbench.TaskContext) -> "_FoundImages":
        return _find_scenes(ctx.folder) if self.data == "scenes" else self._find_coco(ctx.data_root)

    def _find_coco(self, data_root: Path | None) -> "_FoundImages":
        root, annotations, elsewhere = self._places(data_root)
        instances = _instances(annotations)
        folder = root / self.images
        there = {image.name: folder / image.name for image in instances.images}
        missing = [path for path in there.values() if not path.is_file()]
        if missing:
            raise ZSQBenchError(
                f"{len(missing)} of the {len(there)} images that {annotations} lists are missing, such as {missing[0]}"
            )
        if self.holdout >= len(there):
            raise ZSQBenchError(f"holdout: {self.holdout} leaves nothing to evaluate of the {len(there)} images")
        held_out = set(draw(list(there), self.holdout, self.split_seed))
        evaluated = tuple((image, there[image.name]) for image in instances.images if image.name not in held_out)
        calibration = {name: path for name, path in there.items() if name in held_out}
        if elsewhere is not None and not elsewhere.exists():
            return _FoundImages(instances, evaluated, {}, self._absent("folder", elsewhere))
        if elsewhere is not None:
            calibration = _list_images(elsewhere)
        shared = {path.resolve() for path in calibration.values()} & {path.resolve() for _, path in evaluated}
        if shared:
            raise ZSQBenchError(
                f"{min(shared)} is evaluated and among the images to calibrate on; no image may be both"
            )
        return _FoundImages(instances, evaluated, calibration)

    def _batches(
        self, found: "_FoundImages", detector: "Detector"
    ) -> "Iterator[list[tuple[ImageFile, Image, torch.Tensor]]]":
        """Batches of consecutive images that have the same size as tensors, up to `batch_size`."""
        batch: list[tuple[ImageFile, Image, torch.Tensor]] = []
        for entry, path in found.evaluated:
            image = open_image(path)
            if image.size != (entry.width, entry.height):
                raise ZSQBenchError(
                    f"image {path} has {image.width} x {image.height} pixels, and its annotations are of "
                    f"{entry.width} x {entry.height}: was it resized, or turned by EXIF?"
                )
            tensor = detector.preprocess(image)
            if batch and (len(batch) == self.batch_size or tensor.shape != batch[0][2].shape):
                yield batch
                batch = []
            batch.append((entry, image, tensor))
        if batch:
            yield batch


@dataclass(frozen=True)
class _FoundImages:
    """The evaluated images with their files, and the images that are not evaluated, by name."""

    instances: Instances
    evaluated: tuple[tuple[ImageFile, Path], ...]
    calibration: Mapping[str, Path]
    absent: str | None = None
    """The reason why there are no calibration images although the task names a folder for them."""


def _find_scenes(folder: Path | None) -> _FoundImages:
    """The embedded data, which is written if it is absent."""
    root = (folder or Path(tempfile.gettempdir()) / "zsqbench") / f"scenes-{scenes.VERSION}"
    if not root.is_dir():
        scenes.write_scenes(root)
    instances = _instances(root / "annotations" / "instances_val.json")
    evaluated = tuple((image, root / "val" / image.name) for image in instances.images)
    return _FoundImages(instances, evaluated, _list_images(root / "train"))


def _instances(path: Path) -> Instances:
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _modified: int, _size: int) -> Instances:
    return Instances.read(path)


def _list_images(folder: Path) -> dict[str, Path]:
    shown = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    found = {path.name: path for path in shown if path.name.lower().endswith(EXTENSIONS)}
    if not found:
        raise ZSQBenchError(f"the calibration folder {folder} holds no images")
    return found


def _detector(model: zsqbench.ModelSpec, weights: Weights | None) -> "Detector":
    from zsqbench.zoo.detectors import named_detector, user_detector

    if model.file is None:
        return named_detector(model.base or "", weights, model.input_size)
    size = model.input_size or (3, 0, 0)  # the spec demands one
    feeding = Feeding(
        size,
        model.mean or (0.0,) * size[0],
        model.std or (1.0,) * size[0],
        channels=model.channels or "rgb",
        value_range=model.value_range or (0.0, 1.0),
    )
    return user_detector(model.file, model.build, weights or "none", feeding)


def _try(detector: "Detector", name: str) -> None:
    """Raise ZSQBenchError where a step from a black image to its boxes fails or gives something else."""
    import torch
    from PIL.Image import new

    image = new("RGB", (96, 64))
    detector.fit(image)
    tensor = detector.preprocess(image)
    try:
        with torch.no_grad():
            raw = detector.module(tensor[None])
    except Exception as error:  # a user's network may fail in any way
        detail = " ".join(str(error).split())
        raise ZSQBenchError(f"model {name!r} fails on an input of {[1, *tensor.shape]}: {detail}") from error
    detector.postprocess(_on_cpu(raw), [image])


def _shown(found: "Found", names: Mapping[int, str]) -> list[tuple[list[float], str]]:
    """The best boxes with their categories."""
    import torch

    order = torch.argsort(found["scores"], descending=True)[:SHOWN]
    best = [index for index in order.tolist() if found["scores"][index] >= SHOWN_SCORE]
    numbers = found["labels"].tolist()
    return [(found["boxes"][index].tolist(), names.get(numbers[index], str(numbers[index]))) for index in best]


def _of_chance(alone: BoxesAlone, map50: float, path: Path) -> str:
    return (
        f"the detector's labels are chance: of the {alone.matched} boxes that it finds, {alone.right} have the right "
        f"one, and mAP50 is {map50:.1f}, but {alone.map50:.1f} where labels do not count; they must be the numbers of "
        f"categories as {path.name} has them (are they off by one?)"
    )


def _on_cpu(raw: Any) -> Any:
    from zsqbench.compat import tree_map

    return tree_map(lambda value: value.float().cpu() if hasattr(value, "cpu") else value, raw)


def _some(numbers: set[int]) -> str:
    shown = ", ".join(map(str, sorted(numbers)[:5]))
    return f"{shown}, ..." if len(numbers) > 5 else shown  # noqa: PLR2004 - a line has room for so many


@zsqbench.hookimpl
def register_tasks() -> list[type[zsqbench.Task]]:
    """Provide `coco_detection`."""
    return [COCODetection]
