import numpy as np
import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.site.paper.embedding import embedding

WHERE = "digits resnet20"


def cloud(center, count=12):
    """Features around a point."""
    return np.random.default_rng(0).normal(center, 0.1, (count, 5))


def distance(records, first, second):
    """Between the middles of two sets in the panel of the first."""
    middles = [
        np.mean([(each["x"], each["y"]) for each in records if each["panel"] == first and each["images"] == images], 0)
        for images in (first, second)
    ]
    return np.linalg.norm(middles[0] - middles[1])


def test_images_that_the_network_sees_alike_are_near_and_each_panel_has_the_real_ones():
    figure = embedding({"far": cloud(9.0), "near": cloud(0.0)}, cloud(0.0), "", WHERE)
    records = figure.columns.records()
    assert len(records) == 12 + 12 + 2 * 12
    assert distance(records, "near", "real images") < distance(records, "far", "real images") / 2
    assert figure.name == "embedding digits resnet20"


@pytest.mark.parametrize("features", [5, 1])
def test_equal_features_give_an_equal_picture(features):
    first, second = (
        embedding({"a": cloud(0.0)[:, :features]}, cloud(1.0)[:, :features], "", WHERE).columns.rows for _ in range(2)
    )
    assert first == second


def test_without_real_images_the_title_says_why():
    figure = embedding({"a": cloud(0.0)}, None, "the task has none", WHERE)
    assert figure.chart.title == "digits resnet20: features of each set by t-SNE; no real images: the task has none"


def test_features_that_are_not_finite_are_left_out_and_too_few_are_refused():
    features = cloud(0.0)
    features[3, 2] = np.nan
    assert len(embedding({"a": features}, None, "", WHERE).columns.rows) == 11
    with pytest.raises(ZSQBenchError, match="3 images with finite features; expected 4 at least"):
        embedding({"a": features[1:5]}, None, "", WHERE)


def test_one_feature_is_enough():
    assert len(embedding({"a": cloud(0.0)[:, :1]}, None, "", WHERE).columns.rows) == 12
