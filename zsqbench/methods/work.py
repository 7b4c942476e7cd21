"""The work of a method, by the names that methods give their options: from it times are estimated before a run."""

from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from zsqbench.methods.base import Method

STEPS = ("iterations", "weight_iterations", "activation_iterations", "updates")
"""Options that say how many steps a method makes for each batch of images, or for each unit of the network.

The units of a network together are the network, so a step of all units costs what a step of the network does.
"""
EPOCHS, UPDATES = "epochs", "updates_per_epoch"
"""So many times all images, or so many updates; the latter where there is such an option."""
READ = ("search_images", "noise_images")
"""Options that bound how many images a method without steps reads."""
OTHER_STEPS = ("range_updates", "warmup")
"""Options that are lowered with the steps where a method is tried for a short time."""

STEP = 3.0
"""A forward and a backward pass cost about three forward passes."""


def usual_work(method: "Method", images: int) -> float:
    """About how many images pass through the network, by the method's options of the usual names.

    A generator reads each of its images once, and makes all steps with each. Others read the images once, and make
    all steps with a batch.
    """
    steps = sum(_number(method, name) or 0 for name in STEPS)
    batch = min(_number(method, "batch_size") or images, images) if images else _number(method, "batch_size") or 1
    epochs = _number(method, EPOCHS)
    if epochs is not None:
        steps += epochs * (_number(method, UPDATES) or -(-images // batch))
    read = images if steps else min([images, *filter(None, (_number(method, name) for name in READ))])
    return 1.0 + read + STEP * steps * (images if method.kind == "generator" else batch)


def shortened(method: "Method", steps: int, images: int) -> "Method":
    """A copy that makes so many steps of each kind at most, in batches of so many images at most.

    The method itself where its options do not go together then.
    """
    most = dict.fromkeys((*STEPS, UPDATES, *OTHER_STEPS), steps) | {EPOCHS: 1, "batch_size": images}
    if method.kind == "generator":
        most["images"] = images
    lower = {
        name: bound for name, bound in most.items() if (value := _number(method, name)) is not None and value > bound
    }
    if not lower:
        return method
    try:
        return method.model_validate(method.model_copy(update=lower).model_dump(by_alias=True))
    except ValidationError:
        return method


def _number(method: "Method", name: str) -> int | None:
    """The value of an option that is a whole number; none where there is no such option."""
    value = getattr(method, name, None) if name in type(method).model_fields else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
