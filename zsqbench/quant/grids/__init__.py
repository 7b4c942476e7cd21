"""Number grids: affine, symmetric and power-of-two arithmetic, and the modules that round tensors to them."""
