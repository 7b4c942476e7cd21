"""Make, compare and print the tensor map of a network at a scheme: the bits of each tensor, without calibration.

This module also prints the measured map of a quantized network and the losses of reconstruction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from zsqbench.scheme import (
    FLOAT_BITS,
    Grid,
    InputRange,
    MeasuredTensor,
    PlannedTensor,
    RankedWeight,
    Scheme,
)

if TYPE_CHECKING:
    from torch import nn

SCALE_BYTES = 4
_BYTE = 8
_QUANTIZERS_CHOICE = "the quantizer's choice"
_FUSED = "fused"
"""The text for a tensor that a scheme does not have, because its maker and its reader are computed as one."""
RECONSTRUCTION = "reconstruction/"
"""The prefix of the names of curves of units."""
_DEMANDS = ("grid", "weight_grid", "activation_grid", "input_range")


@dataclass(frozen=True)
class TensorMap:
    """The effect of a scheme on a network: weights first, then activations, each in execution order."""

    model: str
    scheme: str
    fold_bn: bool
    kept_norms: int
    """Number of batch normalisations that stay: all, or those that cannot be folded."""
    grid: Grid | None
    """The grid that the scheme demands for all tensors, if any."""
    patterns: tuple[str, ...]
    """The scheme's patterns of tensor names. The last match counts."""
    tensors: tuple[PlannedTensor, ...]
    weight_grid: Grid | None = None
    """The grid that it demands for weights, if any. It may be the grid for all tensors."""
    activation_grid: Grid | None = None
    """The grid that it demands for activations, if any."""
    input_range: InputRange = "calibrated"
    """The range of the image: from calibration, or that of valid pixels."""

    def as_data(self) -> dict[str, Any]:
        """The map as plain data."""
        return asdict(self)


Pair = tuple[PlannedTensor | None, PlannedTensor | None]
"""A tensor at two schemes. None: only the other scheme has this tensor."""


@dataclass(frozen=True)
class Difference:
    """Two maps of one network."""

    maps: tuple[TensorMap, TensorMap]
    tensors: tuple[Pair, ...]
    """The tensors that differ in their bits."""
    compared: Mapping[str, int]
    """Number of compared tensors of each kind, from both schemes."""

    def as_data(self) -> dict[str, Any]:
        """The difference as plain data. Lists of two have the value of the first scheme and that of the second."""
        first, second = self.maps
        return {
            "model": first.model,
            "schemes": [first.scheme, second.scheme],
            "fold_bn": [first.fold_bn, second.fold_bn],
            **{name: [getattr(first, name), getattr(second, name)] for name in _DEMANDS},
            "compared": sum(self.compared.values()),
            "tensors": [
                {
                    "kind": _present(pair).kind,
                    "name": _present(pair).name,
                    **{f"{name}s": [each and getattr(each, name) for each in pair] for name in ("role", "pattern")},
                    "bits": [each and each.bits for each in pair],
                }
                for pair in self.tensors
            ],
        }


def tensor_map(model: str, module: "nn.Module", scheme: Scheme, input_size: tuple[int, int, int]) -> TensorMap:
    """The map of a module at a scheme. The weights do not matter. Raises ZSQBenchError as `prepare` does."""
    from zsqbench.quant import effective_map, prepare
    from zsqbench.quant.graph import is_batch_norm

    # at 8 bits, even a scheme that quantizes nothing has all its tensors
    shown = scheme.model_copy(update={"weight_bits": 8, "activation_bits": 8}) if scheme.is_float else scheme
    student, placement = prepare(module, shown, input_size), scheme.placement
    tensors = tuple(
        PlannedTensor(
            tensor.kind,
            tensor.name,
            tensor.role,
            FLOAT_BITS if scheme.is_float else tensor.bits,
            placement.pattern_of(tensor.kind, tensor.name),
        )
        for tensor in effective_map(student)
    )
    kept = len({str(node.target) for node in student.graph.nodes if is_batch_norm(node)})
    return TensorMap(
        model,
        scheme.name,
        placement.fold_bn,
        kept,
        placement.grid,
        tuple(placement.tensors),
        tensors,
        placement.grid_of("weight"),
        placement.grid_of("activation"),
        placement.input_range,
    )


def difference(first: TensorMap, second: TensorMap) -> Difference:
    """The differences between two maps of one network. Tensors have the same names, but one map may have more."""
    ours, theirs = ({(each.kind, each.name): each for each in made.tensors} for made in (first, second))
    most, other = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
    pairs = [(ours.get(place), theirs.get(place)) for place in dict.fromkeys([*most, *other])]
    compared = Counter(_present(pair).kind for pair in pairs)
    return Difference((first, second), tuple(pair for pair in pairs if _at(pair[0]) != _at(pair[1])), compared)


def render(made: TensorMap) -> str:
    """A map as an aligned table with a summary."""
    rows = [(tensor.kind, tensor.name, tensor.role, _bits_by(tensor)) for tensor in made.tensors]
    lines = [f"{made.scheme} on {made.model}", "", *_table([("kind", "tensor", "role", "bits"), *rows]), ""]
    for kind in ("weight", "activation"):
        groups: dict[int, Counter[str]] = {}
        for tensor in made.tensors:
            if tensor.kind == kind:
                groups.setdefault(tensor.bits, Counter())[tensor.role] += 1
        counts = [f"{roles.total()} {_with(bits)} ({_roles(roles)})" for bits, roles in sorted(groups.items())]
        lines.append(f"{kind}s: {'; '.join(counts) or 'none'}")
    if made.patterns:
        given = Counter(tensor.pattern for tensor in made.tensors)
        lines.append(f"bits by pattern: {', '.join(f'{given[pattern]} by {pattern}' for pattern in made.patterns)}")
    lines.append(f"batch normalisation: {_norms(made)}")
    lines.append(f"grid: {_grids(made)}")
    if made.input_range != "calibrated":
        lines.append(f"range of the image: {_range(made)}")
    return "\n".join(lines)


def render_difference(found: Difference) -> str:
    """The tensors that differ as an aligned table, with a summary by role."""
    first, second = found.maps
    lines = [f"{first.scheme} and {second.scheme} on {first.model}", ""]
    if found.tensors:
        head = ("kind", "tensor", "role", first.scheme, second.scheme)
        kinds = [(_present(pair).kind, _present(pair).name) for pair in found.tensors]
        rows = [(*kind, _roles_of(pair), *map(_bits_by, pair)) for kind, pair in zip(kinds, found.tensors, strict=True)]
        lines += [*_table([head, *rows]), ""]
    different = Counter(_present(pair).kind for pair in found.tensors)
    counts = [f"{different[kind]} of {found.compared.get(kind, 0)} {kind}s" for kind in ("weight", "activation")]
    lines.append(f"different bits: {' and '.join(counts)}")
    groups = Counter((_roles_of(pair), *map(_at, pair)) for pair in found.tensors)
    lines += [f"  {count} {role}: {before} and {after}" for (role, before, after), count in groups.items()]
    lines.append(f"batch normalisation: {_both(*(_norms(made) for made in found.maps))}")
    lines.append(f"grid: {_both(*map(_grids, found.maps))}")
    if {made.input_range for made in found.maps} != {"calibrated"}:
        lines.append(f"range of the image: {_both(*map(_range, found.maps))}")
    return "\n".join(lines)


def render_measured(tensors: Sequence[MeasuredTensor]) -> str:
    """The tensors of a quantized network as a table with grids and ranges, and the size of the weights."""
    rows = [
        (
            tensor.kind,
            tensor.name,
            tensor.role,
            _bits(tensor.bits),
            "" if tensor.bits == FLOAT_BITS else tensor.grid,
            "" if tensor.bits == FLOAT_BITS else "tensor" if tensor.axis is None else "channel",
            "" if tensor.low is None else f"{tensor.low:.4g} .. {tensor.high:.4g}",
        )
        for tensor in tensors
    ]
    lines = _table([("kind", "tensor", "role", "bits", "grid", "per", "range"), *rows])
    weights = [tensor for tensor in tensors if tensor.kind == "weight"]
    if weights:
        packed, unpacked = packed_bytes(weights), 4 * sum(weight.elements or 0 for weight in weights)
        lines += [
            "",
            f"weights: {packed:,} bytes, {unpacked:,} in float32 ({unpacked / packed:.1f} times as many)",
            f"counted: weights packed at their bits, {SCALE_BYTES} bytes for each scale and, on an affine grid, a zero",
            "point of the weight's bits for each scale; not counted: biases and normalisation",
        ]
    return "\n".join(lines)


@dataclass(frozen=True)
class UnitLoss:
    """The loss of a unit at the first and at the last step of its reconstruction."""

    stage: str
    unit: str
    before: float
    after: float


def unit_losses(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[UnitLoss]:
    """Losses from the curves `reconstruction/STAGE/UNIT` of a quantize step, in the order of reconstruction."""
    found = []
    for name, points in curves.items():
        if name.startswith(RECONSTRUCTION):
            stage, _, unit = name.removeprefix(RECONSTRUCTION).partition("/")
            found.append(UnitLoss(stage, unit, points[0][1], points[-1][1]))
    return found


def render_reconstruction(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """The losses of units as a table: before, after, and after / before. Empty: there are none."""
    rows = [
        (
            *(each.stage, each.unit, f"{each.before:.4g}", f"{each.after:.4g}"),
            f"{each.after / each.before:.3g}" if each.before else "",
        )
        for each in unit_losses(curves)
    ]
    return "\n".join(_table([("stage", "unit", "loss before", "after", "ratio"), *rows])) if rows else ""


def packed_bytes(weights: Iterable[MeasuredTensor]) -> int:
    """The size of weights, packed at their bits, with their scales, and with zero points if the grid is affine."""
    total = 0
    for weight in weights:
        groups, elements = weight.groups or 0, weight.elements or 0
        zero_points = groups if weight.grid == "affine" else 0
        total += -(-weight.bits * (elements + zero_points) // _BYTE) + SCALE_BYTES * groups
    return total


def weight_size(tensors: Iterable[MeasuredTensor]) -> dict[str, float]:
    """Mean bits over all values of weights, and their size at these bits in 10^6 bytes, in the form of a row.

    Scales, zero points and biases are not counted. Empty: no weight is known.
    """
    weights = [tensor for tensor in tensors if tensor.kind == "weight" and tensor.elements]
    elements = sum(weight.elements or 0 for weight in weights)
    if not elements:
        return {}
    bits = sum(weight.bits * (weight.elements or 0) for weight in weights)
    return {"mean_weight_bits": round(bits / elements, 4), "size_mb": round(bits / _BYTE / 1e6, 6)}


def render_ranking(weights: Sequence[RankedWeight]) -> str:
    """Weights as a table with their sensitivities, in the given order."""
    rows = [
        (
            weight.name,
            weight.role,
            _bits(weight.bits),
            str(weight.elements),
            "" if weight.error is None else f"{weight.error:.4g}",
        )
        for weight in weights
    ]
    return "\n".join(_table([("weight", "role", "bits", "elements", "error"), *rows]))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()


def _bits(bits: int) -> str:
    return "float" if bits == FLOAT_BITS else str(bits)


def _bits_by(tensor: PlannedTensor | None) -> str:
    """The bits of a tensor, with the pattern that gives them."""
    pattern = None if tensor is None else tensor.pattern
    return _at(tensor) + ("" if pattern is None else f" by {pattern}")


def _at(tensor: PlannedTensor | None) -> str:
    """The bits of a tensor at a scheme. The scheme may not have the tensor."""
    return _FUSED if tensor is None else _bits(tensor.bits)


def _with(bits: int) -> str:
    return "in float" if bits == FLOAT_BITS else f"at {bits} bits"


def _roles(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {role}" for role, count in counts.items())


def _present(pair: Pair) -> PlannedTensor:
    """The tensor at the first scheme that has it."""
    return next(each for each in pair if each is not None)


def _roles_of(pair: Pair) -> str:
    """The roles of a tensor at the schemes that have it, each once."""
    return "/".join(dict.fromkeys(each.role for each in pair if each is not None))


def _grids(made: TensorMap) -> str:
    weights, activations = (grid or _QUANTIZERS_CHOICE for grid in (made.weight_grid, made.activation_grid))
    return weights if weights == activations else f"{weights} for weights, {activations} for activations"


def _range(made: TensorMap) -> str:
    return "that of valid pixels" if made.input_range == "valid" else _QUANTIZERS_CHOICE


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first}; {second}"


def _norms(made: TensorMap) -> str:
    if not made.fold_bn:
        return f"not folded ({made.kept_norms})"
    return f"folded, except {made.kept_norms} that cannot be folded" if made.kept_norms else "folded"
