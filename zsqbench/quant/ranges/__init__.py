"""Where grids end: observers, histograms, threshold searches, calibration and moving ranges."""

from zsqbench.quant.ranges.calibration import (
    Observer,
    RangeMethod,
    calibrate_activations,
    calibrate_activations_by,
    calibrate_activations_minmax,
    calibrate_activations_mse,
    calibrate_activations_percentile,
    calibrate_float_activations,
    calibrate_weights,
    check_images,
    observed,
    switched,
)
from zsqbench.quant.ranges.clipping import counted_clipping
from zsqbench.quant.ranges.histogram import Histogram, RunningHistogram
from zsqbench.quant.ranges.moving_ranges import MovingRanges
from zsqbench.quant.ranges.observers import (
    MovingMinMax,
    RunningMinMax,
    include_zero,
    lp_search,
    minmax,
    mse80,
    percentile,
    range_search,
    shrink_search,
    without_zeros,
)
from zsqbench.quant.ranges.thresholds import (
    Distance,
    ExactThresholdSearch,
    Threshold,
    activation_threshold,
    power_of_two_weight_thresholds,
    symmetric_weight_thresholds,
)

__all__ = [
    "Distance",
    "ExactThresholdSearch",
    "Histogram",
    "MovingMinMax",
    "MovingRanges",
    "Observer",
    "RangeMethod",
    "RunningHistogram",
    "RunningMinMax",
    "Threshold",
    "activation_threshold",
    "calibrate_activations",
    "calibrate_activations_by",
    "calibrate_activations_minmax",
    "calibrate_activations_mse",
    "calibrate_activations_percentile",
    "calibrate_float_activations",
    "calibrate_weights",
    "check_images",
    "counted_clipping",
    "include_zero",
    "lp_search",
    "minmax",
    "mse80",
    "observed",
    "percentile",
    "power_of_two_weight_thresholds",
    "range_search",
    "shrink_search",
    "switched",
    "symmetric_weight_thresholds",
    "without_zeros",
]
