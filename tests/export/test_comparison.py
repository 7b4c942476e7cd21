"""An exported file beside the student that it was made of, on networks that each have something to get right."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exportnets import SMALL, exported, images

from zsqbench.export import comparison, runtime
from zsqbench.export.comparison import Check, Departure, check
from zsqbench.export.graph import CODES, QUANTIZE, constant, of_type
from zsqbench.export.structure import Layer, Structure

CELLS = {
    "straight": ("straight", "pot/w8a8"),
    "bounded": ("bounded", "qdq/w8a8"),
    "gated": ("gated", "qdq/w8a8"),
    "moving": ("moving", "qdq/w4a8"),
    "shared": ("shared", "qdq/w8a8"),
    "unfolded": ("straight", "hast/w4a4"),
    "per_tensor": ("straight", "hw_strict/w4a4", "dfq"),
    "sixteen": ("bounded", "qdq/w8a16"),
}
"""Network, scheme and quantizer of each file."""


def file_of(name):
    return exported(*CELLS[name], **(SMALL if name == "moving" else {}))


IN_TURN = ("straight", "moving")
"""Files that are compared in each run of the tests; the others on request."""

each_cell = pytest.mark.parametrize(
    "name", [name if name in IN_TURN else pytest.param(name, marks=pytest.mark.slow("all files")) for name in CELLS]
)


@each_cell
def test_codes_follow_the_student_at_every_tensor_and_decisions_are_equal(name):
    found = file_of(name).check()
    assert [each for each in found.exact if not each.tolerated] == []
    # of four bits there are so few codes that one tie in a mean decides, as in 64 bits
    assert found.equal_exact == (found.equal_double if name == "per_tensor" else found.images)
    assert (found.problems, found.structure.missed) == ([], [])
    # onnx's evaluator has no transposed convolution with groups
    assert found.reference is None if name == "shared" else found.reference < 1e-6


def test_power_of_two_grids_are_bit_identical():
    found = file_of("straight").check()
    assert (found.bit_identical, found.exact) == (True, ())
    assert (
        "16 of 16 decisions are those of the simulation with such biases, bit for bit; "
        "from equal inputs, all codes of all tensors are equal" in "\n".join(found.lines())
    )


@each_cell
def test_a_file_takes_any_number_of_images(name):
    file = file_of(name)
    session = runtime.open_session(file.path, optimized=False)
    given = runtime.fed(session, images(file.of, 7), file.of)
    together = runtime.run(session, given)
    for count in (1, 3):
        for some, every in zip(runtime.run(session, given[:count]), together, strict=True):
            np.testing.assert_allclose(some, every[:count], rtol=1e-4, atol=1e-5)


def tampered(file, tmp_path, change):
    model = ir.load(file.path)
    change(model.graph)
    ir.save(model, tmp_path / "tampered.onnx")
    return tmp_path / "tampered.onnx"


def with_constant(graph, name, change):
    value = graph.initializers[name]
    array = constant(value).copy()
    change(array)
    value.const_value = ir.tensor(array, name=name)


def test_a_weight_code_that_is_not_the_students_is_found_and_its_tensor_named(tmp_path):
    file = file_of("bounded")

    def change(array):
        array[0] = -array[0]

    path = tampered(file, tmp_path, lambda graph: with_constant(graph, "same.codes", change))
    found = file.check(path)
    assert found.exact[0].tensor == "same"
    assert any("without optimisation it departs first at tensor same: " in line for line in found.problems)
    assert any(line.startswith("problem: ") for line in found.lines())


def test_a_scale_that_is_not_the_students_is_found_at_its_tensor(tmp_path):
    file = file_of("straight")

    def change(graph):
        (quantize,) = [node for node in of_type(graph, QUANTIZE) if node.name == "relu_1/quantize"]
        scale = constant(quantize.inputs[1])
        quantize.replace_input_with(1, initializer(graph, scale * 1.1))

    def initializer(graph, array):
        from zsqbench.export.graph import initializer

        return initializer(graph, "tampered", np.float32(array))

    found = file.check(tampered(file, tmp_path, change))
    assert found.exact[0].tensor == "relu_1"
    assert not found.exact[0].tolerated


def test_what_a_network_of_pixels_is_given_is_what_the_file_is_given():
    file = file_of("moving")
    between = images(file.of) + 0.3 / 255 / file.of.std[0]  # no pixels
    found = check(file.path, file.student, file.integer, between, file.of)
    assert (found.problems, found.equal_exact) == ([], 16)


def structure(*missed):
    return Structure(tuple(Layer(path, None, found=path not in missed) for path in ("one", "two")))


SOUND = Check(100, structure(), (), (), 100, 100, 100, 100, None, 0.0, bit_identical=True)
TIE = Departure("relu", 0.01, 1, 0.0)
WRONG = Departure("conv", 0.01, 1, 0.01)


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, []),
        ({"exact": (TIE,)}, []),
        ({"equal": 99, "equal_double": 99}, []),
        ({"equal": 99, "equal_biases": 98}, []),
        ({"structure": structure("two")}, ["1 layers run in float, although nothing is in the way"]),
        (
            {"exact": (TIE, WRONG)},
            ["without optimisation it departs first at tensor conv: 1 % of its codes differ, by 1 at most"],
        ),
        ({"equal_exact": 90, "equal_double": 95}, []),
        ({"equal_exact": 95}, []),
        ({"equal_exact": 94}, ["without optimisation 94 of 100 decisions are equal"]),
        ({"images": 10_000, "equal_exact": 9_990, "equal_double": 10_000}, []),
        ({"equal": 88, "equal_double": 97, "equal_biases": 94}, []),
        (
            {"equal": 94, "optimized": (WRONG,)},
            [
                (
                    "6 of 100 decisions differ from the simulation's; it departs first at tensor conv: 1 % of its "
                    "codes differ, by 1 at most"
                )
            ],
        ),
        (
            {"equal": 94},
            ["6 of 100 decisions differ from the simulation's; no tensor departs by more than ties explain"],
        ),
    ],
)
def test_problems_are_what_ties_and_biases_do_not_explain(changes, problems):
    assert dataclasses.replace(SOUND, **changes).problems == problems


def test_a_departure_is_tolerated_where_values_lie_between_two_codes():
    assert TIE.tolerated
    assert Departure("x", 0.5, 1, 0.0009).tolerated
    assert not WRONG.tolerated
    assert not Departure("x", 0.001, 2, 0.0).tolerated


def test_saturation_is_told_with_what_to_do():
    lines = dataclasses.replace(SOUND, equal_saturating=83).lines()
    assert (
        "this processor saturates: without session.x64quantprecision 83 of 100 decisions are equal; weights of 7 bits "
        "(qdq/w7a8) need no such option"
    ) in lines


def test_outputs_that_are_no_classes_are_alike_where_they_differ_by_less_than_quantization_makes_them_differ():
    plain = [np.zeros((4, 2, 10), np.float32)]
    ours = [plain[0] + np.float32(0.1)]
    alike = comparison._Alike(ours, plain)
    others = [ours[0].copy()]
    others[0][0] += 0.09
    others[0][1] += 0.11
    others[0][2, 0, 0] += 3
    assert alike.count(others) == 2


def test_classifiers_are_alike_where_the_largest_output_is_at_the_same_place():
    ours = [np.eye(4, dtype=np.float32)]
    other = [ours[0] * 5]
    other[0][3] = (9, 0, 0, 1)
    assert comparison._Alike(ours, None).count(other) == 3


def test_codes_bear_the_names_of_tensors_with_a_number_where_they_are_made_again():
    values = {str(value.name) for node in file_of("shared").graph() for value in node.outputs}
    assert {"relu_2/codes", "relu_2#1/codes", "input/codes"} <= {name for name in values if name.endswith(CODES)}


def test_rows_have_shares_of_images_and_no_integers_that_cannot_be_told():
    assert SOUND.numbers() == {"integer_layers": 2, "layers": 2, "equal_exact": 100.0}
    unknown = Structure((Layer("one", None),))
    assert dataclasses.replace(SOUND, structure=unknown).numbers() == {"layers": 1, "equal_exact": 100.0}


def test_a_check_leaves_the_student_as_it_was():
    file = file_of("gated")
    before = {name: value.clone() for name, value in file.student.state_dict().items()}
    file.check(count=2)
    after = file.student.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
