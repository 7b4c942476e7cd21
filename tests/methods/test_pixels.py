import pytest
import torch

import zsqbench
from zsqbench.testing import context, tiny_teacher


class Gray(zsqbench.PixelGenerator):
    """Moves pixels to the number of their batch; notes them by step."""

    name = "gray"

    def generate(self, teacher, ctx, **options):
        self.__dict__["seen"] = seen = []

        def losses(pixels, step):
            seen.append((step // self.iterations, pixels.detach().clone()))
            loss = (pixels - step // self.iterations).square().mean()
            return loss, {"distance": loss}

        return zsqbench.CalibrationSet(self.optimize(teacher, ctx, losses, ctx.resume() or {}, **options))


def test_pixels_are_optimised_batch_after_batch():
    method = Gray(images=5, batch_size=2, iterations=40)
    made = method.generate(tiny_teacher(), context())
    assert [batch for batch, _ in method.seen] == [0] * 40 + [1] * 40 + [2] * 40
    assert [len(pixels) for _, pixels in method.seen[::40]] == [2, 2, 1]
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0])
    torch.testing.assert_close(made.images.mean((1, 2, 3)), expected, rtol=0.3, atol=0.5)


def test_images_start_as_normal_noise():
    method = Gray(images=3, iterations=1)
    method.generate(tiny_teacher(), context())
    start = method.seen[0][1]
    assert start.mean().item() == pytest.approx(0, abs=0.2)
    assert start.std().item() == pytest.approx(1, abs=0.2)


def test_images_start_as_a_method_wants():
    method = Gray(images=3, iterations=1)
    method.generate(tiny_teacher(), context(), initial=lambda shape, _: torch.full(shape, 7.0))
    assert (method.seen[0][1] == 7).all()


def test_a_batch_larger_than_the_images_is_all_of_them():
    assert Gray(images=3, batch_size=256).batch_sizes() == [3]


def test_a_loss_that_is_not_a_number_stops_it_and_keeps_the_curves():
    class Breaks(Gray):
        name = "breaks"

        def generate(self, teacher, ctx):
            def losses(pixels, _):
                loss = pixels.square().mean() / (0.0 if len(ctx.reporter.curves.get("loss", ())) == 2 else 1.0)
                return loss, {"loss": loss}

            return self.optimize(teacher, ctx, losses, {})

    ctx = context()
    with pytest.raises(
        zsqbench.ZSQBenchError, match=r"the loss is inf at iteration 3 of 9, with a learning rate of 0\.5"
    ):
        Breaks(images=2, iterations=9).generate(tiny_teacher(), ctx)
    assert len(ctx.reporter.curves["loss"]) >= 3
