"""The resolve step loads a network once, to find its identity and the properties that methods may demand."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of, file_digest
from zsqbench.methods import Pretrained
from zsqbench.steps.planning import NetworkFacts
from zsqbench.steps.preliminary import PreliminaryJob
from zsqbench.steps.step import Step
from zsqbench.store import FileDigests, Store
from zsqbench.suite import Cell, Suite
from zsqbench.zoo.models import BUILT

if TYPE_CHECKING:
    from zsqbench.execution.reporter import Reporter
    from zsqbench.execution.session import Session


class Resolve(PreliminaryJob):
    """A step that reads the network and leaves its facts in the manifest.

    It comes before the plan, because keys contain its findings. It is planned for the network of a task, not for a
    cell.
    """

    kind: ClassVar[str] = "resolve"
    facts_type: ClassVar[type] = NetworkFacts

    @classmethod
    def plan_network(cls, suite: Suite, cell: Cell, digests: FileDigests) -> Step:
        """The step that loads the network of a cell."""
        model = suite.models[cell.model]
        files = suite.task(cell.task).find_model(model)
        spec = model.model_dump(mode="json", exclude={"name", "file", "weights", "float_accuracy"})
        origin = {name: digests.file(path) for name, path in files.items()}
        given = model.weights_from
        weights = None if isinstance(given, Path) else given  # the path of a file is in `origin`
        key = digest_of([cls.kind, suite.tasks[cell.task].identity, spec, weights, origin])
        return Step(cls, key, f"{cls.kind} {cell.model}", (), cell)

    def run(self, session: "Session", reporter: "Reporter") -> None:
        """Load the network and write its facts down."""
        from zsqbench.zoo.usermodules import digests

        teacher = session.teacher(self, reporter)
        identity = session.identity(self, teacher)
        if self.model.weights == BUILT and session.identity(self, session.teacher(self, reporter)) != identity:
            raise ZSQBenchError(
                f"{self.model.builder} gives different weights at each call: let it load all of "
                "them, or take 'weights: none' for seeded random weights"
            )
        facts = replace(
            facts_of(teacher, identity),
            random_weights=self.model.random_weights,
            modules=digests(self.model.file) if self.model.file else (),
            operations=count_operations(teacher),
            notes=tuple(reporter.notes),
        )
        session.write(self, reporter, asdict(facts))

    @classmethod
    def facts(cls, store: Store, key: str) -> NetworkFacts | None:
        """The facts that an earlier run found. None: there are none, or a file that defines the network has changed."""
        found: NetworkFacts | None = cls.stored(store, key)
        if found is None:
            return None
        if not all(Path(path).is_file() and file_digest(Path(path)) == digest for path, digest in found.modules):
            store.discard(key)
            return None
        return found


def count_operations(teacher: Pretrained) -> int:
    """Operations of a forward pass of one image. torch counts those of convolutions and products of matrices.

    0: torch cannot count them.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next((each.device for each in teacher.module.state_dict().values() if hasattr(each, "device")), "cpu")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher.module(torch.zeros(1, *teacher.input_size, device=device))
    except Exception:  # noqa: BLE001 - a network that cannot run fails in a later step; only times need this
        return 0
    return int(counter.get_total_flops())


def facts_of(teacher: Pretrained, digest: str) -> NetworkFacts:
    """The properties of a network that methods may demand, read from the network. `digest` is its identity."""
    from zsqbench.synthesis import batch_norms

    norms = batch_norms(teacher.module)
    others = {type(part).__name__ for name, part in teacher.module.named_modules() if name not in norms}
    return NetworkFacts(
        digest=digest,
        bn=len(norms),
        other_bn=", ".join(sorted(name for name in others if "BatchNorm" in name)),
        classes=teacher.classes,
        training_loss=teacher.detection is not None,
        parameters=sum(parameter.numel() for parameter in teacher.module.parameters()),
        input_size=teacher.input_size,
        architecture=teacher.architecture,
    )
