"""The report of a suite: pages that a browser opens from disk, and their charts as figures for a paper.

In reading order: source.py (what a report is made of), pages.py (what a page may hold), charts.py (data and Vega-Lite
specs), verdicts.py (a column in words), sections.py (a task and a network), startpage.py; flips.py, recipe.py (the
command that makes a cell again), curves.py, cellpage.py; writing.py (the folder), drawing.py (a chart as a file).
page.html is the one template, page.js fills it with the data of a page, page.css is how it looks.
"""
