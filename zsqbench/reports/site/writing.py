"""Write the folder of a report: pages, their data, pictures, and the libraries of pages."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.evidence import ReadOnce
from zsqbench.reports.results import package_version
from zsqbench.reports.site.cellpage import cell_page
from zsqbench.reports.site.pages import PICTURES, Page
from zsqbench.reports.site.recipe import Recipes
from zsqbench.reports.site.sections import sections
from zsqbench.reports.site.source import Source
from zsqbench.reports.site.startpage import start_page
from zsqbench.store import read_json, temporary_beside

MARKER = "report.json"
"""A folder with this file is a report of zsqbench, and may be replaced."""

MADE_BY = "zsqbench report"

CELLS, LIBRARY = "cells", "lib"


def check_folder(folder: Path) -> None:
    """Raise ZSQBenchError if the place has something that is not a report."""
    if folder.is_symlink() or folder.is_file():
        raise ZSQBenchError(f"{folder} is not a folder; name a folder that is new, empty, or a report")
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(folder):
        raise ZSQBenchError(
            f"the folder {folder} is not empty and not a report of zsqbench, because it has no {MARKER}; name a folder "
            "that is new, empty, or a report"
        )


def write_report(source: Source, folder: Path) -> Path:
    """Write a report into a new or empty folder, or replace the report there. Returns its start page.

    The report is made beside its place, so the old report stays until the new one is complete. Raises ZSQBenchError if
    the place has something else, or cannot be written to.
    """
    check_folder(folder)
    temporary = temporary_beside(folder.absolute())
    try:
        temporary.mkdir(parents=True)
        _fill(source, temporary, folder)
        _swap(temporary, folder)
    except OSError as error:
        raise ZSQBenchError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / "index.html"


def _is_report(folder: Path) -> bool:
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("made_by") == MADE_BY


def _swap(temporary: Path, folder: Path) -> None:
    """Replace the old folder by the complete new folder."""
    old = temporary_beside(folder.absolute())
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _fill(source: Source, folder: Path, before: Path) -> None:
    for name in (CELLS, LIBRARY, PICTURES):
        (folder / name).mkdir()
    _write_library(folder / LIBRARY, before / LIBRARY)
    store, recipes = (
        ReadOnce(source.store.home),
        Recipes(source.origin, [*(row.cell for row in source.rows), *source.without_row]),
    )
    parts = sections(source.rows, source.store.home)
    _write_page(start_page(source, parts), folder, "index", "")
    for row in source.rows:
        page = cell_page(row, source, recipes, store)
        _write_page(page, folder / CELLS, source.pages[row.cell], "../")
        for picture in (each for part in page.parts for each in part.pictures):
            target = folder / picture.file
            if not target.exists():
                picture.save(target)
    marker = {
        "made_by": MADE_BY,
        "version": package_version("zsqbench"),
        "suite": source.suite,
        "cells": len(source.rows),
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _write_page(page: Page, folder: Path, name: str, root: str) -> None:
    """Write a page's frame, and beside it its data as a script, because a page from disk cannot fetch JSON."""
    data = json.dumps(page.as_data(), ensure_ascii=False, separators=(",", ":"), default=str)
    (folder / f"{name}.js").write_text(f"window.page = {data};\n", encoding="utf-8")
    lead = "\n".join(f"<p>{escape(line)}</p>" for line in _without_scripts(page))
    html = _template().substitute(title=escape(page.title), lead=lead, root=root, data=f"{name}.js")
    (folder / f"{name}.html").write_text(html, encoding="utf-8")


def _without_scripts(page: Page) -> Iterator[str]:
    """Lines for a reader without JavaScript: the lead, and the statements of each part."""
    yield from page.lead
    yield from (line for part in page.parts for line in part.lines)


@cache
def _template() -> Template:
    return Template(_own("page.html"))


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _write_library(folder: Path, before: Path) -> None:
    """The scripts and styles that all pages share. Equal files of an older report are reused."""
    for name in ("page.js", "page.css"):
        (folder / name).write_text(_own(name), encoding="utf-8")
    versions = {package: package_version(package) for package in ("vl-convert-python", "itables")}
    libraries = ("charts.js", "tables.js", "tables.css")
    if _read(before / "versions.json") == versions and all((before / name).is_file() for name in libraries):
        for name in libraries:
            shutil.copyfile(before / name, folder / name)
    else:
        for name, text in zip(libraries, (_charts(), *_tables()), strict=True):
            (folder / name).write_text(text, encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


def _read(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


@cache
def _charts() -> str:
    """Vega-Embed with its dependencies, in its own scope."""
    import vl_convert

    return f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();\n"


def _tables() -> Sequence[str]:
    """DataTables and its style. A page from disk cannot import a module, so the script contains its text."""
    bundle = resources.files("itables").joinpath("html")
    module, style = (bundle.joinpath(f"dt_bundle.{ending}").read_text(encoding="utf-8") for ending in ("js", "css"))
    text = json.dumps(module, ensure_ascii=False)
    return f'window.tables = import(URL.createObjectURL(new Blob([{text}], {{type: "text/javascript"}})));\n', style
