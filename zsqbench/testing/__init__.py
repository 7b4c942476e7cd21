"""The kit for plugin authors: checks that a method keeps the contract that the harness relies on.

`check_generator`, `check_quantizer` and `check_task` run a method on tiny networks on the CPU and raise AssertionError
with one sentence where it does not; `zsqbench plugins check` runs the same checks and lists all of them.
"""

from zsqbench.testing.context import MemoryReporter, context
from zsqbench.testing.generators import check_generator
from zsqbench.testing.networks import tiny_teacher, tiny_teacher_without_bn, tiny_teachers, tiny_transformer
from zsqbench.testing.quantizers import check_quantizer
from zsqbench.testing.tasks import check_task

__all__ = [
    "MemoryReporter",
    "check_generator",
    "check_quantizer",
    "check_task",
    "context",
    "tiny_teacher",
    "tiny_teacher_without_bn",
    "tiny_teachers",
    "tiny_transformer",
]
