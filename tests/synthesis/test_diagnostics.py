import json
import math

import pytest
import torch
from networks import from_forward
from torch import nn

from zsqbench import CalibrationSet, Pretrained
from zsqbench.methods import open_attention
from zsqbench.synthesis import diagnose, penultimate_features
from zsqbench.testing import tiny_teacher, tiny_teacher_without_bn, tiny_transformer

IMAGES = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).reshape(2, 1, 1, 2)


def pretrained(module, channels=1, classes=None, **changes):
    fields = {"input_size": (channels, 1, 2), "mean": (0.0,) * channels, "std": (1.0,) * channels, "classes": classes}
    return Pretrained(module.eval().requires_grad_(False), **fields | changes)


def norm(mean, variance, eps=0.0):
    made = nn.BatchNorm2d(len(mean), eps=eps)
    made.running_mean, made.running_var = torch.tensor(mean), torch.tensor(variance)
    return made


def classifier():
    """Its logits are the sum of an image's pixels and 0."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    return nn.Sequential(nn.Flatten(), linear)


def logits(*rows):
    """A classifier that takes images for its logits."""
    images = torch.tensor(rows)[:, None, None]
    module = from_forward(lambda _, x: x.flatten(1))
    return pretrained(module, classes=images.shape[3], input_size=images.shape[1:]), images


def of_set(module, images=IMAGES, labels=None, **changes):
    return diagnose(pretrained(module, **changes), CalibrationSet(images, labels)).set


# --- batch normalisation --------------------------------------------------------------------------------------------


def test_the_gap_is_in_units_of_the_stored_deviation():
    # the images have mean 4 and variance 5
    (gap,) = of_set(nn.Sequential(norm([0.0], [4.0]))).bn_gaps
    of_std = math.sqrt(5) / 2 - 1
    assert (gap.layer, gap.mean) == ("0", pytest.approx(2.0))
    assert (gap.std, gap.gap) == (pytest.approx(of_std), pytest.approx(math.hypot(2.0, of_std)))


def test_the_gap_of_a_layer_is_the_root_mean_square_over_its_channels():
    images = torch.cat([IMAGES, IMAGES], 1)
    (gap,) = of_set(nn.Sequential(norm([0.0, 4.0], [4.0, 5.0])), images, channels=2).bn_gaps
    assert gap.mean == pytest.approx(math.sqrt((2**2 + 0) / 2))


def test_a_channel_that_is_always_the_same_is_no_gap():
    (gap,) = of_set(nn.Sequential(norm([4.0], [0.0], eps=1e-5)), torch.full((3, 1, 1, 2), 4.0)).bn_gaps
    assert gap.gap == pytest.approx(0.0, abs=1e-6)


def test_images_are_seen_as_one_set_whatever_the_batches(monkeypatch):
    module = nn.Sequential(norm([0.0], [4.0]))
    whole = of_set(module)
    monkeypatch.setattr("zsqbench.synthesis.diagnostics._IMAGES_AT_ONCE", 1)
    assert of_set(module) == whole


def test_a_network_without_batch_normalisation_has_no_gap():
    found = of_set(nn.Sequential(nn.Identity()))
    assert (found.bn_gaps, "has no batch normalisation" in found.absent["bn_gaps"]) == (None, True)


def test_a_batch_normalisation_that_the_pass_does_not_reach_costs_the_gaps_only():
    found = of_set(from_forward(lambda _, x: x.flatten(1), norm=norm([0.0], [1.0])))
    assert (found.bn_gaps, found.output_ranges[0].mean) == (None, 2.0)
    assert found.absent["bn_gaps"] == "the forward pass does not reach the layer of batch normalisation 'norm'"


def test_the_network_is_afterwards_as_it_was():
    module = nn.Sequential(norm([0.0], [4.0])).train()
    teacher = Pretrained(module, (1, 1, 2), (0.0,), (1.0,))
    before = teacher.digest()
    diagnose(teacher, CalibrationSet(IMAGES))
    assert (module.training, teacher.digest()) == (True, before)


# --- outputs --------------------------------------------------------------------------------------------------------


def test_the_range_of_outputs_is_that_of_each_image():
    (found,) = of_set(nn.Flatten(), torch.tensor([[0.0, 1.0], [5.0, 8.0]]).reshape(2, 1, 1, 2)).output_ranges
    assert (found.output, found.mean) == ("logits", 2.0)
    assert found.quantiles == pytest.approx((1.1, 1.5, 2.0, 2.5, 2.9))


def test_each_of_several_outputs_has_its_range():
    module = from_forward(lambda _, x: {"boxes": x.flatten(1), "scores": 10 * x.flatten(1)})
    found = of_set(module, outputs=("boxes", "scores")).output_ranges
    assert [(each.output, each.mean) for each in found] == [("boxes", 2.0), ("scores", 20.0)]


def test_outputs_that_have_no_names_are_numbered():
    found = of_set(from_forward(lambda _, x: [x.flatten(1), x])).output_ranges
    assert [each.output for each in found] == ["output 0", "output 1"]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda _: "nothing", "the network returns str"),
        (lambda x: x.flatten(1)[:1], "no output of the network has a row for each image"),
    ],
)
def test_outputs_without_a_row_for_each_image_have_no_range(returned, reason):
    found = of_set(from_forward(lambda _, x: returned(x)))
    assert (found.output_ranges, found.absent["output_ranges"].startswith(reason)) == (None, True)


def test_ranges_are_compared_with_those_of_real_images():
    data, real = CalibrationSet(IMAGES), CalibrationSet(4 * IMAGES)
    assert diagnose(pretrained(nn.Flatten()), data, real).output_range_ratio == (0.25,)


def test_a_range_of_zero_has_no_ratio():
    found = diagnose(pretrained(nn.Flatten()), CalibrationSet(IMAGES), CalibrationSet(0 * IMAGES)).as_data()
    assert found["output_range_ratio"] == [None]
    assert found["absent"]["output_range_ratio[0]"] == "it is not finite: nan"


# --- difficulty and classes -----------------------------------------------------------------------------------------


def test_difficulty_is_what_is_missing_to_the_probability_of_the_label():
    teacher, images = logits([math.log(3), 0.0], [0.0, 0.0], [0.0, math.log(99)])
    found = diagnose(teacher, CalibrationSet(images, torch.tensor([1, 0, 1]))).set.difficulty
    # p is 1/4, 1/2 and 99/100
    assert (found.by, found.mean) == ("label", pytest.approx((0.75 + 0.5 + 0.01) / 3))
    assert found.counts == (1, 0, 0, 0, 0, 1, 0, 1, 0, 0)


def test_without_labels_difficulty_is_that_of_the_predicted_class():
    teacher, images = logits([math.log(3), 0.0])
    found = diagnose(teacher, CalibrationSet(images)).set
    assert (found.difficulty.by, found.difficulty.mean) == ("predicted class", pytest.approx(0.25))
    assert found.absent["labels"] == "the images have none"


def test_where_one_side_has_no_labels_both_are_measured_by_the_predicted_class():
    teacher, images = logits([math.log(3), 0.0])
    found = diagnose(teacher, CalibrationSet(images), CalibrationSet(images, torch.tensor([1])))
    assert (found.real.difficulty, found.real.class_balance.labels) == (found.set.difficulty, (0, 1))


def test_the_label_of_soft_labels_is_the_largest():
    teacher, images = logits([math.log(3), 0.0])
    found = diagnose(teacher, CalibrationSet(images, torch.tensor([[0.2, 0.8]]))).set
    assert found.difficulty.mean == pytest.approx(0.75)


def test_labels_that_the_network_does_not_know_are_left_out():
    teacher, images = logits([1.0, 0.0])
    found = diagnose(teacher, CalibrationSet(images, torch.tensor([2]))).set
    assert (found.absent["labels"], found.difficulty.by) == ("some are not in 0 .. 1", "predicted class")


def test_balance_is_the_entropy_divided_by_that_of_equally_many():
    teacher, images = logits([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    found = diagnose(teacher, CalibrationSet(images, torch.tensor([0, 0, 1, 1]))).set.class_balance
    assert (found.predicted, found.labels) == ((2, 1, 1), (2, 2, 0))
    assert found.predicted_entropy == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert found.labels_entropy == pytest.approx(math.log(2) / math.log(3))


def test_a_single_class_has_no_balance():
    teacher, images = logits([1.0])
    found = diagnose(teacher, CalibrationSet(images)).as_data()["set"]
    assert found["class_balance"]["predicted_entropy"] is None
    assert found["absent"]["class_balance.predicted_entropy"] == "it is not finite: nan"


@pytest.mark.parametrize(
    ("classes", "reason"),
    [(None, "the network is no classifier"), (7, "the network returns no single tensor [images, 7]")],
)
def test_what_is_no_classifier_has_neither_difficulty_nor_balance(classes, reason):
    found = of_set(nn.Flatten(), classes=classes)
    assert (found.difficulty, found.class_balance) == (None, None)
    assert {found.absent[name] for name in ("difficulty", "class_balance")} == {reason}


# --- diversity ------------------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_distance_of_pairs():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]).reshape(3, 1, 1, 2)
    found = of_set(classifier(), images, torch.tensor([0, 1, 0]), classes=2).diversity
    # of the three pairs, two are at a right angle and one is of equal images, which are of one class
    assert (found.layer, found.cosine) == ("1", pytest.approx(2 / 3))
    assert found.euclidean == pytest.approx(2 * math.sqrt(5) / 3, abs=1e-6)
    assert (found.cosine_within, found.euclidean_within) == (pytest.approx(0.0), pytest.approx(0.0, abs=1e-6))


def test_without_labels_pairs_of_one_predicted_class_are_taken():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)
    assert of_set(classifier(), images, classes=2).diversity.cosine_within == pytest.approx(1.0)


def test_one_image_has_no_diversity():
    found = of_set(classifier(), IMAGES[:1], classes=2)
    assert (found.diversity, found.absent["diversity"]) == (None, "one image has no pairs")


def test_single_images_of_classes_have_no_diversity_within():
    found = of_set(classifier(), IMAGES, torch.tensor([0, 1]), classes=2)
    assert (found.diversity.cosine_within, found.absent["diversity.within"]) == (None, "no class has two images")


def test_a_network_that_is_no_classifier_has_no_diversity_within():
    found = of_set(classifier())
    assert (found.diversity.cosine_within, found.absent["diversity.within"]) == (None, "the network is no classifier")


def test_a_network_without_a_linear_layer_has_no_diversity():
    assert "called a linear layer" in of_set(nn.Flatten()).absent["diversity"]


def test_features_without_a_row_for_each_image_have_no_diversity():
    module = from_forward(lambda net, x: net.linear(x.reshape(-1, 1)).reshape(len(x), 2), linear=nn.Linear(1, 1))
    assert of_set(module).absent["diversity"] == "layer 'linear' reads 4 rows for 2 images"


def squares(*corners):
    """Images [N, 1, 1, 2] that are their own features."""
    return CalibrationSet(torch.tensor(corners).reshape(-1, 1, 1, 2))


def test_the_distance_of_features_is_the_mean_over_pairs_of_a_made_and_a_real_image():
    teacher = pretrained(classifier(), classes=2)
    found = diagnose(teacher, squares([3.0, 0.0], [1.0, 0.0]), squares([0.0, 4.0], [1.0, 0.0])).feature_distance
    between = (5 + 2 + math.sqrt(17) + 0) / 4
    assert (found.layer, found.cosine, found.euclidean) == ("1", pytest.approx(0.5), pytest.approx(between))
    assert found.energy == pytest.approx((2 * between - 2 - math.sqrt(17)) / (2 * between), abs=1e-6)


def test_images_of_two_points_are_as_far_apart_as_can_be_and_equal_ones_are_not():
    teacher = pretrained(classifier(), classes=2)
    ours, theirs = squares([1.0, 0.0], [1.0, 0.0]), squares([5.0, 0.0], [5.0, 0.0])
    assert diagnose(teacher, ours, theirs).feature_distance.energy == pytest.approx(1.0, abs=1e-6)
    many = CalibrationSet(torch.randn(100, 1, 1, 2, generator=torch.Generator().manual_seed(0)))
    other = CalibrationSet(torch.randn(100, 1, 1, 2, generator=torch.Generator().manual_seed(1)))
    assert abs(diagnose(teacher, many, other).feature_distance.energy) < 0.05


def test_a_single_image_has_a_distance_and_no_energy():
    found = diagnose(pretrained(classifier(), classes=2), squares([1.0, 0.0]), squares([4.0, 0.0]))
    assert (found.feature_distance.euclidean, found.feature_distance.energy) == (pytest.approx(3.0), None)
    assert found.absent["feature_distance.energy"] == "one image has no pairs"


def test_equal_features_have_no_energy():
    found = diagnose(pretrained(classifier(), classes=2), squares(*[[1.0, 0.0]] * 2), squares(*[[1.0, 0.0]] * 2))
    assert found.as_data()["absent"]["feature_distance.energy"].startswith("it is not finite")


def test_without_features_or_real_images_there_is_no_distance():
    data = CalibrationSet(IMAGES)
    assert "called a linear layer" in diagnose(pretrained(nn.Flatten()), data, data).absent["feature_distance"]
    found = diagnose(pretrained(classifier()), data, None, "the task has none")
    assert (found.feature_distance, found.absent["feature_distance"]) == (None, "the task has none")


# --- networks without batch normalisation ---------------------------------------------------------------------------


def noise(count, seed):
    return CalibrationSet(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))


def test_the_features_of_a_transformer_are_those_of_its_class_token():
    teacher = tiny_transformer()
    seen = []
    teacher.module.norm.register_forward_hook(lambda *each: seen.append(each[2][:, 0]))
    found = penultimate_features(teacher, noise(3, 0).images)
    torch.testing.assert_close(found, seen[0].double())
    (found,) = (diagnose(teacher, noise(3, 0)).set.diversity,)
    assert found.layer == "classifier"


def test_a_transformer_has_patches_and_maps_of_made_and_of_real_images():
    teacher = tiny_transformer()
    found = diagnose(teacher, noise(6, 0), noise(4, 1), "", open_attention(teacher))
    for each, images in ((found.set, 6), (found.real, 4)):
        assert (each.images, each.bn_gaps, list(each.absent)) == (images, None, ["bn_gaps", "labels"])
        assert [(block.layer, block.images) for block in each.patch_similarities] == [
            ("blocks.0", 4),
            ("blocks.1", 4),
        ]  # as many of both
        assert each.attention_maps.maps.shape == (4, 4, 4)
    assert found.set.patch_similarities != found.real.patch_similarities
    assert found.feature_distance.layer == "classifier"


def test_maps_are_no_plain_data():
    teacher = tiny_transformer()
    found = diagnose(teacher, noise(2, 0), None, "", open_attention(teacher)).as_data()
    assert json.loads(json.dumps(found))["set"]["attention_maps"] == {"by": "class token", "grid": [4, 4]}


def test_a_network_with_neither_has_distances_alone_and_says_why():
    teacher = tiny_teacher_without_bn()
    found = diagnose(teacher, noise(4, 0), noise(4, 1), "", open_attention(teacher))
    assert found.feature_distance.layer == "classifier"
    for name, reason in (
        ("bn_gaps", "has no batch normalisation"),
        ("patch_similarities", "it needs attention that capture takes apart"),
        ("attention_maps", "it needs attention that capture takes apart"),
    ):
        assert (getattr(found.set, name), reason in found.set.absent[name]) == (None, True)


def test_attention_that_nobody_opened_is_absent():
    found = diagnose(tiny_transformer(), noise(2, 0)).set
    assert found.absent["patch_similarities"] == found.absent["attention_maps"] == "attention was not looked at"


def test_a_network_with_batch_normalisation_has_gaps_in_place_of_attention():
    teacher = tiny_teacher()
    found = diagnose(teacher, noise(4, 0), None, "", open_attention(teacher)).set
    assert (found.bn_gaps is None, found.patch_similarities, found.attention_maps) == (False, None, None)
    assert "has batch normalisation" in found.absent["patch_similarities"]


def test_entropies_that_are_not_finite_are_null_with_a_reason():
    teacher = tiny_transformer()
    found = diagnose(
        teacher, CalibrationSet(torch.full((2, 3, 8, 8), math.nan)), None, "", open_attention(teacher)
    ).as_data()["set"]
    assert found["patch_similarities"][0]["entropy"] is None
    assert found["absent"]["patch_similarities[0].entropy"] == "it is not finite: nan"


# --- pixels, absence ------------------------------------------------------------------------------------------------


def test_pixels_outside_of_the_valid_range_are_counted():
    # valid are 0 .. 5; float32 may round a valid value a little
    images = torch.tensor([[-1.0, 5.00001], [6.0, 2.0]]).reshape(2, 1, 1, 2)
    found = of_set(nn.Flatten(), images, std=(0.2,)).pixels
    assert (found.outside, found.mean) == (0.5, pytest.approx((3.0,), abs=1e-4))
    assert found.std == pytest.approx((math.sqrt((16 + 4 + 9 + 1) / 4),), abs=1e-4)


def test_without_real_images_the_reason_is_given():
    found = diagnose(pretrained(nn.Flatten()), CalibrationSet(IMAGES), None, "the task has none")
    assert (found.real, found.absent["real"]) == (None, "the task has none")
    assert found.absent["output_range_ratio"] == "the task has none"


def test_without_output_ranges_there_is_no_ratio():
    data = CalibrationSet(IMAGES)
    found = diagnose(pretrained(from_forward(lambda *_: None)), data, data)
    assert found.absent["output_range_ratio"] == "there are no output ranges"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_null_with_a_reason_and_their_images_left_out(value):
    teacher, images = logits([math.log(3), 0.0], [value, 0.0])
    found = diagnose(teacher, CalibrationSet(images)).as_data()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["set"]["output_ranges"][0]["mean"] is None
    assert found["set"]["absent"]["output_ranges[0].mean"].startswith("it is not finite: ")
    assert (found["set"]["not_finite"], found["set"]["difficulty"]["mean"]) == (1, pytest.approx(0.25))


def test_a_network_that_returns_nothing_finite_has_no_difficulty():
    teacher, images = logits([math.nan, 0.0])
    found = diagnose(teacher, CalibrationSet(images)).set
    assert found.absent["difficulty"] == "no image has outputs that are finite"
