import pytest
import torch
from torch.nn import functional

from zsqbench.methods.inductor import clip_backward, set_up, threshold_backward

X = torch.tensor([-2.0, 0.0, 0.5, 3.0, 6.0, 7.0])
GRADIENT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def differentiated(function):
    x = X.clone().requires_grad_()
    function(x).backward(GRADIENT)
    return x.grad


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_gradient_of_a_threshold_is_that_of_torch(threshold):
    expected = differentiated(lambda x: functional.threshold(x, threshold, 0.0))
    assert torch.equal(threshold_backward(GRADIENT, X, threshold), expected)


def test_the_gradient_between_two_ends_is_that_of_torch():
    assert torch.equal(clip_backward(GRADIENT, X, 0.0, 6.0), differentiated(functional.relu6))


def test_what_is_compiled_on_a_cpu_clips_so():
    from torch._inductor.decomposition import decompositions

    set_up(torch.device("cpu"))
    assert decompositions[torch.ops.aten.threshold_backward.default] is threshold_backward
