"""Which grids a quantizer takes at a scheme, and the student that the harness hands it."""

import pytest
import torch

import zsqbench
from zsqbench.quant import Grids, activation_quantizers, effective_map
from zsqbench.scheme import Placement, parse_scheme
from zsqbench.testing import tiny_teacher

OWN = {
    "symmetric": Placement(grid="symmetric"),
    "affine": Placement(grid="affine"),
    "int8": Placement(weight_grid="symmetric"),
    "codes": Placement(activation_grid="symmetric"),
    "pixels": Placement(input_range="valid", activation_grid="symmetric"),
}


def scheme(name):
    return parse_scheme(f"{name}/w8a8", {**zsqbench.scheme.PLACEMENTS, **OWN})


class Plain(zsqbench.Quantizer):
    name = "plain"

    def quantize(self, student, teacher, data, ctx):
        raise AssertionError


class Int8(Plain):
    name = "int8"
    weight_grids = ("affine", "symmetric")


class Shifts(Plain):
    name = "shifts"
    weight_grids = ("symmetric", "power_of_two")
    activation_grids = ("power_of_two",)


class Any(zsqbench.GridQuantizer):
    name = "any"

    def quantize(self, student, teacher, data, ctx):
        raise AssertionError


@pytest.mark.parametrize(
    ("quantizer", "name", "expected"),
    [
        (Plain(), "hw", ("affine", "affine")),
        (Plain(), "affine", ("affine", "affine")),
        (Int8(), "hw", ("affine", "affine")),
        (Int8(), "qdq", ("symmetric", "affine")),
        (Int8(), "int8", ("symmetric", "affine")),
        (Shifts(), "hw", ("symmetric", "power_of_two")),
        (Shifts(), "pot", ("power_of_two", "power_of_two")),
        (Shifts(), "qdq", ("symmetric", "power_of_two")),  # a special case of the affine grid that is demanded
        (Shifts(), "symmetric", ("symmetric", "power_of_two")),
        (Shifts(), "affine", ("symmetric", "power_of_two")),
        (Any(), "hw", ("affine", "affine")),
        (Any(), "pot", ("power_of_two", "power_of_two")),
        (Any(), "qdq", ("symmetric", "affine")),
        (Any(), "codes", ("affine", "symmetric")),
        (Any(grid="symmetric"), "qdq", ("symmetric", "symmetric")),
        (Any(grid="power_of_two"), "qdq", ("power_of_two", "power_of_two")),
    ],
)
def test_a_quantizer_takes_the_grids_that_are_demanded_or_special_cases_of_them(quantizer, name, expected):
    assert quantizer.rejects(scheme(name)) is None
    assert quantizer.grids_at(scheme(name)) == Grids(*expected)
    assert quantizer.resolved(tiny_teacher(), scheme(name)).grids_at(scheme(name)) == Grids(*expected)
    found = {(each.kind, each.grid) for each in effective_map(quantizer.prepare(tiny_teacher(), scheme(name)))}
    assert {grid for kind, grid in found if kind == "weight"} == {expected[0]}
    assert {grid for kind, grid in found if kind == "activation"} >= {expected[1]}


@pytest.mark.parametrize(
    ("quantizer", "name", "reason"),
    [
        (Plain(), "pot", "the scheme demands the grid power_of_two, and it has affine"),
        (Plain(), "qdq", "the scheme demands the grid symmetric of weights, and it has affine"),
        (Plain(), "codes", "the scheme demands the grid symmetric of activations, and it has affine"),
        (Int8(), "pot", "the scheme demands the grid power_of_two, and it has affine, symmetric"),
        (Int8(), "symmetric", "the scheme demands the grid symmetric, and it has affine"),
        (Any(grid="affine"), "qdq", "the scheme demands the grid symmetric of weights, and its option grid is affine"),
        (Any(grid="symmetric"), "pot", "the scheme demands the grid power_of_two, and its option grid is symmetric"),
    ],
)
def test_a_grid_that_it_does_not_have_is_told_in_one_line(quantizer, name, reason):
    assert quantizer.rejects(scheme(name)) == reason


def test_a_demand_that_cannot_be_met_stops_a_student_from_being_prepared():
    with pytest.raises(zsqbench.ZSQBenchError, match="demands the grid symmetric, and the quantizer has affine"):
        Plain().prepare(tiny_teacher(), scheme("qdq"))


@pytest.mark.parametrize(
    ("name", "grid"), [("hw", "affine"), ("pot", "power_of_two"), ("symmetric", "symmetric"), ("qdq", None)]
)
def test_the_option_grid_is_what_the_scheme_demands_of_weights_and_activations_alike(name, grid):
    assert Any().resolved(tiny_teacher(), scheme(name)).grid == grid
    assert Any(grid="power_of_two").resolved(tiny_teacher(), scheme(name)).grid == "power_of_two"


def image(student):
    (found,) = (each for _, each in activation_quantizers(student) if each.role == "input")
    return found


def test_a_student_has_the_image_on_the_range_of_valid_pixels_where_the_scheme_says_so():
    teacher = tiny_teacher()  # mean 0.5 and deviation 0.25: pixels lie between -2 and 2
    held = image(Int8().make_student(teacher, scheme("qdq")))
    assert (held.is_held, held.enabled, held.grid) == (True, False, "affine")
    assert (held.range()[0].item(), held.range()[1].item()) == pytest.approx((-2 * 128 / 127, 2))
    free = image(Int8().make_student(teacher, scheme("hw_strict")))
    assert (free.is_held, free.scale.item()) == (False, 0)
    symmetric = image(Any().make_student(teacher, scheme("pixels")))
    assert (symmetric.grid, symmetric.zero_point.item()) == ("symmetric", 128)
    assert symmetric.range()[1].item() == pytest.approx(2)


def test_a_student_is_held_whatever_a_quantizer_prepares_itself():
    class Own(Int8):
        name = "own"

        def prepare(self, teacher, scheme):
            return zsqbench.quant.prepare(teacher.module, scheme, teacher.input_size, Grids("symmetric"))

    held = image(Own().make_student(tiny_teacher(), scheme("qdq")))
    held.set_range(torch.tensor(-9.0), torch.tensor(9.0))
    assert held.range()[1].item() == pytest.approx(2)
