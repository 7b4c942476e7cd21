"""Where grids end: observers, histograms, threshold searches, calibration and moving ranges."""
