"""Gradients and Hessians of loss terms beside dense ones, which other code makes of formulas that are written out."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian as dense_hessian
from torch.func import functional_call

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    activation_quantizers,
    calibrate_activations_mse,
    calibrate_weights,
    finalize,
    prepare,
    quantized_layers,
    take_over,
    weight_quantizers,
)
from zsqbench.quant.landscape import Hessian, LossTerms, cosines, measure_landscape, spectrum
from zsqbench.scheme import parse_scheme

SIZE = (1, 6, 6)
LAYERS = {"0": (2, 1, 3, 3), "2": (2, 2, 3, 3), "4": (3, 8)}
WEIGHTS = 18 + 36 + 24


class Passed(nn.Module):
    """A quantizer of activations by other means: the difference that rounding makes is a constant."""

    def __init__(self, quantizer):
        super().__init__()
        self.low, self.high = quantizer.range()
        self.quantizer = quantizer

    def forward(self, x):
        clamped = x.clamp(self.low - self.quantizer.scale / 2, self.high + self.quantizer.scale / 2)
        with torch.no_grad():
            rounded = self.quantizer(x)
        return clamped + (rounded - clamped).detach()


class Case:
    """A tiny network, its student at 4 bits, and 40 images: a whole batch, and a part of one."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3))
        self.network.eval().requires_grad_(requires_grad=False)
        self.images = torch.randn(40, *SIZE)
        self.labels = torch.randint(3, (40,))
        self.student, self.reference, self.other = (self.prepared() for _ in range(3))
        calibrate_weights(self.student, "mse")
        calibrate_activations_mse(self.student, self.images)
        finalize(self.student)
        take_over(self.other, self.student)
        for module in (self.network, self.student, self.reference, self.other):
            module.double()
        self.images = self.images.double()
        for _, quantizer in weight_quantizers(self.other):
            quantizer.enabled = False
        for path, module in list(self.other.named_modules()):
            if any(module is quantizer for _, quantizer in activation_quantizers(self.other)):
                self.other.set_submodule(path, Passed(module))

    def prepared(self):
        return prepare(self.network, parse_scheme("hw/w4a4"), SIZE).eval()

    def terms(self):
        return LossTerms(self.student, self.reference)

    def start(self):
        """The weights on their grids [P]."""
        return torch.cat([layer.quantized_weight().flatten() for _, layer in quantized_layers(self.student)])

    def loss(self, name, images, labels):
        """A term as a function of all weights [P]."""
        expected = self.network(images)
        maps = []

        def value(weights):
            parts = weights.split([torch.Size(shape).numel() for shape in LAYERS.values()])
            state = {f"{path}.weight": part.view(LAYERS[path]) for path, part in zip(LAYERS, parts, strict=True)}
            hook = self.other.get_submodule("2").register_forward_hook(lambda _, __, output: maps.append(output))
            found = functional_call(self.other, state, (images,))
            hook.remove()
            if name == "CE":
                return -(found - found.logsumexp(1, keepdim=True))[torch.arange(len(images)), labels].mean()
            if name == "KL":
                hot, cold = (expected / 20).softmax(1), (found / 20).softmax(1)
                return 400 * (hot * (hot / cold).log()).sum() / len(images)
            ours, theirs = ((each**2).mean((2, 3)) for each in (maps[-1], self.network[:3](images)))
            ours, theirs = (each / (each**2).sum(1, keepdim=True).sqrt() for each in (ours, theirs))
            return ((ours - theirs) ** 2).mean()

        return value


@pytest.fixture
def case():
    return Case()


@pytest.mark.parametrize(("name", "error"), [("CE", 1e-9), ("KL", 1e-9), ("FA", 1e-6)])  # attention is in float32
def test_a_hessian_is_that_of_the_formula_over_all_images(case, name, error):
    expected = dense_hessian(case.loss(name, case.images, case.labels), case.start())
    terms = case.terms()
    operator = Hessian(terms, name, terms.batches(case.images, case.labels))
    vectors = torch.randn(WEIGHTS, 6, dtype=torch.float64)
    found = torch.stack([operator @ vector for vector in vectors.T], 1)
    assert operator.shape == (WEIGHTS, WEIGHTS)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected @ vectors, rtol=error, atol=error)


def test_extreme_eigenvalues_are_exact_and_the_density_is_one(case, monkeypatch):
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(case.loss("CE", case.images, case.labels), case.start()))
    terms = case.terms()
    operator = Hessian(terms, "CE", terms.batches(case.images, case.labels))
    found = spectrum(operator)
    assert (found.smallest, found.largest) == pytest.approx((eigenvalues[0].item(), eigenvalues[-1].item()), rel=1e-4)
    points, density = torch.tensor(found.eigenvalues), torch.tensor(found.density)
    assert torch.trapezoid(density, points) == pytest.approx(1, abs=0.01)
    monkeypatch.setattr("zsqbench.quant.landscape.STEPS", 4)
    first, again, other = (spectrum(operator, seed).density for seed in (0, 0, 1))
    assert (again == first, other == first) == (True, False)


def test_cosines_are_those_of_the_formulas_on_each_batch(case):
    expected = {pair: [] for pair in (("CE", "KL"), ("CE", "FA"), ("KL", "FA"))}
    for place in (slice(0, 32), slice(32, 40)):
        gradients = {}
        for name in ("CE", "KL", "FA"):
            weights = case.start().requires_grad_()
            (gradients[name],) = torch.autograd.grad(
                case.loss(name, case.images[place], case.labels[place])(weights), weights
            )
        for (first, second), values in expected.items():
            values.append(torch.nn.functional.cosine_similarity(gradients[first], gradients[second], 0).item())
    terms = case.terms()
    found = cosines(terms, terms.batches(case.images, case.labels))
    assert found.keys() == expected.keys()
    for pair, values in expected.items():
        assert found[pair] == pytest.approx(values, rel=1e-5)


def test_freeing_weights_changes_no_output_and_labels_are_the_float_networks_decisions(case):
    before = case.student(case.images)
    terms = case.terms()
    assert torch.equal(case.student(case.images), before)
    assert sum(weight.numel() for weight in terms.weights) == WEIGHTS
    without, given = (terms.batches(case.images, labels) for labels in (None, case.labels))
    assert torch.equal(torch.cat([batch.labels for batch in without]), case.network(case.images).argmax(1))
    assert torch.equal(torch.cat([batch.labels for batch in given]), case.labels)


def test_all_is_measured_and_a_network_without_layers_to_align_has_no_fa(case, monkeypatch):
    monkeypatch.setattr("zsqbench.quant.landscape.STEPS", 5)
    found = measure_landscape(case.student, case.reference, case.images, None)
    assert [*found.spectra] == ["CE", "KL", "FA"]
    assert {len(values) for values in found.cosines.values()} == {2}
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    student, reference = (prepare(linear, parse_scheme("hw/w4a32"), SIZE).eval() for _ in range(2))
    calibrate_weights(student, "mse")
    finalize(student)
    found = measure_landscape(student, reference, case.images.float(), None)
    assert [*found.spectra] == ["CE", "KL"]
    assert [*found.cosines] == [("CE", "KL")]


def test_a_loss_that_weights_do_not_change_is_refused(case):
    dark = torch.zeros_like(case.images)
    for layer in (case.student.get_submodule("0"), case.student.get_submodule("2")):
        layer.bias.zero_()
    terms = case.terms()
    batches = terms.batches(dark, case.labels)
    with pytest.raises(ZSQBenchError, match="the gradient of CE is zero or not finite on a batch of these images"):
        cosines(terms, batches)
    with pytest.raises(ZSQBenchError, match="the Hessian of CE is zero or not finite on these images"):
        spectrum(Hessian(terms, "CE", batches))


class Attention(nn.Module):
    """One head over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x):
        query, key, value = self.project(x.squeeze(1)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(query, key, value).mean(1))


def test_attention_is_differentiated_twice(monkeypatch):
    monkeypatch.setattr("zsqbench.quant.landscape.STEPS", 5)
    torch.manual_seed(0)
    images = torch.randn(4, *SIZE)
    student, reference = (prepare(Attention().eval(), parse_scheme("hw/w4a8"), SIZE).eval() for _ in range(2))
    calibrate_weights(student, "mse")
    calibrate_activations_mse(student, images)
    finalize(student)
    assert measure_landscape(student, reference, images, None).spectra["CE"].largest > 0
