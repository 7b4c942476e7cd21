"""my_method: the direction of stripes, on images that are drawn on demand and a network that is built here."""

from pathlib import Path

import zsqbench
from pydantic import Field
from zsqbench.errors import unknown


class MyMethod(zsqbench.Task):
    """Two classes, horizontal and vertical stripes in noise. Start your own task here."""

    name = "my_method"
    version = 1  # raise it whenever results change
    metric = "top1"

    samples: int = Field(200, gt=0, description="images that are evaluated")

    def find_data(self, data_root):
        """The files of the data, without torch; here this file. Your own data lies below `data_root`."""
        files = {"my_method.py": Path(__file__)}
        return zsqbench.DataFiles(evaluation=files, calibration=files, split={"evaluation": 0, "calibration": 1})

    def find_model(self, model):
        """The files of a network. Raise ZSQBenchError for a network that the task does not know."""
        if model.base != "edges":
            raise zsqbench.ZSQBenchError(unknown("model", str(model.base), ["edges"]))
        return {"code": Path(__file__)}

    def load(self, model, ctx):
        """A network in eval mode, and the normalisation of its images."""
        import torch
        from torch import nn

        conv, norm, classifier = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.Linear(2, 2)
        sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])
        conv.weight.data = torch.stack([sobel, sobel.T]).unsqueeze(1)
        norm.running_var.fill_(16.0)
        classifier.weight.data, classifier.bias.data = torch.eye(2), torch.zeros(2)
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        module = nn.Sequential(conv, norm, nn.ReLU(), *pool, classifier).eval().requires_grad_(False)
        return zsqbench.Pretrained(module, (1, 16, 16), mean=(0.5,), std=(0.5,), classes=2)

    def evaluate(self, module, pretrained, ctx):
        """Measure a network, the float one or a quantized copy; accuracies are in percent."""
        images, labels = self._draw(self.samples, seed=0)
        right = (module(images.to(ctx.device)).argmax(1).cpu() == labels).tolist()
        return zsqbench.Evaluation({"top1": 100 * sum(right) / len(right), "samples": len(right)}, right)

    def calibration_images(self, count, seed, pretrained, ctx):
        """Images that are not evaluated."""
        return zsqbench.CalibrationSet(*self._draw(count, seed=1 + seed))

    def _draw(self, count, seed):
        """Images [N, 1, 16, 16], normalised, and labels [N]; seed 0 is the evaluation data."""
        import torch

        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        waves = torch.sin(torch.arange(16) * (0.6 + torch.rand(count, 1, generator=rng))).view(-1, 1, 16, 1)
        stripes = torch.where(labels.view(-1, 1, 1, 1) == 0, waves, waves.transpose(2, 3)).expand(-1, 1, 16, 16)
        return (0.5 * stripes + 0.7 * torch.randn(stripes.shape, generator=rng)).clamp(-1, 1), labels


@zsqbench.hookimpl
def register_tasks():
    """Tell zsqbench of the class."""
    return [MyMethod]
