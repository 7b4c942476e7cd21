"""Compare an exported file with its student: integers, decisions, and the places where they differ."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from zsqbench.compat import tree_leaves
from zsqbench.export.graph import CODES, called
from zsqbench.export.integers import IntegerStudent
from zsqbench.export.runtime import CPU, fed, open_session, run, saturates, seen
from zsqbench.export.structure import Structure, structure_in_runtime
from zsqbench.methods import Pretrained
from zsqbench.quant import ActivationQuantizer, dequantize, quantize
from zsqbench.statistics import differs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BATCH = 8
"""Images that are compared at a time. The integers of all their tensors are in memory."""

REFERENCE_IMAGES = 2
"""Images on which the slow evaluator of onnx computes the file."""

TOLERATED = 1e-3
"""The share of a tensor's codes that may differ by one, because float sums in another order have other ties."""

TIE = 5e-4
"""The distance to the middle between two codes, in steps, within which either code is right. Sums differ in their
last digits. Averages and interpolations give many such values. With 16 bits the distance is 256 times as large,
because steps are smaller."""

EQUAL_DECISIONS = 99.9
"""Percent of decisions that must be equal without optimisation, unless the student in 64 bits explains others."""

BYTE = 8


@dataclass(frozen=True)
class Departure:
    """How a tensor's codes differ from the codes that the student computes from the same inputs."""

    tensor: str
    share: float
    """The share of its codes that differ."""
    most: int
    """The largest difference, in codes."""
    strange: float
    """The share of its codes that differ although their values are not in the middle between two codes."""

    @property
    def tolerated(self) -> bool:
        """True if sums in another order explain it."""
        return self.most <= 1 and self.strange <= TOLERATED

    def __str__(self) -> str:
        return f"{self.tensor}: {100 * self.share:.3g} % of its codes differ, by {self.most} at most"


@dataclass(frozen=True)
class Check:
    """The findings of a comparison. Decisions are counted as equal ones of `images`."""

    images: int
    structure: Structure
    exact: tuple[Departure, ...]
    """The tensors of which any code differs without optimisation, in order."""
    optimized: tuple[Departure, ...]
    """The tensors of which any code differs as users run the file."""
    equal_exact: int
    """Equal decisions: file without optimisation, student with the file's biases."""
    equal: int
    """Equal decisions: file as users run it, student as it was evaluated."""
    equal_biases: int
    """Equal decisions: student with the file's biases, student as it was evaluated."""
    equal_double: int
    """Equal decisions: student in 32 bits, student in 64 bits. This shows the effect of the order of sums."""
    equal_saturating: int | None
    """Equal decisions: file as users run it but without `session.x64quantprecision`. None: this processor does not
    saturate."""
    reference: float | None
    """The largest difference between the evaluator of onnx and ONNX Runtime without optimisation, relative to the
    largest output. None: the evaluator cannot compute the file."""
    bit_identical: bool
    """True if all outputs are equal without optimisation, to the last bit."""

    @property
    def problems(self) -> list[str]:
        """Why the file does not compute what was measured, one line each. Empty: it does."""
        found = []
        if self.structure.missed:
            found.append(f"{len(self.structure.missed)} layers run in float, although nothing is in the way")
        departs = next((departure for departure in self.exact if not departure.tolerated), None)
        if departs is not None:
            found.append(f"without optimisation it departs first at tensor {departs}")
        # if ties decide, the student in 64 bits also decides differently
        if self.equal_exact < EQUAL_DECISIONS * self.images / 100 and self._is_less(
            self.equal_exact, self.equal_double
        ):
            found.append(f"without optimisation {self.equal_exact} of {self.images} decisions are equal")
        if self._is_less(self.equal, min(self.equal_double, self.equal_biases)):
            first = next((departure for departure in self.optimized if not departure.tolerated), None)
            where = (
                f"; it departs first at tensor {first}" if first else "; no tensor departs by more than ties explain"
            )
            found.append(f"{self.images - self.equal} of {self.images} decisions differ from the simulation's{where}")
        return found

    def _is_less(self, equal: int, explained: int) -> bool:
        """True if chance does not explain the number of different decisions: a sign test on them."""
        differing, expected = self.images - equal, self.images - explained
        return differing > expected and differs(differing, expected)

    def lines(self) -> list[str]:
        """The findings for people, one line each."""
        of = f"of {self.images}"
        identical = ", bit for bit" if self.bit_identical else ""
        lines = [
            *self.structure.lines(),
            f"as users run it: {self.equal} {of} decisions are the simulation's; {_tensors(self.optimized)}",
            (
                f"the simulation itself: {self.equal_double} {of} decisions stay when it computes in 64 bits, "
                f"{self.equal_biases} when it rounds biases as the file does"
            ),
            (
                f"without optimisation: {self.equal_exact} {of} decisions are those of the simulation with such "
                f"biases{identical}; {_tensors(self.exact)}"
            ),
            (
                "onnx's own evaluator cannot compute this file"
                if self.reference is None
                else f"onnx's own evaluator differs by {self.reference:.2g} of the largest output"
            ),
        ]
        if self.equal_saturating is not None:
            lines.append(
                f"this processor saturates: without session.x64quantprecision {self.equal_saturating} {of} decisions "
                "are equal; weights of 7 bits (qdq/w7a8) need no such option"
            )
        return lines + [f"problem: {problem}" for problem in self.problems]

    def as_data(self) -> dict[str, Any]:
        """The findings as plain data."""
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """The figures for a row, in percent of the images."""
        found = {"layers": len(self.structure.layers), "equal_exact": 100 * self.equal_exact / self.images}
        return ({"integer_layers": self.structure.integer} if self.structure.is_known else {}) | found


def _tensors(departures: Sequence[Departure]) -> str:
    if not departures:
        return "from equal inputs, all codes of all tensors are equal"
    worst = max(departures, key=lambda departure: departure.share)
    return f"from equal inputs, codes of {len(departures)} tensors differ, most of {worst}"


def check(
    path: Path,
    student: fx.GraphModule,
    integer: IntegerStudent,
    images: Tensor,
    pretrained: Pretrained,
    providers: Sequence[str] = (CPU,),
) -> Check:
    """Compare a file with its finalized student, on images [N, C, H, W] in the network's space.

    `integer` is the student with the biases of the file. If the file takes pixels, both get the nearest images that
    pixels can represent.
    """
    student, follower = student.cpu().eval(), integer.student.cpu().eval()
    exact = open_session(path, optimized=False)
    users = open_session(path, providers)
    given = fed(exact, images, pretrained)
    images = seen(given, pretrained)
    without, optimized = _outputs(exact, given), _outputs(users, given)
    with torch.no_grad():
        ours = _outputs_of(student, images)
        of_integers = _outputs_of(follower, images)
        doubled = _outputs_of(copy.deepcopy(student).double(), images.double())
        float_network = copy.deepcopy(pretrained.module).cpu().eval()
        # only networks that are not classifiers are judged by the distance to the float network
        plain = None if _classifies(ours) else _outputs_of(float_network, images)
    alike = _Alike(ours, plain)
    saturating = None
    if saturates() and list(providers) == [CPU]:
        saturating = alike.count(_outputs(open_session(path, precise=False), given))
    return Check(
        images=len(images),
        structure=structure_in_runtime(path, providers),
        exact=_departures(path, follower, images, given, optimized=False),
        optimized=_departures(path, follower, images, given, optimized=True, providers=providers),
        equal_exact=_Alike(of_integers, plain).count(without),
        equal=alike.count(optimized),
        equal_biases=alike.count(of_integers),
        equal_double=alike.count(doubled),
        equal_saturating=saturating,
        reference=_reference(path, given[:REFERENCE_IMAGES], without),
        bit_identical=all(map(np.array_equal, without, of_integers)),
    )


Outputs = list[NDArray[Any]]


def _batches(images: Tensor) -> Iterator[Tensor]:
    yield from torch.split(images, BATCH)


def _outputs(session: "InferenceSession", images: Tensor) -> Outputs:
    parts = [run(session, batch) for batch in _batches(images)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _outputs_of(module: nn.Module, images: Tensor) -> Outputs:
    parts = [[leaf.numpy() for leaf in tree_leaves(module(batch))] for batch in _batches(images)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _classifies(outputs: Outputs) -> bool:
    return len(outputs) == 1 and outputs[0].ndim == 2  # noqa: PLR2004 - images, classes


class _Alike:
    """Counts images for which outputs decide as the outputs of the student.

    A classifier decides for the largest output. For other networks, outputs count as equal if they are nearer to the
    student's outputs than these are to the float network's outputs. Then they differ less than by quantization.
    """

    def __init__(self, ours: Outputs, plain: Outputs | None) -> None:
        self.ours = ours
        self.bounds = None if plain is None else list(map(_distances, ours, plain))

    def count(self, others: Outputs) -> int:
        """The number of these images."""
        if self.bounds is None:
            return int((others[0].argmax(1) == self.ours[0].argmax(1)).sum())
        near = [
            _distances(other, own) <= bound for other, own, bound in zip(others, self.ours, self.bounds, strict=True)
        ]
        return int(np.logical_and.reduce(near).sum())


def _distances(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """The distance of two outputs for each image."""
    flat = (one.astype(np.float64) - other).reshape(len(one), -1)
    distances: NDArray[Any] = np.sqrt(np.square(flat).sum(1))
    return distances


def _departures(
    path: Path,
    student: fx.GraphModule,
    images: Tensor,
    given: Tensor,
    *,
    optimized: bool,
    providers: Sequence[str] = (CPU,),
) -> tuple[Departure, ...]:
    """The tensors with codes that differ from the student's codes, computed from the runtime's codes before them.

    So a difference is found in the tensor where it arises, and is not counted again in later tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        names = _expose(path, exposed)
        session = open_session(exposed, providers, optimized=optimized)
        found: dict[str, _Differing] = {}
        for batch, fed_batch in zip(_batches(images), _batches(given), strict=True):
            codes = dict(zip(names, run(session, fed_batch, names), strict=True))
            with torch.no_grad():
                _Follower(student, codes, found).run(batch)
    return tuple(
        Departure(name, each.count / each.of, each.most, each.strange / each.of)
        for name, each in found.items()
        if each.count
    )


@dataclass
class _Differing:
    """The codes of a tensor that differ, so far."""

    of: int = 0
    count: int = 0
    most: int = 0
    strange: int = 0
    """Of the codes that differ, the number whose values are not in the middle between two codes."""

    def add(self, codes: Tensor, own: Tensor, values: Tensor, quantizer: ActivationQuantizer) -> None:
        """Count a batch: the codes of the runtime, the student's own codes, and the values before rounding."""
        differing = codes != own
        self.of += own.numel()
        if not differing.any():
            return
        steps = (values / quantizer.scale)[differing]
        between = (steps - steps.floor() - 0.5).abs() < TIE * max(1.0, 2.0 ** (quantizer.bits - BYTE))
        self.count += len(steps)
        self.most = max(self.most, int((codes - own).abs().max()))
        self.strange += int((~between).sum())


def _expose(path: Path, target: Path) -> list[str]:
    """Copy a file, with the codes of all tensors as additional outputs. Returns their names."""
    model = ir.load(path)
    values = [value for node in model.graph for value in node.outputs if str(value.name).endswith(CODES)]
    model.graph.outputs.extend(value for value in values if not value.is_graph_output())
    ir.save(model, target)
    return [str(value.name) for value in values]


class _Follower(fx.Interpreter):
    """Runs a student on the codes of a runtime: each quantizer returns the codes of the runtime."""

    def __init__(
        self, student: fx.GraphModule, given: Mapping[str, NDArray[Any]], found: dict[str, _Differing]
    ) -> None:
        super().__init__(student)
        self.given = given
        self.found = found
        self.calls: dict[str, int] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Codes replace the output of a quantizer. All other modules are computed."""
        module = self.fetch_attr(target)
        if not isinstance(module, ActivationQuantizer):
            return super().call_module(target, args, kwargs)
        own = quantize(args[0], module.scale, module.zero_point, module.bits)
        name = called(module.name, self.calls)
        theirs = self.given.get(name + CODES)
        if theirs is None:  # no operator reads it
            return dequantize(own, module.scale, module.zero_point)
        codes = torch.from_numpy(theirs.astype(np.float32)).reshape(own.shape)
        self.found.setdefault(name, _Differing()).add(codes, own, args[0], module)
        return dequantize(codes, module.scale, module.zero_point)


def _reference(path: Path, images: Tensor, exact: Outputs) -> float | None:
    """The difference between the evaluator of onnx and ONNX Runtime without optimisation."""
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(str(path))
        found = cast("Outputs", evaluator.run(None, {evaluator.input_names[0]: images.numpy()}))
    except Exception:  # noqa: BLE001 - it lacks some forms of operators, such as transposed convolutions with groups
        return None
    largest = max(float(np.abs(values).max()) for values in exact) or 1.0
    return max(
        float(np.abs(ours - theirs[: len(ours)]).max()) / largest for ours, theirs in zip(found, exact, strict=True)
    )
