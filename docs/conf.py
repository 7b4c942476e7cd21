"""How Sphinx makes the site of these documents and of docstrings: `tox -e docs`. Nothing is downloaded for it."""

import importlib
import re
import sys
from pathlib import Path

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

project = "zsqbench"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
html_theme = "furo"
smartquotes = False  # quotes in docstrings may be those of code
html_title = "zsqbench"
html_copy_source = False
html_show_copyright = False
exclude_patterns = ["_build"]

default_role = "code"  # docstrings have code between single backticks
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a tutorial may go on with a heading two levels down

TOP = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
"""Documents of the repository's top folder, and the pages that show them."""
CODE = re.compile(r"(``.*?``|`.*?`)", re.DOTALL)
"""Code in a docstring."""


def show_top(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to the documents of the top folder lead to their pages, and show these documents there."""
    text = source[0]
    for name, page in TOP.items():
        if docname == page.removesuffix(".md"):
            shown = (Path(app.srcdir).parent / name).read_text(encoding="utf-8")
            app.env.note_dependency(str(Path(app.srcdir).parent / name))
            text = re.sub(r"\]\((?!https?:|#)", "](../", shown) + "\n" + text
    text = text.replace("](../docs/", "](")
    for name, page in TOP.items():
        text = re.sub(rf"\]\((\.\./)+{name}", f"](/{page}", text)
    source[0] = re.sub(r"\]\((\.\./[^)#]*\.md)", r"](path:\1", text)  # other documents are files to be loaded


def described(name: str) -> list[str]:
    """The docstring of a value, by its public name: it stands below the value, in the module that defines it."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    for home in sorted(sys.modules):
        if home.startswith("zsqbench.") and vars(sys.modules[home]).get(attribute) is value:
            comments = ModuleAnalyzer.for_module(home).find_attr_docs()
            if ("", attribute) in comments:
                return comments["", attribute]
    raise ValueError(f"{name} has no docstring")


def read_docstring(
    app: Sphinx,  # noqa: ARG001 - Sphinx hands it over
    what: str,
    name: str,
    obj: object,
    options: object,  # noqa: ARG001
    lines: list[str],
) -> None:
    """Take characters that docutils would read as markup for what they are, and list the options of a method."""
    if what == "data":
        lines[:] = described(name)
    parts = CODE.split("\n".join(lines))
    parts[::2] = [re.sub(r"([|*\\])", r"\\\1", text) for text in parts[::2]]
    lines[:] = "".join(parts).split("\n")
    if what == "class" and isinstance(obj, type) and issubclass(obj, BaseModel):
        own = {option: obj.model_fields[option] for option in obj.__annotations__ if option in obj.model_fields}
        listed = [f"- `{field.alias or option}`: {field.description}" for option, field in own.items()]
        lines += ["", "Options:", "", *listed, ""] if listed else []


def shorten_signature(
    app: Sphinx,  # noqa: ARG001
    what: str,  # noqa: ARG001
    name: str,  # noqa: ARG001
    obj: object,
    *_: object,
) -> tuple[str, None] | None:
    """Let the list of options say what a method takes: pydantic's signature repeats their types and limits."""
    return ("(**options)", None) if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def setup(app: Sphinx) -> None:
    """Register them."""
    app.connect("source-read", show_top)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", shorten_signature)
