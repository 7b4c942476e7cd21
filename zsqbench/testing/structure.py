"""The parts of a network that an artifact does not hold: those in which two networks are built differently."""

from torch import fx, nn

from zsqbench.compat import hook_tables


def changed_part(quantized: nn.Module, prepared: nn.Module) -> str | None:
    """The first difference in structure between a quantized network and one that was prepared anew, or none.

    Structure is all that loading tensors leaves as it is: classes of modules, hooks, the graph, names and shapes of
    parameters and buffers.
    """
    ours, theirs = _structure(quantized), _structure(prepared)
    for place in dict.fromkeys([*theirs, *ours]):
        here, there = ours.get(place), theirs.get(place)
        if here != there:
            return f"{place} is {here or 'gone'}, and was {there or 'not there'}"
    return None


def _structure(network: nn.Module) -> dict[str, str]:
    """Each part by its place."""
    found = {}
    for path, module in network.named_modules():
        hooks = ", ".join(name.strip("_") for name in hook_tables(module))
        place = f"module {path!r}" if path else "the network"
        found[place] = f"{type(module).__name__} with {hooks}" if hooks else type(module).__name__
    for name, value in network.state_dict().items():
        found[f"tensor {name!r}"] = f"of shape {tuple(getattr(value, 'shape', ()))}"
    if isinstance(network, fx.GraphModule):
        for node in network.graph.nodes:
            found[f"node {node.name!r}"] = f"{node.op} of {getattr(node.target, '__name__', node.target)}"
    return found
