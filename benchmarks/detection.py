"""What evaluation and a step of DGH cost on detectors: ratios to the passes that they cannot do without.

Run `python benchmarks/detection.py` on an otherwise idle machine; it prints one line for each figure, with the bound
that the project set itself. Evaluation is measured on the embedded scenes, against reading and preparing each image,
the network's passes, decoding and COCOeval, one after the other; what it adds is bookkeeping. A step of DGH is measured
against a bare step, a forward pass and a backward pass to the input of the same network with frozen weights, on the
embedded detector and on torchvision's SSDLite with random weights, as it is and compiled in channels_last, which last
digits of images depend on. On a narrow network all that is not a convolution counts for more: moments of each norm read
its input twice more, and their gradient once; pipeline and optimiser are the rest. All are taken in turns, medians of
several.
`--quick` runs everything once, a step on the embedded detector alone, to see that it runs: its figures mean nothing.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from synthesis import EFFORT, QUICK, generator_steps, medians

import zsqbench
from zsqbench.methods import Settings
from zsqbench.plugins import load_plugins
from zsqbench.synthesis import flat_outputs
from zsqbench.testing import context
from zsqbench.zoo.coco import Detections, coco_figures
from zsqbench.zoo.imagefiles import open_image

EVALUATION_BOUND = 1.1
STEP_BOUND = 1.2
FAST = Settings(layout="channels_last", compile=True)

DETECTION = load_plugins().find("task", "coco_detection").method


def evaluation(pretrained: zsqbench.Pretrained, folder: Path) -> Iterator[float]:
    """Seconds of the task's evaluation."""
    task, ctx = DETECTION(data="scenes"), context(folder=folder)
    for _ in range(EFFORT["cpu"]):
        started = time.perf_counter()
        with torch.no_grad():
            task.evaluate(pretrained.module, pretrained, ctx)
        yield time.perf_counter() - started


def by_hand(pretrained: zsqbench.Pretrained, folder: Path) -> Iterator[float]:
    """Seconds of what it cannot do without, in the same batches."""
    task, ctx = DETECTION(data="scenes"), context(folder=folder)
    found = task._find(ctx)  # noqa: SLF001 - to read the same files
    for _ in range(EFFORT["cpu"]):
        yield _evaluate_by_hand(task.batch_size, found, pretrained)


def _evaluate_by_hand(size: int, found: Any, pretrained: zsqbench.Pretrained) -> float:
    detector, rows, started = pretrained.decoding, [], time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(found.evaluated), size):
            batch = found.evaluated[first : first + size]
            images = [open_image(path) for _, path in batch]
            raw = pretrained.module(torch.stack([detector.preprocess(image) for image in images]))
            rows += zip((entry.id for entry, _ in batch), detector.postprocess(raw, images), strict=True)
    coco_figures(found.instances.of([entry for entry, _ in found.evaluated]), Detections.of(rows))
    return time.perf_counter() - started


def bare_steps(pretrained: zsqbench.Pretrained, batch: int) -> Iterator[float]:
    """Seconds of passes through the network alone."""
    images = torch.randn(batch, *pretrained.input_size).requires_grad_()
    for step in range(EFFORT["cpu"] + 2):
        started = time.perf_counter()
        images.grad = None
        torch.stack([output.square().mean() for output in flat_outputs(pretrained.module(images))]).sum().backward()
        if step > 1:
            yield time.perf_counter() - started


def show(what: str, ratio: float, seconds: float, bound: float) -> None:
    """One line for one figure."""
    held = "held" if ratio <= bound else "MISSED"
    print(f"{what:58} {ratio:5.2f} x {seconds:6.3f} s (at most {bound} x: {held})", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        EFFORT.update(QUICK)
    torch.set_num_threads(1 if arguments.quick else arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    models, batches = {"scenedetector": {}}, [2 if arguments.quick else 32]
    if not arguments.quick:
        models["torchvision/ssdlite320_mobilenet_v3_large"] = {"weights": "none"}
        batches.append(8)
    loaded = {}
    for name, fields in models.items():
        spec = zsqbench.ModelSpec(name=name, base=name, **fields)
        loaded[name] = DETECTION(data="scenes").load(spec, context())
        loaded[name].module.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        own = loaded["scenedetector"]
        ways = {"by hand": lambda: by_hand(own, Path(folder)), "task": lambda: evaluation(own, Path(folder))}
        times = medians(ways)
        show("evaluation of 200 scenes", times["task"] / times["by hand"], times["by hand"], EVALUATION_BOUND)
    for (name, pretrained), batch in zip(loaded.items(), batches, strict=True):
        ways = {
            "bare": lambda pretrained=pretrained, batch=batch: bare_steps(pretrained, batch),
            "dgh": lambda pretrained=pretrained, batch=batch: generator_steps("dgh", pretrained, batch, Settings()),
        }
        if not arguments.quick:  # it takes minutes to compile
            ways["compiled"] = partial(generator_steps, "dgh", pretrained, batch, FAST)
        times = medians(ways)
        what = f"step of dgh, {name}, {batch} x {pretrained.input_size[1]} px"
        for way in ("dgh", "compiled"):
            if way in times:
                said = what if way == "dgh" else f"compiled {what}"
                show(said, times[way] / times["bare"], times["bare"], STEP_BOUND)


if __name__ == "__main__":
    main()
