"""Build a network and load the weights of a file. The weights must fit the network and be finite numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.zoo.checkpoints import SHOWN, is_extra_state, read_weights, some
from zsqbench.zoo.loadable import bare, check_built, check_finite
from zsqbench.zoo.models import BUILT, RANDOM, Checkpoint, Weights
from zsqbench.zoo.tensor_names import fitting

_RANDOM_SEED = 0


def build_network(build: Callable[[], nn.Module], weights: Weights) -> nn.Module:
    """Build a network with the weights of a file, or ("none") seeded random weights, in eval mode with frozen weights.

    With "built" the network keeps the weights of its function. Random numbers then differ from call to call, so that
    weights that are not loaded are found. The network is built without gradients, so that tensors that it computes from
    parameters and keeps can be copied. The global random state does not change. Raises ZSQBenchError for a network that
    can never be quantized, such as a ScriptModule, and as `load_weights` does.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if weights == BUILT:
            torch.default_generator.seed()
        else:
            torch.manual_seed(_RANDOM_SEED)
        module = bare(build())
    check_built(module)
    if weights in (RANDOM, BUILT):
        check_finite(module)
    else:
        load_weights(module, weights)
    return module.eval().requires_grad_(requires_grad=False)


def load_weights(module: nn.Module, weights: Path | Checkpoint) -> None:
    """Load a file's weights into a network.

    `Checkpoint.note` gets notes on the parts left out of names, and on missing extra state of modules. Raises
    ZSQBenchError for weights that are unreadable, do not fit exactly, or are not finite floating-point numbers.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint(weights)
    own = module.state_dict()
    state, left_out = fitting(read_weights(checkpoint), own)
    if left_out:
        checkpoint.note(f"names in {checkpoint.file.name} {left_out}, which was left out")
    _check_names(own, state, checkpoint.file)
    tensors = {name: tensor for name, tensor in state.items() if not is_extra_state(name)}
    _check_shapes(own, tensors, checkpoint.file)
    _check_values(own, tensors, {name for name, _ in module.named_buffers()}, checkpoint.file)
    kept = [name for name in own if is_extra_state(name) and name not in state]
    if kept:
        checkpoint.note(f"{checkpoint.file.name} lacks {some(kept)}, which stays as it was built")
    try:
        module.load_state_dict(state, strict=False)  # strict was checked above
    except Exception as error:  # a module's own set_extra_state may raise anything
        raise ZSQBenchError(f"weights {checkpoint.file} cannot be loaded: {one_line(error)}") from error


def _check_names(own: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    # older checkpoints lack the counter, which is not used here; and safetensors cannot hold extra state
    optional = {name for name in own if name.endswith("num_batches_tracked") or is_extra_state(name)}
    missing = [name for name in own if name not in state and name not in optional]
    extra = [name for name in state if name not in own]
    if missing or extra:
        faults = [f"{what} {some(names)}" for what, names in (("lacks", missing), ("also holds", extra)) if names]
        raise ZSQBenchError(
            f"weights {path} are not this network's: the file {' and '.join(faults)}; "
            f"it has {len(state)} tensors, the network {len(own)}; give the weights of this very definition"
        )


def _check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        faults = [f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}" for name in wrong[:SHOWN]]
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ZSQBenchError(
            f"weights {path} are of another shape than the network: {'; '.join(faults)}{more}: "
            "check its width and number of classes"
        )


def _check_values(own: Mapping[str, Tensor], state: Mapping[str, Tensor], buffers: set[str], path: Path) -> None:
    """Raise ZSQBenchError for integers in place of the network's real numbers, and for values that are not finite.

    A buffer, such as a mask, may be infinite if it is also infinite when the network is built.
    """
    used = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    other = [name for name, tensor in used.items() if own[name].is_floating_point() and not tensor.is_floating_point()]
    if other:
        kinds = [f"{name} ({_dtype(state[name])}, not {_dtype(own[name])})" for name in other]
        raise ZSQBenchError(
            f"weights {path} are no floating-point numbers in {some(kinds)}: if these are codes of a quantized "
            "network, give its float weights"
        )
    broken = [name for name, tensor in used.items() if not _is_finite(own[name], tensor, is_buffer=name in buffers)]
    if broken:
        raise ZSQBenchError(
            f"weights {path} are NaN or infinite in {some(broken)}: give those of an epoch before training diverged"
        )


def _is_finite(own: Tensor, given: Tensor, *, is_buffer: bool) -> bool:
    taken = given.to(own.dtype) if own.is_floating_point() else given
    finite = taken.isfinite()
    return bool((finite | ~own.isfinite() if is_buffer else finite).all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
