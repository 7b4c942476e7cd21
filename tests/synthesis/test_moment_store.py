import torch

from zsqbench.synthesis import MomentStore, image_moments


def test_moments_of_all_batches_are_those_of_all_values_also_with_unequal_batches():
    images = torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.1 + 30
    sizes = [3, 3, 1]
    store = MomentStore(sizes, 2, 0, images)
    for batch, part in enumerate(images.split(sizes)):
        variance, mean = torch.var_mean(part, (0, 2, 3), correction=0)
        store.put(batch, (mean, variance))
    mean, variance, count = store.join(1, (store.mean[1], store.variance[1]), "all")
    expected, expected_mean = torch.var_mean(images.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-3, atol=0)  # float32 squares would leave nothing
    assert count == 7


def test_what_is_kept_carries_no_graph_and_the_input_has_columns_of_its_own():
    images = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    store = MomentStore([2, 2], 3, 1, torch.zeros(()))
    store.put(0, (torch.ones(4, requires_grad=True), torch.ones(4)))
    store.put_input(0, images)
    assert not store.mean.requires_grad
    assert store.mean[0].tolist()[:3] == [1, 1, 1]
    torch.testing.assert_close(store.mean[0, 3], images.mean().detach())
    torch.testing.assert_close(store.second_moment[0, 3], images.square().mean().detach())
    assert not store.mean[1].any()
    without = MomentStore([2], 3, 0, torch.zeros(()))
    without.put_input(0, images)
    assert not without.mean.any()


def test_a_store_takes_the_same_room_for_any_image():
    sizes = [8] * 5
    assert MomentStore(sizes, 10, 3, torch.zeros(())).mean.shape == (5, 13)
    assert image_moments(torch.zeros(8, 10, 4, 4))[0].shape == image_moments(torch.zeros(8, 10, 9, 9))[0].shape


def test_a_state_is_read_back():
    store, other = (MomentStore([1, 1], 2, 1, torch.zeros(())) for _ in range(2))
    store.put(1, (torch.arange(3.0), torch.ones(3)))
    other.load(store.state())
    assert torch.equal(store.mean, other.mean)
    assert torch.equal(store.variance, other.variance)
