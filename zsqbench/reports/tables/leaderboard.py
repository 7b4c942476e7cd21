"""The leaderboard as Markdown, CSV, HTML, LaTeX or JSON."""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tabulate import tabulate

from zsqbench.reports.page import page, section
from zsqbench.reports.results import Result
from zsqbench.reports.tables.axes import BESIDE, Column, ColumnKind, Row, unique
from zsqbench.reports.tables.table import Table
from zsqbench.reports.tables.tabulation import PLAIN, Layout, build_tables

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

Form = Literal["md", "csv", "html", "latex", "json"]

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
"""Characters with a special meaning in LaTeX."""


def leaderboard(results: Sequence[Result], form: Form, layout: Layout = PLAIN, home: Path | None = None) -> str:
    """The leaderboard of these rows as text. Rows and columns are in the order of the results.

    There is a table for each task, unless `layout` says something else. CSV and JSON have the records of all tables.
    `home` keeps the comparisons of methods for the next time. The text ends without a newline. Raises ZSQBenchError if
    there are no results, and for an option of `layout` that no row has.
    """
    renderers = {"md": _markdown, "csv": _csv, "html": _html, "latex": _latex, "json": _json}
    return renderers[form](build_tables(results, layout, home)).rstrip("\n")


def _text(table: Table, row: Row, column: Column) -> str:
    """`91.02 ± 0.10 (-0.71) a [1]`, or a status. Empty: the suite has no such cell."""
    entry = table.entries.get((row, column))
    if entry is None:
        return ""
    text = entry.status if entry.mean is None else table.number(column, entry.mean)
    text += "" if entry.std is None else f" ± {table.number(column, entry.std)}"
    text += "" if entry.drop is None else f" ({round(-entry.drop, 2) + 0:+.2f})"  # + 0 turns -0.0 into 0.0
    text += f" {letters}" if (letters := table.letters(row, column)) else ""
    return text + "".join(f" [{table.footnotes[remark]}]" for remark in table.remarks(row, column))


def _label_heads(table: Table) -> list[str]:
    return (
        ["generator", "quantizer", "settings"]
        if any(row.settings for row in table.rows)
        else ["generator", "quantizer"]
    )


def heads_of(table: Table) -> list[tuple[str, ...]]:
    """The heads of all columns, with the same number of lines. Heads of labels have empty lines above."""
    return [*(("", label) for label in _label_heads(table)), *(table.head(column) for column in table.columns)]


def lines_of(table: Table) -> list[list[str]]:
    """The body of the table as texts, the float network first."""
    labels = len(_label_heads(table))
    floats = [table.number(column, table.floats[column]) if column in table.floats else "" for column in table.columns]
    methods = [[*row.labels[:labels], *(_text(table, row, column) for column in table.columns)] for row in table.rows]
    return [["float", *[""] * (labels - 1), *floats], *methods]


def _per_cell(table: Table, label: str, of: Callable[[Row, Column], str]) -> list[list[str]]:
    """A value for each text of `lines_of`: `label` for labels, and an empty value for the float network."""
    labels = [label] * len(_label_heads(table))
    rows = [[*labels, *(of(row, column) for column in table.columns)] for row in table.rows]
    return [[*labels, *[""] * len(table.columns)], *rows]


def notes_of(table: Table) -> list[str]:
    """Notes, and footnotes by their number."""
    return [*table.notes, *(f"[{number}] {text}" for text, number in table.footnotes.items())]


def _title(table: Table) -> str:
    """`digits: top-1 accuracy in percent`, or the model or scheme of a table."""
    return f"{table.title}: {table.metric}" if table.by == "task" else table.title


def _markdown(tables: Sequence[Table]) -> str:
    return "\n\n".join([f"# {_escape_markdown(tables[0].suite)}", *map(_markdown_section, tables)])


def _markdown_section(table: Table) -> str:
    stars = _per_cell(table, "", lambda row, column: "**" if (row, column) in table.competition.best else "")
    body = [
        [star + _escape_markdown(text) + star for star, text in zip(*line, strict=True)]
        for line in zip(stars, lines_of(table), strict=True)
    ]
    heads = [_escape_markdown(" ".join(part for part in head if part)) for head in heads_of(table)]
    align = ["left"] * len(_label_heads(table)) + ["right"] * len(table.columns)
    grid = tabulate(body, headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align)
    below = "\n".join(f"- {_escape_markdown(line)}" for line in notes_of(table))
    return f"## {_escape_markdown(_title(table))}\n\n{grid}\n\n{below}"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*<|])", r"\\\1", text)


def _records(table: Table) -> list[dict[str, Any]]:
    """One record for each method and column."""
    return [
        {
            "task": column.task,
            "model": column.model,
            "random_weights": column.model in table.random_models,
            "scheme": column.scheme,
            "generator": row.generator,
            "generator_details": row.generator_details,
            "quantizer": row.quantizer,
            "quantizer_details": row.quantizer_details,
            "settings": row.settings,
            "control": row.control or "",
            "calibrated": entry.calibrated,
            "mean": _rounded(entry.mean),
            "std": _rounded(entry.std),
            "seeds": len(entry.values),
            "float": _rounded(table.floats.get(column)),
            "drop": _rounded(entry.drop),
            "best": (row, column) in table.competition.best,
            "letters": table.letters(row, column),
            "below_control": table.competition.below_control.get((row, column)),
            "told_from_control": table.competition.told_from_control.get((row, column)),
            "status": entry.status,
            "reason": "; ".join(entry.reasons),
            "remarks": "; ".join(entry.remarks),
            **_beside(table, row, column),
            **_figures(table, row, column),
        }
        for row in table.rows
        for column in table.columns
        if column.kind is ColumnKind.MEASURED and (entry := table.entries.get((row, column))) is not None
    ]


def _beside(table: Table, row: Row, column: Column) -> dict[str, float | None]:
    """The oracle and the published value of a record."""
    beside: dict[str, float | None] = {}
    for kind in BESIDE:
        entry = table.entries.get((row, replace(column, kind=kind)))
        beside[kind] = _rounded(entry.mean if entry else None)
        beside[f"{kind}_std"] = _rounded(entry.std if entry else None)
    return beside


def _figures(table: Table, row: Row, column: Column) -> dict[str, float | str | None]:
    """The figures of a record: mean, deviation and value of the float network, and why a figure is missing."""
    figures: dict[str, float | str | None] = {}
    for name in table.figures:
        place = replace(column, kind=ColumnKind.FIGURE, figure=name)
        entry = table.entries.get((row, place))
        figures[name] = _rounded(entry.mean if entry else None)
        figures[f"{name}_std"] = _rounded(entry.std if entry else None)
        figures[f"{name}_float"] = _rounded(table.floats.get(place))
        figures[f"{name}_reason"] = "; ".join(entry.remarks if entry else ())
    return figures


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4) + 0.0


def _csv(tables: Sequence[Table]) -> str:
    import pandas as pd  # each run ends with Markdown, which does not need it

    records = [record for table in tables for record in _records(table)]
    return pd.DataFrame(records).astype({"calibrated": "Int64"}).to_csv(index=False, lineterminator="\n")


def _json(tables: Sequence[Table]) -> str:
    content = {
        "suite": tables[0].suite,
        "notes": unique(note for table in tables for note in table.notes),
        "footnotes": unique(text for table in tables for text in table.footnotes),
        "units": {figure.name: figure.unit for table in tables for figure in table.figures.values()},
        "records": [record for table in tables for record in _records(table)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _styled(table: Table, escape: Callable[[str], str]) -> "Styler":
    """The table with the best in bold and all texts escaped."""
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(lines_of(table), columns=pd.MultiIndex.from_tuples(heads_of(table)))
    bold = _per_cell(
        table, "", lambda row, column: "font-weight: bold" if (row, column) in table.competition.best else ""
    )

    def escaped(text: object) -> str:
        return escape(str(text))

    styler = frame.style.hide(axis="index").format(escaped).format_index(escaped, axis="columns")
    return styler.apply(lambda _: np.array(bold), axis=None)


def _escape_latex(text: str) -> str:
    return text.translate(LATEX)


def _latex(tables: Sequence[Table]) -> str:
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(map(_latex_section, tables))


def _latex_section(table: Table) -> str:
    alignment = "l" * len(_label_heads(table)) + "r" * len(table.columns)
    tabular = _styled(table, _escape_latex).to_latex(
        hrules=True, convert_css=True, multicol_align="c", column_format=alignment
    )
    below = "\n".join(rf"\par {_escape_latex(line)}" for line in notes_of(table))
    caption = "; ".join([table.caption, *([table.bold] if table.competition.best else [])])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escape_latex(caption)}.}}\n"
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{table.suite} {table.title}')}}}\n"
        f"{tabular}\n"
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{below}\n\\end{{minipage}}\n"
        "\\end{table}"
    )


def _html(tables: Sequence[Table]) -> str:
    sections = (_html_section(table, f"leaderboard{number}") for number, table in enumerate(tables, start=1))
    return page(tables[0].suite, sections)


def _html_section(table: Table, identifier: str) -> str:
    import pandas as pd

    styler = _styled(table, html.escape)
    classes = pd.DataFrame(_per_cell(table, "label", partial(_css_class, table)), styler.index, styler.columns)
    body = styler.set_td_classes(classes).set_uuid(identifier).to_html()
    return section(_title(table), body, notes_of(table))


def _css_class(table: Table, row: Row, column: Column) -> str:
    entry = table.entries.get((row, column))
    return "missing" if entry and entry.mean is None else ""
