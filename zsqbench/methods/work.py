"""The work of a method, from the usual names of options. Estimates of times before a run are based on it."""

from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from zsqbench.methods.base import Method

STEPS = ("iterations", "weight_iterations", "activation_iterations", "updates")
"""Options with the number of steps for each batch of images, or for each unit of the network.

The units of a network together are the network, so a step of all units costs what a step of the network does.
"""
EPOCHS, UPDATES = "epochs", "updates_per_epoch"
"""Options with the number of passes over all images, and of updates in a pass. Updates count where both exist."""
READ = ("search_images", "noise_images")
"""Options that bound the number of images that a method without steps reads."""
OTHER_STEPS = ("range_updates", "warmup")
"""Options that are lowered together with the steps for a short trial."""

STEP = 3.0
"""A forward and a backward pass cost about three forward passes."""


def usual_work(method: "Method", images: int) -> float:
    """About how many images pass through the network, from the method's options of the usual names.

    A generator reads each of its images once, and makes all steps with each image. Others read the images once, and
    make all steps with a batch.
    """
    steps = sum(_number(method, name) or 0 for name in STEPS)
    batch = min(_number(method, "batch_size") or images, images) if images else _number(method, "batch_size") or 1
    epochs = _number(method, EPOCHS)
    if epochs is not None:
        steps += epochs * (_number(method, UPDATES) or -(-images // batch))
    read = images if steps else min([images, *filter(None, (_number(method, name) for name in READ))])
    return 1.0 + read + STEP * steps * (images if method.kind == "generator" else batch)


def shortened(method: "Method", steps: int, images: int) -> "Method":
    """A copy with at most this many steps of each kind, in batches of at most this many images.

    It is the method itself where its options then contradict each other.
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
    """The value of an option that is a whole number; None where there is no such option."""
    value = getattr(method, name, None) if name in type(method).model_fields else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
