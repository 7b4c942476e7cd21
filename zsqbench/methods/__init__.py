"""A plugin provides methods: generators, quantizers, tasks and engines. Here are their bases and their data.

The bases of families (pixels, training, stepsizes, cotraining) are imported from their modules.
"""

from zsqbench.methods.attention import open_attention
from zsqbench.methods.base import (
    DATA_SETS,
    Auto,
    ByDataSet,
    InputFile,
    Kind,
    Method,
    Network,
    NetworkTraits,
    auto,
    data_set,
)
from zsqbench.methods.context import StepContext, TaskContext
from zsqbench.methods.data import CalibrationSet, Pretrained
from zsqbench.methods.engine import Engine
from zsqbench.methods.generator import Generator
from zsqbench.methods.modelspec import ModelSpec
from zsqbench.methods.quantizer import GridQuantizer, Quantizer, ReconstructionQuantizer, UnitQuantizer
from zsqbench.methods.settings import Settings
from zsqbench.methods.task import DataFiles, Evaluation, Task
from zsqbench.zoo.detection import Detection

__all__ = [
    "DATA_SETS",
    "Auto",
    "ByDataSet",
    "CalibrationSet",
    "DataFiles",
    "Detection",
    "Engine",
    "Evaluation",
    "Generator",
    "GridQuantizer",
    "InputFile",
    "Kind",
    "Method",
    "ModelSpec",
    "Network",
    "NetworkTraits",
    "Pretrained",
    "Quantizer",
    "ReconstructionQuantizer",
    "Settings",
    "StepContext",
    "Task",
    "TaskContext",
    "UnitQuantizer",
    "auto",
    "data_set",
    "open_attention",
]
