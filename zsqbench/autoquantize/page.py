"""The page for an engineer, as text and as HTML: the choice and its reason, its cost, and its risks."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Section:
    """A part of the page: lines, or a table. The first row of a table is its head."""

    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Page:
    """One page."""

    title: str
    sections: Sequence[Section]

    def text(self) -> str:
        """The page for a terminal."""
        parts = [self.title]
        for section in self.sections:
            lines = [section.title.upper(), *(f"- {line}" for line in section.lines)]
            parts.append(
                "\n".join([*lines, *tabulate(section.table, tablefmt="plain", disable_numparse=True).splitlines()])
            )
        return "\n\n".join(parts)

    def html(self) -> str:
        """The page for a browser. It needs no other file."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for section in self.sections:
            parts.append(f"<h2>{html.escape(section.title)}</h2>")
            if section.lines:
                parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in section.lines) + "</ul>")
            if section.table:
                parts.append(_html_table(section.table))
        body = "\n".join(parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width"><title>{html.escape(self.title)}</title>\n'
            f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
        )


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:58em;margin:2em auto;padding:0 1em;overflow-wrap:break-word}
h1{font-size:1.5em;line-height:1.25}
h2{font-size:1.1em;margin:1.8em 0 .5em;padding-bottom:.2em;border-bottom:1px solid #8886}
ul{margin:.5em 0;padding-left:1.2em}
li{margin:.3em 0}
div{overflow-x:auto}
table{border-collapse:collapse;margin:.8em 0;font-variant-numeric:tabular-nums}
td,th{padding:.25em .7em;text-align:left}
td:first-child,th:first-child{padding-left:0}
td:first-child,.number{white-space:nowrap}
.number{text-align:right}
tr+tr{border-top:1px solid #8884}
"""


def _html_table(table: Sequence[Sequence[str]]) -> str:
    numbers = [_are_numbers(column[1:]) for column in zip(*table, strict=True)]

    def row(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=number' if number else ''}>{html.escape(cell)}</{tag}>"
            for cell, number in zip(cells, numbers, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head, *rows = table
    return "<div><table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table></div>"


def _are_numbers(cells: Sequence[str]) -> bool:
    """True for a column of numbers, with or without unit or missing. Their digits are aligned."""
    return any(cells) and all(cell.lstrip("-")[:1].isdigit() for cell in cells if cell.strip("-"))
