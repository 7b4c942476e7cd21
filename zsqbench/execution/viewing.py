"""Evaluation samples as pictures for people. Only reports use them."""

import json
from functools import cache
from typing import TYPE_CHECKING, cast

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.execution.session import Session
from zsqbench.methods.asking import asking
from zsqbench.reports.results import Result
from zsqbench.reports.site.source import Viewer
from zsqbench.steps.planning import Data
from zsqbench.steps.step import MethodCall
from zsqbench.store import FileDigests

if TYPE_CHECKING:
    from zsqbench.methods import Task


class Viewers:
    """Finds the evaluation data of rows, once for each task."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._found = cache(self._find)

    def __call__(self, row: Result) -> Viewer | str:
        """Shows the samples of a row, or says why it cannot. The data may be missing or changed."""
        if "task" not in row.methods:
            return "the row does not say which task evaluated it"
        found = self._found(json.dumps(row.methods["task"], sort_keys=True))
        if isinstance(found, Viewer) and found.data != row.data.get("digest"):
            return "the data has changed since the evaluation"
        return found

    def _find(self, call: str) -> Viewer | str:
        try:
            task = cast("Task", self.session.method("task", MethodCall.model_validate_json(call)))
            root = self.session.config.data_root
            with asking(task, "viewer"):
                image = task.viewer(root)
            if image is None:
                return f"task {task.name} shows no samples"
            with asking(task, "find_data"):
                files = task.find_data(root)
            return Viewer(image, files.classes, Data.of(files, FileDigests(self.session.store)).evaluation)
        except (ZSQBenchError, ValueError, OSError) as error:  # a plugin may be missing, or have other options today
            return one_line(error)
