from dataclasses import replace

import numpy as np
import pytest
import torch
from zsqbench_plugins.shared.jittered import JitteredGenerator, jittered

import zsqbench
from zsqbench.methods import DATA_SETS
from zsqbench.methods.work import STEP
from zsqbench.testing import context, tiny_teacher


class Dots(JitteredGenerator):
    """Moves pixels to a value that no image can have."""

    name = "dots"
    target: float = 9.0

    def generate(self, teacher, ctx):
        self.__dict__["seen"] = seen = []

        def losses(batch):
            seen.append((batch.images.detach().clone(), batch.labels))
            loss = (batch.images - self.target).square().mean()
            return loss, {"distance": loss}

        return self.resolved(teacher).synthesize(teacher, ctx, losses, 0.5, state=ctx.resume() or {})


def test_batches_have_labels_of_their_own_which_are_given_away():
    method = Dots(images=5, batch_size=2, iterations=3, phases=2)
    made = method.generate(tiny_teacher(classes=1000), context())
    assert [len(labels) for _, labels in method.seen] == [2] * 12 + [1] * 6
    torch.testing.assert_close(torch.cat([labels for _, labels in method.seen[::6]]), made.labels)
    assert len(set(made.labels.tolist())) == 5


def test_losses_see_the_pixels_that_are_given_away_and_labels_that_were_given():
    class Seeing(Dots):
        def generate(self, teacher, ctx):
            self.__dict__["seen"] = seen = []

            def losses(batch):
                seen.append(batch)
                return batch.pixels.square().mean(), {}

            labels = torch.eye(3)[torch.tensor([2, 1, 0])]
            return self.resolved(teacher).synthesize(teacher, ctx, losses, 0.5, state={}, labels=labels)

    method = Seeing(images=3, batch_size=2, iterations=4, jitter=3)
    made = method.generate(tiny_teacher(), context())
    assert torch.equal(made.labels, torch.eye(3).flip(0))
    assert [batch.number for batch in method.seen] == [0] * 4 + [1] * 4
    assert torch.equal(method.seen[-1].pixels, made.images[2:])
    assert torch.equal(method.seen[0].labels, made.labels[:2])
    assert not torch.equal(method.seen[-1].images, method.seen[-1].pixels)


def test_what_is_given_away_are_valid_pixels():
    teacher = tiny_teacher()
    made = Dots(images=2, batch_size=2, iterations=40, warmup=2).generate(teacher, context())
    low, high = teacher.valid_range()
    assert ((made.images >= low) & (made.images <= high)).all()
    assert (made.images == high).float().mean() > 0.9
    assert made.provenance == {"lr": 0.5, "jitter": 1}


def shifts(method):
    """Of all images that a method saw, by where the one bright pixel of the first image is: rows, columns."""
    drawn = method.resolved(tiny_teacher())._draw(tiny_teacher(), context())
    return drawn["shifts"], drawn["flips"]


def test_each_phase_shifts_further_and_half_of_the_steps_flip():
    found, flips = shifts(Dots(images=1, iterations=400, phases=2, jitter=4))
    first, second = found[:400], found[400:]
    assert (first.abs().amax(), second.abs().amax()) == (2, 4)
    assert len(first.unique()) == 5
    assert len(second.unique()) == 9
    assert not torch.equal(found[:, 0], found[:, 1])
    assert flips.float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_a_method_may_shift_both_ways_alike():
    class Alike(Dots):
        one_shift = True

    found, _ = shifts(Alike(images=3, batch_size=2, iterations=50, jitter=4))
    assert found.shape == (100, 2)
    assert torch.equal(found[:, 0], found[:, 1])
    assert len(found.unique()) == 9


def test_images_are_rolled_and_flipped_as_in_the_release(shared):
    stored = np.load(shared / "golden" / "vit" / "psaq_tv_a.npz")
    for case in range(2):
        images, expected = (torch.from_numpy(stored[f"{name}_{case}"]).float() for name in ("images", "jittered"))
        shift = int(stored[f"jitter_{case}"])
        assert torch.equal(jittered(images, (shift, shift), flip=bool(stored[f"flip_{case}"])), expected)


def test_shifts_are_in_proportion_to_images_unless_given():
    assert [Dots().resolved(DATA_SETS[name]).jitter for name in ("cifar10", "imagenet")] == [4, 30]
    assert Dots(jitter=0).resolved(DATA_SETS["imagenet"]).jitter == 0


def test_without_shifts_images_stay_in_place():
    method = Dots(images=1, iterations=8, jitter=0, target=0.0)
    method.generate(tiny_teacher(), context())
    first = method.seen[0][0]
    near = [(images - first).abs().mean() < (images - first.flip(3)).abs().mean() for images, _ in method.seen]
    assert 0 < sum(near) < 8  # some were flipped


def test_work_counts_all_phases():
    assert Dots(iterations=7, phases=3).work(2) == Dots(iterations=7).work(2) + 2 * STEP * 7 * 2


def test_a_network_without_classes_is_one_clear_line():
    with pytest.raises(zsqbench.ZSQBenchError, match="'dots' makes images of classes, and the network has none"):
        Dots(images=1).generate(replace(tiny_teacher(), classes=None), context())
