"""Call the observers of a run: what they raise is a warning, and what they change stays with them."""

import copy
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zsqbench.containment import contain
from zsqbench.errors import one_line
from zsqbench.execution.plan import Plan
from zsqbench.suite import Suite

if TYPE_CHECKING:
    from pluggy import HookImpl


@dataclass(frozen=True)
class Observers:
    """The observers of the runs of a suite.

    Those that come with zsqbench are handed what the run goes on with, all others copies of it: rows, keys and tables
    are made of what no stranger has held.
    """

    suite: Suite

    def notify(self, hook: str, **arguments: Any) -> None:
        """Fire a hook; an observer that fails is a warning, never a lost cell, and the others are called.

        Raises only what a signal raises, such as KeyboardInterrupt for a Ctrl-C.
        """
        for observer in reversed(getattr(self.suite.catalog.hooks.hook, hook).get_hookimpls()):  # in pluggy's order
            with contain() as contained:
                observer.function(*(self._handed(observer, arguments[name]) for name in observer.argnames))
            if contained.error is not None:
                name = observer.plugin_name.rpartition(":")[2]
                logging.getLogger("zsqbench").warning(
                    "the observer %s of plugin %s failed: %s", hook, name, one_line(contained.error)
                )

    def _handed(self, observer: "HookImpl", argument: Any) -> Any:
        return argument if observer.plugin_name in self._shipped else self._copy(argument)

    def _copy(self, argument: Any) -> Any:
        if isinstance(argument, Suite):
            return self._suite
        if isinstance(argument, Plan):
            return copy.deepcopy(argument, {id(argument.suite): self._suite})
        return copy.deepcopy(argument)

    @cached_property
    def _shipped(self) -> frozenset[str]:
        return frozenset(plugin.label for plugin in self.suite.catalog.plugins if plugin.shipped)

    @cached_property
    def _suite(self) -> Suite:
        """One copy for all hooks and strangers; the hooks in its catalog are the same."""
        catalog = self.suite.catalog
        own = replace(catalog, plugins=list(catalog.plugins), provided=dict(catalog.provided))
        return copy.deepcopy(self.suite, {id(catalog): own})
