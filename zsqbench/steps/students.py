"""Steps about a quantized network prepare a student, keep it in a file, and rebuild it from there."""

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
"""Bytes of a file that is read as a whole."""

EPOCH = re.compile(r"epoch-(\d+)\.safetensors")
"""Those of epochs that it kept."""


class StudentJob(Job):
    """A step about a quantized network."""

    quantizer: MethodCall
    prepared_by: MethodCall
    """The quantizer that prepares the student: the first of those that start from, or are over, each other."""
    over: MethodCall | None = None
    """The quantizer that the quantizer leaves its work to, if it does."""
    adapted_by: MethodCall | None = None
    """The quantizer that gives weights bits of their own, as they were ranked, if one does."""
    scheme: Scheme
    """The cell's; see `student_scheme` for the student's."""
    watched: tuple[str, ...]
    """Folders that methods must not open files in."""

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:
        """Quantizer, scheme, and what must not be opened."""
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
        """The step that ranks weights, if the cell has one: each step about its student needs it."""
        step = cell.steps.get(Sensitivity.kind)
        return () if step is None else (step,)

    def student_scheme(self, session: "Session") -> Scheme:
        """The scheme that the student is prepared for: the cell's, adapted to the ranking where there is one.

        Raises CorruptArtifactError where the ranking is damaged.
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
        """A student to load an artifact into; always fp32 and contiguous."""
        with session.method_call(self, self.method(session), self.watched, Settings()) as teacher:
            return self.prepare(session, teacher)

    def restored(self, session: "Session", student: "nn.Module", artifact: Artifact, file: str = MODEL) -> "nn.Module":
        """The student with what an artifact of a quantize step holds, ready to run."""
        return load_artifact(student, artifact, file).to(session.device).eval()


def load_artifact(student: "nn.Module", artifact: Artifact, file: str = MODEL) -> "nn.Module":
    """Load an artifact into a freshly prepared student.

    Raises ZSQBenchError where the artifact quantizes other tensors than the student, or at other bits or on other
    grids: codes would be read as what they are not.
    """
    from zsqbench.quant import effective_map, restore

    check_structure(measured_tensors(artifact), effective_map(student), artifact.key)
    restore(student, _load_state(artifact.file(file)))
    return student


def _load_state(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file. To map a small one into memory takes several times as long as to read it."""
    from safetensors.torch import load, load_file

    return load(path.read_bytes()) if path.stat().st_size < SMALL else load_file(path)


def measured_tensors(artifact: Artifact) -> list[MeasuredTensor]:
    """The tensor map of an artifact."""
    with artifact.reading():
        return [MeasuredTensor(**entry) for entry in artifact.content["tensors"]]


def check_structure(kept: Sequence[TensorOnGrid], expected: Sequence[TensorOnGrid], key: str) -> None:
    """Raise ZSQBenchError where the tensor map of an artifact is not that of the student that it is loaded into."""
    ours, theirs = ({(each.kind, each.name): each for each in tensors} for tensors in (expected, kept))
    for place in dict.fromkeys([*ours, *theirs]):
        here, there = _structure(ours.get(place)), _structure(theirs.get(place))
        if here != there:
            raise ZSQBenchError(
                f"artifact {key[:12]} does not fit its student: {' '.join(place)} is {there} in the artifact, and "
                f"{here} in the student; if what prepares the student was changed, raise its version"
            )


def _structure(tensor: TensorOnGrid | None) -> str:
    """Role, bits and grid, which decide how codes are read; ranges and sizes do not."""
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
    except TypeError:  # of a type that numpy lacks, such as bfloat16
        safetensors.torch.save_file(state, path)
    else:  # the same file, for a third of the time: no tensor is looked for in all others
        safetensors.numpy.save_file(arrays, path)


def kept_epochs(folder: Path) -> dict[int, Path]:
    """The files of students that a folder holds, by epoch, in order."""
    found = ((EPOCH.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def state_of(student: "nn.Module") -> "dict[str, torch.Tensor]":
    """The state of a finalized student, as its file holds it: without extra state of modules that is no tensor."""
    import torch

    return on_cpu({name: value for name, value in student.state_dict().items() if isinstance(value, torch.Tensor)})


def on_cpu(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Copies that share no memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
