import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import v2

from zsqbench import Pretrained
from zsqbench.synthesis import (
    Crops,
    SmoothedCrops,
    blur,
    clamp_straight_through,
    gaussian_line,
    random_crops,
    resized_crops,
)

MEAN, STD = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.mark.parametrize("name", ["dgh_pipeline_a3", "dgh_pipeline_a5"])
def test_the_pipeline_is_that_of_dghs_code(golden, name):
    vectors = golden(name)
    x = torch.from_numpy(vectors["x"]).requires_grad_()
    line = gaussian_line(int(vectors["size"]), float(vectors["sigma"]))
    kernel = torch.tensor(line)[:, None] * torch.tensor(line)
    mean, std = (tuple(each.flatten().tolist()) for each in (MEAN, STD))
    low, high = Pretrained(nn.Identity(), (3, 32, 32), mean, std).valid_range()
    ends = torch.from_numpy(vectors["valid_grid"][:, [0, -1]]).float()
    torch.testing.assert_close(torch.cat([low, high], -1).view(3, 2), ends, rtol=1e-6, atol=0)
    pipeline = SmoothedCrops((int(vectors["out_size"]),) * 2, low, high, line)
    top, left = vectors["flip_crop_top_left"].tolist()
    augmented = pipeline.augment(x, flip=True, top=top, left=left)
    (augmented * torch.from_numpy(vectors["weights"])).sum().backward()
    for result, expected in (
        (kernel, "kernel"),
        (blur(x, line), "smoothed"),
        (pipeline.finalize(x), "finalized"),
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


@pytest.mark.parametrize("crop", [(0, 0, 5, 7), (1, 2, 3, 3), (0, 3, 2, 4), (4, 6, 1, 1)])
def test_a_crop_of_a_blur_is_that_of_the_whole_blur_and_so_is_its_gradient(crop):
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    line, (top, left, height, width) = gaussian_line(5, 0.8), crop
    found, expected = blur(x, line, crop), blur(x, line)[:, :, top : top + height, left : left + width]
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.pow(3).sum(), x)[0] for each in (found, expected)]
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
    assert torch.equal(pipeline.finalize(pixels), pixels[:, :, 1:5, 2:5])
    assert torch.equal(pipeline.augment(pixels, flip=True, top=2, left=0), pixels.flip(3)[:, :, 2:6, 0:3])


def a_few_crops(count, shape, smallest=0.3):
    return random_crops((count, 3, *shape), smallest, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(8, 8), (7, 12)])
def test_crops_are_resized_as_in_torchvision(shape):
    images = torch.randn(5, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    crops = a_few_crops(5, shape)
    found = resized_crops(images.requires_grad_(), crops)
    for image, top, left, height, width, flipped, ours in zip(
        images, crops.top, crops.left, crops.height, crops.width, crops.flipped, found, strict=True
    ):
        box = (int(top), int(left), int(height), int(width))
        expected = v2.functional.resized_crop(image[None], *box, list(shape), antialias=False)[0]
        torch.testing.assert_close(ours, expected.flip(2) if flipped else expected, rtol=1e-5, atol=1e-5)
    assert crops.flipped.any()
    assert not crops.flipped.all()


def test_the_whole_image_is_the_image():
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    zeros, whole = torch.zeros(2), torch.full((2,), 6.0)
    crops = Crops(zeros, zeros, whole, whole, torch.tensor([False, True]))
    torch.testing.assert_close(resized_crops(images, crops), torch.stack([images[0], images[1].flip(2)]))


def test_boxes_lie_in_the_image_and_have_the_areas_and_ratios_of_torchvision():
    crops = a_few_crops(4000, (40, 40), 0.5)
    assert (crops.top >= 0).all()
    assert (crops.left >= 0).all()
    assert (crops.top + crops.height <= 40).all()
    assert (crops.left + crops.width <= 40).all()
    areas, ratios = crops.height * crops.width / 1600, crops.width / crops.height
    assert areas.min() > 0.47  # sides are rounded
    assert ratios.min() > 0.72
    assert ratios.max() < 1.39
    assert crops.flipped.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_areas_of_boxes_are_distributed_as_in_torchvision():
    image = torch.zeros(1, 40, 40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = transforms.RandomResizedCrop(40, (0.5, 1.0))
        boxes = [transform.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(boxes, dtype=torch.float32)
    crops = a_few_crops(4000, (40, 40), 0.5)
    for ours, column in zip((crops.top, crops.left, crops.height, crops.width), theirs.T, strict=True):
        assert ours.mean().item() == pytest.approx(column.mean().item(), abs=0.4)
        assert ours.std().item() == pytest.approx(column.std().item(), rel=0.06)


@pytest.mark.parametrize(("shape", "expected"), [((40, 10), [13, 0, 13, 10]), ((10, 40), [0, 13, 10, 13])])
def test_where_no_box_fits_it_is_the_largest_central_one(shape, expected):
    crops = random_crops((3, 3, *shape), 1.0, torch.Generator().manual_seed(0))
    assert [each[0].item() for each in (crops.top, crops.left, crops.height, crops.width)] == expected


def test_under_autocast_crops_stay_as_precise_as_the_images():
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    crops = a_few_crops(2, (6, 6))
    expected = resized_crops(images, crops)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_crops(images, crops), expected)
