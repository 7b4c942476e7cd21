"""The notes below a table: the metric, the data, and numbers that a reader must not compare."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from zsqbench.reports.results import Result
from zsqbench.reports.tables.axes import CONTROLS, Column, Row, changed_settings, listed, unique
from zsqbench.scheme import PLACEMENTS
from zsqbench.steps import KINDS

METRICS = {
    "top1": "top-1 accuracy in percent",
    "top5": "top-5 accuracy in percent",
    "mAP": "COCO's mean average precision (IoU 0.5 to 0.95) in percent",
}
"""The name of a metric in a table. Other metrics keep their names."""

CLIPPED_AT_MOST = 0.05
"""A table warns from this share of evaluation images with clipped outputs on.

If several of the largest outputs of an image are clipped, they are equal, and the decision between them is lost. A
classifier may lose one point for each 0.01. After calibration on N images, a share of 1 / (N + 1) of similar images
exceeds the range. So 0.05 is more than a set of 20 images leaves that is like the evaluation images. Measured with
`rtn` at hw/w8a8: 0.28 on EfficientNet-Lite0 calibrated on noise (minus 16 points), 0 on real images; 0.48 on the
embedded MobileNetV2 with `zeroq` (minus 25 points); 0.01 to 0.025 on the embedded detector calibrated on 64 real
images.
"""


def remarks_on(done: Sequence[Result]) -> Iterable[str]:
    """Lines that a reader of these seeds' number needs: notes of methods, and clipped outputs."""
    yield from unique(line for result in done for line in result.footnotes)
    for name in unique(name for result in done for name in result.clipped):
        share = statistics.fmean(result.clipped.get(name, 0.0) for result in done)
        if share > CLIPPED_AT_MOST:
            yield (
                f"in {100 * share:.0f} % of the evaluated images, several of the largest values of the output {name} "
                f"lie beyond its grid and become equal; {_without_logits(done[0].scheme)}"
            )


def _without_logits(scheme: str) -> str:
    """The advice to leave outputs in float."""
    placement = scheme.partition("/")[0]
    if placement in PLACEMENTS:
        return f"the scheme {{base: {placement}, logits: float}} leaves outputs in float"
    return f"`logits: float` in scheme {placement} leaves outputs in float"


def sources_of(results: Sequence[Result]) -> Iterable[str]:
    """A line for each paper: its tables, and its citation."""
    tables: dict[str, list[str]] = {}
    for result in results:
        if result.published:
            tables.setdefault(result.published["citation"], []).append(result.published["source"])
    for citation, sources in tables.items():
        yield f"published: {listed(sources)}, as its authors measured it: {citation}"


def seeds_of(results: Sequence[Result]) -> str:
    """The seeds of the rows, in words."""
    seeds = sorted({result.seed for result in results if result.seed is not None})
    if len(seeds) > 1:
        return f"mean ± sample standard deviation over seeds {listed(seeds)}"
    return f"seed {seeds[0]}" if seeds else "unseeded"


def metrics_of(results: Sequence[Result]) -> str:
    """The note on what was measured."""
    return listed(METRICS.get(result.metric, result.metric) for result in results if result.metric) or "no metric"


def caption_of(results: Sequence[Result]) -> str:
    """The notes for a reader who sees only the table."""
    tasks, schemes = (listed(getattr(result, axis) for result in results) for axis in ("task", "scheme"))
    return (
        f"Suite {listed(result.suite for result in results)}: {metrics_of(results)} on {tasks} at {schemes}; "
        f"{seeds_of(results)}; in parentheses the difference from the float network"
    )


def measured_on(results: Sequence[Result], groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> Iterable[str]:
    """Lines on the metric, the data, the calibration, and on numbers that cannot be compared.

    `groups` has the results by method and column.
    """
    for task in unique(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        counts = (result.data.get("evaluated") for result in of_task)  # a failed row may have that of the float network
        evaluated = listed(count for count in counts if count is not None)
        yield f"{task}: {metrics_of(of_task)}, {evaluated or 'no'} samples evaluated"
    yield f"{seeds_of(results)}; in parentheses the difference from the float network"
    yield from unique(f"{each.model}: {note}" for each in results for note in each.model_facts.get("notes", ()))
    yield from unique(f"{group}/...: {why}" for each in results for group, why in each.not_run.items())
    yield from _calibrated(results)
    yield from _speeds(results)
    yield from unique(f"{result.task} {result.model}: {note}" for result in results for note in result.notes)
    yield from _disagreements(results)
    yield from _different_bits(groups)


def _calibrated(results: Sequence[Result]) -> Iterable[str]:
    """How many images were read. A generator is named with its quantizers if these read different numbers."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        if result.generator and (count := result.data.get("calibrated")):
            counts.setdefault(result.generator, {})[result.quantizer] = count
    users: dict[int, list[str]] = {}
    for generator, by_quantizer in counts.items():
        differ = len(set(by_quantizer.values())) > 1
        for quantizer, count in by_quantizer.items():
            users.setdefault(count, []).append(f"{generator} with {quantizer}" if differ else generator)
    if len(users) == 1:
        yield f"calibrated on {next(iter(users))} images"
    elif users:
        yield "calibrated on " + "; ".join(f"{count} images ({listed(names)})" for count, names in users.items())


def _speeds(results: Sequence[Result]) -> Iterable[str]:
    """If cells differ in settings, the cost of each setting: mean seconds over the distinct steps of a method."""
    if len({changed_settings(result) for result in results}) < 2:  # noqa: PLR2004
        return
    for kind, axis in ((kind, job.axis) for kind, job in KINDS.items() if job.axis):
        steps: dict[str, dict[str, dict[str, float]]] = {}
        for result in results:
            if result.status == "done" and kind in result.seconds:
                of_method = steps.setdefault(getattr(result, axis), {})
                of_method.setdefault(changed_settings(result) or "default settings", {})[result.keys[kind]] = (
                    result.seconds[kind]
                )
        for method, settings in steps.items():
            means = {text: statistics.fmean(seconds.values()) for text, seconds in settings.items()}
            default = means.get("default settings")
            texts = [
                f"{text} {mean:.2f}" + (f" ({mean / default:.2f} x)" if default and text != "default settings" else "")
                for text, mean in means.items()
            ]
            yield f"mean seconds to {kind} with {method}: {'; '.join(texts)}"


def _disagreements(results: Sequence[Result]) -> Iterable[str]:
    floats: dict[str, set[float]] = {}
    for result in results:
        if result.float_value is not None:
            floats.setdefault(f"{result.task} {result.model}", set()).add(result.float_value)
    for where, values in floats.items():
        if len(values) > 1:
            yield f"{where}: float accuracy differs between rows ({listed(sorted(values))}); run the suite again"


def _different_bits(groups: Mapping[tuple[Row, Column], Sequence[Result]]) -> Iterable[str]:
    """Columns in which rows of one network differ in tensors, roles or bits, so that they cannot be compared.

    Grids do not count: a method chooses its grids, and its details show them. A control that quantizes nothing does not
    count. Mixed precision does not count either, because its columns have equal mean bits and size.
    """
    methods: dict[Column, dict[str, list[str]]] = {}
    for (row, column), group in groups.items():
        for result in group:
            if (
                result.status == "done"
                and "bits" in result.tensors
                and not (row.control == CONTROLS["float"] or column.mixed)
            ):
                by_bits = methods.setdefault(column, {})
                by_bits.setdefault(result.tensors["bits"], []).append(result.quantizer)
    for column, by_bits in methods.items():
        if len(by_bits) > 1:
            alike = " and ".join(listed(names) for names in by_bits.values())
            yield (
                f"{column.task} {column.model} {column.scheme}: these quantize other tensors, or at other bits, and do "
                f"not compare: {alike}; `zsqbench show` prints the tensors of a row"
            )
