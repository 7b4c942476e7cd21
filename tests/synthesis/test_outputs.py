import pytest
import torch
from networks import detector

from zsqbench.errors import ZSQBenchError
from zsqbench.synthesis import RawOutputs, class_logits, difficulty, flat_outputs, inception_loss, stretching


def test_the_output_loss_is_that_of_dghs_code(golden):
    vectors = {name: torch.from_numpy(golden("dgh_outloss_a")[name]) for name in golden("dgh_outloss_a").files}
    features, logits = vectors["last_bn_input"].requires_grad_(), vectors["logits"].requires_grad_()
    target = vectors["bn_mean"], (vectors["bn_var"] + 1e-6).sqrt()

    def loss(*outputs):
        moments = features.mean((2, 3)), features.std((2, 3))
        return stretching(flat_outputs(outputs), moments, target)

    total = loss(logits)
    total.backward()
    assert total.item() == pytest.approx(vectors["loss"].item(), rel=1e-5)
    torch.testing.assert_close(logits.grad, vectors["grad_logits"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(features.grad, vectors["grad_last_bn_input"], rtol=1e-5, atol=1e-7)
    assert loss(logits, vectors["logits4"]).item() == pytest.approx(vectors["loss_two_outputs"].item(), rel=1e-5)


def test_a_constant_added_to_outputs_changes_nothing_and_a_map_is_a_vector():
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    loss = stretching(flat_outputs(logits), (), ())
    assert loss.item() == pytest.approx(-(logits.amax(1) - logits.amin(1)).mean().item())
    assert stretching(flat_outputs(logits + 5), (), ()).item() == pytest.approx(loss.item(), rel=1e-5)
    assert stretching(flat_outputs(logits.view(2, 3, 2, 2)), (), ()) == loss


def test_features_within_the_slack_are_free():
    outputs, ones = [torch.zeros(1, 2)], torch.ones(1, 4)
    assert stretching(outputs, (ones, ones), (ones[0], ones[0])) == 0
    assert stretching(outputs, (ones, ones), (ones[0] + 0.7, ones[0])) == 0  # 0.49 is below 0.5
    assert stretching(outputs, (ones, ones), (ones[0] + 2, ones[0] + 1)).item() == pytest.approx(4 - 0.5 + 1 - 0.5)
    assert stretching(outputs, (ones, ones), (ones[0] + 2, ones[0]), slack=1.0).item() == pytest.approx(3)


def test_tensors_are_found_in_whatever_a_network_returns():
    a, b, c = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5), torch.zeros(2, 1, 7)
    outputs = {"boxes": [a, (b,)], "scores": c, "count": torch.tensor([3, 4]), "name": "x"}
    assert [tuple(each.shape) for each in flat_outputs(outputs)] == [(2, 48), (2, 5), (2, 7)]
    assert flat_outputs(b.bfloat16())[0].dtype == torch.float32
    with pytest.raises(ZSQBenchError, match="returns str, in which there is no tensor"):
        flat_outputs("nothing")


@pytest.mark.parametrize("beta", [1, 10])
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_the_inception_loss_is_that_of_hasts_code(golden, beta, gamma):
    vectors = golden("hast_hil_a")
    logits = torch.from_numpy(vectors["logits"]).requires_grad_()
    labels = torch.from_numpy(vectors["labels"])
    loss = beta * inception_loss(logits, labels, gamma)
    loss.backward()
    assert loss.item() == pytest.approx(vectors[f"hil_beta{beta}_gamma{gamma}"].item(), rel=1e-5)
    expected = torch.from_numpy(vectors[f"grad_logits_beta{beta}_gamma{gamma}"])
    assert (logits.grad - expected).norm() <= 1e-5 * expected.norm()
    torch.testing.assert_close(
        difficulty(logits.detach(), labels), torch.from_numpy(vectors["difficulty"]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_a_label_with_all_of_the_probability_gives_no_nan(gamma):
    logits = torch.tensor([[40.0, 0, 0], [0, 0, 0]]).requires_grad_()
    inception_loss(logits, torch.tensor([0, 0]), gamma).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].abs().max() < 1e-12
    assert logits.grad[1].any()


def test_the_weight_of_difficulty_is_part_of_the_gradient():
    logits = torch.tensor([[0.3, -0.2]], dtype=torch.float64).requires_grad_()
    inception_loss(logits, torch.tensor([0]), 2.0).backward()
    p = torch.sigmoid(torch.tensor(0.5, dtype=torch.float64))
    of_p = -2 * (1 - p) * -p.log() - (1 - p) ** 2 / p
    assert logits.grad[0, 0].item() == pytest.approx((of_p * p * (1 - p)).item())


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (torch.zeros(3, 5), r"\(3, 5\)"),
        (torch.zeros(2, 5, 4, 4), "Tensor"),
        ([torch.zeros(2, 5)], "list"),
    ],
)
def test_labels_ask_for_logits(outputs, found):
    labels = torch.tensor([1, 2])
    assert class_logits(torch.zeros(2, 5).bfloat16(), labels).dtype == torch.float32
    with pytest.raises(
        ZSQBenchError, match=f"one row of classes for each of 2 images, and the network returns {found}"
    ):
        class_logits(outputs, labels)


def test_raw_outputs_are_of_all_levels_and_before_they_are_decoded():
    net, images = detector(), torch.randn(2, 3, 8, 8)
    with RawOutputs(net, ("score", "box")) as raw:
        net(images)
        returned = net(images)  # what the pass before gave is forgotten
        scores, boxes = raw.of(returned)
    assert scores.shape == (2, 2 * 64 + 2 * 16)
    assert boxes.shape == (2, 4 * 64 + 4 * 16)
    assert torch.allclose(scores[:, :128].sigmoid(), returned["scores"][..., :64].flatten(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with RawOutputs(net) as raw:
        assert len(raw.of(net(images))) == 2


def test_the_constraint_counts_for_each_output_or_once():
    outputs, ones = [torch.zeros(2, 3), torch.zeros(2, 5)], torch.ones(2, 4)
    far = (ones, ones), (ones[0] + 2, ones[0])
    assert stretching(outputs, *far).item() == pytest.approx(2 * 3.5)
    assert stretching(outputs, *far, constrain_each=False).item() == pytest.approx(3.5)
