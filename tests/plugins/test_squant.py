import pytest
import torch
from brief import parametrize_briefly
from pydantic import ValidationError
from torch import nn
from zsqbench_plugins.squant import activation_end, choose_codes, signed_grid

from zsqbench import Pretrained, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import activation_quantizers, finalize, quantized_layers
from zsqbench.scheme import FLOAT, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

SQUANT = load_plugins().find("quantizer", "squant").method
MODES = {"sq": "full", "sq_k": "kernel", "sq_c": "channel", "sq_e": "element"}


def quantized(teacher, scheme="hast/w4a4", **options):
    quantizer = SQUANT(**options)
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, None, context())
    return student


def pretrained(*layers, size=(3, 8, 8)):
    return Pretrained(nn.Sequential(*layers).eval().requires_grad_(False), size, (0.0,) * size[0], (1.0,) * size[0])


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@parametrize_briefly("mode", MODES.values(), 2)
@parametrize_briefly("scheme", ["hast/w4a4", "academic/w4a4", "hw/w4a4"], 1)
def test_squant_keeps_the_contract_of_quantizers(mode, scheme):
    check_quantizer(SQUANT(mode=mode), scheme, tiny_teacher())


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hw/w32a4", "hw/w2a32", "hw/w12a12", "hw_strict/w8a8", "hast/w2a2", "hast/w3a3"], 3)
def test_it_runs_at_every_width(scheme):
    check_quantizer(SQUANT(), scheme, tiny_teacher())


@pytest.mark.parametrize("file", ["squant_a", "squant_resnet20_a"])
@pytest.mark.parametrize(("suffix", "mode"), MODES.items())
def test_codes_are_those_of_the_released_code(golden, file, suffix, mode):
    vectors = golden(file)
    cases = [key.removesuffix(f"_{suffix}_codes") for key in vectors.files if key.endswith(f"_{suffix}_codes")]
    assert len(cases) == {"squant_a": 12, "squant_resnet20_a": 4}[file]
    for case in cases:
        name, _, bits = case.rpartition("_")
        weight = torch.from_numpy(vectors[name])
        scale, zero = signed_grid(weight, int(bits))
        assert torch.equal(scale.flatten(), torch.from_numpy(vectors[f"{case}_scale"]).flatten())
        assert torch.equal(zero.flatten(), torch.from_numpy(vectors[f"{case}_zero"]).flatten())
        codes = choose_codes(scale * weight - zero, int(bits), mode)
        assert torch.equal(codes, torch.from_numpy(vectors[f"{case}_{suffix}_codes"]).float()), case
        values = torch.from_numpy(vectors[f"{case}_{suffix}_deq"])
        torch.testing.assert_close((codes + zero) / scale, values, rtol=0, atol=1e-6)
        assert torch.equal(scale * weight - zero, torch.from_numpy(vectors[f"{case}_scaled"]).view_as(weight))
        if mode == "element":
            assert torch.equal(codes, torch.from_numpy(vectors[f"{case}_rtn_codes"]).float())
        check_sums(vectors, case, mode, codes - (scale * weight - zero))


def check_sums(vectors, case, mode, errors):
    """Compare sums of errors with those from which a stage of the full method starts, if it starts from this mode."""
    of_kernels = f"{case}_stage1_error_sum_before" in vectors  # a second stage
    if mode == "element":
        stage, sums = 0, errors.flatten(2 if of_kernels else 1).sum(-1)
    elif mode == "kernel" and of_kernels:
        stage, sums = 1, errors.flatten(1).sum(1)
    else:
        return
    expected = torch.from_numpy(vectors[f"{case}_stage{stage}_error_sum_before"])
    torch.testing.assert_close(sums, expected.view_as(sums), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_round_to_nearest_is_that_of_intraq_on_channels_of_zeros_and_of_one_sign_too(golden, layer, bits):
    vectors = golden("quant_asym_a")
    weight = torch.from_numpy(vectors[f"{layer}_w"])
    scale, zero = signed_grid(weight, bits)
    codes = choose_codes(scale * weight - zero, bits, "element")
    assert torch.equal(codes, torch.from_numpy(vectors[f"{layer}_codes_{bits}"]).float())
    expected = torch.from_numpy(vectors[f"{layer}_deq_{bits}"])
    torch.testing.assert_close((codes + zero) / scale, expected, rtol=0, atol=1e-6)


@pytest.fixture
def resnet20(resnet20):
    return Pretrained(resnet20, (3, 32, 32), (0.0,) * 3, (1.0,) * 3, classes=10)


def test_an_artifact_holds_the_codes_and_values_of_the_released_code(golden, resnet20):
    vectors = golden("squant_resnet20_a")
    student = quantized(resnet20, "hast/w3a32")
    finalize(student)
    layers = dict(quantized_layers(student))
    for path, name in (("layer1.0.conv1", "layer1_0_conv1_3_sq"), ("linear", "linear_3_sq")):
        assert torch.equal(layers[path].weight_codes.int() - 4, torch.from_numpy(vectors[f"{name}_codes"]).int())
        values = torch.from_numpy(vectors[f"{name}_deq"])
        torch.testing.assert_close(layers[path].quantized_weight(), values, rtol=0, atol=1e-6)


def test_a_network_is_closer_to_the_float_one_than_by_rounding_to_nearest(golden, resnet20):
    images = torch.from_numpy(golden("bnfold_a")["images"])
    expected = resnet20.module(images)
    errors = [(quantized(resnet20, "hast/w3a32", mode=m)(images) - expected).norm() for m in ("full", "element")]
    assert errors[0] < 0.5 * errors[1]


def test_a_kernel_by_hand():
    # sum of e is -1.1: the one largest |e| is rounded up, the first of equals
    assert choose_codes(torch.tensor([[[0.4, 0.3, 0.4]]]), 4, "kernel").tolist() == [[[1, 0, 0]]]
    # sum of e is 0.8: one is rounded down
    assert choose_codes(torch.tensor([[[0.6, 1.6, 0.0]]]), 4, "kernel").tolist() == [[[0, 2, 0]]]


def test_a_channel_takes_one_weight_of_each_kernel_by_hand():
    # each kernel's sum of e is -0.4, and its next weight to be rounded up the 0.3; the channel's sum -1.2 asks for one
    kernels = torch.tensor([[[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]]])
    assert choose_codes(kernels, 4).tolist() == [[[0, 1], [0, 0], [0, 0]]]
    # the first and last flip one weight for |sum e| = 0.8 and offer it back with |e| = 0.6, the other one offers 0.35
    kernels = torch.tensor([[[0.4, 0.4], [-0.35, -0.15], [0.4, 0.4]]])
    assert choose_codes(kernels, 4, "kernel").tolist() == [[[1, 0], [0, 0], [1, 0]]]
    assert choose_codes(kernels, 4).tolist() == [[[0, 0], [0, 0], [1, 0]]]


weights_of_all_kinds = pytest.mark.parametrize(
    ("bits", "shape"), [(bits, shape) for bits in (2, 4, 8) for shape in [(16, 12, 3, 3), (64, 1, 3, 3), (5, 4, 1, 7)]]
)


def scaled_weights(bits, shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    scale, zero = signed_grid(weight, bits)
    return scale * weight - zero


def within(scaled, bits):
    """Without the values at the ends of the grid, which cannot be flipped both ways."""
    return scaled.clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 2)


@weights_of_all_kinds
def test_errors_of_a_kernel_cancel_up_to_half_a_step(bits, shape):
    x = within(scaled_weights(bits, shape), bits)
    assert ((choose_codes(x, bits, "kernel") - x).sum((2, 3)).abs() <= 0.5 + 1e-4).all()


@weights_of_all_kinds
@pytest.mark.parametrize("mode", ["full", "channel"])
def test_errors_of_a_channel_cancel_up_to_half_a_step(bits, shape, mode):
    x = within(scaled_weights(bits, shape), bits)
    assert ((choose_codes(x, bits, mode) - x).sum((1, 2, 3)).abs() <= 0.5 + 1e-4).all()


@weights_of_all_kinds
def test_as_many_weights_of_a_kernel_flip_as_its_errors_amount_to(bits, shape):
    x = within(scaled_weights(bits, shape), bits)
    flips = (choose_codes(x, bits, "kernel") != x.round()).sum((2, 3))
    assert torch.equal(flips, (x.round() - x).sum((2, 3)).abs().round().long())


@weights_of_all_kinds
def test_a_channel_changes_one_weight_of_a_kernel_at_most(bits, shape):
    x = scaled_weights(bits, shape)
    changed = choose_codes(x, bits, "full") != choose_codes(x, bits, "kernel")
    assert (changed.sum((2, 3)) <= 1).all()


@weights_of_all_kinds
@pytest.mark.parametrize("mode", MODES.values())
def test_every_weight_goes_to_one_of_the_two_codes_beside_it(bits, shape, mode):
    x = scaled_weights(bits, shape)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = choose_codes(x, bits, mode)
    assert ((codes - x.clamp(low, high)).abs() < 1).all()
    assert torch.equal(codes, codes.round().clamp(low, high))


@weights_of_all_kinds
def test_values_on_the_grid_stay(bits, shape):
    codes = choose_codes(scaled_weights(bits, shape), bits)
    assert torch.equal(choose_codes(codes, bits), codes)


def test_where_a_kernel_is_one_weight_a_channel_chooses_among_all():
    x = scaled_weights(4, (6, 20, 1, 1))
    assert torch.equal(choose_codes(x, 4, "full"), choose_codes(x, 4, "channel"))
    assert torch.equal(choose_codes(x, 4, "kernel"), x.round())
    assert torch.equal(choose_codes(x.flatten(1), 4), choose_codes(x, 4).flatten(1))


def test_a_kernel_whose_errors_sum_to_zero_offers_nothing():
    kernels = torch.tensor([[[0.25, -0.25], [0.125, 0.125], [0.125, 0.125], [0.125, 0.125]]])  # channel: -0.75
    assert choose_codes(kernels, 4).tolist() == [[[0, 0], [1, 0], [0, 0], [0, 0]]]


def test_a_weight_beyond_the_ends_of_the_grid_is_not_flipped_further():
    # at 3 bits codes end at 3: 3.4 cannot be rounded up, and no other weight was rounded down
    assert choose_codes(torch.tensor([[[3.4, 3.4, 3.4, 0.9]]]), 3).tolist() == [[[3, 3, 3, 1]]]
    assert choose_codes(torch.tensor([[[-4.4, -4.4, -4.4, 0.1]]]), 3).tolist() == [[[-4, -4, -4, 0]]]


@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1e6])
def test_a_constant_channel_keeps_its_value(value):
    network = pretrained(nn.Conv2d(3, 4, 3), nn.ReLU())
    network.module[0].weight[1] = value
    layer = dict(quantized_layers(quantized(network, "hast/w3a32")))["0"]
    torch.testing.assert_close(layer.quantized_weight()[1], network.module[0].weight[1])
    assert (layer.weight_quantizer.scale > 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    network = pretrained(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network.module[2].weight[1, 1] = value
    with pytest.raises(ZSQBenchError, match="the weight of layer '2' has NaN or infinity"):
        quantized(network)


def test_an_activation_that_is_not_finite_is_named():
    network = pretrained(nn.Conv2d(3, 4, 3), nn.ReLU())
    network.module[0].bias[1] = float("inf")
    with pytest.raises(ZSQBenchError, match="activation '1' of uniform noise has NaN or infinity"):
        quantized(network, "hw/w4a4")


@pytest.mark.parametrize(
    ("bits", "k"), [(2, 12), (3, 12), (4, 12), (5, 14), (6, 14), (7, 25), (8, 25), (9, 25), (16, 25)]
)
def test_activations_end_at_deviations_of_the_positive_values(bits, k):
    values = torch.cat([torch.zeros(10), torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1000.0])])
    deviation = torch.tensor([1.0, 2.0, 4.0, 1000.0]).std()
    assert activation_end(values, bits) == (1000 if bits < 6 else k * deviation)
    assert activation_end(values, bits, sigmas=1.5) == min(1.5 * deviation, 1000 if bits < 6 else 1e9)


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_activations_end_at_fewer_deviations_of_all_values(bits):
    values = torch.tensor([-1.0, 0.0, 0.5, 3.0])
    assert activation_end(values, bits, sigmas=1.0) == values.std() / 1.25
    assert activation_end(values, 4) == 3


def test_an_activation_without_spread_or_positive_values_ends_at_its_largest_magnitude():
    for values in ([0.0, 0.0], [2.0, 2.0], [0.0, 2.0, 2.0], [-1.0, -1.0], [3.0]):
        assert activation_end(torch.tensor(values), 8) == max(map(abs, values))
    assert activation_end(torch.tensor([-1.0, -2.0, -4.0]), 4) == 4


def test_an_unsigned_grid_begins_at_zero_and_a_signed_one_has_it_in_the_middle():
    network = pretrained(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    student = quantized(network, "hw/w32a8", noise_images=16, sigmas=10.0)
    relu, logits = (dict(activation_quantizers(student))[name] for name in ("1", "2"))
    features = network.module[1](network.module[0](context().rand(16, 3, 8, 8)))
    outputs = network.module[2](relu(features))  # the activation before is already rounded

    assert relu.zero_point == 0
    torch.testing.assert_close(relu.scale, 10 * features[features > 0].std() / 255)
    assert logits.zero_point == 128
    torch.testing.assert_close(logits.scale, 2 * (10 / 1.25) * outputs.std() / 255)


def test_a_quantized_image_has_the_range_of_valid_pixels():
    teacher = tiny_teacher()  # mean 0.5, standard deviation 0.25
    image = dict(activation_quantizers(quantized(teacher, "hw_strict/w8a8")))["input"]
    low, high = image.range()
    torch.testing.assert_close(high - low, torch.tensor(4.0))
    assert abs(low + 2) < image.scale


@pytest.mark.parametrize("mode", MODES.values())
def test_folding_batch_normalisation_changes_no_code(mode):
    teacher = tiny_teacher()
    norm = teacher.module.stem[1]
    norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, -3.0, 0.1, 1.5, -1.0, 0.7]))
    found = []
    for placement in ("hw", "hast"):
        student = quantized(teacher, f"{placement}/w3a32", mode=mode)
        finalize(student)
        found.append(dict(quantized_layers(student))["stem.0"].weight_codes.int())
    folded, unfolded = found
    mirrored = torch.where(norm.weight.view(-1, 1, 1, 1) < 0, 7 - unfolded, unfolded)
    assert torch.equal(folded, mirrored)


def test_it_rejects_the_float_scheme_and_other_grids():
    assert SQUANT().rejects(FLOAT)
    lack = "the scheme demands the grid power_of_two, and it has affine, symmetric"
    assert SQUANT().rejects(parse_scheme("pot/w8a8")) == lack
    assert SQUANT().rejects(parse_scheme("qdq/w8a8")) is None
    assert SQUANT().rejects(parse_scheme("hw/w4a4")) is None


@pytest.mark.parametrize("options", [{"mode": "squant"}, {"sigmas": 0}, {"noise_images": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        SQUANT(**options)
