"""my_method: images whose statistics are those that the network's batch normalisation stores."""

import zsqbench
from pydantic import Field


class MyMethod(zsqbench.Generator):
    """Adam on pixels, until each batch has the mean and variance of every BN layer. Start your own method here."""

    name = "my_method"
    version = 1  # raise it whenever results change
    needs_bn = True  # it reads BN statistics, so a network without them is impossible

    images: int = Field(64, gt=0, description="size of the calibration set")
    batch_size: int = Field(32, gt=0, description="images that are optimised together")
    iterations: int = Field(200, gt=0, description="steps of Adam for each batch")
    lr: float = Field(0.1, gt=0, description="learning rate of Adam")

    def generate(self, teacher, ctx):
        """Return images in the teacher's normalised space."""
        import torch  # here and not above, so that listing and planning start at once
        from zsqbench.synthesis import BNLoss, BNStatistics, batch_sizes

        low, high = (bound.to(ctx.device) for bound in teacher.valid_range())
        made = []
        with BNLoss(teacher.module, BNStatistics(scope="batch", moment="var")) as bn_loss:
            for size in batch_sizes(self.images, self.batch_size):
                pixels = ctx.randn(size, *teacher.input_size).requires_grad_()  # all randomness comes from ctx
                optimizer = torch.optim.Adam([pixels], self.lr)
                for _ in range(self.iterations):
                    loss = bn_loss(pixels).total
                    (pixels.grad,) = torch.autograd.grad(loss, pixels)
                    optimizer.step()
                    with torch.no_grad():
                        pixels.clamp_(low, high)
                ctx.log("bn_loss", loss.detach(), len(made))
                made.append(pixels.detach().cpu())
                ctx.progress(sum(map(len, made)), self.images)
        return zsqbench.CalibrationSet(torch.cat(made))


@zsqbench.hookimpl
def register_generators():
    """Tell zsqbench of the class."""
    return [MyMethod]
