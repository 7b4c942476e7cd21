"""The diagnosis of a calibration set in a few numbers and a small table. Nothing here needs torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from zsqbench.store import NoArtifact

PLOTS, IMAGES, ATTENTION = "diagnostics.png", "images.png", "attention.png"
FILES = (PLOTS, IMAGES)
"""The pictures beside the numbers. `ATTENTION` is another picture, if there are attention maps."""


@dataclass(frozen=True)
class Diagnosis:
    """The diagnostics of a cell's calibration set."""

    data: Mapping[str, Any]
    """The findings of `zsqbench.synthesis.diagnose`, as plain data."""
    files: Mapping[str, Path]
    """The pictures, by name."""
    key: str = ""
    """The artifact with numbers and pictures."""

    def numbers(self) -> dict[str, float]:
        """A few numbers by name, as far as they exist."""
        of_set, real = self.data["set"], self.data["real"] or {}
        gaps, real_gaps = _gaps(of_set), _gaps(real)
        found = {
            "bn_gap": _mean(gaps),
            "bn_gap_worst": max(gaps, default=None),
            "bn_gap_real": _mean(real_gaps),
            "patch_entropy": _mean(_patches(of_set, "entropy")),
            "patch_entropy_real": _mean(_patches(real, "entropy")),
            "patch_spread": _mean(_patches(of_set, "spread")),
            "patch_spread_real": _mean(_patches(real, "spread")),
            "feature_distance": _get(self.data, "feature_distance", "energy"),
            "output_range_ratio": _mean(_numbers(self.data["output_range_ratio"])),
            "difficulty": _get(of_set, "difficulty", "mean"),
            "difficulty_real": _get(real, "difficulty", "mean"),
            "class_entropy": _get(of_set, "class_balance", "predicted_entropy"),
            "diversity": _get(of_set, "diversity", "cosine"),
            "diversity_real": _get(real, "diversity", "cosine"),
            "pixels_outside": _get(of_set, "pixels", "outside"),
        }
        return {name: value for name, value in found.items() if value is not None}


def render(found: Diagnosis | NoArtifact) -> str:
    """The diagnostics as a small table with a remark on each number, or why there are none."""
    if isinstance(found, NoArtifact):
        return f"calibration set: {found.why}"
    of_set, real = found.data["set"], found.data["real"]
    beside = f"beside {real['images']} real ones" if real else f"no real ones: {found.data['absent'].get('real')}"
    rows = [
        ("", "set", "real", ""),
        *_bn_rows(of_set, real),
        *_attention_rows(of_set, real or {}),
        *_output_rows(found.data),
    ]
    for name, path, remark in (
        ("difficulty", ("difficulty", "mean"), f"1 - p of the {_get(of_set, 'difficulty', 'by')}, mean"),
        ("class balance", ("class_balance", "predicted_entropy"), "entropy of predicted classes; 1: equally many"),
        ("label balance", ("class_balance", "labels_entropy"), "the same of the labels"),
        ("diversity", ("diversity", "cosine"), "mean cosine distance of features"),
        ("  within classes", ("diversity", "cosine_within"), "the same of pairs of one class"),
        ("pixels outside", ("pixels", "outside"), "share of values that no image can have"),
    ):
        rows.append(_row(name, path, remark, of_set, real))
    rows += _distance_rows(found.data)
    align = ("left", "right", "right", "left")
    table = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()
    pictures = [str(found.files[name]) for name in (IMAGES, ATTENTION, PLOTS) if name in found.files]
    return "\n".join([f"calibration set: {of_set['images']} images, {beside}", *table, *pictures])


def _row(
    name: str, path: Sequence[str], remark: str, of_set: Mapping[str, Any], real: Mapping[str, Any] | None
) -> tuple[str, str, str, str]:
    value = _get(of_set, *path)
    if value is None:
        remark = _reason(of_set, path) or "not measured"
    return name, _text(value), _text(_get(real or {}, *path)), remark


def _bn_rows(of_set: Mapping[str, Any], real: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]]:
    gaps = _gaps(of_set)
    if not gaps:
        return [("BN gap", "-", "-", _reason(of_set, ["bn_gaps"]) or "not measured")]
    worst = max((layer for layer in of_set["bn_gaps"] if layer["gap"] is not None), key=lambda layer: layer["gap"])
    beside = {layer["layer"]: layer["gap"] for layer in (real or {}).get("bn_gaps") or ()}
    return [
        ("BN gap", _text(_mean(gaps)), _text(_mean(_gaps(real or {}))), "in stored deviations, mean over layers"),
        ("  worst layer", _text(worst["gap"]), _text(beside.get(worst["layer"])), str(worst["layer"])),
    ]


def _attention_rows(of_set: Mapping[str, Any], real: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of a network without batch normalisation. Empty: older diagnostics do not have them."""
    if of_set["bn_gaps"] is not None or "patch_similarities" not in of_set:
        return []
    return [*_patch_rows(of_set, real), ("attention maps", "-", "-", _about_maps(of_set))]


def _patch_rows(of_set: Mapping[str, Any], real: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    if of_set["patch_similarities"] is None:
        return [("patch entropy", "-", "-", str(_reason(of_set, ["patch_similarities"])))]
    return [
        (name, _text(_mean(_patches(of_set, number))), _text(_mean(_patches(real, number))), remark)
        for name, number, remark in (
            ("patch entropy", "entropy", "of the similarities of patches, mean over blocks"),
            ("  spread", "spread", "deviation of these similarities, mean over blocks"),
        )
    ]


def _about_maps(of_set: Mapping[str, Any]) -> str:
    maps = of_set["attention_maps"]
    if maps is None:
        return str(_reason(of_set, ["attention_maps"]))
    return f"{' x '.join(map(str, maps['grid']))} patches, last block, by the {maps['by']}"


def _distance_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The distance to real images. None: there are no real images, or the diagnostics are older than this row."""
    if data["real"] is None or "feature_distance" not in data:
        return []
    energy = _get(data, "feature_distance", "energy")
    told = "of features to those of real images: 0 for alike, at most 1"
    if energy is None:
        told = _reason(data, ["feature_distance", "energy"]) or "not measured"
    return [("feature distance", _text(energy), "", told)]


def _output_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    of_set, real = data["set"], data["real"] or {}
    outputs = of_set["output_ranges"]
    if outputs is None:
        return [("output range", "-", "-", str(_reason(of_set, ["output_ranges"])))]
    beside = {each["output"]: each["mean"] for each in real.get("output_ranges") or ()}
    ratios = data["output_range_ratio"] or [None] * len(outputs)
    return [
        (
            "output range",
            _text(each["mean"]),
            _text(beside.get(each["output"])),
            f"{each['output']}, mean of largest - smallest" + (f"; set / real {ratio:.3g}" if ratio else ""),
        )
        for each, ratio in zip(outputs, ratios, strict=True)
    ]


def _reason(part: Mapping[str, Any], path: Sequence[str]) -> str | None:
    """Why a number is missing: its own reason, or that of its part."""
    absent: Mapping[str, str] = part["absent"]
    keys = [".".join(path), path[0], f"{path[0]}.within" if "within" in path[-1] else "labels"]
    return next((absent[key] for key in keys if key in absent), None)


def _get(data: Mapping[str, Any], *path: str) -> Any:
    value: Any = data
    for name in path:
        value = None if value is None else value.get(name)
    return value


def _gaps(part: Mapping[str, Any]) -> list[float]:
    return _numbers([layer["gap"] for layer in part.get("bn_gaps") or ()])


def _patches(part: Mapping[str, Any], number: str) -> list[float]:
    """One number of the patch similarities, of each block."""
    return _numbers([block[number] for block in part.get("patch_similarities") or ()])


def _numbers(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
