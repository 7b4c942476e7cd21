"""The options that differ between two rows, and the classes of images that one method has right less often."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsqbench.errors import CorruptArtifactError, in_one_line
from zsqbench.reports.results import Result, changed_options, flat, flat_method
from zsqbench.steps import evaluations
from zsqbench.steps.baseline import Baseline
from zsqbench.store import Store

if TYPE_CHECKING:
    import numpy as np

LOSERS = 5
"""At most so many of the classes that lose most are shown."""


@dataclass(frozen=True)
class OptionDifference:
    """An option that differs between A and B. None: this side does not have the option."""

    name: str
    a: object
    b: object


@dataclass(frozen=True)
class ClassLoss:
    """A class of images, by number. B has fewer of them right than A."""

    label: int
    images: int
    points: float
    """B minus A, below 0, as the mean over seeds."""


def options_that_differ(a: Result, b: Result) -> tuple[OptionDifference, ...]:
    """Methods, options, scheme, network, settings and versions of libraries that differ between two rows.

    If only one of two methods has an option, it is shown only if the suite sets it.
    """
    first, second = dict(_known(a)), dict(_known(b))
    given = {*_changed(a), *_changed(b)}
    for axis in ("generator", "quantizer"):
        if a.methods.get(axis, {}).get("method") != b.methods.get(axis, {}).get("method"):
            for name in (f"{axis}.version", f"{axis}.origin"):  # for different methods these have no meaning
                first.pop(name, None)
    return tuple(
        OptionDifference(name, first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name) and ((name in first and name in second) or name in given)
    )


def _known(row: Result) -> Iterator[tuple[str, object]]:
    """All values that may differ, by names such as `generator.iterations`."""
    yield from (("task", row.task), ("model", row.model), ("scheme", row.scheme))
    for axis, label in (("generator", row.generator), ("quantizer", row.quantizer)):
        yield axis, label or "none"
        for name, value in flat_method(axis, row.methods.get(axis, {})):
            if (name, value) != (f"{axis}.method", label):
                yield name, value
    yield from flat("settings", row.settings)
    if "digest" in row.model_facts:
        yield "model.digest", str(row.model_facts.get("digest"))[:12]
    yield from flat("environment", row.environment)


def _changed(row: Result) -> Iterator[str]:
    for axis in ("generator", "quantizer"):
        yield from changed_options(axis, row.methods.get(axis, {}))


def classes_that_lose(
    differences: "np.ndarray", rows: Sequence[Result], store: Store
) -> tuple[tuple[ClassLoss, ...], str | None]:
    """The classes that lose most, from B minus A [seeds, images], -1 to 1. Or no classes, and why they are not known.

    The labels come from the step `baseline` of one of these rows, in the store.
    """
    import numpy as np

    keys = (row.keys.get(Baseline.kind, "") for row in rows)
    key = next((key for key in keys if store.has(Baseline.kind, key)), None)
    if key is None:
        return (), f"the labels of the images are not in {store.home}, where the step {Baseline.kind} leaves them"
    try:
        labels = evaluations.read_samples(store.read(Baseline.kind, key)).get(evaluations.LABELS)
    except CorruptArtifactError as error:
        return (), in_one_line(str(error))
    if labels is None:
        return (), "the task keeps no labels"
    by_image = differences.mean(axis=0)
    if labels.shape != by_image.shape:
        return (), f"there are labels of {len(labels)} images, and values of {len(by_image)}"
    classes, places = np.unique(labels, return_inverse=True)
    images = np.bincount(places)
    points = 100 * np.bincount(places, weights=by_image) / images
    worst = np.argsort(points, kind="stable")[:LOSERS]
    return tuple(
        ClassLoss(int(classes[at]), int(images[at]), float(points[at])) for at in worst if points[at] < 0
    ), None
