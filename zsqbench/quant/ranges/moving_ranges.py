"""Activation ranges as a moving average over batches, for methods that train."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from zsqbench.quant.grids.fake_quant import ActivationQuantizer
from zsqbench.quant.ranges.calibration import Observer, calibrate_activations
from zsqbench.quant.ranges.observers import MovingMinMax
from zsqbench.quant.student import activation_quantizers

_RANGE = "range."


class MovingRanges:
    """Sets the range of each activation quantizer to a moving average over batches of images, see `MovingMinMax`."""

    def __init__(self, student: nn.Module, momentum: float = 0.9, *, compounding: bool = False) -> None:
        self._student = student
        self._averages = {
            quantizer: MovingMinMax(momentum, compounding=compounding)
            for _, quantizer in activation_quantizers(student)
        }

    def update(self, images: Tensor) -> None:
        """Add a batch."""

        def observer(quantizer: ActivationQuantizer) -> Observer:
            before = self._averages[quantizer]

            def see(values: Tensor) -> None:  # for a layer that is called again, all its outputs so far
                self._averages[quantizer] = copy.copy(before)
                quantizer.set_range(*self._averages[quantizer].update(values))

            return see

        calibrate_activations(self._student, [images], observer)

    def state(self) -> dict[str, Tensor]:
        """The state for a checkpoint."""
        return {f"{_RANGE}{quantizer.name}": average.state() for quantizer, average in self._averages.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a `state`."""
        for quantizer, average in self._averages.items():
            quantizer.set_range(*average.load(state[f"{_RANGE}{quantizer.name}"]))
