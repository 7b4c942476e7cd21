import pytest
import torch
from torch.nn import functional

from zsqbench.synthesis import SmoothedCrops, blur, clamp_straight_through, gaussian_line

MEAN, STD = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.mark.parametrize("name", ["dgh_pipeline_a3", "dgh_pipeline_a5"])
def test_the_pipeline_is_that_of_dghs_code(golden, name):
    vectors = golden(name)
    x = torch.from_numpy(vectors["x"]).requires_grad_()
    line = gaussian_line(int(vectors["size"]), float(vectors["sigma"]))
    kernel = torch.tensor(line)[:, None] * torch.tensor(line)
    pipeline = SmoothedCrops((int(vectors["out_size"]),) * 2, -MEAN / STD, (1 - MEAN) / STD, line)
    top, left = vectors["flip_crop_top_left"].tolist()
    augmented = pipeline.augment(x, flip=True, top=top, left=left)
    (augmented * torch.from_numpy(vectors["weights"])).sum().backward()
    for result, expected in (
        (kernel, "kernel"),
        (blur(x, line), "smoothed"),
        (pipeline.finalise(x), "finalized"),
        (augmented, "manipulated_flip_crop"),
        (x.grad, "grad_x_of_weighted_sum"),
    ):
        torch.testing.assert_close(result.detach(), torch.from_numpy(vectors[expected]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_blur_is_the_convolution_with_the_square_kernel_and_so_is_its_gradient(size):
    x = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    line = gaussian_line(size, 0.8)
    assert sum(line) == pytest.approx(1)
    kernel = torch.tensor(line, dtype=torch.float64)[:, None] * torch.tensor(line, dtype=torch.float64)
    expected = functional.conv2d(x, kernel.expand(3, 1, size, size), padding=size // 2, groups=3)
    torch.testing.assert_close(blur(x, line), expected)
    gradients = [torch.autograd.grad(each.pow(3).sum(), x)[0] for each in (blur(x, line), expected)]
    torch.testing.assert_close(*gradients)


def test_an_image_smaller_than_the_kernel_is_blurred_too():
    near, further = gaussian_line(7, 2.0)[3:5]
    blurred = blur(torch.tensor([[[[1.0, 0.0]]]]), gaussian_line(7, 2.0))
    torch.testing.assert_close(blurred, torch.tensor([[[[near * near, near * further]]]]))


def test_pixels_outside_the_valid_range_are_clamped_and_keep_their_gradient():
    pixels = torch.tensor([[[[-9.0, 0.5, 9.0]]]], requires_grad=True)
    clamped = clamp_straight_through(pixels, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    clamped.sum().backward()
    assert clamped.flatten().tolist() == [0, 0.5, 1]
    assert pixels.grad.flatten().tolist() == [1, 1, 1]


def test_finished_images_are_centre_crops_of_the_blurred_ones():
    low, high = torch.full((1, 1, 1, 1), -9.0), torch.full((1, 1, 1, 1), 9.0)
    pixels = torch.arange(36.0).view(1, 1, 6, 6) / 9
    pipeline = SmoothedCrops((4, 3), low, high, (1.0,))
    assert torch.equal(pipeline.finalise(pixels), pixels[:, :, 1:5, 2:5])
    assert torch.equal(pipeline.augment(pixels, flip=True, top=2, left=0), pixels.flip(3)[:, :, 2:6, 0:3])
