"""Distinguish a bad node, on which every step fails, from steps that fail on any node."""

from dataclasses import dataclass, field

from zsqbench.steps import Outcome, Step

FAILURES = 3
"""A node is suspected after so many steps failed on it and none succeeded."""


@dataclass(frozen=True)
class Ended:
    """A step and how it ended."""

    step: Step
    outcome: Outcome


@dataclass
class NodeRecord:
    """The ends of steps on each node.

    A failure on a node that has not done a step yet is held back. If the node does a step later, the step caused the
    failure. If `FAILURES` steps fail on the node, and another node does steps, the node is bad, and its steps are tried
    elsewhere.
    """

    _good: set[str] = field(default_factory=set)
    """Nodes that have done a step."""
    _held: dict[str, list[Ended]] = field(default_factory=dict)
    """Failures that are held back, by node."""
    _moved: set[str] = field(default_factory=set)
    """Steps that were tried elsewhere because their node was bad. If they fail again, they are the cause."""

    @property
    def held(self) -> set[str]:
        """Keys of steps whose failure is held back."""
        return {ended.step.key for held in self._held.values() for ended in held}

    @property
    def holds(self) -> bool:
        """True if a failure is held back."""
        return bool(self._held)

    @property
    def any_good(self) -> bool:
        """True if some node has done a step."""
        return bool(self._good)

    def settled(self, node: str | None, ended: Ended) -> list[Ended]:
        """Note an end. Returns all ends that are certain now, in order."""
        if node is None:  # an engine without nodes
            return [ended]
        if ended.outcome.status == "done":
            self._good.add(node)
            return [*self._held.pop(node, []), ended]
        if ended.outcome.status != "failed" or node in self._good or ended.step.key in self._moved:
            return [ended]
        self._held.setdefault(node, []).append(ended)
        return []

    def bad(self) -> dict[str, list[Ended]]:
        """Bad nodes with their steps: all of several steps failed on each, while other nodes did steps."""
        found = {node: held for node, held in self._held.items() if len(held) >= FAILURES and self._good - {node}}
        for node, held in found.items():
            del self._held[node]
            self._moved |= {ended.step.key for ended in held}
        return found

    def give_up(self) -> list[Ended]:
        """All failures that are held back. No other step is left that could show the cause."""
        held = [ended for each in self._held.values() for ended in each]
        self._held.clear()
        return held
