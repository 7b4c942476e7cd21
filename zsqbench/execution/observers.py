"""Call the observers of a run. Their exceptions become warnings, and they cannot change the data of the run."""

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

    Observers that are shipped with zsqbench get the objects of the run. All others get copies, so that they cannot
    change rows, keys and tables.
    """

    suite: Suite

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook. If an observer fails, this is a warning, no cell is lost, and the other observers are called.

        Raises only exceptions of signals, such as KeyboardInterrupt for a Ctrl-C.
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
        """One copy for all hooks and plugins that are not shipped. The hooks in its catalog are the same."""
        catalog = self.suite.catalog
        own = replace(catalog, plugins=list(catalog.plugins), provided=dict(catalog.provided))
        return copy.deepcopy(self.suite, {id(catalog): own})
