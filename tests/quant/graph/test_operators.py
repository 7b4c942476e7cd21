from torch import nn

from zsqbench.quant.graph.operators import readers, tensor_name
from zsqbench.quant.graph.tracing import capture


def test_readers_are_found_behind_what_only_moves_values_and_the_output_is_none():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 2))
    by_name = {tensor_name(node): node for node in capture(network, (3, 8, 8)).graph.nodes if node.op != "output"}
    read_by = {name: [tensor_name(reader) for reader in readers(node)] for name, node in by_name.items()}
    assert read_by == {"input": ["0"], "0": ["3"], "1": ["3"], "2": ["3"], "3": []}
