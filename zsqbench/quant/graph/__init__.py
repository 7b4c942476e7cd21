"""A network as a graph: tracing, operators, roles of tensors, BN folding, pairs of layers, units."""

from zsqbench.quant.graph.bn_folding import FOLDED, fold_bn, folded, why_unfolded
from zsqbench.quant.graph.layer_norms import NormedLayers, fold_layer_norms, normed_layers
from zsqbench.quant.graph.maps import cut_behind, last_map
from zsqbench.quant.graph.operators import (
    ACTIVATIONS,
    AVERAGE_POOLS,
    BATCH_NORMS,
    CONCATENATIONS,
    LAYERS,
    MULTIPLICATIONS,
    PRODUCTS,
    RELUS,
    called_once,
    comes_from,
    is_batch_norm,
    is_layer,
    operator,
    readers,
    repeats_values,
    tensor_name,
)
from zsqbench.quant.graph.outputs import decoding, output_layers, output_producers
from zsqbench.quant.graph.pairs import BoundedReLU, Pair, drop_bounds, free_bounds, layer_pairs, unpaired_layers
from zsqbench.quant.graph.tensor_roles import (
    activation_roles,
    check_supported,
    first_calls,
    positions,
    roles,
    weight_roles,
)
from zsqbench.quant.graph.tracing import capture
from zsqbench.quant.graph.units import Grain, Unit, describe_units, find_units

__all__ = [
    "ACTIVATIONS",
    "AVERAGE_POOLS",
    "BATCH_NORMS",
    "CONCATENATIONS",
    "FOLDED",
    "LAYERS",
    "MULTIPLICATIONS",
    "PRODUCTS",
    "RELUS",
    "BoundedReLU",
    "Grain",
    "NormedLayers",
    "Pair",
    "Unit",
    "activation_roles",
    "called_once",
    "capture",
    "check_supported",
    "comes_from",
    "cut_behind",
    "decoding",
    "describe_units",
    "drop_bounds",
    "find_units",
    "first_calls",
    "fold_bn",
    "fold_layer_norms",
    "folded",
    "free_bounds",
    "is_batch_norm",
    "is_layer",
    "last_map",
    "layer_pairs",
    "normed_layers",
    "operator",
    "output_layers",
    "output_producers",
    "positions",
    "readers",
    "repeats_values",
    "roles",
    "tensor_name",
    "unpaired_layers",
    "weight_roles",
    "why_unfolded",
]
