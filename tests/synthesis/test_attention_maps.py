import pytest
import torch

from zsqbench.synthesis import attention_map, gaussian_mixtures, map_loss, soft_labels

SPREAD = (0.1, 0.25)


def softmax(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_the_map_of_a_class_token_is_its_row_without_its_own_entry():
    weights = softmax(2, 3, 17, 17)
    maps = attention_map(weights, 2, 1)
    row = weights[1, 2, 0, 1:]
    torch.testing.assert_close(maps[1, 2], row / row.sum())
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3))
    assert attention_map(softmax(2, 3, 18, 18), 2, 2).shape == (2, 3, 16)  # a distilled one


def test_without_a_class_token_it_is_the_mean_over_all_tokens_and_windows():
    weights = softmax(2 * 4, 3, 9, 9)
    maps = attention_map(weights, 2, 0)
    torch.testing.assert_close(maps[1], weights[4:].mean((0, 2)))


def test_heads_may_be_rows():
    weights = softmax(2, 3, 17, 17)
    assert torch.equal(attention_map(weights.flatten(0, 1), 2, 1), attention_map(weights, 2, 1))


def test_half_precision_is_compared_in_single():
    assert attention_map(softmax(1, 1, 5, 5).bfloat16(), 1, 1).dtype == torch.float32


def test_blobs_are_parts_of_one_and_never_negative():
    chances = torch.rand(50, 2, 3, 1 + 4 * 5, generator=torch.Generator().manual_seed(0))
    blobs = gaussian_mixtures(chances, 14, 10, SPREAD)
    assert blobs.shape == (50, 2, 3, 140)
    assert (blobs >= 0).all()
    torch.testing.assert_close(blobs.sum(-1), torch.ones(50, 2, 3))
    assert not torch.allclose(blobs[0, 0, 0], blobs[0, 0, 1])


@pytest.mark.parametrize(("row", "column"), [(0.0, 0.0), (0.999, 0.0), (0.5, 0.999)])
def test_a_single_component_has_its_peak_at_its_centre_within_the_grid(row, column):
    chances = torch.tensor([0.0, row, column, 0.0, 1.0, *[0.3] * 4])  # of two, one is there
    blob = gaussian_mixtures(chances, 5, 7, SPREAD).view(5, 7)
    assert divmod(int(blob.argmax()), 7) == (round(4 * row), round(6 * column))
    along, deviation = blob[:, round(6 * column)], 0.1 * 5
    expected = torch.exp(-((torch.arange(5) - 4 * row) ** 2) / (2 * deviation**2))
    torch.testing.assert_close(along / along.sum(), expected / expected.sum())


def test_all_components_have_the_same_part_of_the_sum():
    left, right = [0.5, 0.0, 0.0, 0.0], [0.5, 0.999, 0.0, 0.9]
    blob = gaussian_mixtures(torch.tensor([0.999, *left, *right]), 8, 32, SPREAD).view(8, 32)
    torch.testing.assert_close(blob[:, :16].sum(), torch.tensor(0.5), rtol=0, atol=2e-2)


def test_the_loss_is_zero_where_maps_are_the_blobs_and_else_a_mean_of_squares_for_each_head():
    maps, priors = torch.rand(2, 2, 3, 16).unbind(0)
    assert torch.equal(map_loss(maps, maps), torch.zeros(2))
    expected = ((maps[1] - priors[1]) ** 2).sum() / 16
    torch.testing.assert_close(map_loss(maps, priors)[1], expected)


def test_soft_labels_have_the_wanted_classes_on_top():
    labels = torch.tensor([[3, 1, 7], [2, 2, 0]])
    soft = soft_labels(labels, torch.tensor([[5.0, 9.0, 0.0], [6.0, 8.0, 0.0]]), 10)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    assert soft.topk(2).indices[0].tolist() == [1, 3]
    torch.testing.assert_close(soft[0, 7], soft[0, 0])
    torch.testing.assert_close(soft[0, 1] / soft[0, 0], torch.tensor(9.0).exp())
    torch.testing.assert_close(soft[1, 2] / soft[1, 0], torch.tensor(8.0).exp())
