import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis import PenultimateFeatures


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(2, 3)  # registered first, called last
        self.body = nn.Conv2d(1, 2, 1)

    def forward(self, images):
        return self.classify(functional.relu(self.body(images)).mean((2, 3)))


def test_features_are_what_the_last_layer_that_is_called_reads() -> None:
    module, images = Classifier(), torch.randn(4, 1, 3, 3)
    with PenultimateFeatures(module) as features:
        module(images)
        assert torch.equal(features.last, functional.relu(module.body(images)).mean((2, 3)))


def test_the_layer_is_known_by_its_path() -> None:
    module = Classifier()
    with PenultimateFeatures(module) as features:
        module(torch.randn(4, 1, 3, 3))
        assert features.layer == "classify"


def test_features_of_a_classifier_that_is_a_convolution_are_averaged_over_positions() -> None:
    images = torch.tensor([[[[1.0, 3.0]], [[5.0, 9.0]]]])
    with PenultimateFeatures(nn.Conv2d(2, 3, 1)) as features:
        features._module(images)
        assert features.last.tolist() == [[2.0, 7.0]]


def test_features_of_a_transformer_are_averaged_over_tokens() -> None:
    tokens = torch.tensor([[[1.0, 3.0], [5.0, 9.0]]])
    with PenultimateFeatures(nn.Linear(2, 3)) as features:
        features._module(tokens)
        assert features.last.tolist() == [[3.0, 6.0]]


def test_a_larger_convolution_has_no_features() -> None:
    module = nn.Conv2d(1, 1, 3)
    with PenultimateFeatures(module) as features:
        module(torch.randn(1, 1, 4, 4))
        with pytest.raises(ZSQBenchError, match="no forward pass of Conv2d called a linear layer"):
            _ = features.last


def test_features_are_differentiable() -> None:
    module, images = Classifier(), torch.randn(2, 1, 3, 3, requires_grad=True)
    with PenultimateFeatures(module) as features:
        module(images)
        features.last.sum().backward()
    assert images.grad is not None


def test_hooks_and_memory_are_gone_afterwards() -> None:
    module = Classifier()
    with PenultimateFeatures(module) as features:
        module(torch.randn(2, 1, 3, 3))
    module(torch.randn(2, 1, 3, 3))
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    with pytest.raises(ZSQBenchError, match="no forward pass"):
        _ = features.layer


def test_features_are_kept_by_a_traced_pass() -> None:
    module, images = Classifier(), torch.randn(2, 1, 3, 3)
    with PenultimateFeatures(module) as features:
        module(images)
        expected = features.last

        @torch.compile(backend="eager", fullgraph=True)
        def traced(batch: torch.Tensor) -> torch.Tensor:
            return module(batch).sum() + features.last.sum()

        traced(images)
        assert torch.allclose(features.last, expected)
