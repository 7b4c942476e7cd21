"""The inspect step prepares a student of a network and checks that it computes the same as the network."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from zsqbench.hashing import digest_of
from zsqbench.scheme import Inspection, Scheme
from zsqbench.steps.planning import Data, NetworkFacts
from zsqbench.steps.preliminary import PreliminaryJob
from zsqbench.steps.step import Step
from zsqbench.store import Store
from zsqbench.suite import Cell, Suite
from zsqbench.versions import QUANT_VERSION

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session


class Inspect(PreliminaryJob):
    """A step that reads the network. It leaves why the network cannot be quantized, or what is folded and quantized.

    It comes before the plan. Cells that cannot run are impossible, and nothing is generated for them.
    """

    kind: ClassVar[str] = "inspect"
    facts_type: ClassVar[type] = Inspection

    scheme: Scheme
    by_units: bool
    """True if units in sequence are compared, too."""

    @classmethod
    def plan_student(cls, suite: Suite, cell: Cell, facts: NetworkFacts) -> Step | None:
        """The step that inspects the student of a cell. None: the student needs no graph of the network."""
        scheme, quantizer = suite.schemes[cell.scheme], suite.quantizers[cell.quantizer].chain[-1].quantizer
        if scheme.is_float or not quantizer.needs_graph:
            return None
        by_units = _by_units(suite, cell)
        spec = scheme.model_dump(mode="json", exclude={"name"})
        key = digest_of([cls.kind, facts.digest, spec, by_units, QUANT_VERSION])
        label = f"{cls.kind} {cell.model} {cell.scheme}" + (" by units" if by_units else "")
        return Step(cls, key, label, (), cell)

    @classmethod
    def details(cls, step: Step, suite: Suite, data: Data | None) -> dict[str, Any]:  # noqa: ARG003
        """The scheme, and whether units are compared."""
        return {"scheme": suite.schemes[step.cell.scheme], "by_units": _by_units(suite, step.cell)}

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Prepare the student, compare it, and write the findings down."""
        from zsqbench.quant.inspection import inspect

        teacher = session.teacher(self)
        found = inspect(teacher.module, self.scheme, teacher.input_size, by_units=self.by_units)
        session.write(self, reporter, asdict(found))

    @classmethod
    def facts(cls, store: Store, key: str) -> Inspection | None:
        """The facts that an earlier run found, if any."""
        found: Inspection | None = cls.stored(store, key)
        return found


def _by_units(suite: Suite, cell: Cell) -> bool:
    return any(variant.quantizer.by_units for variant in suite.quantizers[cell.quantizer].chain)
