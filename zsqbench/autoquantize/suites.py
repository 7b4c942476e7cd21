"""The suites of a search, as files that a person can also run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zsqbench.autoquantize.candidates import SYNTHETIC, WITHOUT_BN, Candidate, Level, generators, quantizers
from zsqbench.autoquantize.request import PLACEMENTS, Request
from zsqbench.errors import ZSQBenchError
from zsqbench.store import write_atomically

TASK, MODEL = "held_out", "network"

FASTEST = "fastest"
"""The quantizer in the suite that makes the images for judging. A cell needs a quantizer. Its figure is not read."""

FAST = {"method": "rtn", "weight_range": "minmax", "activation_range": "minmax"}

HELD_OUT_SEED = 1
"""The seed of images for judging. Candidates calibrate on images of seed 0."""


@dataclass(frozen=True)
class Judged:
    """The images for judging candidates."""

    file: Path
    """Synthetic images. No candidate calibrates on them."""
    most: int
    """At most so many of the user's images."""


def held_out_suite(request: Request, level: Level, generator: str = SYNTHETIC, *, relu6: bool = False) -> Path:
    """The suite whose only cell makes the images for judging all candidates. It declares all methods."""
    block = _block(request, Candidate(FASTEST, generator), HELD_OUT_SEED)
    # These generators make images of classes. The task tells which classes a network has.
    task = {"method": "agreement" if generator in WITHOUT_BN else "fidelity", "noise": 1}
    return _write(request, f"images_{generator}", level, task, [block], relu6=relu6)


def candidates_suite(
    request: Request, level: Level, candidates: Sequence[Candidate], method: str, judged: Judged, *, relu6: bool
) -> Path:
    """The suite of all candidates. The task `method` judges them."""
    folder = {} if request.images is None else {"folder": str(request.images.resolve()), "most": judged.most}
    task = {"method": method, "file": str(judged.file.resolve()), **folder}
    blocks = [_block(request, candidate, 0) for candidate in candidates]
    return _write(request, "candidates", level, task, blocks, relu6=relu6)


def _block(request: Request, candidate: Candidate, seed: int) -> dict[str, Any]:
    images = {"generator": candidate.generator} if candidate.generator else {}
    return {
        "task": TASK,
        "model": MODEL,
        **images,
        "quantizer": candidate.label,
        "scheme": request.scheme,
        "seed": seed,
    }


def _write(
    request: Request,
    name: str,
    level: Level,
    task: dict[str, Any],
    matrix: list[dict[str, Any]],
    *,
    relu6: bool,
) -> Path:
    suite = {
        "name": name,
        "description": f"zsqbench quantize {request.model} --target {request.target}",
        "settings": {"threads": request.threads},
        "tasks": {TASK: task},
        "schemes": {name: dict(fields) for name, fields in PLACEMENTS.items()},
        "models": {MODEL: dict(request.entry)},
        "generators": generators(level),
        "quantizers": {**quantizers(level, request.target, relu6=relu6), FASTEST: dict(FAST)},
        "matrix": matrix,
    }
    path = request.folder / f"{name}.yaml"
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, yaml.safe_dump(suite, sort_keys=False))
    except OSError as error:
        raise ZSQBenchError(f"cannot write to {request.home}: {error.strerror}; see --home") from error
    return path
