"""The HTML page of tables and comparisons: a standalone file without scripts that fetches nothing."""

import html
from collections.abc import Iterable

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1a1a1a; }}
main {{ overflow-x: auto; }}
h2 {{ margin-top: 2.5rem; font-size: 1.1rem; }}
table {{ border-collapse: collapse; border-top: 2px solid #1a1a1a; border-bottom: 2px solid #1a1a1a; }}
th, td {{ padding: .35rem .8rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
th {{ font-weight: 600; text-align: center; }}
thead tr:last-child th {{ border-bottom: 1px solid #1a1a1a; }}
td.label {{ text-align: left; }}
td.missing {{ color: #a31515; }}
table ~ table {{ margin-top: 1.5rem; }}
table:not(.plain) tbody tr:first-child td {{ border-bottom: 1px solid #c8c8c8; }}
ul {{ list-style: none; margin-top: 1rem; padding: 0; font-size: 13px; color: #444; }}
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""

_SECTION = """<h2>{title}</h2>
<main>
{table}</main>
<ul>
{below}
</ul>"""


def page(title: str, sections: Iterable[str]) -> str:
    """A page of sections. The title is text and is escaped."""
    return _PAGE.format(title=html.escape(title), sections="\n".join(sections))


def section(title: str, table: str, lines: Iterable[str]) -> str:
    """A heading, tables as HTML with class `label` on cells of text, and lines below. Title and lines are escaped.

    The first line of a table belongs to the float network, unless the class of the table is `plain`.
    """
    below = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return _SECTION.format(title=html.escape(title), table=table, below=below)
