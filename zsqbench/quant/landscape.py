"""Loss terms of fine-tuning around a quantized network: cosines of their gradients, and spectra of their Hessians.

HAST (Figure 6) measures both for cross-entropy, distillation and feature alignment.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zsqbench.errors import ZSQBenchError
from zsqbench.quant.grids import QuantizedLayer
from zsqbench.quant.student import quantized_layers
from zsqbench.quant.training import alignment_loss, block_outputs, kl_divergence, split_features, with_features

CE, KL, FA = "CE", "KL", "FA"

TEMPERATURE = 20.0
"""Temperature of distillation, as in HAST."""
BATCH = 32
"""Images of a batch. Each batch has its own cosines."""
STEPS = 100
"""Iterations of Lanczos' method for each spectrum, as in PyHessian."""
POINTS = 512
"""Points of a density. Their distance is smaller than the width of an eigenvalue's bump."""
BUMP = 3.0
"""curvlinops' default for the width of that bump (kappa)."""
MARGIN = 0.05
"""The density extends beyond both ends of a spectrum by this part of its width."""


@dataclass(frozen=True)
class Spectrum:
    """The distribution of the eigenvalues of a Hessian."""

    eigenvalues: Sequence[float]
    """Equidistant points, in ascending order."""
    density: Sequence[float]
    """The share of the eigenvalues at each point, per unit of the eigenvalue."""
    smallest: float
    largest: float
    """The extreme eigenvalues, by Lanczos' method."""


@dataclass(frozen=True)
class Landscape:
    """The measurements around one quantized network."""

    cosines: Mapping[tuple[str, str], Sequence[float]]
    """For each two terms: the cosine of their gradients on each batch."""
    spectra: Mapping[str, Spectrum]
    """The spectrum of the Hessian of each term, over all images."""


@dataclass(frozen=True)
class Batch:
    """Images with the targets of the terms."""

    images: Tensor
    labels: Tensor
    """Labels: int64 [N], or float32 [N, classes]."""
    logits: Tensor
    features: tuple[Tensor, ...]
    """Features of the float network. The logits are also those of the float network."""


class LossTerms:
    """Cross-entropy, distillation and feature alignment as functions of a student's quantized weights.

    CE is the mean cross-entropy with labels. KL is T^2 KL at T = 20. FA compares attention vectors as in HAST's
    release. No term has a weight factor. The weights of all quantized layers are free, and start at their values on the
    grids: the straight-through gradient to a weight is the gradient to its rounded value. Activations are rounded, and
    gradients pass the rounding inside the grid's range. Everything else is constant, and norms use their running
    statistics. A network without the layers of `block_outputs` has no FA.
    """

    def __init__(self, student: fx.GraphModule, reference: fx.GraphModule) -> None:
        """Free the weights of a finalized student in eval mode, in place. The reference is its float counterpart.

        Both come from `prepare` and have the same graph. The quantizers of the reference are off.
        """
        student.requires_grad_(requires_grad=False)
        self.weights = [_freed(layer) for _, layer in quantized_layers(student)]
        nodes = block_outputs(reference)
        names = {node.name for node in nodes}
        self._student = with_features(student, [node for node in student.graph.nodes if node.name in names])
        self._reference = with_features(reference, nodes)
        self.names = [CE, KL, *([FA] if nodes else [])]

    def batches(self, images: Tensor, labels: Tensor | None) -> list[Batch]:
        """The images [N, C, H, W] in batches of 32. Without labels, decisions of the float network replace them."""
        found = []
        for place in torch.split(torch.arange(len(images)), BATCH):
            with torch.no_grad():
                logits, features = split_features(self._reference(images[place]))
            given = logits.argmax(1) if labels is None else labels[place]
            found.append(Batch(images[place], given, logits, features))
        return found

    def on(self, batch: Batch) -> dict[str, Tensor]:
        """Each term on a batch."""
        logits, features = split_features(self._student(batch.images))
        found = {
            CE: functional.cross_entropy(logits, batch.labels),
            KL: kl_divergence(logits, batch.logits, TEMPERATURE),
        }
        return found | ({FA: alignment_loss(features, batch.features)} if FA in self.names else {})

    def gradient(self, term: Tensor, *, differentiable: bool = False) -> Tensor:
        """The gradient [P] of a term with respect to all weights. The graph stays for the other terms."""
        return _flat(
            torch.autograd.grad(
                term, self.weights, retain_graph=True, create_graph=differentiable, materialize_grads=True
            )
        )


@dataclass(frozen=True)
class Hessian:
    """The Hessian [P, P] of a term over all batches with respect to the weights. It is only multiplied with vectors.

    A product is a second backward pass. Like the first pass, it goes through the straight-through estimator: the
    derivative of rounding is 1 within the range. PyHessian does the same. curvlinops' own HessianLinearOperator uses
    forward differentiation of the backward pass. Functions that only define a backward pass do not support this.
    """

    terms: LossTerms
    name: str
    batches: Sequence[Batch]

    @property
    def shape(self) -> tuple[int, int]:
        """[P, P] for P weights."""
        count = sum(weight.numel() for weight in self.terms.weights)
        return count, count

    @property
    def device(self) -> torch.device:
        """The device of vectors."""
        return self.terms.weights[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of vectors."""
        return self.terms.weights[0].dtype

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector [P]. Each term is a mean over images, so batches count by their size."""
        total = sum(len(batch.images) for batch in self.batches)
        product = torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
            for batch in self.batches:
                gradient = self.terms.gradient(self.terms.on(batch)[self.name], differentiable=True)
                product += self.terms.gradient(gradient @ vector) * (len(batch.images) / total)
        return product


def measure_landscape(
    student: fx.GraphModule, reference: fx.GraphModule, images: Tensor, labels: Tensor | None, seed: int = 0
) -> Landscape:
    """Measure cosines and spectra around a finalized student in eval mode, whose weights become free in place.

    `reference` is its float counterpart (see `LossTerms`). Images are [N, C, H, W]. Labels are int64 [N] or float32 [N,
    classes], all on the student's device. Without labels, the decisions of the float network are the labels. Equal
    seeds give equal spectra. This needs the extra `landscape`. Raises ZSQBenchError if a gradient or a Hessian is zero
    or not finite.
    """
    terms = LossTerms(student, reference)
    batches = terms.batches(images, labels)
    spectra = {name: spectrum(Hessian(terms, name, batches), seed) for name in terms.names}
    return Landscape(cosines(terms, batches), spectra)


def cosines(terms: LossTerms, batches: Sequence[Batch]) -> dict[tuple[str, str], list[float]]:
    """The cosine of the gradients of each two terms, on each batch."""
    found: dict[tuple[str, str], list[float]] = {pair: [] for pair in combinations(terms.names, 2)}
    for batch in batches:
        directions = {name: _direction(name, terms.gradient(term)) for name, term in terms.on(batch).items()}
        for (first, second), values in found.items():
            values.append(float(directions[first] @ directions[second]))
    return found


def spectrum(hessian: Hessian, seed: int = 0) -> Spectrum:
    """The density of the eigenvalues by Lanczos' method from one random vector (Papyan 2020, Algorithm 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # one of its imports calls torch.jit.script
        from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

    with torch.random.fork_rng([] if hessian.device.type == "cpu" else [hessian.device]):
        torch.manual_seed(seed)
        first = hessian @ torch.randn(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
        if not (first.any() and first.isfinite().all()):
            raise ZSQBenchError(f"the Hessian of {hessian.name} is zero or not finite on these images")
        values, vectors = fast_lanczos(hessian, min(STEPS, hessian.shape[0]))
    ends = values.min().item(), values.max().item()
    points, density = lanczos_approximate_spectrum_from_iter((values, vectors), ends, POINTS, BUMP, MARGIN)
    return Spectrum(points.tolist(), density.tolist(), *ends)


def _freed(layer: QuantizedLayer) -> nn.Parameter:
    """The weight of a finalized layer. From now on it is a parameter that the layer uses without rounding."""
    weight = nn.Parameter(layer.quantized_weight())
    del layer.weight_codes
    layer.weight, layer.weight_quantizer.enabled = weight, False
    return weight


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _direction(name: str, gradient: Tensor) -> Tensor:
    """The gradient with length one, in float64."""
    exact = gradient.double()
    length = exact.square().sum().sqrt()
    if not (length > 0 and length.isfinite()):
        raise ZSQBenchError(f"the gradient of {name} is zero or not finite on a batch of these images")
    return exact / length
