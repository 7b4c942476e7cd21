"""The search: candidates run in sequence while the budget lasts, and are judged without labels."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zsqbench import api
from zsqbench.autoquantize.candidates import (
    CANDIDATES,
    LEVELS,
    NOISE,
    SYNTHETIC,
    WITHOUT_BN,
    Candidate,
    Costs,
    Level,
    on_images_of,
)
from zsqbench.autoquantize.findings import Found, Tried
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.runtime import on_threads
from zsqbench.autoquantize.suites import Judged, candidates_suite, held_out_suite
from zsqbench.errors import ZSQBenchError
from zsqbench.execution.timings import Timings
from zsqbench.opening import execute, open_run
from zsqbench.store import write_atomically

if TYPE_CHECKING:
    import torch

    from zsqbench.execution.plan import Plan
    from zsqbench.execution.run import Run
    from zsqbench.methods import Pretrained
    from zsqbench.reports.results import Result
    from zsqbench.suite import Cell

Tell = Callable[[str], None]

IMAGES_SHARE = 0.25
"""The part of the budget for the sets of synthetic images of one seed. Sets of two seeds are made."""
STEPS_AROUND = 5
"""The number of short steps besides the step that makes the images for judging."""
JUDGED_SHARE = 0.25
"""The part of the budget for judging all candidates on the user's images."""
LEAST_JUDGED = 32
"""At least so many of the user's images are used for judging, if there are so many, even with a short budget."""
RESERVE = 0.15
"""The least part of the budget that is kept for export and measurements, up to RESERVE_AT_MOST seconds."""
RESERVE_AT_MOST = 120.0

MOST_RESERVED = 0.35
"""The largest part of the budget that is kept for export and measurements, for any estimate of their time."""
SLOWER = (1.5, 3.0)
"""Bounds of the factor between the expected and the estimated time of export and measurements.

The factor is that of all other steps, or that of a busy machine. A half is always added, because the machine may
become busier."""

CORRECTION = (0.2, 5.0)
"""The largest correction of estimates."""

SILENT = ("mlflow", "progress")
"""Plugins that a search leaves out. It shows its own progress, and its rows are not an experiment."""


class _Interrupted(Exception):  # noqa: N818 - not an error
    def __init__(self, signal: int) -> None:
        self.signal = signal


@dataclass
class Search:
    """A search over the candidates of one network."""

    request: Request
    network: "Pretrained"
    parameters: int
    layers: int
    """Layers whose weights are quantized."""
    task: str
    """`agreement` or `fidelity`."""
    relu6: bool
    lacks: dict[str, str]
    """Why generators and quantizers cannot run, by name."""
    tell: Tell
    started: float
    """The time of the clock at which the budget began."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._estimated = self._took = 0.0
        self._results = self.request.folder / "results"
        if self.task != "agreement":
            self.lacks |= dict.fromkeys(WITHOUT_BN, f"needs a classifier, and {self.request.model} is not one")
        self._generators = WITHOUT_BN if SYNTHETIC in self.lacks else (SYNTHETIC,)
        self._candidates = on_images_of(self._generators, CANDIDATES[self.request.target])
        pace = measure_pace(self.network, self.request.threads)
        self._busy = pace.busy
        costs = Costs(self._seconds_per_image(pace), self.parameters, self.layers, 0)
        enough = max(LEAST_JUDGED, costs.judged_in(JUDGED_SHARE * self.request.budget, len(self._candidates)))
        self.most = min(_count_images(self.request.images), enough)
        self._costs = replace(costs, judged=LEVELS[0].images + self.most)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.request.budget - (self.clock() - self.started)

    @property
    def _left(self) -> float:
        """Seconds that candidates may take."""
        reserve = min(RESERVE * self.request.budget, RESERVE_AT_MOST)
        least, most = SLOWER
        slower = min(max(self._correction, self._busy, least), most)
        needed = min(slower * self._costs.delivery, MOST_RESERVED * self.request.budget)
        return self.left - max(reserve, needed)

    def run(self) -> Found:
        """Make held-out images, and try candidates within the budget. Raises ZSQBenchError if no candidate fits."""
        tried: list[Tried] = []
        left_out: dict[str, str] = {}
        level = self._level()
        file, suite = self.request.folder / "held_out.safetensors", self.request.folder / "candidates.yaml"
        generators = self._affordable(level) or (NOISE,)
        signal: int | None = None
        try:
            generators = self._hold_out(level, generators, file)
            judged = Judged(file, max(self.most, 1))
            suite = candidates_suite(self.request, level, self._candidates, self.task, judged, relu6=self.relu6)
            for candidate in self._candidates:
                self._try(candidate, suite, level, tried, left_out)
        except _Interrupted as interruption:
            signal = interruption.signal
        seconds, mine = self.clock() - self.started, self.request.images is not None
        found = Found(suite, self._results, level, file, generators, mine, tried, left_out, seconds, signal)
        if signal is None and not found.ranking:
            raise ZSQBenchError(_nothing(found))
        return found

    def _seconds_per_image(self, pace: "Pace") -> float:
        """Seconds of the float network for an image, measured when this request was first made.

        The numbers of images depend on it. So it is kept, and the same command continues with the same steps.
        """
        file = self.request.folder / "seconds_per_image.json"
        try:
            return float(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.request.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(pace.image))
            return pace.image

    def _level(self) -> Level:
        """The highest level whose images, with all steps around them, fit into their part of the budget.

        The time of this command so far does not count. Otherwise a repeated command would not find its images again.
        """
        made = [each for each in self._generators if each not in self.lacks] or [SYNTHETIC]  # noise costs as much then
        share = IMAGES_SHARE * self.request.budget - len(made) * STEPS_AROUND * Costs.START
        fitting = [level for level in LEVELS if sum(self._costs.generate(level, each) for each in made) <= share]
        return fitting[-1] if fitting else LEVELS[0]

    def _affordable(self, level: Level) -> tuple[str, ...]:
        """The generators for whose images there is time, for judging and for calibration. Others are noted in `lacks`.

        The first generator may take all time that is left, because without images there is little to try. With further
        generators, all images must fit into their part of the budget.
        """
        chosen: list[str] = []
        seconds = 0.0
        for generator in self._generators:
            if generator in self.lacks:
                continue
            takes = self._costs.generate(level, generator)
            if seconds + takes > (IMAGES_SHARE * self.request.budget if chosen else self._left / 2):
                self.lacks[generator] = f"its smallest set takes about {takes:.0f} s, and is needed twice"
                continue
            chosen.append(generator)
            seconds += takes
        return tuple(chosen)

    def _hold_out(self, level: Level, generators: Sequence[str], file: Path) -> tuple[str, ...]:
        """Make the images for judging, the same number by each generator. No candidate is calibrated on them.

        Returns the generators that made images. Others are noted in `lacks`. Raises ZSQBenchError if no generator did.
        """
        import torch

        from zsqbench.methods import CalibrationSet

        made: dict[str, torch.Tensor] = {}
        for generator in generators:
            found = self._made(level, generator)
            if isinstance(found, str):
                self.lacks[generator] = f"it made no images to judge on: {found}"
            else:
                made[generator] = found
        if not made:
            reasons = dict.fromkeys(self.lacks.get(generator, "") for generator in generators)
            raise ZSQBenchError(f"no images to judge on could be made: {'; '.join(reasons)}")
        # In turns, so that the first images, on which the file is compared, are from all generators.
        CalibrationSet(torch.stack(list(made.values()), dim=1).flatten(0, 1)).save(file)
        self._costs = replace(self._costs, judged=len(made) * level.images + self.most)
        return tuple(made)

    def _made(self, level: Level, generator: str) -> "torch.Tensor | str":
        """The images of a generator for judging, [level.images, C, H, W], or why there are none."""
        self.tell(f"making {level.images} images to judge on ({generator})")
        suite = held_out_suite(self.request, level, generator, relu6=self.relu6)
        estimate, began = self._costs.generate(level, generator) + STEPS_AROUND * Costs.START, self.clock()
        row = self._execute(*self._open(suite, 0))
        if (took := self.clock() - began) > estimate:  # less: the images were already there
            self._estimated, self._took = self._estimated + estimate, self._took + took
        if row.status != "done":
            return str(row.reason)
        return api.load_images(suite, row.cell, home=self.request.home, results=self._results)

    def _try(
        self, candidate: Candidate, suite: Path, level: Level, tried: list[Tried], left_out: dict[str, str]
    ) -> None:
        lack = self.lacks.get(candidate.label) or (candidate.generator and self.lacks.get(candidate.generator))
        if lack:
            left_out[candidate.name] = str(lack)
            return
        this, cell = self._open(suite, self._candidates.index(candidate))
        plan = this.provisional_plan([cell])
        estimate = self._estimate(plan, candidate, level)
        if estimate > self._left:
            left_out[candidate.name] = f"about {estimate:.0f} s, and {max(self._left, 0):.0f} s of the budget were left"
            self.tell(f"{candidate.name}: left out, {left_out[candidate.name]}")
            return
        self.tell(f"{candidate.name}: about {estimate:.0f} s")
        began = self.clock()
        row = self._execute(this, cell)
        if estimate:
            self._estimated += estimate / self._correction
            self._took += self.clock() - began
        tried.append(Tried(candidate, row, sum(row.seconds.values())))
        said = f"{row.value:.2f} {row.metric}" if row.status == "done" else f"{row.status}: {row.reason}"
        self.tell(f"{candidate.name}: {said}")

    def _estimate(self, plan: "Plan", candidate: Candidate, level: Level) -> float:
        """Seconds of the steps that are not in the store."""
        if all(plan.is_finished(planned) for planned in plan.cells):
            return 0.0
        timings, seconds = Timings(plan.store), 0.0
        for step in plan.to_do().values():
            known = timings.estimate(step)
            seconds += known if known is not None else self._correction * self._costs.of(step.kind, candidate, level)
        return seconds

    @property
    def _correction(self) -> float:
        """The factor by which the candidates so far took longer than estimated."""
        if not self._estimated:
            return 1.0
        low, high = CORRECTION
        return min(max(self._took / self._estimated, low), high)

    def _open(self, suite: Path, index: int) -> "tuple[Run, Cell]":
        """A suite, and one of its cells, by its index in the matrix."""
        this, cells = open_run(suite, self.request.home, self._results, without=SILENT, device=self.request.device)
        return this, cells[index]

    def _execute(self, this: "Run", cell: "Cell") -> "Result":
        """Run a cell. A step that runs past the budget is ended."""
        timeout = max(self._left, 1.0) if self.request.workers else None
        report = execute(this, [cell], self.request.workers, "pool", timeout)
        if report.signal is not None:
            raise _Interrupted(report.signal)
        return report.results[0]


PASSES, SECONDS = 5, 2.0
"""At least so many passes of the float network are timed, and as many as fit into so many seconds.

Other work of the machine makes some passes slower, on a busy machine most of them.
"""


@dataclass(frozen=True)
class Pace:
    """The present speed of this machine."""

    image: float
    """Seconds of the float network for an image in a small batch, in the fastest pass."""
    busy: float
    """The time of passes divided by the computing time of their threads. About 1: nothing else runs."""


def measure_pace(network: "Pretrained", threads: int) -> Pace:
    """Time passes of the float network."""
    import torch

    images = torch.zeros(4, *network.input_size)
    passes: list[float] = []
    with on_threads(threads), torch.no_grad():
        network.module(images)
        computed = time.process_time()
        while len(passes) < PASSES or sum(passes) < SECONDS:
            began = time.perf_counter()
            network.module(images)
            passes.append(time.perf_counter() - began)
        computed = (time.process_time() - computed) / threads
    return Pace(min(passes) / len(images), sum(passes) / computed)


def _count_images(folder: Path | None) -> int:
    if folder is None:
        return 0
    from zsqbench.zoo.images import list_images

    return len(list_images(folder))


def _nothing(found: Found) -> str:
    """Why no candidate can be chosen."""
    failed = {tried.candidate.name: str(tried.row.reason) for tried in found.tried if not tried.is_done}
    reasons = "; ".join(f"{name}: {why}" for name, why in (failed | found.left_out).items())
    return f"no candidate could be judged; give more time by --budget, or correct this: {reasons}"
