"""The library for generator authors: batch-normalisation statistics and the losses on them."""

from zsqbench.synthesis.bn import ZEROQ, BNGap, BNLoss, BNStatistics, batch_norms, frozen, watch, watch_points

__all__ = ["ZEROQ", "BNGap", "BNLoss", "BNStatistics", "batch_norms", "frozen", "watch", "watch_points"]
