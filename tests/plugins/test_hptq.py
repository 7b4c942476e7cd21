import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from networks import from_forward
from torch import nn
from torch.nn import functional

from zsqbench import CalibrationSet, Pretrained, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    activation_quantizers,
    finalize,
    quantized_layers,
    restore,
    switched,
    weight_quantizers,
)
from zsqbench.scheme import FLOAT, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher
from zsqbench.zoo.resnet import CifarResNet

HPTQ = load_plugins().find("quantizer", "hptq").method


def quantized(quantizer, teacher, images, scheme="hw_strict/w8a8", ctx=None):
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx or context())
    return student


def pretrained(module, size=(3, 8, 8)):
    module = module.eval().requires_grad_(False)
    return Pretrained(module, size, (0.0,) * size[0], (1.0,) * size[0])


def all_off(student):
    return switched([q for _, q in [*activation_quantizers(student), *weight_quantizers(student)]], enabled=False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def hardswish(golden):
    """The network of the shift goldens, and these."""
    vectors = golden("mct_snc_a")
    layers = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 5, 3, padding=1)
    network = nn.Sequential(*layers, nn.ReLU())
    state = {name[4:]: torch.from_numpy(vectors[name]) for name in vectors.files if name.startswith("net.")}
    network.load_state_dict(state, strict=False)
    return pretrained(network), vectors


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@parametrize_briefly(
    "options",
    [
        {"activation_error": "lp", "weight_error": "lp", "lp_power": 3.0, "statistics": "exact"},
        {"activation_error": "kl", "weight_error": "no_clipping", "shift_search": True, "batch_size": 10},
        {"second_moment_correction": True, "equalization": True, "weights": "power_of_two", "bias_correction": False},
        {"statistics": "exact", "activation_error": "mae", "z_threshold": 6.0, "weight_error": "mae"},
        {},
        {"preset": "paper"},
        {"weights": "power_of_two", "bias_correction": False},
        {"statistics": "exact", "activation_error": "mae"},
        {"z_threshold": 6.0, "weight_error": "mae"},
        {"activation_error": "kl", "weight_error": "no_clipping"},
        {"second_moment_correction": True, "equalization": True},
        {"shift_search": True, "batch_size": 10},
    ],
    2,
)
def test_hptq_keeps_the_contract_of_quantizers(options):
    check_quantizer(HPTQ(**options), "hw_strict/w8a8", tiny_teacher())
    check_quantizer(HPTQ(**options), "pot/w4a4", tiny_teacher())


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hw/w2a32", "hast/w3a3", "hw/w32a4", "academic/w4a4", "hw/w4a4"], 2)
def test_it_runs_in_every_scheme(scheme):
    check_quantizer(HPTQ(preset="paper"), scheme, tiny_teacher())


@pytest.mark.parametrize("variant", ["default", "default_nobc", "pot", "pot_nobc"])
def test_a_resnet_is_quantized_as_mct_quantizes_it(golden, variant):
    weights, vectors = golden("resnet20_weights"), golden("mct_ptq_resnet20_a")
    network = CifarResNet(20)
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
    teacher = pretrained(network, (3, 32, 32))
    quantizer = HPTQ(
        weights="symmetric" if variant.startswith("default") else "power_of_two",
        bias_correction="nobc" not in variant,
        batch_size=8,
    )
    student = quantized(quantizer, teacher, torch.from_numpy(vectors["calib"].reshape(-1, 3, 32, 32)))

    images = torch.from_numpy(vectors["images"])
    torch.testing.assert_close(teacher.module(images), torch.from_numpy(vectors["logits_fp"]), rtol=0, atol=1e-3)
    activations = [found for _, found in activation_quantizers(student)]
    assert [found.bits for found in activations] == vectors[f"{variant}_act_bits"].tolist()
    assert [float(found.threshold()) for found in activations] == vectors[f"{variant}_act_threshold"].tolist()
    assert [int(found.zero_point > 0) for found in activations] == vectors[f"{variant}_act_signed"].tolist()
    for index, (_, layer) in enumerate(quantized_layers(student)):
        thresholds = layer.weight_quantizer.threshold().flatten().double()
        expected = torch.from_numpy(vectors[f"{variant}_wthr_{index:02d}"])
        torch.testing.assert_close(thresholds, expected, rtol=1e-6, atol=0)
        bias = torch.from_numpy(vectors[f"{variant}_bias_{index:02d}"])
        torch.testing.assert_close(layer.bias, bias, rtol=0, atol=1e-5)
    for index in (0, 8, 19):
        weight = quantized_layers(student)[index][1].quantized_weight()
        torch.testing.assert_close(
            weight, torch.from_numpy(vectors[f"{variant}_qweight_{index:02d}"]), rtol=0, atol=1e-6
        )
    logits, expected = student(images), torch.from_numpy(vectors[f"{variant}_logits"])
    if "nobc" in variant:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    else:  # the last bits of the corrected biases decide how values half-way between two codes are rounded
        step = float(activations[-1].scale)
        assert (logits - expected).abs().max() <= step * 1.001
        assert ((logits - expected).abs() < 1e-3).float().mean() > 0.8


def check_weights(student, vectors, variant):
    """Compare the weights of the shift goldens' network with MCT's; return the last layer."""
    for number, (_, layer) in enumerate(quantized_layers(student)):
        thresholds = layer.weight_quantizer.threshold().flatten().double()
        expected, weight = (torch.from_numpy(vectors[f"{variant}_{what}_0{number}"]) for what in ("wthr", "qweight"))
        torch.testing.assert_close(thresholds, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.quantized_weight(), weight, rtol=0, atol=1e-6)
    first, last = (layer for _, layer in quantized_layers(student))
    torch.testing.assert_close(first.bias, torch.from_numpy(vectors[f"{variant}_bias_00"]), rtol=0, atol=1e-5)
    return last


@pytest.mark.parametrize(("variant", "ratio"), [("on", 0.25), ("default_ratio", 0.05)])
def test_a_shift_is_that_of_mct(hardswish, variant, ratio):
    teacher, vectors = hardswish
    images = torch.from_numpy(vectors["calib"].reshape(-1, 3, 8, 8))
    student = quantized(HPTQ(shift_ratio=ratio, bias_correction=False, batch_size=4), teacher, images)
    shifted = dict(activation_quantizers(student))["2"]
    shift = float(vectors[f"{variant}_shift"][0])
    assert float(-shifted.range()[0]) == shift == float(vectors[f"{variant}_pad_value"][0])
    assert float(shifted.scale) == 32 / 256
    (_, given), _, (_, last) = activation_quantizers(student)
    # MCT's are those of the input, of the activation in 16 bits, of the shifted sum, and of the output
    thresholds = [float(given.threshold()), float(256 * shifted.scale), float(last.threshold())]
    assert thresholds == vectors[f"{variant}_act_threshold"][[0, 2, 3]].tolist()
    signed = [int(each.zero_point > 0) for each in (given, last)]
    assert signed == vectors[f"{variant}_act_signed"][[0, 3]].tolist()
    # MCT takes the shift out of the bias by the float weight, and the convolution brings it in by the rounded one
    layer = check_weights(student, vectors, variant)
    explicit = layer.bias - shift * layer.quantized_weight().sum((1, 2, 3))
    torch.testing.assert_close(explicit, torch.from_numpy(vectors[f"{variant}_bias_01"]), rtol=0, atol=1e-5)
    # and it rounds the activation to 16 bits before the addition, which makes ties that the addition decides
    shifted.forward = lambda x: (
        (((x * 2**10).round() / 2**10 + shift) / shifted.scale).round().clamp(0, 255) * shifted.scale - shift
    )
    expected = torch.from_numpy(vectors[f"{variant}_out"])
    torch.testing.assert_close(student(torch.from_numpy(vectors["x"])), expected, rtol=0, atol=1e-3)


def test_without_shifts_barely_negative_activations_are_signed(hardswish):
    teacher, vectors = hardswish
    images = torch.from_numpy(vectors["calib"].reshape(-1, 3, 8, 8))
    student = quantized(HPTQ(shift_negative=False, bias_correction=False, batch_size=4), teacher, images)
    activations = [found for _, found in activation_quantizers(student)]
    assert [float(found.threshold()) for found in activations] == vectors["off_act_threshold"].tolist()
    assert [int(found.zero_point > 0) for found in activations] == vectors["off_act_signed"].tolist()
    check_weights(student, vectors, "off")
    expected = torch.from_numpy(vectors["off_out"])
    torch.testing.assert_close(student(torch.from_numpy(vectors["x"])), expected, rtol=0, atol=1e-3)


def test_corrected_biases_do_not_depend_on_whether_a_shift_is_written_out(hardswish):
    # E[x + c] instead of E[x] takes out what the shift's bias leaves: both forms end with one network
    teacher, vectors = hardswish
    images = torch.from_numpy(vectors["calib"].reshape(-1, 3, 8, 8))
    biases = [
        dict(quantized_layers(quantized(HPTQ(shift_negative=shift), teacher, images)))["3"].bias
        for shift in (True, False)
    ]
    torch.testing.assert_close(*biases)


def test_a_shared_activation_is_not_shifted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second, self.third = (
                nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1),
            )  # fmt: skip

        def forward(self, x):
            x = self.act(self.first(x))
            return self.second(x) + self.third(x)

    torch.manual_seed(0)
    student = quantized(HPTQ(shift_ratio=1.0), pretrained(Net()), 10 * noise(8, 3, 8, 8))
    found = dict(activation_quantizers(student))["act"]
    assert float(found.zero_point) == 128


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity])
@pytest.mark.parametrize("second", [{}, {"groups": 4}, {"groups": 2, "padding_mode": "zeros"}])
def test_equalization_changes_no_output_and_fills_the_threshold(activation, second):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3, padding=1, **second), nn.ReLU()
    network = nn.Sequential(*layers)
    with torch.no_grad():
        network[0].weight *= torch.tensor([0.3, 1.0, 2.0, 5.0]).view(-1, 1, 1, 1)
    teacher, images = pretrained(network), noise(16, 3, 8, 8)
    seen = {}
    student = quantized(HPTQ(equalization=True, bias_correction=False), teacher, images)
    quantizer = next(found for name, found in activation_quantizers(student) if name in ("0", "1"))
    quantizer.register_forward_pre_hook(lambda _, inputs: seen.update(values=inputs[0]))
    with all_off(student):
        torch.testing.assert_close(student(images), network(images), rtol=1e-4, atol=1e-5)
    maxima = seen["values"].abs().amax((0, 2, 3))
    torch.testing.assert_close(maxima, quantizer.threshold().expand(4), rtol=1e-4, atol=1e-5)


def test_equalization_leaves_shared_channels_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.act(self.first(x))
            return x + self.second(x)

    torch.manual_seed(0)
    network = Net()
    student = quantized(HPTQ(equalization=True), pretrained(network), noise(8, 3, 8, 8))
    layers = dict(quantized_layers(student))
    assert torch.equal(layers["first"].weight, network.first.weight)


def test_the_bound_of_a_moved_relu6_is_in_the_artifact():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU())
    teacher, images = pretrained(network), 0.1 * noise(8, 3, 8, 8)
    quantizer = HPTQ(preset="paper")
    student = quantized(quantizer, teacher, images)
    expected = student(images)
    finalize(student)
    again = quantizer.prepare(teacher, parse_scheme("hw_strict/w8a8"))
    restore(again, student.state_dict())
    assert torch.equal(again(images), expected)
    bounds = [value for name, value in student.state_dict().items() if name.startswith("bounds.")]
    assert bounds == [dict(activation_quantizers(student))["1"].threshold()]


def test_bias_correction_restores_the_mean_output_of_each_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.ReLU())
    teacher, images = pretrained(network), noise(16, 3, 8, 8)  # wider kernels see the borders less often
    inputs = {"0": images, "2": network[1](network[0](images))}
    errors = []
    for corrected in (True, False):
        student = quantized(HPTQ(bias_correction=corrected), teacher, images, "hw/w3a8")
        layers = dict(quantized_layers(student))
        outputs = {path: layers[path](x).mean((0, 2, 3)) for path, x in inputs.items()}
        floats = {path: network[int(path)](x).mean((0, 2, 3)) for path, x in inputs.items()}
        errors.append(max((outputs[path] - floats[path]).abs().max().item() for path in inputs))
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3


def test_second_moment_correction_restores_mean_and_deviation_of_the_norms():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))
    images = noise(32, 3, 8, 8)
    network.train()
    for _ in range(200):
        network(images)
    with torch.no_grad():
        network[1].weight.uniform_(0.5, 2.0)
        network[1].bias.normal_()
    teacher = pretrained(network)
    errors = []
    for corrected in (True, False):
        student = quantized(HPTQ(second_moment_correction=corrected), teacher, images, "hw/w8a8")
        output = dict(quantized_layers(student))["0"](images)
        std = output.std((0, 2, 3), correction=0)
        errors.append(((std - network[1].weight.abs()) / network[1].weight.abs()).abs().max().item())
    assert errors[0] < 0.01  # the refolded weights are rounded once more
    assert errors[1] > 2 * errors[0]
    student = quantized(HPTQ(second_moment_correction=True), teacher, images, "hw/w3a8")
    torch.testing.assert_close(
        dict(quantized_layers(student))["0"](images).mean((0, 2, 3)), network[1].bias, rtol=0, atol=0.2
    )


@pytest.mark.parametrize("scheme", ["hw_strict/w8a8", "pot/w4a4"])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_thresholds_are_powers_of_two(scheme, preset):
    teacher = tiny_teacher()
    student = quantized(HPTQ(preset=preset), teacher, noise(8, *teacher.input_size), scheme)
    for _, quantizer in activation_quantizers(student):
        assert torch.frexp(quantizer.scale).mantissa == 0.5
    exact = all((torch.frexp(found.scale).mantissa == 0.5).all() for _, found in weight_quantizers(student))
    assert exact == (preset == "paper" or scheme.startswith("pot"))
    for _, found in weight_quantizers(student):
        assert (found.zero_point == 2 ** (found.bits - 1)).all()


def test_bounded_activations_take_the_range_of_their_function_or_are_searched():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    thresholds = [
        [float(found.threshold()) for _, found in activation_quantizers(student)][:3]
        for student in (
            quantized(HPTQ(bounded=bounded), pretrained(network), 0.1 * noise(8, 3, 8, 8), "hw/w8a8")
            for bounded in ("range", "search")
        )
    ]
    assert thresholds[0][:2] == [8, 1]
    assert thresholds[1][0] < 4


def test_outliers_do_not_count_but_the_search_starts_above_them():
    teacher = pretrained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    images = noise(8, 3, 8, 8)
    images[0, 0, 0, 0] = 100.0
    found = [
        float(
            activation_quantizers(quantized(HPTQ(z_threshold=z), teacher, images, "hw_strict/w8a4"))[0][1].threshold()
        )
        for z in (5.0, None)
    ]
    assert found[0] < found[1]


def test_histograms_and_exact_errors_agree_on_plain_activations():
    teacher = tiny_teacher()
    images = noise(16, *teacher.input_size)
    found = [
        [float(q.threshold()) for _, q in activation_quantizers(quantized(HPTQ(statistics=kind), teacher, images))]
        for kind in ("histogram", "exact")
    ]
    assert found[0] == found[1]


def test_dead_channels_and_constant_activations_are_safe():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
    with torch.no_grad():
        network[0].weight[0] = 0
        network[3].weight.zero_()
        network[1].running_var[1] = 0
    images = torch.zeros(4, 3, 8, 8)
    for preset in ("paper", "released"):
        student = quantized(HPTQ(preset=preset, second_moment_correction=True), pretrained(network), images)
        finalize(student)
        assert student(images).isfinite().all()


def test_what_it_rejects():
    assert HPTQ().rejects(FLOAT)
    assert HPTQ().rejects(parse_scheme("pot/w8a8")) is None
    assert "weights is symmetric" in HPTQ(weights="symmetric").rejects(parse_scheme("pot/w8a8"))
    for option in ({"activation_error": "kl"}, {"z_threshold": 5.0}):
        assert "need a histogram" in HPTQ(**option, statistics="exact").rejects(parse_scheme("hw/w8a8"))


def test_images_that_cannot_be_used_are_named():
    teacher = tiny_teacher()
    with pytest.raises(ZSQBenchError, match="needs calibration images"):
        HPTQ().quantize(HPTQ().prepare(teacher, parse_scheme("hw/w4a4")), teacher, None, context())
    with pytest.raises(ZSQBenchError, match="activation 'input' on the calibration images: a histogram needs finite"):
        quantized(HPTQ(), teacher, torch.full((2, *teacher.input_size), np.inf))


def test_silu_of_a_functional_form_is_shifted_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.second(functional.silu(self.first(x)))

    torch.manual_seed(0)
    student = quantized(HPTQ(shift_ratio=0.5), pretrained(Net()), 10 * noise(8, 3, 8, 8))
    found = dict(activation_quantizers(student))["silu"]
    assert 0 < float(found.zero_point) < 128


@pytest.mark.parametrize("options", [{}, {"equalization": True}, {"second_moment_correction": True},
                                     {"equalization": True, "second_moment_correction": True}])  # fmt: skip
def test_with_many_bits_no_correction_moves_the_network_from_its_own_data(options):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)]
    network, images = nn.Sequential(*layers), noise(64, 3, 8, 8)
    for norm in (network[1], network[4]):
        norm.momentum = None  # the mean over all passes: exactly the moments of these images
    network.train()
    network(images)
    teacher = pretrained(network)
    result = quantized(HPTQ(**options), teacher, images, "hw/w16a16")(images)
    expected = network(images)
    assert (result - expected).abs().max() <= 0.02 * expected.abs().max()


class Tokens(nn.Module):
    """Linear layers on the last of three or four dimensions, as in transformers and ConvNeXt."""

    def __init__(self, *, flat):
        super().__init__()
        self.flat = flat
        self.embed, self.first, self.act, self.second = (
            nn.Conv2d(3, 8, 1),
            nn.Linear(8, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        x = x.flatten(1, 2) if self.flat else x
        return self.second(self.act(self.first(x)))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_linear_layers_have_their_channels_last(flat, preset):
    torch.manual_seed(0)
    network = Tokens(flat=flat).eval()
    images = noise(8, 3, 8, 8)
    student = quantized(HPTQ(preset=preset), pretrained(network), images, "hw/w4a16")
    inputs = {}
    for path in ("first", "second"):
        network.get_submodule(path).register_forward_pre_hook(lambda _, x, path=path: inputs.update({path: x[0]}))
    network(images)
    if preset == "released":
        for path, layer in quantized_layers(student)[1:]:
            x = inputs[path]
            error = (layer(x) - network.get_submodule(path)(x)).flatten(0, -2).mean(0)
            assert error.abs().max() < 1e-5
    with all_off(student):
        torch.testing.assert_close(
            quantized(HPTQ(preset=preset, bias_correction=False), pretrained(network), images, "hw/w16a16")(images),
            network(images), rtol=0, atol=1e-2,
        )  # fmt: skip


def test_tied_weights_are_quantized_for_each_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    network[2].weight = network[0].weight
    images = noise(8, 4, 8, 8)
    student = quantized(HPTQ(preset="paper"), pretrained(network, (4, 8, 8)), images, "hw/w16a16")
    torch.testing.assert_close(student(images), network(images), rtol=0, atol=1e-2)


def test_a_z_threshold_that_leaves_nothing_is_refused():
    teacher = tiny_teacher()
    with pytest.raises(ZSQBenchError, match=r"z_threshold 1e-06 leaves nothing of activation 'input'"):
        quantized(HPTQ(z_threshold=1e-6), teacher, noise(8, *teacher.input_size))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda net, x: net.a(functional.pad(net.a(x), (0, 0, 0, 0, 0, 0))), "a (called 2 times)"),
        (lambda net, x: net.b(functional.pad(net.a(x), (0, 0, 0, 0, 1, 1))), "a to b (channels are padded"),
    ],
)
def test_what_cannot_be_equalized_is_left_out_and_the_row_says_so(between, reason):
    torch.manual_seed(0)
    network = from_forward(between, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(5, 3, 1))
    teacher, ctx = pretrained(network), context()
    quantizer = HPTQ(preset="paper", bias_correction=False)
    student = quantized(quantizer, teacher, noise(8, 3, 8, 8), ctx=ctx)
    assert any(line.startswith(f"left out of equalization: {reason}") for line in ctx.reporter.notes)
    with all_off(student):
        images = noise(4, 3, 8, 8)
        torch.testing.assert_close(student(images), network(images))
