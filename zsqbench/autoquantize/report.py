"""The content of the page: the choice, its distance to the float network, its cost, and its risks."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zsqbench.autoquantize.candidates import ABOUT, CANDIDATES, WITHOUT_BN, on_images_of
from zsqbench.autoquantize.delivery import Delivery
from zsqbench.autoquantize.findings import NEAR, Found, Tried
from zsqbench.autoquantize.page import Page, Section
from zsqbench.autoquantize.request import WIDTHS, Request
from zsqbench.reports.tables.notes import remarks_on

if TYPE_CHECKING:
    from zsqbench.methods import Pretrained
    from zsqbench.reports.doctor import Checkup
    from zsqbench.reports.results import Result

FEW_IMAGES = 100
"""With fewer images, the page says how much one image changes the figure."""

MUCH = 5.0
"""From so many percent of changed decisions or of output difference, the page warns."""

WORDS = {
    "agreement": "percent of the images for which the quantized and the float network decide for the same class",
    "fidelity": "100 less the difference of the outputs from the float network's in percent of their size",
    "top1": "percent of the labelled images for which a network decides for the label",
    "control": "a candidate that any good one must beat, and that is chosen only where all others are clearly worse",
    "simulation": "the quantized network in PyTorch, on which all figures of candidates were measured",
    "bits": "how many bits a weight has on average; the size of all weights follows from them",
    "p50, p95": "half of the runs, and 95 of 100 runs, take at most this time",
    "codes": "the integers that stand for a tensor's values",
}


def make_page(request: Request, found: Found, checkup: "Checkup", network: "Pretrained", chosen: Delivery) -> Page:
    """The page about a search and the model that was chosen and delivered."""
    return Page(
        f"{request.model}, quantized to {WIDTHS[request.target]}{_but(chosen.tried)}",
        [
            Section("In short", [*_short(request, found, chosen), _feeding(network)]),
            Section("What to fear", list(_fears(request, found, checkup, chosen)) or ["Nothing was found."]),
            Section("Why this one", _choice(request, found), _table(found, chosen.tried)),
            Section("Left out", _left_out(request, found)),
            Section("Speed", [_timed_on(chosen)], _latencies(chosen)),
            Section("The file beside the simulation", _compared(request, chosen)),
            Section("Words", list(_words(request, found))),
        ],
    )


def _short(request: Request, found: Found, chosen: Delivery) -> list[str]:
    row, runtime = chosen.tried.row, chosen.runtime
    mean = f"; its weights have {chosen.tried.bits:.1f} bits on average" if chosen.tried.candidate.part else ""
    lines = [
        f"The model is {chosen.path}. {chosen.path.with_suffix('.py').name} beside it runs it on an image.",
        f"{chosen.tried.candidate.name} made it{mean}.",
        f"{_nearness(row.value or 0.0, str(row.metric))}{_of(row)} {_judged_on(request, found, chosen.tried)}.",
    ]
    if "top1" in row.metrics:
        lines.append(
            f"Of your labels it meets {row.metrics['top1']:.2f} %; the float network meets "
            f"{row.float_metrics['top1']:.2f} %."
        )
    smaller = runtime.float_size_mb / chosen.size_mb
    quantized, unquantized, structure = runtime.quantized.p50, runtime.unquantized.p50, runtime.check.structure
    return [
        *lines,
        f"The file has {_size(chosen.size_mb)}; in float {_size(runtime.float_size_mb)} ({smaller:.1f} x).",
        f"An image takes {quantized:.2f} ms; in float {unquantized:.2f} ms ({unquantized / quantized:.1f} x).",
        f"{structure.integer} of {len(structure.layers)} layers run with integers in ONNX Runtime.",
    ]


def _but(tried: Tried) -> str:
    """The layers that have more bits than the target, if any."""
    part = tried.candidate.part
    return f"; {part} of the layers have weights of 8" if part else ""


def _size(megabytes: float) -> str:
    return f"{megabytes:.2f} MB" if megabytes >= 1 else f"{1000 * megabytes:.1f} kB"


def _nearness(value: float, metric: str) -> str:
    if metric == "agreement":
        return f"It decides for the same class as the float network in {value:.2f} %"
    return f"Its outputs differ from the float network's by {100 - value:.2f} % of their size"


def _of(row: "Result") -> str:
    return " of" if row.metric == "agreement" else ", on"


def _judged_on(request: Request, found: Found, tried: Tried) -> str:
    if request.images is None:
        return f"{len(found.generators) * found.level.images} synthetic images"
    count = int(tried.row.metrics["images/samples"])
    return f"{count} images of {request.images}"


def _feeding(network: "Pretrained") -> str:
    """The input of the file."""
    low, high = network.value_range
    order = "blue, green, red" if network.preprocessing.get("channels") == "bgr" else "red, green, blue"
    order = f" in the order {order}" if network.input_size[0] == 3 else ""  # noqa: PLR2004 - colours
    size = ", ".join(map(str, network.input_size))
    return (
        f"It takes float32 [N, {size}]: pixels from {low:g} to {high:g}{order}, less {_numbers(network.mean)}, divided "
        f"by {_numbers(network.std)}."
    )


def _numbers(values: Sequence[float]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else f"({', '.join(f'{value:.4g}' for value in values)})"


def _fears(request: Request, found: Found, checkup: "Checkup", chosen: Delivery) -> Iterator[str]:
    """The risks, the worst first."""
    row = chosen.tried.row
    if checkup.random_weights:
        yield "The network has random weights: nothing here says anything of a trained one."
    if (lost := 100 - (row.value or 0.0)) > MUCH:
        what = "decides otherwise than float in" if row.metric == "agreement" else "has outputs that differ by"
        yield f"It {what} {lost:.2f} %: see whether your use can bear that, with labelled images."
    yield from (f"ONNX Runtime and the simulation differ: {problem}." for problem in chosen.runtime.check.problems)
    yield from (f"{line}." for line in remarks_on([row]))
    yield from _fears_of_judgement(request, found, chosen.tried)
    yield from _fears_of_file(chosen)
    yield from (f"{note}." for note in row.notes)
    yield from (f"zsqbench doctor says: {line}." for line in (*checkup.warnings, *checkup.notes))


def _fears_of_judgement(request: Request, found: Found, tried: Tried) -> Iterator[str]:
    """Why the figures may be less reliable than they seem."""
    control, count = found.control, int(tried.row.metrics["samples"])
    if control is None:
        yield "The control was not run, so it is not known whether synthetic images are better than noise."
    elif control is tried:
        yield (
            f"It is the control, {control.candidate.name}, than which all candidates are worse: no method that was "
            "tried brings as much as random images do here."
        )
    elif control.rank > tried.rank and control.is_told_from(tried):
        yield (
            f"The control, {control.candidate.name}, has the higher {tried.row.metric}, {control.row.value:.2f} "
            f"instead of {tried.row.value:.2f}: {_why_not(found)}."
        )
    elif not control.is_told_from(tried):
        yield (
            f"The control, {control.candidate.name}, cannot be told from it by what it was judged on, so these figures "
            "do not show that the choice matters."
        )
    if found.at_home:
        yield "It was judged on noise, for which no network is made: take the figures as hints."
    elif request.images is None:
        yield (
            "It was judged on synthetic images alone, which can be easier or harder than real ones. Images of yours "
            "say more, without labels too: --images FOLDER."
        )
        if tried.candidate.generator in found.generators:
            part = "those" if len(found.generators) == 1 else "some of those"
            maker = tried.candidate.generator
            yield f"It was calibrated on images that {maker} made, as are {part} that it is judged on."
    if tried.row.metric == "agreement" and count < FEW_IMAGES:
        yield f"It was judged on {count} images: one more or less is {100 / count:.1f} %. A longer --budget has more."


def _fears_of_file(chosen: Delivery) -> Iterator[str]:
    """Why the file may gain less than expected, and what it needs."""
    runtime = chosen.runtime
    if chosen.size_mb >= runtime.float_size_mb:
        yield "The file is not smaller than the float network's: what a file holds besides weights outweighs them."
    if runtime.quantized.p50 >= runtime.unquantized.p50:
        yield "On this processor it is slower than the float network."
    if runtime.saturates and runtime.check.structure.integer:
        yield (
            "This processor's products of 8 bits can overflow. A session needs the entry session.x64quantprecision = "
            f"1, as the script beside the model has it; without it {runtime.check.equal_saturating} of "
            f"{runtime.check.images} decisions are as simulated."
        )
    yield from (f"{note}." for note in chosen.notes)


def _choice(request: Request, found: Found) -> list[str]:
    """Why the first candidate is first."""
    first, *others = found.ranking
    metric = str(first.row.metric)
    lines = [
        f"Candidates were judged on {_judged_on(request, found, first)}; none was calibrated on any of them.",
        _made(found),
    ]
    if first is found.control:
        return [*lines, _by_control(first), *_other_sizes(first, others)]
    best, control = max(found.near, key=lambda tried: tried.rank), found.control
    near = [tried.candidate.name for tried in found.near if tried is not best]
    worse = [tried.candidate.name for tried in others if tried not in found.near and tried.is_near(best)]
    leads = control is not None and (control.row.value or 0.0) > (best.row.value or 0.0)
    highest = f"highest {metric} but for the control's" if leads else f"highest {metric}"
    decides = (
        "the fewest bits are chosen, then the highest fidelity"
        if found.sizes_differ
        else "the highest fidelity is chosen"
    )
    if metric == "agreement" and near:
        lines.append(
            f"{best.candidate.name} has the {highest}. {_listed(near)} cannot be told from it: so small a "
            f"difference is often chance (sign test, 5 %). Among these {decides}."
        )
    elif metric == "agreement":
        other = "other one that the control is not clearly better than" if worse else "other candidate"
        lines.append(f"The {highest} is chosen; no {other} comes so near that it could be chance.")
    elif found.sizes_differ:
        lines.append(
            f"{best.candidate.name} has the {highest}. Among those that have at most {NEAR:g} less, {decides}."
        )
    else:
        lines.append(f"The {highest} is chosen.")
    if worse:
        lines.append(f"Not chosen, because the control is clearly better: {_listed(worse)}.")
    lines += _other_sizes(first, others)
    if control is not None:
        lines.append(f"The control is {control.candidate.name}{f'; {_why_not(found)}' if leads else ''}.")
    return lines


def _made(found: Found) -> str:
    """The images, and the generators that made them."""
    names, count = found.generators, found.level.images
    makes = f"{_listed(names)} make {count} images each" if len(names) > 1 else f"{names[0]} makes {count} images"
    return f"{makes} to calibrate on, and as many of another seed to judge."


def _by_control(control: Tried) -> str:
    """Why the control is chosen."""
    how = "more than chance explains (sign test, 5 %)" if control.row.metric == "agreement" else f"more than {NEAR:g}"
    return (
        f"All candidates have less {control.row.metric} than the control, {control.candidate.name}, by {how}: so the "
        "control is chosen."
    )


def _why_not(found: Found) -> str:
    """Why the control is not chosen although it has the highest figure, as a clause."""
    if found.at_home:
        return "this means nothing, because the control is calibrated on noise, and only noise was used for judging"
    return "its lead is too small to choose it for"


def _other_sizes(chosen: Tried, others: Sequence[Tried]) -> Iterator[str]:
    """The gain and the price of other bits: the best candidate of each other size, compared with the chosen one."""
    metric = str(chosen.row.metric)
    for bits in sorted({tried.bits for tried in others} - {chosen.bits}):
        other = max((tried for tried in others if tried.bits == bits), key=lambda tried: tried.rank)
        yield (
            f"{'More' if bits > chosen.bits else 'Fewer'} bits: the weights of {other.candidate.name} have {bits:.1f} "
            f"bits on average and {_size(other.weights_mb)}, instead of {chosen.bits:.1f} and "
            f"{_size(chosen.weights_mb)}; its {metric} is {other.row.value:.2f} instead of {chosen.row.value:.2f}."
        )


def _table(found: Found, chosen: Tried) -> list[list[str]]:
    metric = str(chosen.row.metric)
    others = [name for name in ("fidelity", "top1") if name != metric]
    shown = [metric, *(name for name in others if any(name in tried.row.metrics for tried in found.tried))]
    rows = []
    ranking = found.ranking
    rest = [tried for tried in found.tried if tried not in ranking]
    for tried in [*ranking, *sorted(rest, key=lambda tried: not tried.is_done)]:
        end = "chosen" if tried is chosen else "control" if tried.candidate.control else ""
        end = end if tried.is_done else f"{tried.row.status}: {tried.row.reason}"
        size = [f"{tried.bits:.1f}", _size(tried.weights_mb)] if tried.is_done else ["-", "-"]
        figures = [*(_figure(tried, name) for name in shown), *(size if found.sizes_differ else [])]
        rows.append([tried.candidate.name, *figures, f"{tried.seconds:.0f}", end])
    if "top1" in shown:
        top1 = f"{chosen.row.float_metrics['top1']:.2f}"
        figures = [
            *("100.00" if name != "top1" else top1 for name in shown),
            *(["32.0", ""] if found.sizes_differ else []),
        ]
        rows.append(["the float network", *figures, "", ""])
    return [["candidate", *shown, *(["bits", "weights"] if found.sizes_differ else []), "seconds", ""], *rows]


def _figure(tried: Tried, metric: str) -> str:
    return f"{tried.row.metrics[metric]:.2f}" if tried.is_done and metric in tried.row.metrics else "-"


def _left_out(request: Request, found: Found) -> list[str]:
    """The candidates that were not tried, and how long the search took."""
    names = [f"{name}: {why}." for name, why in found.left_out.items()] or ["No candidate was left out."]
    took = f"The search took {found.seconds:.0f} s of a budget of {request.budget:.0f} s; steps done before took none."
    return [*names, took]


def _compared(request: Request, chosen: Delivery) -> list[str]:
    check = chosen.runtime.check
    images = "synthetic images" if request.images is None else f"images of {request.images}"
    return [
        f"The file was compared with the simulation on {check.images} {images}.",
        *(f"{line[0].upper()}{line[1:]}." for line in check.lines()),
    ]


def _timed_on(chosen: Delivery) -> str:
    return f"One image at a time, on one thread of {chosen.runtime.processor}, in ONNX Runtime; all by turns."


def _latencies(chosen: Delivery) -> list[list[str]]:
    timed = {"the model": chosen.runtime.quantized, "the float network": chosen.runtime.unquantized}
    return [
        ["", "p50 ms", "p95 ms"],
        *([name, f"{times.p50:.2f}", f"{times.p95:.2f}"] for name, times in timed.items()),
    ]


def _words(request: Request, found: Found) -> Iterator[str]:
    """The words that the page uses, each with its meaning."""
    labelled = any("top1" in tried.row.metrics for tried in found.tried)
    agrees = any("agreement" in tried.row.metrics for tried in found.tried)
    unused = {
        "top1": not labelled,
        "agreement": not agrees,
        "control": found.control is None,
        "bits": not found.sizes_differ,
    }
    yield from (f"{word}: {meaning}." for word, meaning in WORDS.items() if not unused.get(word))
    named = {tried.candidate.name for tried in found.tried} | found.left_out.keys()
    candidates = CANDIDATES[request.target]
    known = (*candidates, *on_images_of(WITHOUT_BN, candidates))
    used = [candidate.words for candidate in known if candidate.name in named]
    yield from (f"{word}: {ABOUT[word]}." for word in dict.fromkeys(itertools.chain(*used)))


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
