import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.scheme import FLOAT, PLACEMENTS, Placement, parse_scheme


def test_a_scheme_is_a_placement_and_bit_widths():
    scheme = parse_scheme("hw/w4a8")
    assert (PLACEMENTS["hw"], 4, 8) == (scheme.placement, scheme.weight_bits, scheme.activation_bits)


def test_a_role_has_the_bits_of_its_kind():
    scheme = parse_scheme("hw/w4a8")
    assert (scheme.bits("weight"), scheme.bits("activation"), scheme.bits("input")) == (4, 8, 32)


def test_a_role_may_have_bits_of_its_own():
    scheme = parse_scheme("mine/w4a4", {"mine": Placement(first_weight=8)})
    assert (scheme.bits("first_weight"), scheme.bits("weight")) == (8, 4)


def test_hw_leaves_input_addends_and_pooled_features_in_float():
    scheme = parse_scheme("hw/w8a8")
    assert {"input", "addend", "pooled"} == {
        role for role in Placement.model_fields if role != "fold_bn" and scheme.bits(role) == 32
    }


def test_float_quantizes_nothing():
    scheme = parse_scheme("float")
    assert (scheme.is_float, scheme, scheme.placement.fold_bn) == (True, FLOAT, False)


def test_a_scheme_with_float_activations_still_quantizes():
    assert not parse_scheme("hw/w4a32").is_float


@pytest.mark.parametrize(
    "text", ["hw", "hw/w4", "hw/a4w4", "w4a4", "/w4a4", "hw/w4a4 ", "hw/w-4a4", "hw/wxa4", "", "Float"]
)
def test_what_is_no_scheme_is_refused_with_an_example(text):
    with pytest.raises(ZSQBenchError, match="is not a placement and bit-widths such as 'hw/w4a4', nor 'float'"):
        parse_scheme(text)


@pytest.mark.parametrize("bits", [0, 1, 17, 31, 33])
def test_impossible_weight_bits_are_refused(bits):
    with pytest.raises(ZSQBenchError, match=rf"{bits} weight bits in scheme 'hw/w{bits}a4': expected 2 to 16, or 32"):
        parse_scheme(f"hw/w{bits}a4")


def test_impossible_activation_bits_are_refused():
    with pytest.raises(ZSQBenchError, match="33 activation bits"):
        parse_scheme("hw/w4a33")


def test_an_unknown_placement_is_refused_with_a_suggestion():
    with pytest.raises(ZSQBenchError, match=r"unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'. known: hw"):
        parse_scheme("hww/w4a4", {"hw": Placement()})


def test_an_unknown_placement_that_is_like_none_is_refused_in_whole_clauses():
    with pytest.raises(ZSQBenchError, match="unknown scheme 'academic' in 'academic/w4a4'; known: hw"):
        parse_scheme("academic/w4a4", {"hw": Placement()})


@pytest.mark.parametrize("bits", [0, 1, 17, 33, -4, True, 4.0, "4", None])
def test_a_placement_refuses_impossible_bits(bits):
    with pytest.raises(ValueError, match=r"expected 'w' .* or 2 to 16 bits"):
        Placement(first_weight=bits)


def test_a_placement_refuses_an_unknown_role():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Placement(frist_weight=8)
