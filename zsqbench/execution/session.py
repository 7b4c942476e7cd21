"""All that a worker keeps from step to step, and all that steps share: plugins, networks, contexts, the store."""

import contextlib
import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zsqbench.errors import DivergedError, OutOfResourcesError, ZSQBenchError, one_line
from zsqbench.execution.isolation import forbid_opening, peak_memory
from zsqbench.execution.reporter import Reporter, dump, kept_epochs, on_cpu, state_of
from zsqbench.methods import (
    CalibrationSet,
    Evaluation,
    Generator,
    Kind,
    Method,
    ModelSpec,
    Pretrained,
    Quantizer,
    Settings,
    StepContext,
    Task,
    TaskContext,
)
from zsqbench.plugins import Catalog, load_plugins
from zsqbench.reports.diagnosis import FILE, IMAGES, PICTURE, PLOTS, REAL_IMAGES, REAL_SEED
from zsqbench.reports.results import environment
from zsqbench.scheme import FLOAT_BITS, Scheme
from zsqbench.store import Store, digest_of, file_digest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

FLOAT_ACCURACY_TOLERANCE = 0.1
"""Percentage points between what a suite says of a float network and what is measured: libraries round otherwise."""

NETWORKS = 4
"""How many networks a worker keeps."""

DATA = "data"
"""The folder of the home that tasks keep what they make in."""

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a step runs: what is the same for all steps of an invocation, but in no identity."""

    home: Path
    data_root: Path | None = None
    plugin_files: tuple[Path, ...] = ()
    plugin_sources: tuple[str | None, ...] = ()
    """Their hashes when the suite was loaded: what runs must be what the keys are made of."""
    without: tuple[str, ...] = ()
    device: str = "auto"


def _identity(job: Mapping[str, Any], pretrained: Pretrained) -> str:
    """What the network is, for the keys of the steps that use it: weights, preprocessing, origin of its code."""
    model = ModelSpec.model_validate(job["model"])
    origin = file_digest(model.file) if model.file else model.base
    return digest_of([pretrained.digest(), origin, model.build])


this_environment = cache(environment)


class Session:
    """What a worker keeps from step to step: plugins, and the networks it loaded last."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.store = Store(place.home)
        self.catalog: Catalog = load_plugins(place.plugin_files, place.without)
        for file, source in zip(place.plugin_files, place.plugin_sources, strict=False):
            if source not in {plugin.source for plugin in self.catalog.plugins}:
                raise ZSQBenchError(f"plugin file {file} was changed during the run; run again")
        self.networks: dict[tuple[str, str, str], Pretrained] = {}

    @cached_property
    def device(self) -> "torch.device":
        """Where steps run."""
        import torch

        if self.place.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.place.device)

    def run(self, job: Mapping[str, Any]) -> None:
        """Do the step and write its artifact."""
        reporter = Reporter(self.store.partial(job["key"]), self._rng(job["seed"]))
        try:
            getattr(self, f"_{job['kind']}")(job, reporter)
        except OutOfResourcesError:
            raise  # the checkpoint stays, to go on from when there is space
        except Exception as error:
            reporter.clear()  # the next attempt starts anew
            curves = reporter.keep_curves()
            if not isinstance(error, DivergedError):
                raise
            kept = {"it is": reporter.keep_last_good(error.state), "its curves are": curves}
            # relative, so that one failure reads the same on all machines
            places = [f"{what} in {path.relative_to(self.place.home)}" for what, path in kept.items() if path]
            raise ZSQBenchError(
                f"{'; '.join([str(error), *places])} of the home folder" if places else str(error)
            ) from error
        reporter.clear()

    # --- the kinds of steps -------------------------------------------------------------------------------------------

    def _resolve(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        from zsqbench.synthesis import batch_norms

        teacher = self._teacher(job)
        facts = {
            "digest": _identity(job, teacher),
            "bn": len(batch_norms(teacher.module)),
            "classes": teacher.classes,
            "parameters": sum(parameter.numel() for parameter in teacher.module.parameters()),
            "random_weights": ModelSpec.model_validate(job["model"]).random_weights,
            "input_size": teacher.input_size,
        }
        self._write(job, reporter, lambda folder: dump(folder / "facts.json", facts))

    def _baseline(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        teacher = self._teacher(job)
        self._measure(job, reporter, teacher.module, teacher, expected=job["model"].get("float_accuracy"))

    def _generate(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        generator = cast("Generator", self._method("generator", job["generator"]))
        ctx = self._context(job, reporter)
        if generator.uses_real_data:
            task, task_context = self._task(job), self._task_context(job, reporter)
            teacher = self._teacher(job)
            ctx.real_images = task.calibration_images(generator.images, job["seed"], teacher, task_context)
        with self._method_call(job, generator) as teacher:
            images = generator.generate(teacher, ctx)
        check_calibration_set(images, teacher, generator.name)
        if not generator.uses_real_data and generator.images not in (None, len(images)):
            raise ZSQBenchError(
                f"generator {generator.name} returned {len(images)} images; expected {generator.images}"
            )
        self._write(job, reporter, lambda folder: images.save(folder / "calibration.safetensors"))

    def _diagnose(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        from zsqbench.reports.plots import GRID_IMAGES, diagnostics_figure, image_grid
        from zsqbench.synthesis import diagnose

        folder = self.store.read("generate", job["needs"]["generate"])
        images = CalibrationSet.load(folder / "calibration.safetensors")
        teacher, task = self._teacher(job), self._task(job)
        real, why = None, f"task {task.name} has no images that it does not evaluate"
        if job["real"]:
            count = min(len(images), REAL_IMAGES)
            real = task.calibration_images(count, REAL_SEED, teacher, self._task_context(job, reporter))
        found = diagnose(teacher, images, real, why).as_data()

        def fill(folder: Path) -> None:
            dump(folder / FILE, {"version": job["version"], "step": job["label"], **found})
            title = job["label"].removeprefix("diagnose ")
            # without the version of matplotlib, so that equal numbers are equal files
            diagnostics_figure(found, title).savefig(folder / PLOTS, metadata={"Software": None})
            channels = teacher.preprocessing.get("channels", "rgb")
            pixels = images.images[:GRID_IMAGES].numpy()
            image_grid(pixels, teacher.mean, teacher.std, teacher.value_range, channels).save(folder / IMAGES)

        self._write(job, reporter, fill)

    def _quantize(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        from safetensors.torch import save_file

        from zsqbench.quant import effective_map, finalize, measured_map

        quantizer, ctx = self._quantizer(job["quantizer"]), self._context(job, reporter)
        ctx.scheme = Scheme.model_validate(job["scheme"])
        data = None
        if "generate" in job["needs"]:
            folder = self.store.read("generate", job["needs"]["generate"])
            data = CalibrationSet.load(folder / "calibration.safetensors")
        if "quantize" in job["needs"]:  # the result that it goes on from
            folder = self.store.read("quantize", job["needs"]["quantize"])
            ctx.start = self._restored(self._prepared(job), folder / MODEL)
        with self._method_call(job, quantizer) as teacher:
            student = self._quantizer(job["prepared_by"]).prepare(teacher, ctx.scheme)
            quantizer.quantize(student, teacher, data, ctx)
        finalize(student)
        state = state_of(student)

        def fill(folder: Path) -> None:
            save_file(state, folder / MODEL)
            for path in reporter.epochs().values():
                shutil.copyfile(path, folder / path.name)  # and not moved: this one may yet fail for want of space
            dump(folder / "tensors.json", measured_map(student))

        tensors = effective_map(student)
        summary = {"hash": digest_of(tensors)} | _count_quantized(tensors)
        self._write(job, reporter, fill, calibrated=None if data is None else len(data), tensors=summary)

    def _evaluate(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        folder = self.store.read("quantize", job["needs"]["quantize"])
        student = self._restored(self._prepared(job), folder / MODEL)
        manifest = self.store.manifest("quantize", job["needs"]["quantize"])
        carried = {name: manifest.get(name) for name in ("calibrated", "tensors")}
        self._measure(job, reporter, student, self._teacher(job), pictured=True, **carried)

    def _oracle(self, job: Mapping[str, Any], reporter: "Reporter") -> None:
        """Measure the student of every kept epoch; which one is best, only the evaluated images can tell."""
        quantizer, teacher, metric = self._quantizer(job["quantizer"]), self._teacher(job), self._task(job).metric
        kept = kept_epochs(self.store.read("quantize", job["needs"]["quantize"]))
        if not kept:
            raise ZSQBenchError(
                f"quantizer {quantizer.name} says that it keeps epochs, and kept none; it must call ctx.keep_epoch, or "
                "its options must leave an epoch to keep"
            )
        prepared = self._prepared(job)
        measured: list[dict[str, Any]] = (reporter.resume() or {"measured": []})["measured"]
        for epoch, path in list(kept.items())[len(measured) :]:
            student = self._restored(copy.deepcopy(prepared), path)
            metrics = _as_numbers(self._evaluation(job, reporter, student, teacher).metrics)
            measured.append({"epoch": epoch, "metrics": metrics})
            reporter.log(metric, metrics[metric], epoch)
            reporter.checkpoint({"measured": measured})
        found = {"metric": metric, "best": _best(measured, metric), "epochs": measured}
        self._write(job, reporter, lambda folder: dump(folder / "oracle.json", found))

    def _prepared(self, job: Mapping[str, Any]) -> "nn.Module":
        """A student as its quantizer prepares it, to load an artifact into; always fp32 and contiguous."""
        quantizer = self._quantizer(job["prepared_by"])
        with self._method_call(job, quantizer, Settings()) as copied:
            return quantizer.prepare(copied, Scheme.model_validate(job["scheme"]))

    def _restored(self, student: "nn.Module", path: Path) -> "nn.Module":
        """The student with what a file holds of one, ready to run."""
        from safetensors.torch import load_file

        from zsqbench.quant import restore

        restore(student, load_file(path))
        return student.to(self.device).eval()

    def _measure(
        self,
        job: Mapping[str, Any],
        reporter: "Reporter",
        module: "nn.Module",
        teacher: Pretrained,
        expected: float | None = None,
        pictured: bool = False,
        **info: Any,
    ) -> None:
        evaluation, metric = self._evaluation(job, reporter, module, teacher), self._task(job).metric
        if expected is not None:
            _check_float_accuracy(job["model"]["name"], metric, float(evaluation.metrics[metric]), expected)

        picture = self._picture(job, reporter, module, teacher) if pictured else None

        def fill(folder: Path) -> None:
            _write_evaluation(folder, evaluation)
            if picture is not None:
                picture.save(folder / PICTURE)

        self._write(job, reporter, fill, **info)

    def _picture(
        self, job: Mapping[str, Any], reporter: "Reporter", module: "nn.Module", teacher: Pretrained
    ) -> "Image | None":
        """What the task draws; that it cannot is no reason to lose what it measured."""
        import torch

        try:
            with torch.no_grad():
                return self._task(job).picture(module, teacher, self._task_context(job, reporter))
        except Exception as error:  # noqa: BLE001 - whatever a task's drawing may raise
            reporter.note(f"there is no picture: {one_line(error)}")
            return None

    def _evaluation(
        self, job: Mapping[str, Any], reporter: "Reporter", module: "nn.Module", teacher: Pretrained
    ) -> Evaluation:
        """What the task measures of a network. Raises ZSQBenchError where that is not what it said it would."""
        import torch

        task = self._task(job)
        with torch.no_grad():
            evaluation = task.evaluate(module, teacher, self._task_context(job, reporter))
        if task.metric not in evaluation.metrics:
            measured = ", ".join(evaluation.metrics) or "nothing"
            raise ZSQBenchError(f"task {task.name} did not measure {task.metric!r}; it measured {measured}")
        predicted, samples = len(evaluation.predictions), len(evaluation.per_sample)
        if predicted and samples and predicted != samples:
            raise ZSQBenchError(f"task {task.name} gave {predicted} predictions of {samples} samples")
        return evaluation

    # --- what they share ----------------------------------------------------------------------------------------------

    def _method(self, kind: Kind, description: Mapping[str, Any]) -> Method:
        method = self.catalog.find(kind, description["method"]).method
        return method.model_validate_json(json.dumps(description["options"]), strict=True)

    def _quantizer(self, description: Mapping[str, Any]) -> Quantizer:
        return cast("Quantizer", self._method("quantizer", description))

    def _task(self, job: Mapping[str, Any]) -> Task:
        return cast("Task", self._method("task", job["task"]))

    def _teacher(self, job: Mapping[str, Any]) -> Pretrained:
        """The network; the last few are kept by what was asked for and by the identity that they had."""
        key = (json.dumps(job["model"]), json.dumps(job["task"]), job["resolved"])
        if job["resolved"] is None or key not in self.networks:
            pretrained = self._load(job)
            identity = _identity(job, pretrained)
            if job["resolved"] not in (None, identity):
                self.store.discard(job["resolve"])
                name = job["model"]["name"]
                raise ZSQBenchError(f"network {name} changed after it was resolved; run again to take it as it is now")
            if len(self.networks) >= NETWORKS:
                del self.networks[next(iter(self.networks))]
            key = (*key[:2], identity)
            self.networks[key] = pretrained
        return self.networks[key]

    def _load(self, job: Mapping[str, Any]) -> Pretrained:
        reporter = Reporter(self.store.partial(job["key"]), self._rng(0))
        pretrained = self._task(job).load(ModelSpec.model_validate(job["model"]), self._context(job, reporter))
        pretrained.module.eval().requires_grad_(False).to(self.device)
        return pretrained

    @contextlib.contextmanager
    def _method_call(
        self, job: Mapping[str, Any], method: Method, settings: Settings | None = None
    ) -> Iterator[Pretrained]:
        """A copy of the teacher for one call, under the settings; an error if the call changes it or opens data."""
        import torch

        original = self._teacher(job)
        settings = settings or Settings.model_validate(job["settings"])
        module = copy.deepcopy(original.module)
        if settings.layout == "channels_last":
            module = module.to(memory_format=torch.channels_last)
        teacher = Pretrained(**(vars(original) | {"module": module}))
        # without its cache, which would go on with the first bf16 copy of whatever the method learns
        is_half = settings.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=is_half, cache_enabled=False)
        watched = [*job["watched"], str((self.place.home / DATA).resolve())]
        with forbid_opening(watched, method.name), autocast:
            yield teacher
        if teacher.digest() != original.digest():
            raise ZSQBenchError(f"{method.kind} {method.name} changed the teacher's weights or buffers; it must not")

    def _rng(self, seed: int) -> "torch.Generator":
        import torch

        return torch.Generator(self.device).manual_seed(seed)

    def _context(self, job: Mapping[str, Any], reporter: "Reporter") -> StepContext:
        settings = Settings.model_validate(job["settings"])
        return StepContext(self.device, job["seed"], reporter.rng, settings, reporter)

    def _task_context(self, job: Mapping[str, Any], reporter: "Reporter") -> TaskContext:
        context = vars(self._context(job, reporter))
        return TaskContext(**context, data_root=self.place.data_root, folder=self.place.home / DATA)

    def _write(self, job: Mapping[str, Any], reporter: "Reporter", fill: Any, **info: Any) -> None:
        """Write the artifact, with the curves that the method logged and its notes."""

        def fill_all(folder: Path) -> None:
            fill(folder)
            if reporter.curves:
                dump(folder / "curves.json", reporter.read_curves())
            if reporter.notes:
                dump(folder / "notes.json", reporter.notes)

        measured = {
            "seconds": time.perf_counter() - reporter.started,
            "peak_memory": peak_memory(self.device),
            "environment": this_environment() | {"device": str(self.device)},
        }
        described = {"kind": job["kind"], "label": job["label"], "job": dict(job), **measured, **info}
        try:
            self.store.write(job["kind"], job["key"], described, fill_all)
        except OSError as error:
            raise OutOfResourcesError(
                f"cannot write to the store {self.store.home}: {error.strerror or error}"
            ) from error
        except Exception as error:
            if "SafetensorError" in type(error).__name__:  # what safetensors makes of a full disk
                raise OutOfResourcesError(f"cannot write to the store {self.store.home}: {error}") from error
            raise


def check_calibration_set(images: object, teacher: Pretrained, name: str) -> None:
    """Raise ZSQBenchError unless this is a calibration set that any quantizer could take."""
    from zsqbench.quant import check_images

    if not isinstance(images, CalibrationSet):
        raise ZSQBenchError(f"generator {name} returned {type(images).__name__}; expected a CalibrationSet")
    check_images(images.images, teacher.input_size, f"generator {name} returned")
    if images.labels is not None and len(images.labels) != len(images):
        raise ZSQBenchError(f"generator {name} returned {len(images.labels)} labels for {len(images)} images")


def _check_float_accuracy(model: str, metric: str, measured: float, expected: float) -> None:
    """Raise ZSQBenchError where the float network does not reach what the suite says of it."""
    # rounded, so that 71.08 and 70.98 are 0.1 apart; and NaN is near nothing
    if not round(abs(measured - expected), 6) <= FLOAT_ACCURACY_TOLERANCE:
        raise ZSQBenchError(
            f"the float network {model} reaches {measured:.3f} % {metric}, and its float_accuracy is {expected}: "
            "check its weights, the evaluation data, and how images are resized, cropped and normalised"
        )


def _best(measured: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    """The first of the epochs that no other is better than; NaN is no accuracy."""
    return max(measured, key=lambda one: -math.inf if math.isnan(one["metrics"][metric]) else one["metrics"][metric])


def _as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _count_quantized(tensors: list[dict[str, Any]]) -> dict[str, int]:
    kinds = [tensor["kind"] for tensor in tensors if tensor["bits"] != FLOAT_BITS]
    return {f"quantized_{kind}s": kinds.count(kind) for kind in ("weight", "activation")}


def _write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Metrics as JSON, which samples were right as packed bits, predictions as small integers, other tensors."""
    import numpy as np
    from safetensors.torch import save_file

    metrics = _as_numbers(evaluation.metrics)
    samples = len(evaluation.per_sample) or int(metrics.get("samples", 0))
    dump(folder / "evaluation.json", {"metrics": metrics, "samples": samples})
    if evaluation.tensors:
        save_file(on_cpu(evaluation.tensors), folder / "samples.safetensors")
    bits = np.packbits(np.asarray(evaluation.per_sample, dtype=bool))
    (folder / "correct.bits").write_bytes(bits.tobytes())
    if len(evaluation.predictions):
        predictions = np.asarray(evaluation.predictions, dtype=np.int32)
        smaller = predictions.astype(np.int16)
        smallest = smaller if (smaller == predictions).all() else predictions
        np.save(folder / "predictions.npy", smallest, allow_pickle=False)
