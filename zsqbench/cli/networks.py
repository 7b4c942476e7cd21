"""How commands find the network that an argument MODEL names, and load it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zsqbench.methods import ModelSpec, Pretrained
    from zsqbench.suite import Suite


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with the facts that a suite, or only its name, states."""

    spec: "ModelSpec"
    pretrained: "Pretrained"
    task: str | None = None
    """The task of the suite that loaded it."""
    notes: Sequence[str] = ()
    """Notes on its weights, one line each."""


def load_network(
    model: str, suite: "Suite | None" = None, data_root: Path | None = None, weights: str | None = None
) -> LoadedNetwork:
    """The network of this name. A network of a suite is loaded by the task that uses it, or else by the first task.

    `weights` is a file, "none" (seeded random weights), or "built" (weights that a model file of the user loads
    itself). By default the suite or the name decides. Raises ZSQBenchError for an unknown model, for a file without a
    suite, and for weights that are absent or do not fit.
    """
    from zsqbench.errors import ZSQBenchError
    from zsqbench.methods.modelspec import NOT_BUILT
    from zsqbench.zoo.models import BUILT, RANDOM

    if weights not in (None, RANDOM, BUILT) and not Path(str(weights)).is_file():
        raise ZSQBenchError(
            f"there is no file {weights}; expected a file of weights, 'none' (random weights) or 'built' (a .py "
            "file of yours loads its weights itself)"
        )
    of_file = suite is not None and model in suite.models and suite.models[model].file is not None
    if weights == BUILT and not of_file and Path(model).suffix != ".py":
        raise ZSQBenchError(f"--weights {BUILT} is for a .py file of yours, and {model!r} is not one: {NOT_BUILT}")
    return _named(model, weights) if suite is None else _of_suite(suite, model, data_root, weights)


def _named(model: str, weights: str | None) -> LoadedNetwork:
    from zsqbench.errors import ZSQBenchError
    from zsqbench.methods import ModelSpec, Pretrained
    from zsqbench.zoo.detectors import is_detector, named_detector
    from zsqbench.zoo.models import load_named

    if Path(model).suffix == ".py":
        raise ZSQBenchError(f"model {model!r} is a file: name it under 'models' in a suite, and give --suite")
    notes: list[str] = []
    spec = ModelSpec(name=model, base=model, weights=weights)
    given = spec.weights_to_load(notes.append)
    network = named_detector(model, given) if is_detector(model) else load_named(model, given)
    fed = network.feeding
    architecture = model if "/" in model else None
    pretrained = Pretrained(
        network.module, fed.input_size, fed.mean, fed.std, fed.value_range, architecture=architecture
    )
    return LoadedNetwork(spec, pretrained, notes=notes)


def _of_suite(suite: "Suite", model: str, data_root: Path | None, weights: str | None) -> LoadedNetwork:
    from zsqbench.errors import ZSQBenchError, did_you_mean, unknown
    from zsqbench.methods import ModelSpec
    from zsqbench.testing import MemoryReporter, context

    used = (cell.task for cell in suite.cells if cell.model == model)
    label = next(used, next(iter(suite.tasks)))
    spec = suite.models.get(model) or ModelSpec(name=model, base=model)
    spec = spec if weights is None else spec.model_copy(update={"weights": weights})
    try:
        suite.task(label).find_model(spec)
    except ZSQBenchError as error:
        if model not in suite.models and did_you_mean(model, suite.models):
            raise ZSQBenchError(unknown("model", model, suite.models, str(suite.path))) from error
        raise
    ctx = context(data_root=data_root)
    pretrained = suite.task(label).load(spec, ctx)
    reporter = ctx.reporter
    return LoadedNetwork(spec, pretrained, label, reporter.notes if isinstance(reporter, MemoryReporter) else ())
