import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.hashing import digest_of
from zsqbench.scheme import (
    ACTIVATION_ROLES,
    FLOAT,
    PARTS,
    PLACEMENTS,
    POSITIONS,
    WEIGHT_ROLES,
    Placement,
    is_kind_of,
    parse_scheme,
)
from zsqbench.widths import KINDS


def test_a_scheme_is_a_placement_and_bit_widths():
    scheme = parse_scheme("hw/w4a8")
    assert (PLACEMENTS["hw"], 4, 8) == (scheme.placement, scheme.weight_bits, scheme.activation_bits)


def test_a_role_has_the_bits_of_its_kind():
    scheme = parse_scheme("hw/w4a8")
    assert (scheme.bits("weight"), scheme.bits("relu"), scheme.bits("input")) == (4, 8, 32)


def test_a_role_may_have_bits_of_its_own():
    scheme = parse_scheme("mine/w4a4", {"mine": Placement(first_weight=8)})
    assert (scheme.bits("first_weight"), scheme.bits("weight")) == (8, 4)


def left_in_float(name):
    """The roles of the tensors that a scheme has, and leaves in float."""
    scheme = parse_scheme(f"{name}/w4a4")
    there = [role for role in ACTIVATION_ROLES if getattr(scheme.placement, role) is not None]
    return {role for role in there if scheme.bits(role) == 32}


def test_hw_leaves_input_addends_and_pooled_features_in_float():
    assert left_in_float("hw") == {"input", "addend", "pooled"}


def test_hast_quantizes_relus_alone_and_folds_nothing():
    assert set(ACTIVATION_ROLES) - left_in_float("hast") == {"preactivation", "embedding", "relu"}
    assert PLACEMENTS["hast"].preactivation is None
    assert not PLACEMENTS["hast"].fold_bn
    assert [PLACEMENTS["hast"].model_dump()[role] for role in WEIGHT_ROLES] == ["w", "w", "w"]


def test_academic_keeps_the_ends_at_eight_bits():
    scheme = parse_scheme("academic/w4a3")
    assert left_in_float("academic") == {"input", "addend", "pooled", "logits"}
    assert {role: scheme.bits(role) for role in WEIGHT_ROLES} == {"first_weight": 8, "weight": 4, "last_weight": 8}
    assert (scheme.bits("stem"), scheme.bits("features"), scheme.bits("relu")) == (8, 8, 3)
    changes = PLACEMENTS["academic_intended"].model_dump().items() - PLACEMENTS["academic"].model_dump().items()
    assert dict(changes) == {"feature_sum": 8}


def test_strict_schemes_leave_nothing_and_differ_in_their_grid():
    assert left_in_float("hw_strict") == left_in_float("pot") == set()
    assert PLACEMENTS["pot"] == PLACEMENTS["hw_strict"].model_copy(update={"grid": "power_of_two"})


def test_pot_and_qdq_demand_grids():
    demands = {name: tuple(map(placement.grid_of, KINDS)) for name, placement in PLACEMENTS.items()}
    assert {name: grids for name, grids in demands.items() if grids != (None, None)} == {
        "pot": ("power_of_two", "power_of_two"),
        "qdq": ("symmetric", "affine"),
    }


def test_qdq_is_all_that_hardware_stores_and_what_is_not_computed_with_a_layer():
    own = {"weight_grid": None, "activation_grid": None, "input_range": "calibrated", "preactivation": None}
    assert PLACEMENTS["qdq"].model_copy(update=own) == PLACEMENTS["hw_strict"]
    scheme = parse_scheme("qdq/w4a8")
    assert (left_in_float("qdq"), scheme.bits("preactivation"), scheme.bits("weight")) == (set(), 8, 4)
    assert parse_scheme("qdq/w32a32").is_float
    assert {name for name, each in PLACEMENTS.items() if each.preactivation is not None} == {"qdq"}
    assert {name for name, each in PLACEMENTS.items() if each.input_range == "valid"} == {"qdq"}


def test_a_role_that_a_placement_has_no_tensor_for_has_no_bits():
    assert parse_scheme("hw/w4a4").bits("preactivation") == 32
    assert not parse_scheme("mine/w32a32", {"mine": Placement(preactivation=8)}).is_float


def test_a_grid_is_of_its_own_kind_and_of_the_wider_ones():
    kinds = ("affine", "symmetric", "power_of_two")
    found = [[is_kind_of(grid, demanded) for demanded in (None, *kinds)] for grid in kinds]
    assert found == [[True, True, False, False], [True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("kind", KINDS)
def test_one_grid_for_all_and_another_for_a_kind_contradict_each_other(kind):
    assert Placement(grid="symmetric", **{f"{kind}_grid": "symmetric"}).grid_of(kind) == "symmetric"
    expected = f"grid symmetric is for all tensors, and {kind}_grid is affine: give one of the two"
    with pytest.raises(ValueError, match=expected):
        Placement(grid="symmetric", **{f"{kind}_grid": "affine"})


def test_the_image_has_a_grid_of_the_scheme_where_its_range_is_that_of_valid_pixels():
    assert [PLACEMENTS[name].image_grid for name in ("hw", "pot", "qdq")] == [None, None, "affine"]
    assert Placement(input_range="valid").image_grid == "affine"
    assert Placement(input_range="valid", grid="power_of_two").image_grid == "power_of_two"


def test_the_fields_of_a_placement_are_the_roles_and_positions():
    grids = ["grid", "weight_grid", "activation_grid", "softmax_grid", "input_range"]
    fields = ["fold_bn", "fold_layer_norm", "side", *grids, *WEIGHT_ROLES, *ACTIVATION_ROLES, *POSITIONS, "tensors"]
    assert list(Placement.model_fields) == fields


DIGESTS = {
    "hast": "635c0ce4e70f24d2a6f7033705d915b5a2896e6f9aeb109675d2252a273fd63a",
    "academic": "c73c950f305431a0af47ec435551d81b38a3879f9435be24274558ae9fb9d365",
    "academic_intended": "f8f2885a6d2ece91efcf4393f17235cf62408a59bcad05699bb060e408686b40",
    "hw": "d4d299dc8e8eb9a925a779764b3f47e05dae27bd237581e82a16e3ecdd01b2f1",
    "hw_strict": "b667ca6c770e3569c17892809e63ef542054d5ab735764388fb54981f8fbf5ab",
    "pot": "e5c9de7b5bbb9b067bbc1d4844c200edab0a849afe8b42b03ffd9f5e087ca5cf",
}
"""Hashes of the placements as they were before grids of weights and activations, preactivations and valid pixels."""


@pytest.mark.parametrize("name", DIGESTS)
def test_a_placement_is_hashed_as_it_was_before_it_had_more_fields(name):
    assert digest_of(PLACEMENTS[name].model_dump(mode="json")) == DIGESTS[name]


def test_placements_of_ones_own_are_hashed_as_before_and_otherwise_where_they_use_a_new_field():
    float_digest = "c32e4814407423d8cac4ab7963ec1ec3d37ee9d9939b1303187f5d00d2eb268b"
    mixed_digest = "6e61e6620cfc6aa4d89fb5793f7a3c8bec1bde2e0f6ab6d1552f3abf01e05a75"
    assert digest_of(FLOAT.placement.model_dump(mode="json")) == float_digest
    assert digest_of(Placement(tensors={"conv": 8}).model_dump(mode="json")) == mixed_digest
    own = [{"weight_grid": "affine"}, {"activation_grid": "affine"}, {"input_range": "valid"}]
    own += [{"side": "inputs"}, {"fold_layer_norm": True}, {"softmax": 4, "softmax_grid": "log_sqrt2"}]
    own += [{name: width} for name in ("preactivation", "embedding", *PARTS) for width in ("float", "a", 8)]
    placements = [Placement(), *(Placement(**given) for given in own), PLACEMENTS["qdq"]]
    assert len({digest_of(each.model_dump(mode="json")) for each in placements}) == len(placements)
    assert all(Placement.model_validate(each.model_dump(mode="json")) == each for each in placements)


def test_a_position_goes_before_the_role_where_it_has_a_width():
    placement = Placement(features="a")
    assert placement.role("relu", ("stem", "features")) == "features"
    assert placement.role("relu", ("stem",)) == "relu"
    assert placement.role("relu") == "relu"


def test_float_quantizes_nothing():
    scheme = parse_scheme("float")
    assert (scheme.is_float, scheme, scheme.placement.fold_bn) == (True, FLOAT, False)


@pytest.mark.parametrize(
    ("name", "is_float", "quantizes_weights"),
    [
        ("hw/w4a32", False, True),
        ("hw/w32a4", False, False),
        ("hw/w32a32", True, False),
        ("academic/w32a32", False, True),  # its ends have 8 bits whatever the others have
        ("edge/w32a32", False, False),
        ("eight/w32a32", False, True),
        ("one_activation/w32a32", False, False),
        ("as_said/w32a32", True, False),
        ("as_said/w32a4", False, False),
    ],
)
def test_a_scheme_is_float_where_no_tensor_has_other_bits(name, is_float, quantizes_weights):
    own = {
        "edge": Placement(feature_sum=8),
        "eight": Placement(tensors={"conv": 8}),
        "one_activation": Placement(tensors={"conv": {"activation": 8}}),
        "as_said": Placement(tensors={"conv": "w", "fc": "float"}),
    }
    scheme = parse_scheme(name, {**PLACEMENTS, **own})
    assert (scheme.is_float, scheme.quantizes_weights) == (is_float, quantizes_weights)


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
    with pytest.raises(ZSQBenchError, match="unknown scheme 'zzz' in 'zzz/w4a4'; known: hw"):
        parse_scheme("zzz/w4a4", {"hw": Placement()})


@pytest.mark.parametrize("bits", [0, 1, 17, 33, -4, True, 4.0, "4", None])
def test_a_placement_refuses_impossible_bits(bits):
    with pytest.raises(ValueError, match=r"expected 'w' .* or 2 to 16 bits"):
        Placement(first_weight=bits)
    if bits is not None:
        with pytest.raises(ValueError, match=r"expected 'w' .* or 2 to 16 bits"):
            Placement(stem=bits)


def test_a_placement_refuses_an_unknown_role():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Placement(frist_weight=8)


def mixed(**tensors):
    """hw/w4a5 with patterns of tensor names."""
    placement = PLACEMENTS["hw"].model_copy(update={"tensors": Placement(tensors=tensors).tensors})
    return parse_scheme("mixed/w4a5", {"mixed": placement})


def bits(scheme, name):
    """Bits of a weight and of an activation of this name."""
    return scheme.bits_of("weight", name, "weight"), scheme.bits_of("activation", name, "relu")


def test_a_pattern_gives_weights_and_activations_a_width_unless_it_says_which():
    scheme = mixed(
        **{
            "both.*": 8,
            "one.*": {"weight": 2},
            "other.*": {"activation": "float"},
            "each": {"weight": 6, "activation": 16},
        }
    )
    assert [bits(scheme, name) for name in ("both.a", "one.a", "other.a", "each", "none")] == [
        (8, 8), (2, 5), (4, 32), (6, 16), (4, 5)
    ]  # fmt: skip


def test_a_pattern_may_say_the_bits_of_the_scheme():
    assert bits(mixed(swapped={"weight": "a", "activation": "w"}), "swapped") == (5, 4)


def test_a_pattern_goes_before_what_the_placement_leaves_in_float():
    assert mixed(conv=8).bits_of("activation", "conv", "addend") == 8


def test_the_last_pattern_that_matches_counts_for_each_kind_apart():
    scheme = mixed(**{"*": 8, "a.*": {"weight": 3}, "a.b": {"activation": 6}, "a.c": "float"})
    assert [bits(scheme, name) for name in ("z", "a.z", "a.b", "a.c")] == [(8, 8), (3, 8), (3, 6), (32, 32)]
    assert [scheme.placement.pattern_of(kind, "a.b") for kind in ("weight", "activation")] == ["a.*", "a.b"]
    assert bits(mixed(**{"a.b": 2, "a.*": 8}), "a.b") == (8, 8)


def test_patterns_are_written_down_in_their_order_and_read_again():
    placement = Placement(tensors={"b.*": 8, "a": {"activation": "w"}})
    data = placement.model_dump(mode="json")
    assert data["tensors"] == [{"pattern": "b.*", "both": 8}, {"pattern": "a", "activation": "w"}]
    assert list(Placement.model_validate(data).tensors.items()) == list(placement.tensors.items())


def test_a_placement_without_patterns_is_written_down_as_its_roles():
    later = [*WEIGHT_ROLES, *ACTIVATION_ROLES, *(each for each in POSITIONS if each not in PARTS)]
    roles = [role for role in later if role != "embedding"]
    assert [*Placement(preactivation="a").model_dump()] == ["fold_bn", "grid", *roles]
    assert [*Placement(softmax="float").model_dump()][-1] == "softmax"
    assert [*Placement().model_dump()] == ["fold_bn", "grid", *(role for role in roles if role != "preactivation")]


TENSORS = [("weight", "conv1"), ("weight", "layer3.0.conv1"), ("activation", "relu"), ("activation", "layer3.0.relu")]


@pytest.mark.parametrize(
    ("pattern", "widths", "expected"),
    [
        ("conv2", 8, "pattern 'conv2' matches no weight and no activation of the network; did you mean 'conv1'?"),
        ("layr3.*", 8, "matches no weight and no activation of the network; did you mean 'layer3.*'?"),
        ("layer3.0.*", {"weight": 8, "activation": 8}, None),
        ("conv?", 8, None),
        ("conv1", {"weight": 4, "activation": 8}, "'conv1' matches no activation of the network, weights only;"),
        ("relu", {"weight": 4}, "'relu' matches no weight of the network, activations only;"),
        ("Conv1", {"weight": 4}, "'Conv1' matches no weight of the network; did you mean 'conv1'?"),
        ("zzz", 8, "'zzz' matches no weight and no activation of the network;"),
    ],
)
def test_a_pattern_that_matches_nothing_in_a_network_is_refused_with_a_suggestion(pattern, widths, expected):
    scheme = mixed(**{pattern: widths})
    if expected is None:
        scheme.check_patterns(TENSORS)
        return
    with pytest.raises(ZSQBenchError) as error:
        scheme.check_patterns(TENSORS)
    assert str(error.value).startswith("scheme mixed/w4a5: the pattern ")
    assert str(error.value).endswith(f"{expected} `zsqbench scheme hw/w4a4 MODEL` lists its tensors")


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        *((wrong, r"expected 'w' .* or 2 to 16 bits") for wrong in (1, 17, True, None, "8", [8, 8], {"weight": None})),
        ({}, "expected a width, or a mapping of 'weight', 'activation' or these two to widths"),
        ({"both": 8, "weight": 4}, "expected a width, or a mapping"),
        ({"weigth": 8}, "Extra inputs are not permitted"),
    ],
)
def test_a_pattern_without_a_width_is_refused(widths, expected):
    with pytest.raises(ValueError, match=expected):
        Placement(tensors={"conv": widths})


@pytest.mark.parametrize("patterns", [8, "conv", ["conv"], [{"weight": 8}]])
def test_patterns_are_keys(patterns):
    with pytest.raises(ValueError, match="Input should be a valid"):
        Placement(tensors=patterns)
