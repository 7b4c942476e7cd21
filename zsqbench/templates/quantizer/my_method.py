"""my_method: round to nearest, on ranges without the values furthest from the mean."""

import zsqbench
from pydantic import Field


class MyMethod(zsqbench.Quantizer):
    """Ranges of mean +- some standard deviations, cut at the extreme values. Start your own method here."""

    name = "my_method"
    version = 1  # raise it whenever results change
    seeded = False  # the seed changes nothing, so all seeds are one cell

    deviations: float = Field(3.0, gt=0, description="standard deviations between the mean and the ends of a range")

    def quantize(self, student, teacher, data, ctx):
        """Set the range of every quantizer of the student, in place."""
        from zsqbench.quant import calibrate_activations, calibrate_weights

        images = self.images_of(data).to(ctx.device)
        calibrate_weights(student, "mse")
        calibrate_activations(student, [images], self.observer)

    def observer(self, quantizer):
        """A function for the float values of a tensor. The earlier tensors are quantized when it is called."""

        def observe(values):
            mean, reach = values.mean(), self.deviations * values.std(correction=0)
            low, high = (mean - reach).clamp(min=values.min()), (mean + reach).clamp(max=values.max())
            quantizer.set_range(low.clamp(max=0), high.clamp(min=0))  # every range includes zero

        return observe


@zsqbench.hookimpl
def register_quantizers():
    """Tell zsqbench of the class."""
    return [MyMethod]
