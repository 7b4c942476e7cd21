"""What methods need of a network and of a task's data, and why one cannot run where that is absent."""

from zsqbench.methods import Generator, Method
from zsqbench.steps.planning import NetworkFacts


def unmet_by_network(method: Method, facts: NetworkFacts, model: str) -> str | None:
    """What a method needs of a network that this one does not have, or none."""
    if method.needs_bn and not facts.bn:
        has = f"only {facts.other_bn}, which it cannot use" if facts.other_bn else "none"
        return f"{method.name} needs batch normalisation, and {model} has {has}"
    if method.needs_classes and facts.classes is None:
        return f"{method.name} needs a classifier, and {model} is none"
    return None


def unmet_by_data(method: Method, task: str, *, has_images: bool) -> str | None:
    """Why a method cannot have the real images that it asks for, or none; `has_images`: the task has some to spare."""
    if isinstance(method, Generator) and method.uses_real_data and not has_images:
        return f"{method.name} needs real images, and task {task} has none that it does not evaluate"
    return None
