"""An update on harder images, watched: what both networks return, and the gradient that makes images harder."""

from zsqbench.quant import attention, split_features

PASSES = [("teacher", "clean"), ("student", "clean"), ("teacher", "perturbed"), ("student", "perturbed")]


class Watched:
    """The passes of an update of HAST or of an extension, in their order, and the gradient of images."""

    def __init__(self, update):
        self.update, self.returned, self.gradient = update, [], None
        for network in (update.network, update.engine.network):
            network.register_forward_hook(lambda _, __, returned: self.returned.append(split_features(returned)))
        self._differentiate = update._differentiate
        update._differentiate = self._noting

    def _noting(self, *given):
        self.gradient = self._differentiate(*given)
        return self.gradient

    def check(self, stored, layers):
        """Compare logits, attention vectors of these layers and the signs of the gradient with stored ones."""
        for (who, which), (logits, features) in zip(PASSES, self.returned, strict=True):
            suffix = "" if which == "clean" else "_perturbed"
            if f"{who}_logits{suffix}" in stored:
                close(logits, stored[f"{who}_logits{suffix}"])
            for layer in layers:
                close(attention(features[layer]), stored[f"att_{who}_{which}_{layer}"])
        differs = self.gradient.sign() != stored["perturbation_sign"]
        assert differs.float().mean() <= 1e-4  # of gradients that are rounding errors


def close(found, expected, tolerance=1e-5):
    """Check a relative difference, by norms."""
    assert (found.detach() - expected).norm() <= tolerance * expected.norm()
