"""Students of steps about a quantized network: prepare a student, keep it in a file, rebuild it from the file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Pretrained, Quantizer, Settings
from zsqbench.scheme import MeasuredTensor, Scheme, TensorOnGrid
from zsqbench.steps.planning import CellPlanning, Data
from zsqbench.steps.sensitivity import Sensitivity
from zsqbench.steps.step import Job, MethodCall, Step
from zsqbench.store import Artifact
from zsqbench.suite import Suite, Variant

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from zsqbench.execution.session import Session

MODEL = "model.safetensors"
"""The student of a quantize step."""

SMALL = 2**24
"""A file with at most so many bytes is read as a whole."""

EPOCH = re.compile(r"epoch-(\d+)\.safetensors")
"""The pattern of files of students of kept epochs."""


class StudentJob(Job):
    """A step about a quantized network."""

    quantizer: MethodCall
    prepared_by: MethodCall
    """The quantizer that prepares the student: the first in a chain of quantizers."""
    over: MethodCall | None = None
    """The quantizer that does the work instead, if any."""
    adapted_by: MethodCall | None = None
    """The quantizer that sets the bits of each weight by a ranking, if any."""
    scheme: Scheme
    """The scheme of the cell. `student_scheme` gives the scheme of the student."""
    watched: tuple[str, ...]
    """Folders in which methods must not open files."""

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """Quantizer, scheme, and folders that must not be opened."""
        variant = cast("Variant", step.variant)
        adapting = variant.ranking
        return {
            "quantizer": MethodCall.of(variant),
            "prepared_by": MethodCall.of(variant.chain[-1]),
            "over": MethodCall.of(variant.over) if variant.over else None,
            "adapted_by": MethodCall.of(adapting) if adapting else None,
            "scheme": suite.schemes[step.cell.scheme],
            "watched": tuple(map(str, data.watched)) if data else (),
        }

    def method(self, session: "Session") -> Quantizer:
        """The quantizer."""
        return cast("Quantizer", session.method("quantizer", self.quantizer))

    @staticmethod
    def ranking(cell: CellPlanning) -> tuple[Step, ...]:
        """The step that ranks weights, if the cell has one. Each step about its student needs it."""
        step = cell.steps.get(Sensitivity.kind)
        return () if step is None else (step,)

    def student_scheme(self, session: "Session") -> Scheme:
        """The scheme of the student: the scheme of the cell, adapted to the ranking if there is one.

        Raises CorruptArtifactError if the ranking is damaged.
        """
        if self.adapted_by is None:
            return self.scheme
        adapting = cast("Quantizer", session.method("quantizer", self.adapted_by))
        return adapting.adapted(self.scheme, Sensitivity.weights(session.store, self.needs[Sensitivity.kind]))

    def prepare(self, session: "Session", teacher: Pretrained) -> "fx.GraphModule":
        """A student of the network."""
        preparing = cast("Quantizer", session.method("quantizer", self.prepared_by))
        return preparing.make_student(teacher, self.student_scheme(session))

    def prepared(self, session: "Session") -> "fx.GraphModule":
        """A student for loading an artifact. It is always fp32 and contiguous."""
        with session.method_call(self, self.method(session), self.watched, Settings()) as teacher:
            return self.prepare(session, teacher)

    def restored(self, session: "Session", student: "nn.Module", artifact: Artifact, file: str = MODEL) -> "nn.Module":
        """The student with the content of an artifact of a quantize step, ready to run."""
        return load_artifact(student, artifact, file).to(session.device).eval()


def load_artifact(student: "nn.Module", artifact: Artifact, file: str = MODEL) -> "nn.Module":
    """Load an artifact into a freshly prepared student.

    Raises ZSQBenchError if the artifact has other quantized tensors, bits or grids than the student, because its codes
    would be misread.
    """
    from zsqbench.quant import effective_map, restore

    check_structure(measured_tensors(artifact), effective_map(student), artifact.key)
    restore(student, _load_state(artifact.file(file)))
    return student


def _load_state(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file. Mapping a small file into memory takes several times as long as reading it."""
    from safetensors.torch import load, load_file

    return load(path.read_bytes()) if path.stat().st_size < SMALL else load_file(path)


def measured_tensors(artifact: Artifact) -> list[MeasuredTensor]:
    """The tensor map of an artifact."""
    with artifact.reading():
        return [MeasuredTensor(**entry) for entry in artifact.content["tensors"]]


def check_structure(kept: Sequence[TensorOnGrid], expected: Sequence[TensorOnGrid], key: str) -> None:
    """Raise ZSQBenchError if the tensor map of an artifact differs from that of its student."""
    ours, theirs = ({(each.kind, each.name): each for each in tensors} for tensors in (expected, kept))
    for place in dict.fromkeys([*ours, *theirs]):
        here, there = _structure(ours.get(place)), _structure(theirs.get(place))
        if here != there:
            raise ZSQBenchError(
                f"artifact {key[:12]} does not fit its student: {' '.join(place)} is {there} in the artifact, and "
                f"{here} in the student; if what prepares the student was changed, raise its version"
            )


def _structure(tensor: TensorOnGrid | None) -> str:
    """Role, bits and grid. They say how codes are read. Ranges and sizes do not matter."""
    if tensor is None:
        return "absent"
    per = "per tensor" if tensor.axis is None else f"axis {tensor.axis}"
    return f"{tensor.role} at {tensor.bits} bits ({tensor.grid}, {per})"


def save_student(student: "nn.Module", path: Path) -> None:
    """Write the state of a finalized student."""
    import safetensors.numpy
    import safetensors.torch

    state = state_of(student)
    try:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
    except TypeError:  # numpy lacks the type of a tensor, such as bfloat16
        safetensors.torch.save_file(state, path)
    else:  # the same file in a third of the time: there is no search for shared tensors
        safetensors.numpy.save_file(arrays, path)


def kept_epochs(folder: Path) -> dict[int, Path]:
    """The files of students in a folder, by epoch, in order."""
    found = ((EPOCH.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def state_of(student: "nn.Module") -> "dict[str, torch.Tensor]":
    """The state of a finalized student in the form of its file: without extra state that is not a tensor."""
    import torch

    return on_cpu({name: value for name, value in student.state_dict().items() if isinstance(value, torch.Tensor)})


def on_cpu(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Copies of tensors that share no memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
