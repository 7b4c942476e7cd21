"""Tests of my_method: it keeps the contract, and more iterations come nearer to the statistics."""

import my_method
from zsqbench.synthesis import BNLoss, BNStatistics
from zsqbench.testing import check_generator, context, tiny_teacher


def test_it_keeps_the_contract():
    check_generator(my_method.MyMethod(images=6, batch_size=4, iterations=3))


def test_more_iterations_come_nearer_to_the_statistics():
    teacher = tiny_teacher()

    def distance(iterations):
        method = my_method.MyMethod(images=8, iterations=iterations)
        with BNLoss(teacher.module, BNStatistics(moment="var")) as bn_loss:
            return bn_loss(method.generate(teacher, context()).images).total.item()

    assert distance(iterations=30) < distance(iterations=1)
