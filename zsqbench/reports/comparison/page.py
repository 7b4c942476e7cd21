"""A comparison as text, JSON or HTML."""

import html
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd
from tabulate import tabulate

from zsqbench.reports.comparison.comparison import Comparison, Pair, Side
from zsqbench.reports.comparison.differences import ClassLoss
from zsqbench.reports.page import page, section

Form = Literal["text", "json", "html"]

Lines = Sequence[Sequence[str]]
"""A table: a line of heads, then the body."""

LONGEST = 40
"""Characters of an option that are shown. JSON has the complete value."""

ALONE = "each of {} columns is tested alone: of 20 without a difference, about 1 has p below 5 % by chance"


def render(comparison: Comparison, form: Form) -> str:
    """The comparison in this form, without a newline at its end."""
    renderers: dict[Form, Callable[[Comparison], str]] = {"text": _text, "json": _json, "html": _html}
    return renderers[form](comparison)


def left_out_lines(comparison: Comparison) -> list[str]:
    """One line for each column that is not compared."""
    return [f"not compared: {each}" for each in comparison.left_out]


def gate_line(pair: Pair) -> str:
    """Why a pair fails the gate."""
    return (
        f"the gate fails at {pair.place}: B may be worse than A by {-pair.difference.narrow[0]:.2f} points (lower end "
        f"of the 90 % interval), and the margin is {pair.margin:g}"
    )


def _below(comparison: Comparison) -> list[str]:
    """Lines on all columns together."""
    alone = [ALONE.format(len(comparison.pairs))] if len(comparison.pairs) > 1 else []
    return [*left_out_lines(comparison), *alone]


def _text(comparison: Comparison) -> str:
    below = "\n".join(_below(comparison))
    return "\n\n".join([*map(_text_section, comparison.pairs), *([below] if below else [])])


def _text_section(pair: Pair) -> str:
    tables = (tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True) for heads, *rows in _tables(pair))
    return "\n\n".join([f"{pair.place}\n{pair.verdict}.", *tables, "\n".join(_lines(pair))])


def _html(comparison: Comparison) -> str:
    sections = [_html_section(pair, f"pair{number}") for number, pair in enumerate(comparison.pairs, start=1)]
    below = [section("all columns", "", _below(comparison))] if _below(comparison) else []
    return page(f"{comparison.suite}: {comparison.a} (A), {comparison.b} (B)", [*sections, *below])


def _html_section(pair: Pair, identifier: str) -> str:
    tables = [_html_table(lines, f"{identifier}-{number}") for number, lines in enumerate(_tables(pair), start=1)]
    verdict = f"<p><strong>{html.escape(pair.verdict)}.</strong></p>"
    return section(pair.place, "\n".join([verdict, *tables]), _lines(pair))


def _html_table(lines: Lines, identifier: str) -> str:
    heads, *rows = lines
    frame = pd.DataFrame(rows, columns=list(heads))
    styler = frame.style.hide(axis="index").format(_escaped).format_index(_escaped, axis="columns")
    classes = pd.DataFrame("label", frame.index, frame.columns)
    return str(styler.set_td_classes(classes).set_table_attributes('class="plain"').set_uuid(identifier).to_html())


def _escaped(text: object) -> str:
    return html.escape(str(text))


def _tables(pair: Pair) -> Iterator[Lines]:
    """Both methods side by side, and the options that differ, if any."""
    sides = pair.a, pair.b
    rows = {
        "generator": [side.generator for side in sides],
        "quantizer": [side.quantizer for side in sides],
        "settings": [side.settings for side in sides],
        pair.metric: list(map(_value, sides)),
        "seconds": [_number(side.seconds, 1) for side in sides],
        "size (MB)": [_number(side.size_mb, 3) for side in sides],
    }
    yield [["", "A", "B"], *([name, *texts] for name, texts in rows.items() if any(texts))]
    if pair.options:
        yield [["differs", "A", "B"], *([each.name, _option(each.a), _option(each.b)] for each in pair.options)]


def _value(side: Side) -> str:
    return f"{side.mean:.2f}" + ("" if side.deviation is None else f" ± {side.deviation:.2f}")


def _number(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def _option(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _lines(pair: Pair) -> Iterator[str]:
    """The statistics, the flips, and notes on unknown values."""
    found = pair.difference
    scope = f", {found.scope}" if pair.seeds else ""
    plural = "s" if len(pair.seeds) > 1 else ""
    seeds = f", seed{plural} {', '.join(map(str, pair.seeds))}" if pair.seeds else ""
    yield (
        f"B - A: {found.points:+.2f} points, 95 % interval {found.low:+.2f} to {found.high:+.2f}, "
        f"p = {found.p:.2g}{scope} ({found.images:,} images{seeds})"
    )
    over = f", summed over {len(pair.flips)} seeds" if len(pair.flips) > 1 else ""
    if pair.flips:
        yield f"from A to B: {pair.right_to_wrong} right to wrong, {pair.wrong_to_right} wrong to right{over}"
    if pair.no_classes is not None:
        yield f"classes that lose are not known: {pair.no_classes}"
    elif pair.classes:
        yield f"classes that lose most: {', '.join(map(_class, pair.classes))}"
    else:
        yield "no class loses"
    if pair.margin is not None:
        ends = " to ".join(f"{end:+.2f}" for end in found.narrow)
        yield f"gate, margin {pair.margin:g}: {'holds' if pair.passes else 'fails'} (90 % interval {ends})"
    yield from pair.notes


def _class(loss: ClassLoss) -> str:
    return f"{loss.label} by {-loss.points:.2f} points of {loss.images:,} image{'s' if loss.images > 1 else ''}"


def _json(comparison: Comparison) -> str:
    return json.dumps(list(map(_record, comparison.pairs)), indent=1, ensure_ascii=False)


def _record(pair: Pair) -> dict[str, Any]:
    """A pair as plain data."""
    of_pair = {"only_first", "only_second"}  # the flips have these numbers
    return {
        "place": pair.place,
        "verdict": pair.verdict,
        "metric": pair.metric,
        **{name: value for name, value in asdict(pair.difference).items() if name not in of_pair},
        "seeds": pair.seeds,
        "right_to_wrong": pair.right_to_wrong,
        "wrong_to_right": pair.wrong_to_right,
        "flips": [asdict(each) for each in pair.flips],
        "classes": [asdict(each) for each in pair.classes],
        "no_classes": pair.no_classes,
        "options": [asdict(each) for each in pair.options],
        "a": _side(pair.a),
        "b": _side(pair.b),
        "notes": pair.notes,
        "margin": pair.margin,
        "passes": pair.passes,
    }


def _side(side: Side) -> dict[str, Any]:
    column = side.column
    fields = {name: value for name, value in asdict(side).items() if name not in ("name", "column")}
    return {"task": column.task, "model": column.model, "scheme": column.scheme, **fields}
