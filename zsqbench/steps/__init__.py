"""The kinds of steps, one file each: the needs of a step, the parts of its identity, how it runs, and its results.

`KINDS` is the only list of kinds, in the order in which the steps of a cell are planned and shown. Plan, worker, run
loop, rows, MLflow and commands know kinds only from this list. A new kind is a file here and an entry in the list.
"""

from zsqbench.steps.analyze import Analyze
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.diagnose import Diagnose
from zsqbench.steps.evaluate import Evaluate
from zsqbench.steps.export import Export
from zsqbench.steps.exportfloat import ExportFloat
from zsqbench.steps.generate import Generate
from zsqbench.steps.inspect import Inspect
from zsqbench.steps.latency import Latency
from zsqbench.steps.oracle import Oracle
from zsqbench.steps.planning import CellPlanning, Data, NetworkFacts, StepMaker
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.resolve import Resolve
from zsqbench.steps.runtime import Runtime
from zsqbench.steps.sensitivity import Sensitivity
from zsqbench.steps.step import Job, MethodCall, Outcome, Progress, Shown, Step, Tracked, Work, contributed

KINDS: dict[str, type[Job]] = {
    job.kind: job
    for job in (
        Resolve,
        Inspect,
        Baseline,
        Generate,
        Diagnose,
        Sensitivity,
        Quantize,
        Analyze,
        Evaluate,
        Oracle,
        ExportFloat,
        Export,
        Runtime,
        Latency,
    )
}

__all__ = [
    "KINDS",
    "Analyze",
    "CellPlanning",
    "Data",
    "Inspect",
    "Job",
    "MethodCall",
    "NetworkFacts",
    "Outcome",
    "Progress",
    "Resolve",
    "Shown",
    "Step",
    "StepMaker",
    "Tracked",
    "Work",
    "contributed",
]
