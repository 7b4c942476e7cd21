"""The page that an engineer reads: what was chosen and why, what it costs, and what to fear; as text and as HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page: lines, or a table whose first row is its head."""

    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Page:
    """One page."""

    title: str
    sections: Sequence[Section]

    def text(self) -> str:
        """For a terminal."""
        parts = [self.title]
        for section in self.sections:
            lines = [section.title.upper(), *(f"- {line}" for line in section.lines)]
            parts.append("\n".join([*lines, *_aligned(section.table)]))
        return "\n\n".join(parts)

    def html(self) -> str:
        """For a browser; it needs no other file."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for section in self.sections:
            parts.append(f"<h2>{html.escape(section.title)}</h2>")
            if section.lines:
                parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in section.lines) + "</ul>")
            if section.table:
                parts.append(_html_table(section.table))
        body = "\n".join(parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>\n'
            f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
        )


_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _html_table(table: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *rows = table
    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"
