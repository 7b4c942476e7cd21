"""The needs of methods: facts of a network and data of a task, and why a method cannot run without them.

Reasons are clauses that follow the name of a method.
"""

from collections.abc import Sequence

from zsqbench.methods import Generator, Method, Quantizer
from zsqbench.methods import generator as generators
from zsqbench.methods.asking import asking
from zsqbench.scheme import Inspection
from zsqbench.steps.planning import NetworkFacts


def lack_of_network(method: Method, facts: NetworkFacts, model: str) -> str | None:
    """The need of a method that this network does not meet. None: it meets all."""
    if method.needs_bn and not facts.bn:
        has = f"only {facts.other_bn}, which the method cannot use" if facts.other_bn else "none"
        return f"needs batch normalisation, and {model} has {has}"
    if method.needs_classes and facts.classes is None:
        return f"needs a classifier, and {model} is not one"
    if method.needs_classes and (facts.classes or 0) < method.least_classes:
        return f"needs at least {method.least_classes} classes, and {model} has {facts.classes}"
    if method.needs_training_loss and not facts.training_loss:
        return f"needs a detector whose task hands out its training loss, and {model} is not one"
    return None


def lack_of_map(quantizer: Quantizer, found: Inspection, model: str) -> str | None:
    """Why a network does not suit a quantizer that reads the last feature map. None: it suits, or needs no map."""
    with asking(quantizer, "needs_map"):
        needed = quantizer.needs_map
    if not needed or found.last_map:
        return None
    return f"needs a convolution whose map has more than one position, and {model} has none"


def lack_of_attention(generator: Generator, found: Inspection, input_size: Sequence[int], model: str) -> str | None:
    """Why a network does not suit a generator that reads attention. None: it suits, or needs no attention."""
    if not generator.needs_attention:
        return None
    return generators.lack_of_attention(found.attention, found.patch, input_size, model)


def lack_of_images(task: str) -> str:
    """Why a task cannot provide a generator with real images. None: it can."""
    return f"needs real images, and task {task} has none that it does not evaluate"
