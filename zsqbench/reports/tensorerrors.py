"""The sources of the error of a quantized network: all tensors as a table, and the worst tensors in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from zsqbench.scheme import TensorError
from zsqbench.store import NoArtifact

PICTURE = "layers.png"
WORST = 10
"""The number of tensors that are named in words."""

INFINITE = "infinite"
"""The beginning of the reason for an infinite ratio of signal to error: there is no error."""

CLIPS, IDLE = 0.01, 0.75
"""The text on a worst tensor names clipped values from this share on, and used codes below this share."""

APART = 3.0
"""If calibration and real images differ by so many decibels, the text on a worst tensor names both."""

_HEAD = ("tensor", "kind", "role", "bits", "SQNR", "real", "own", "real", "clipped", "real", "codes", "alone")


@dataclass(frozen=True)
class Analysis:
    """The errors of the tensors of a cell's quantized network. Ratios of signal to error are in decibels."""

    tensors: tuple[TensorError, ...]
    """The tensors in network order."""
    images: int | None
    """Number of calibration images for the measurement. None: there are none."""
    real: int | None
    """Number of real images outside evaluation. None: there are none."""
    ranked: int | None
    """Number of calibration images for the sensitivity. None: it was not measured."""
    outputs: float | None
    outputs_real: float | None
    rescaled: tuple[str, ...]
    """Pairs of layers whose channels the quantizer rescaled. The float network was rescaled for the comparison, too."""
    absent: Mapping[str, str]
    """Why a number, or a set of images, is missing."""
    picture: Path
    key: str = ""
    """The artifact of the analysis."""

    @classmethod
    def of(cls, content: Mapping[str, Any], picture: Path, key: str = "") -> Self:
        """The analysis in an artifact's plain data. Raises LookupError or TypeError for invalid data."""
        names = ("images", "real", "ranked", "outputs", "outputs_real", "absent")
        tensors = tuple(TensorError(**entry) for entry in content["tensors"])
        fields = {name: content[name] for name in names}
        return cls(tensors=tensors, rescaled=tuple(content["rescaled"]), picture=picture, key=key, **fields)

    @property
    def worst(self) -> list[TensorError]:
        """The tensors that lose most by their own rounding, on either set of images, the worst first."""
        found = [tensor for tensor in self.tensors if tensor.rounding is not None]
        return sorted(found, key=lambda tensor: tensor.rounding or 0.0)[:WORST]

    def numbers(self) -> dict[str, float]:
        """A few numbers by name, as far as they exist."""
        found: dict[str, float | None] = {"outputs": self.outputs, "outputs_real": self.outputs_real}
        for kind in ("weight", "activation"):
            of_kind = [tensor.rounding for tensor in self.tensors if tensor.kind == kind]
            own = [rounding for rounding in of_kind if rounding is not None]
            found[f"worst_{kind}"] = min(own, default=None)
            found[f"mean_{kind}"] = sum(own) / len(own) if own else None
        return {name: value for name, value in found.items() if value is not None}


def render_summary(found: Analysis) -> str:
    """One line on the outputs, one on the worst tensor, and the path of the picture."""
    if not found.tensors:
        return "error by tensor: nothing was quantized, or the quantizer left no map of it"
    lines = [f"error by tensor: {len(found.tensors)} quantized; {_outputs(found)}"]
    lines += [f"worst by its own rounding: {_sentence(tensor, found)}" for tensor in found.worst[:1]]
    return "\n".join([*lines, f"--layers shows all of them; a picture: {found.picture}"])


def render_layers(found: Analysis) -> str:
    """All tensors in network order as a table, the meanings of the columns, and the worst tensors in words."""
    from tabulate import tabulate  # planning imports this module for the kinds of steps, and must not wait for tabulate

    if not found.tensors:
        return render_summary(found)
    rows = [_row(tensor, found) for tensor in found.tensors]
    align = ("left", "left", "left", *["right"] * (len(_HEAD) - 3))
    table = tabulate(rows, _HEAD, tablefmt="plain", disable_numparse=True, colalign=align)
    lines = [f"error by tensor, {_images(found)}", "", *(line.rstrip() for line in table.splitlines()), ""]
    lines += [
        "SQNR: signal to error in dB, beside the float network, with the error of all that comes before",
        "own: the same of the rounding of this activation alone",
        "clipped: values beyond the grid; codes: used ones of the grid",
        "real: what stands before it, on the real images",
    ]
    if found.ranked is not None:
        lines.append(
            "alone: sensitivity, the error of the outputs where this weight alone is quantized, in parts of their "
            f"squares, on {found.ranked} images"
        )
    if found.rescaled:
        lines.append(
            f"rescaled: {len(found.rescaled)} pairs of layers share channels that the quantizer multiplied by factors; "
            "so did the float network for this"
        )
    lines += [f"not there: {why}" for why in dict.fromkeys(found.absent.values()) if not why.startswith(INFINITE)]
    worst = [f"{place:2}. {_sentence(tensor, found)}" for place, tensor in enumerate(found.worst, 1)]
    heading = f"the {len(worst)} worst by their own rounding:" if worst else "no tensor has an error of its own"
    return "\n".join([*lines, "", _outputs(found), "", heading, *worst, "", str(found.picture)])


def render_absent(found: NoArtifact) -> str:
    """Why there is no analysis."""
    return f"error by tensor: {found.why}"


def _images(found: Analysis) -> str:
    of_set = "no calibration images" if found.images is None else f"{found.images} calibration images"
    return f"on {of_set} and {'no' if found.real is None else found.real} real ones that are not evaluated"


def _outputs(found: Analysis) -> str:
    sets = [("outputs", "on the calibration images", found.images), ("outputs_real", "on real ones", found.real)]
    parts = [f"{_decibels(found, name)} dB {where}" for name, where, images in sets if images is not None]
    return f"outputs: {', '.join(parts)}" if parts else "outputs: no images to measure them on"


def _row(tensor: TensorError, found: Analysis) -> tuple[str, ...]:
    head = (tensor.name, tensor.kind, tensor.role, str(tensor.bits), _decibels(tensor, "sqnr"))
    clipped, codes = _percent(tensor.clipped), _percent(tensor.codes)
    if tensor.kind == "weight":
        return (*head, "", "", "", clipped, "", codes, _sensitivity(tensor, found))
    ratios = (_decibels(tensor, name) for name in ("sqnr_real", "own", "own_real"))
    return (*head, *ratios, clipped, _percent(tensor.clipped_real), codes, "")


def _sensitivity(tensor: TensorError, found: Analysis) -> str:
    if tensor.alone is None:
        return "-" if found.ranked is None or not tensor.absent.get("alone", "").startswith(INFINITE) else "inf"
    return f"{tensor.alone:.2g}"


def _decibels(of: TensorError | Analysis, name: str) -> str:
    value: float | None = getattr(of, name)
    if value is None:
        return "inf" if of.absent.get(name, "").startswith(INFINITE) else "-"
    return f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _sentence(tensor: TensorError, found: Analysis) -> str:
    """A tensor with its error in words."""
    head = f"{tensor.kind} {tensor.name} ({tensor.role}, {tensor.bits} bits)"
    parts = _of_weight(tensor, found) if tensor.kind == "weight" else _of_activation(tensor)
    if tensor.codes is not None and tensor.codes < IDLE:
        parts.append(f"of {2**tensor.bits} codes {round(tensor.codes * 2**tensor.bits)} are used")
    return f"{head} {'; '.join(parts)}"


def _of_weight(tensor: TensorError, found: Analysis) -> list[str]:
    parts = [f"differs from the float weight by {_share(tensor.own)}"]
    if tensor.clipped is not None and tensor.clipped > CLIPS:
        parts.append(f"{_percent(tensor.clipped)} of its values lie beyond the grid")
    if tensor.alone is not None:
        ranking = sorted((each.alone for each in found.tensors if each.alone is not None), reverse=True)
        place = f"place {ranking.index(tensor.alone) + 1} of {len(ranking)}"
        parts.append(f"alone it changes the outputs by {100 * tensor.alone:.2g} % of their squares ({place})")
    return parts


def _of_activation(tensor: TensorError) -> list[str]:
    """Texts on both sets of images, first the set on which its own rounding loses more."""
    sides = [
        ("the calibration images", tensor.own, tensor.sqnr, tensor.clipped),
        ("real images", tensor.own_real, tensor.sqnr_real, tensor.clipped_real),
    ]
    known = sorted((own, where, sqnr, clipped) for where, own, sqnr, clipped in sides if own is not None)
    parts = []
    for place, (own, where, sqnr, clipped) in enumerate(known):
        if place and own - known[0][0] < APART:
            break
        if place:
            parts.append(f"on {where} {own:.1f} dB")
        else:
            parts.append(f"loses {_share(own)} by its own rounding on {where}")
        parts += [] if sqnr is None else [f"with all before it {sqnr:.1f} dB"]
        if clipped is not None and clipped > CLIPS:
            parts.append(f"{_percent(clipped)} of its values lie beyond the grid")
    return parts


def _share(decibels: float | None) -> str:
    """An error as a part of the signal."""
    return "nothing" if decibels is None else f"{100 * 10 ** (-decibels / 10):.2g} % of its squares ({decibels:.1f} dB)"
