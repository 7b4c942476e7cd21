import torch

from zsqbench.plugins import load_plugins
from zsqbench.testing import check_generator, context, tiny_teacher

Noise = load_plugins().find("generator", "noise").method


def test_noise_keeps_the_contract_of_generators():
    check_generator(Noise(images=4), tiny_teacher())
    check_generator(Noise(images=4, clamp=False), tiny_teacher())


def test_pixels_are_standard_normal_and_clamped_to_the_valid_range():
    teacher = tiny_teacher()  # mean 0.5, deviation 0.25: pixels from -2 to 2
    free = Noise(images=200, clamp=False).generate(teacher, context()).images
    assert abs(free.mean()) < 0.02
    assert abs(free.std() - 1) < 0.02
    clamped = Noise(images=200).generate(teacher, context()).images
    assert torch.equal(clamped, free.clamp(-2, 2))
    assert clamped.min() == -2
    assert clamped.max() == 2
    assert clamped.std() < free.std()
