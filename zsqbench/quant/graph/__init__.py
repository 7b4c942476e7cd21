"""A network as a graph: tracing, operators, roles of tensors, BN folding, pairs of layers, units."""
