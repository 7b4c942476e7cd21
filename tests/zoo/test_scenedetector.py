import torch
from PIL import Image
from safetensors.torch import load_file

from zsqbench.quant import capture, fold_bn, output_layers
from zsqbench.quant.graph.operators import is_batch_norm
from zsqbench.zoo import scenes, traindetector
from zsqbench.zoo.models import SCENE_DETECTOR
from zsqbench.zoo.scenedetector import (
    MEAN,
    STD,
    SceneDetector,
    assign,
    detect,
    detection_loss,
    places,
    postprocess,
    preprocess,
    training_loss,
)
from zsqbench.zoo.traindetector import DetectorTraining, figures
from zsqbench.zoo.weights import build_network


def raw_outputs(*finds):
    """What the network gives where it finds these boxes (box, digit, score), each at the place nearest its centre."""
    raw = {"cls_logits": torch.full((1, len(places()), 10), -10.0), "bbox_regression": torch.ones(1, len(places()), 4)}
    for (left, top, right, bottom), digit, score in finds:
        place = (places() - torch.tensor([left + right, top + bottom]) / 2).square().sum(1).argmin()
        x, y = places()[place].tolist()
        raw["cls_logits"][0, place, digit] = torch.logit(torch.tensor(score))
        raw["bbox_regression"][0, place] = torch.tensor([x - left, y - top, right - x, bottom - y]) / 4
    return raw


def test_the_shipped_weights_fit_and_find_the_digits_of_the_evaluated_scenes(tmp_path, monkeypatch):
    assert SCENE_DETECTOR.stat().st_size < 3e6
    network = build_network(SceneDetector, SCENE_DETECTOR)
    network.load_state_dict(load_file(SCENE_DETECTOR), strict=True)
    monkeypatch.setattr(scenes, "_NAMES", {"val": ("test", 80)})  # of 200
    scenes.write_scenes(tmp_path / "scenes")
    found = figures(network, tmp_path / "scenes")
    assert found["mAP"] > 80
    assert found["mAP50"] > 95


def test_it_can_be_traced_and_its_outputs_are_the_last_convolutions_of_the_heads():
    captured = capture(SceneDetector().eval(), (3, 96, 96))
    assert output_layers(captured) == ["cls_logits", "bbox_regression"]


def test_each_batch_normalisation_can_be_folded():
    captured = capture(SceneDetector().eval(), (3, 96, 96))
    fold_bn(captured)
    assert not any(map(is_batch_norm, captured.graph.nodes))


def test_there_is_an_output_for_each_place():
    with torch.no_grad():
        raw = SceneDetector().eval()(torch.zeros(2, 3, 96, 96))
    assert {name: tuple(values.shape) for name, values in raw.items()} == {
        "cls_logits": (2, 576, 10),
        "bbox_regression": (2, 576, 4),
    }
    assert places()[[0, 1, 24, -1]].tolist() == [[2, 2], [6, 2], [2, 6], [94, 94]]


def test_preprocess_resizes_any_image_and_normalises():
    assert preprocess(Image.new("L", (50, 200))).shape == (3, 96, 96)
    white = preprocess(Image.new("RGB", (96, 96), "white"))
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(white[:, 0, 0], expected)


def test_postprocess_gives_boxes_in_pixels_of_the_original_image():
    (found,) = postprocess(raw_outputs(((10, 20, 30, 60), 7, 0.9)), [(96, 192)])
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 20, 60, 60]]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9]))
    assert found["labels"].tolist() == [8]


def test_postprocess_suppresses_what_overlaps_a_better_box_of_the_same_digit():
    one, other = (10, 20, 30, 60), (14, 20, 34, 60)
    (found,) = postprocess(raw_outputs((one, 7, 0.8), (other, 7, 0.9)), [(96, 96)])
    assert found["boxes"].tolist() == [[14, 20, 34, 60]]
    (found,) = postprocess(raw_outputs((one, 7, 0.8), (other, 6, 0.9)), [(96, 96)])
    assert found["labels"].tolist() == [7, 8]


def test_postprocess_gives_at_most_100_boxes_and_none_where_there_is_nothing():
    raw = {"cls_logits": torch.full((2, 576, 10), -10.0), "bbox_regression": torch.full((2, 576, 4), 0.1)}
    raw["cls_logits"][1] = 0
    nothing, much = postprocess(raw, [(96, 96)] * 2)
    assert nothing["boxes"].shape == (0, 4)
    assert much["boxes"].shape == (100, 4)


def test_a_place_is_to_find_the_smallest_box_that_it_is_in_the_middle_of():
    boxes = torch.tensor([[[10.0, 10, 50, 50], [24, 24, 36, 36], [0, 0, 0, 0]]])
    digits, targets = assign(torch.tensor([[3, 5, -1]]), boxes)
    at = {tuple(place): number for number, place in enumerate(places().int().tolist())}
    assert digits[0, at[30, 30]] == 5
    assert targets[0, at[30, 30]].tolist() == [24, 24, 36, 36]
    assert (digits >= 0).sum() == 9
    digits, _ = assign(torch.tensor([[3, -1, -1]]), boxes)
    assert digits[0, at[30, 30]] == 3
    assert digits[0, at[38, 30]] == -1


def test_the_loss_is_least_for_what_is_there():
    digits, boxes = torch.tensor([[7]]), torch.tensor([[[10.0, 20, 30, 60]]])
    wanted, targets = assign(digits, boxes)
    right = raw_outputs()
    right["cls_logits"][wanted == 7] = torch.eye(10)[7] * 20 - 10
    points = places().expand_as(targets[..., :2])
    right["bbox_regression"] = torch.cat([points - targets[..., :2], targets[..., 2:] - points], 2) / 4
    assert detection_loss(right, digits, boxes) < 1e-3
    assert detection_loss(right, torch.tensor([[6]]), boxes) > 1
    assert detection_loss(right, digits, boxes + 8) > 1


def test_training_is_the_same_each_time():
    one, two = (traindetector.train(DetectorTraining(steps=2, batch=2)).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_script_writes_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.setattr(traindetector, "SCENE_DETECTOR", tmp_path / "weights.safetensors")
    monkeypatch.setattr(traindetector, "RECIPE", DetectorTraining(steps=2, batch=2))
    written = []
    monkeypatch.setattr(traindetector, "write_scenes", written.append)
    monkeypatch.setattr(traindetector, "figures", lambda _, folder: {"scenes": written == [folder]})
    traindetector.main()
    build_network(SceneDetector, tmp_path / "weights.safetensors")


def test_targets_of_images_with_any_number_of_boxes_have_the_loss_of_training():
    rng = torch.Generator().manual_seed(0)
    raw = {
        name: torch.randn(3, 576, width, generator=rng) for name, width in (("cls_logits", 10), ("bbox_regression", 4))
    }
    boxes = torch.tensor([[10.0, 10, 40, 60], [50.0, 20, 90, 80]])
    counts = [boxes[:count] for count in (2, 0, 1)]
    targets = [{"boxes": each, "labels": torch.tensor([4, 8])[: len(each)]} for each in counts]
    digits = torch.tensor([[3, 7], [-1, -1], [3, -1]])
    padded = torch.stack([torch.cat([each, torch.zeros(2 - len(each), 4)]) for each in counts])
    assert torch.equal(training_loss(raw, (96, 96), targets), detection_loss(raw, digits, padded))
    nothing = training_loss(raw, (96, 96), [{"boxes": boxes[:0], "labels": torch.empty(0).long()}] * 3)
    assert nothing.isfinite()


def test_smaller_images_have_places_losses_and_boxes_of_their_own():
    size = (32, 48)
    assert places(size).shape == (8 * 12, 2)
    assert places(size).max(0).values.tolist() == [46, 30]
    network = build_network(SceneDetector, SCENE_DETECTOR)
    raw = network(torch.zeros(1, 3, *size))
    place = (places(size) - torch.tensor([20.0, 14.0])).square().sum(1).argmin()
    raw["cls_logits"][0] = -10
    raw["cls_logits"][0, place, 3] = 5
    raw["bbox_regression"][0, place] = 2
    ((box,),) = [each["boxes"].tolist() for each in detect(raw, size, 0.2, 0.6)]
    x, y = places(size)[place].tolist()
    assert box == [x - 8, y - 8, x + 8, y + 8]
    found = [{"boxes": torch.tensor([box]), "labels": torch.tensor([4])}]
    missed = [{"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([9])}]
    assert training_loss(raw, size, found) < training_loss(raw, size, missed)
