"""zsqbench: a benchmark harness for zero-shot (data-free) quantization.

The names below are the public API. They are imported when they are first used, so that `zsqbench --help` is instant.

- Runs and results: `run`, `plan`, `merge`, `results`, `compare`, `report`, `figures`, `figure`, `embedding`,
  `landscape`, `reproduce`, `load_student`, `load_images`, `export_model`, `export_images`, `resamples`
- Bases of generators: `Generator`, `PixelGenerator`
- Bases of quantizers: `Quantizer`, `GridQuantizer`, `UnitQuantizer`, `ReconstructionQuantizer`, `TrainingQuantizer`,
  `SetTrainingQuantizer`, `StepSizeQuantizer`, `CoTrainedQuantizer`
- Other bases: `Task`, `Engine`
- Objects that methods exchange: `Pretrained`, `Detection`, `CalibrationSet`, `Evaluation`, `DataFiles`, `ModelSpec`,
  `Network`, `Scheme`, `StepContext`, `TaskContext`
- Options, hooks and errors: `Auto`, `auto`, `InputFile`, `hookimpl`, `ZSQBenchError`

Authors of quantizers find more in `zsqbench.quant`, authors of generators in `zsqbench.synthesis`. Both find the
checks of the contract for methods in `zsqbench.testing`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsqbench.api import (
        compare,
        embedding,
        export_images,
        export_model,
        figure,
        figures,
        landscape,
        load_images,
        load_student,
        merge,
        plan,
        report,
        reproduce,
        results,
        run,
    )
    from zsqbench.errors import ZSQBenchError
    from zsqbench.hookspecs import hookimpl
    from zsqbench.methods import (
        Auto,
        CalibrationSet,
        DataFiles,
        Detection,
        Engine,
        Evaluation,
        Generator,
        GridQuantizer,
        InputFile,
        ModelSpec,
        Network,
        Pretrained,
        Quantizer,
        ReconstructionQuantizer,
        StepContext,
        Task,
        TaskContext,
        UnitQuantizer,
        auto,
    )
    from zsqbench.methods.cotraining import CoTrainedQuantizer
    from zsqbench.methods.pixels import PixelGenerator
    from zsqbench.methods.stepsizes import StepSizeQuantizer
    from zsqbench.methods.training import SetTrainingQuantizer, TrainingQuantizer
    from zsqbench.scheme import Scheme
    from zsqbench.statistics import resamples

__all__ = [
    "Auto",
    "CalibrationSet",
    "CoTrainedQuantizer",
    "DataFiles",
    "Detection",
    "Engine",
    "Evaluation",
    "Generator",
    "GridQuantizer",
    "InputFile",
    "ModelSpec",
    "Network",
    "PixelGenerator",
    "Pretrained",
    "Quantizer",
    "ReconstructionQuantizer",
    "Scheme",
    "SetTrainingQuantizer",
    "StepContext",
    "StepSizeQuantizer",
    "Task",
    "TaskContext",
    "TrainingQuantizer",
    "UnitQuantizer",
    "ZSQBenchError",
    "auto",
    "compare",
    "embedding",
    "export_images",
    "export_model",
    "figure",
    "figures",
    "hookimpl",
    "landscape",
    "load_images",
    "load_student",
    "merge",
    "plan",
    "report",
    "reproduce",
    "resamples",
    "results",
    "run",
]

_HOMES = {
    "CoTrainedQuantizer": "zsqbench.methods.cotraining",
    "PixelGenerator": "zsqbench.methods.pixels",
    "Scheme": "zsqbench.scheme",
    "SetTrainingQuantizer": "zsqbench.methods.training",
    "StepSizeQuantizer": "zsqbench.methods.stepsizes",
    "TrainingQuantizer": "zsqbench.methods.training",
    "ZSQBenchError": "zsqbench.errors",
    "hookimpl": "zsqbench.hookspecs",
    "resamples": "zsqbench.statistics",
    **dict.fromkeys(
        (
            *(
                "compare",
                "embedding",
                "export_images",
                "export_model",
                "figure",
                "figures",
                "landscape",
                "load_images",
                "load_student",
                "merge",
                "plan",
            ),
            *("report", "reproduce", "results", "run"),
        ),
        "zsqbench.api",
    ),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "zsqbench.methods")), name)
