import pytest
import torch
from torch import nn
from torch.nn import functional

from zsqbench.synthesis import GENIE, BNLoss, SwingConvolutions
from zsqbench.synthesis.swing import _shift, _shift_back, shifted
from zsqbench.zoo.resnet import CifarResNet


@pytest.fixture
def resnet20(golden):
    weights = golden("resnet20_weights")
    network = CifarResNet(20).eval()
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
    return network


def always(*offsets):
    """Draws these offsets, over and over."""
    return lambda count: torch.tensor(offsets).repeat(count, 1)[:count]


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def relative(result, expected):
    expected = torch.as_tensor(expected)
    return ((result.detach() - expected).norm() / expected.norm()).item()


def test_the_nine_offsets_give_what_the_release_gives(golden):
    vectors = golden("genie_swingconv_a")
    weight, bias, x = (torch.from_numpy(vectors[name]) for name in ("weight", "bias", "x"))
    layer = nn.Conv2d(4, 6, 3, stride=int(vectors["stride"]), padding=int(vectors["padding"]))
    layer.load_state_dict({"weight": weight, "bias": bias})
    offsets = iter(torch.from_numpy(vectors["src_xy"]).long())
    with SwingConvolutions(layer, lambda _: next(offsets)[None]):
        outputs = [layer(x) for _ in range(9)]
    assert relative(torch.stack(outputs), vectors["out"]) <= 1e-6


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float64, "_f64", 1e-6), (torch.float32, "", 1e-5)])
def test_the_loss_of_swinging_networks_is_that_of_the_release(golden, resnet20, dtype, suffix, tolerance):
    vectors = golden("bns_genie_swing_a")
    images = torch.from_numpy(vectors["images"]).to(dtype).requires_grad_()
    network = resnet20.to(dtype)
    draw = always(*vectors["swing_offsets_xy"].astype(int).tolist())
    with BNLoss(network, GENIE) as loss, SwingConvolutions(network, draw):
        gap = loss(images)
        gap.total.backward()
    assert relative(gap.means.roll(1), vectors[f"mean_terms{suffix}"]) <= tolerance
    assert relative(gap.moments.roll(1), vectors[f"std_terms{suffix}"]) <= tolerance
    for found, what in ((gap.means.sum(), "mean"), (gap.moments.sum(), "std"), (gap.total, "total")):
        assert found.item() == pytest.approx(float(vectors[f"{what}_loss{suffix}"]), rel=tolerance)
    assert relative(images.grad, vectors["grad_images_f64"]) <= tolerance


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (8, 2)])
def test_shifting_is_padding_by_reflection_and_cropping(size):
    values = noise(2, 3, *size).requires_grad_()
    padded = functional.pad(values, (1, 1, 1, 1), mode="reflect")
    for x in range(3):
        for y in range(3):
            expected = padded[:, :, y : y + size[0], x : x + size[1]]
            found = shifted(values, torch.tensor([x, y]))
            assert torch.equal(found, expected)
            of = noise(*found.shape)
            gradients = [torch.autograd.grad(each, values, of, retain_graph=True)[0] for each in (found, expected)]
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (1, 4), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_single_operation_of_a_compiled_pass_does_the_same(size, layout):
    values = noise(2, 3, *size).to(memory_format=layout).requires_grad_()
    for x in range(3):
        for y in range(3):
            offset = torch.tensor([x, y])
            results = _shift(values, offset), shifted(values, offset)
            assert torch.equal(*results)
            assert results[0].stride() == values.stride()  # so it was said to the compiler
            of = noise(2, 3, *size)
            torch.testing.assert_close(*(torch.autograd.grad(result, values, of)[0] for result in results))


@pytest.mark.parametrize("operation", [_shift, _shift_back])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_compiler_is_told_of_it_is_true(operation, dtype):
    for values in (noise(2, 3, 4, 5), noise(2, 3, 4, 5).to(memory_format=torch.channels_last), noise(3, 4, 5)):
        torch.library.opcheck(
            operation,
            (values.to(dtype), torch.tensor([0, 2])),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


@pytest.mark.slow("it compiles; test_probes does the same with another pass")
def test_a_compiled_pass_swings_as_ever():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)).requires_grad_(False)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images = noise(2, 3, 6, 8).requires_grad_()
    for offsets in ([0, 2], [2, 1]):
        found = []
        for run in (compiled, network):
            with SwingConvolutions(network, always(offsets)) as swing:
                swing.draw()
                outputs = run(images)
            found.append((outputs, torch.autograd.grad(outputs.square().sum(), images)[0]))
        for pair in zip(*found, strict=True):
            torch.testing.assert_close(*pair)


def test_a_map_of_one_pixel_stays_as_it_is_and_a_line_moves_along_itself():
    pixel, line = noise(2, 3, 1, 1), noise(2, 3, 1, 4)
    for x in range(3):
        for y in range(3):
            assert torch.equal(shifted(pixel, torch.tensor([x, y])), pixel)
            assert torch.equal(shifted(line, torch.tensor([x, y])), shifted(line, torch.tensor([x, 1])))
    assert torch.equal(shifted(line, torch.tensor([2, 1]))[..., :3], line[..., 1:])


def test_without_a_shift_a_network_gives_what_it_ever_gives_and_sizes_never_change():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1, stride=(1, 2)))
    images = noise(2, 3, 9, 7)
    expected = network(images)
    with SwingConvolutions(network, always([1, 1])):
        assert torch.equal(network(images), expected)
    with SwingConvolutions(network, always([0, 2], [2, 1])):
        found = network(images)
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    with SwingConvolutions(network, always([2, 0], [0, 2])):
        constant = network(torch.ones(1, 3, 9, 7))
    torch.testing.assert_close(constant, network(torch.ones(1, 3, 9, 7)))


def test_only_strided_convolutions_swing_each_at_an_offset_of_its_own():
    network = nn.Sequential(
        nn.Conv2d(1, 1, 1, stride=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1, stride=(2, 1))
    )
    seen = []
    network[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = noise(1, 1, 16, 16)
    with SwingConvolutions(network, always([0, 1], [1, 2])):
        found = network(images)
    middle = network[2](network[1](network[0](shifted(images, torch.tensor([0, 1])))))
    assert torch.equal(found, network[3](shifted(middle, torch.tensor([1, 2]))))


def test_all_layers_get_their_offsets_at_once_and_a_layer_that_is_called_again_gets_another():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1, stride=2)

        def forward(self, x):
            return self.layer(x), self.layer(x)

    module, images, asked = Twice(), noise(1, 1, 4, 4), []

    def draw(count):
        asked.append(count)
        return torch.tensor([[len(asked), 1]] * count)

    with SwingConvolutions(module, draw) as swing:
        swing.draw()
        once, again = module(images)
    assert asked == [1, 1]
    assert torch.equal(once, module.layer(shifted(images, torch.tensor([1, 1]))))
    assert torch.equal(again, module.layer(shifted(images, torch.tensor([2, 1]))))


def test_offsets_that_were_not_used_are_not_kept_for_the_next_pass():
    network = nn.ModuleList(nn.Conv2d(1, 1, 1, stride=2) for _ in range(3))
    drawn = iter([torch.tensor([[0, 1]] * 3), torch.tensor([[2, 1]] * 3)])
    images = noise(1, 1, 4, 4)
    with SwingConvolutions(network, lambda _: next(drawn)) as swing:
        swing.draw()
        first = network[0](images)
        swing.draw()
        second = network[0](images)
    assert torch.equal(first, network[0](shifted(images, torch.tensor([0, 1]))))
    assert torch.equal(second, network[0](shifted(images, torch.tensor([2, 1]))))


def test_the_network_is_left_as_it_was_also_when_the_block_fails():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, stride=2))
    with SwingConvolutions(network, always([0, 0])):
        assert network[0]._forward_pre_hooks
    assert not network[0]._forward_pre_hooks
    with pytest.raises(RuntimeError), SwingConvolutions(network, always([0, 0])):
        raise RuntimeError
    assert not network[0]._forward_pre_hooks


def test_a_network_without_strides_draws_nothing():
    network = nn.Conv2d(1, 1, 3)
    with SwingConvolutions(network, lambda _: pytest.fail("nothing is needed")) as swing:
        swing.draw()
        network(noise(1, 1, 4, 4))
