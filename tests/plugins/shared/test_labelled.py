from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from zsqbench_plugins.shared.labelled import LabelledGenerator

import zsqbench
from zsqbench.testing import context, tiny_teacher


class Dots(LabelledGenerator):
    """Moves pixels to the number of their label."""

    name = "dots"
    presets = {  # noqa: RUF012 - a test
        "paper": {name: {"crop_probability": 1.0, "crop_scale": 0.5} for name in ("cifar10", "cifar100", "imagenet")},
        "released": {
            "cifar10": {"crop_probability": 0.0, "crop_scale": 0.5},
            "cifar100": {"crop_probability": 0.5, "crop_scale": 0.5},
            "imagenet": {"crop_probability": 0.5, "crop_scale": 0.3},
        },
    }

    def generate(self, teacher, ctx):
        self.__dict__["seen"] = seen = []

        def losses(images, labels, batch):
            seen.append((batch, images.detach().clone(), labels))
            loss = (images - labels[:, None, None, None]).square().mean()
            return loss, {"distance": loss}

        return self.resolved(teacher).synthesize(teacher, ctx, losses, ctx.resume() or {})


def test_batches_have_labels_of_their_own():
    ctx = context()
    method = Dots(images=5, batch_size=2, iterations=40)
    made = method.generate(tiny_teacher(), ctx)
    assert [batch for batch, _, _ in method.seen] == [0] * 40 + [1] * 40 + [2] * 40
    assert [len(labels) for _, _, labels in method.seen[::40]] == [2, 2, 1]
    torch.testing.assert_close(made.images.mean((1, 2, 3)), made.labels.float(), rtol=0.3, atol=0.5)
    assert made.provenance == {"preset": "released", "crop_probability": 0, "crop_scale": 0.5}


@pytest.mark.parametrize(("probability", "share"), [(0, 0), (0.5, 0.5), (1, 1)])
def test_images_are_cropped_in_a_part_of_the_iterations(probability, share):
    teacher = tiny_teacher()
    plain = Dots(images=1, iterations=60, lr=1e-12, min_lr=1e-13, crop_probability=0)
    some = Dots(images=1, iterations=60, lr=1e-12, min_lr=1e-13, crop_probability=probability)
    plain.generate(teacher, context())
    some.generate(teacher, context())
    start = plain.seen[0][1]
    cropped = [not torch.allclose(images, start, atol=1e-6) for _, images, _ in some.seen]
    assert sum(cropped) / 60 == pytest.approx(share, abs=0.15)


def test_what_is_given_away_are_the_pixels_and_not_their_crops():
    method = Dots(images=2, iterations=1, lr=1e-12, min_lr=1e-13, crop_probability=1)
    made = method.generate(tiny_teacher(), context())
    assert made.images.std() > method.seen[0][1].std()  # interpolation smooths noise


@pytest.mark.parametrize(("side", "classes", "expected"), [(32, 10, 0.0), (63, 11, 0.5), (64, 10, 0.5)])
def test_values_that_are_not_given_are_those_for_the_likest_data_set(side, classes, expected):
    teacher = replace(tiny_teacher(), input_size=(3, side, side), classes=classes)
    assert Dots().resolved(teacher).crop_probability == expected
    assert Dots(preset="paper").resolved(teacher).crop_probability == 1
    assert Dots(crop_probability=0.25).resolved(teacher).crop_probability == 0.25


@pytest.mark.parametrize(
    "options", [{"images": 0}, {"iterations": 0}, {"batch_size": 0}, {"crop_scale": 0}, {"crop_probability": 1.5}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        Dots(**options)


def test_a_network_without_classes_is_one_clear_error():
    with pytest.raises(zsqbench.ZSQBenchError, match="generator 'dots' makes images of classes, and the network has"):
        Dots().generate(replace(tiny_teacher(), classes=None), context())
