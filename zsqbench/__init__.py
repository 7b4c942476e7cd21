"""zsqbench: a benchmark harness for zero-shot (data-free) quantization."""

from zsqbench.errors import ZSQBenchError
from zsqbench.hookspecs import hookimpl
from zsqbench.methods import (
    CalibrationSet,
    DataFiles,
    Engine,
    Evaluation,
    Generator,
    InputFile,
    ModelSpec,
    Pretrained,
    Quantizer,
    StepContext,
    Task,
    TaskContext,
)
from zsqbench.scheme import Scheme

__all__ = [
    "CalibrationSet",
    "DataFiles",
    "Engine",
    "Evaluation",
    "Generator",
    "InputFile",
    "ModelSpec",
    "Pretrained",
    "Quantizer",
    "Scheme",
    "StepContext",
    "Task",
    "TaskContext",
    "ZSQBenchError",
    "hookimpl",
]
