import numpy as np
import torch

from zsqbench.quant import kl_divergence


def vectors(golden):
    stored = golden("hast_fa_kd_a")
    return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_released_distillation_loss_and_its_gradient_come_out(golden):
    stored = vectors(golden)
    logits = stored["student_logits"].requires_grad_()
    loss = stored["alpha"] * kl_divergence(logits, stored["teacher_logits"], int(stored["temperature"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss_KL"], rtol=1e-4, atol=0)
    torch.testing.assert_close(logits.grad, stored["grad_KL_student_logits"], rtol=1e-4, atol=1e-4)


def test_twice_the_temperature_for_twice_the_logits_is_four_times_the_loss():
    ours, theirs = random(4, 5), random(4, 5, seed=1)
    torch.testing.assert_close(kl_divergence(2 * ours, 2 * theirs, 6), 4 * kl_divergence(ours, theirs, 3))


def test_the_mean_is_over_classes_too():
    ours, theirs = random(4, 5), random(4, 5, seed=1)
    torch.testing.assert_close(kl_divergence(ours, theirs, 3, "mean"), kl_divergence(ours, theirs, 3) / 5)


def test_the_divergence_by_hand_and_of_equal_logits():
    ours, theirs = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    p, q = theirs.div(2).softmax(1), ours.div(2).softmax(1)
    torch.testing.assert_close(kl_divergence(ours, theirs, 2), 4 * (p * (p / q).log()).sum())
    assert kl_divergence(theirs, theirs, 2) == 0


def test_half_precision_is_computed_in_float32():
    ours, theirs = random(4, 5).bfloat16(), random(4, 5, seed=1).bfloat16()
    torch.testing.assert_close(kl_divergence(ours, theirs, 20), kl_divergence(ours.float(), theirs.float(), 20))
