from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torchvision
from brief import parametrize_briefly
from networks import Cifar
from torch import nn

from zsqbench import Pretrained, ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.quant import BoundedReLU, activation_quantizers, finalize, quantized_layers, switched, weight_quantizers
from zsqbench.scheme import FLOAT, parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher

DFQ = load_plugins().find("quantizer", "dfq").method
NOTHING = {"equalization": False, "absorption": False, "bias_correction": False}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pretrained(module, size=(3, 8, 8)):
    module = module.eval().requires_grad_(False)
    return Pretrained(module, size, (0.5,) * size[0], (0.25,) * size[0])


def quantized(quantizer, teacher, scheme="hw/w8a8"):
    """The student before it is finalized, and what was noted."""
    ctx = context()
    student = quantizer.prepare(teacher, parse_scheme(scheme))
    quantizer.quantize(student, teacher, None, ctx)
    return student, ctx.reporter.notes


def all_off(student):
    return switched([q for _, q in [*activation_quantizers(student), *weight_quantizers(student)]], enabled=False)


def block(inputs, outputs, act, **options):
    """Convolution, batch normalisation of uneven channels, activation function."""
    norm = nn.BatchNorm2d(outputs)
    conv = nn.Conv2d(inputs, outputs, bias=False, **({"kernel_size": 1} | options))
    with torch.no_grad():
        norm.weight.copy_(torch.logspace(-2, 1, outputs)[torch.randperm(outputs)])
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return [conv, norm, act]


def chain(act, **options):
    """Pointwise, depthwise and pointwise convolutions, behind which everything is averaged."""
    torch.manual_seed(0)
    return nn.Sequential(
        *block(3, 8, act()),
        *block(8, 8, act(), kernel_size=3, groups=8, padding=1),
        *block(8, 6, act()),
        nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5, bias=False),
    )


def read_range(weight, groups):
    return weight.abs().amax((1, 2, 3)) if groups > 1 else weight.abs().amax((0, 2, 3))


@pytest.mark.slow("test_contract checks it at another scheme each time")
@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["pot/w8a8", "academic/w2a32", "hw_strict/w8a8", "hw/w32a8", "hw/w8a8", "hw/w4a4"], 2)
@parametrize_briefly(
    "options", [{"relu6": "per_channel", "per_channel": True}, NOTHING, {}, {"absorb_padded": False}], 2
)
@pytest.mark.parametrize("network", ["tiny", pytest.param("chain", marks=pytest.mark.slow("a second network"))])
def test_dfq_keeps_the_contract_of_quantizers(scheme, options, network):
    check_quantizer(DFQ(**options), scheme, tiny_teacher() if network == "tiny" else pretrained(chain(nn.ReLU6)))


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.Identity])
def test_equalization_changes_no_output_and_makes_ranges_equal_along_a_chain(act):
    network = chain(act)
    images = noise(8, 3, 8, 8)
    student, notes = quantized(DFQ(relu6="per_channel", absorption=False, bias_correction=False), pretrained(network))
    with all_off(student):
        found, expected = student(images), network(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    layers = [layer for _, layer in quantized_layers(student)]
    for first, second in pairwise(layers[:-1]):
        made, read = first.weight.abs().amax((1, 2, 3)), read_range(second.weight, second.groups)
        torch.testing.assert_close(made, read, rtol=2e-3, atol=0)
    assert "3 pairs of layers" in notes[0]


def test_equalization_stops_after_the_sweeps_that_it_is_given():
    _, notes = quantized(DFQ(sweeps=1), pretrained(chain(nn.ReLU)))
    assert notes[0].startswith("equalization: 3 pairs of layers; sweep 1 changed ranges by")


def test_a_tensor_that_several_layers_read_keeps_its_scale():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(*block(3, 8, nn.ReLU()))
            self.inner = nn.Sequential(*block(8, 8, nn.ReLU()), *block(8, 8, nn.Identity()))
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(torch.relu(self.inner(x) + x))

    torch.manual_seed(0)
    teacher = pretrained(Net())
    students = [quantized(DFQ(**NOTHING | {"equalization": on}), teacher)[0] for on in (True, False)]
    before, after = (dict(quantized_layers(student)) for student in students)
    same = {path for path, layer in before.items() if torch.equal(layer.weight, after[path].weight)}
    assert same == {"stem.0", "last"}
    with all_off(students[0]):
        images = noise(4, 3, 8, 8)
        torch.testing.assert_close(students[0](images), teacher.module(images), rtol=1e-4, atol=1e-5)


def test_ranges_are_six_deviations_of_the_norms_within_what_their_functions_reach():
    torch.manual_seed(0)
    layers = [*block(3, 4, nn.ReLU()), *block(4, 4, nn.ReLU6()), *block(4, 4, nn.Identity()), nn.Conv2d(4, 2, 1)]
    layers[4].bias.data += 5.0
    student, _ = quantized(DFQ(**NOTHING), pretrained(nn.Sequential(*layers)), "hw_strict/w8a16")
    found = {name: quantizer.range() for name, quantizer in activation_quantizers(student)}

    def reach(norm, sign):
        deviation = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
        return norm.bias + sign * 6 * deviation

    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found["2"], (torch.tensor(0.0), reach(layers[1], 1).max()), **close)
    torch.testing.assert_close(found["5"], (torch.tensor(0.0), torch.tensor(6.0)), **close)
    torch.testing.assert_close(found["6"], (reach(layers[7], -1).min(), reach(layers[7], 1).max()), **close)
    torch.testing.assert_close(found["input"], (torch.tensor(-2.0), torch.tensor(2.0)), **close)


def test_more_sigmas_give_wider_ranges():
    torch.manual_seed(0)
    teacher = pretrained(nn.Sequential(*block(3, 4, nn.ReLU()), nn.Conv2d(4, 2, 1)))
    scales = [dict(activation_quantizers(quantized(DFQ(sigmas=n), teacher)[0]))["2"].scale for n in (3.0, 6.0)]
    assert scales[0] < scales[1]


def high_bias(act, padding=0):
    """Two layers between which nearly all is far above zero."""
    torch.manual_seed(0)
    layers = [*block(3, 6, act()), nn.Conv2d(6, 4, 3, padding=padding), nn.ReLU()]
    with torch.no_grad():
        layers[1].weight.fill_(0.25)
        layers[1].bias.copy_(torch.tensor([0.0, 0.5, 2.0, 3.0, 4.0, -4.0]))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_what_is_absorbed_changes_only_what_is_below_it(act):
    network = high_bias(act)
    quantizer = DFQ(relu6="per_channel", equalization=False, bias_correction=False)
    student, notes = quantized(quantizer, pretrained(network))
    layers = dict(quantized_layers(student))
    deviation = 0.25 * (network[1].running_var / (network[1].running_var + 1e-5)).sqrt()
    amounts = (network[1].bias - 3 * deviation).clamp(min=0)
    assert amounts[0] == amounts[1].clamp(max=0) == 0
    values = torch.maximum(network[1].bias + 0.25 * noise(64, 6), amounts).view(64, 6, 1, 1).expand(-1, -1, 3, 3)
    shifted = values - amounts.view(1, 6, 1, 1)
    function = nn.ReLU() if act is nn.ReLU else next(m for m in student.modules() if isinstance(m, BoundedReLU))
    with all_off(student):
        found, expected = layers["3"](function(shifted)), network[3](act()(values))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert notes == ["absorption: a part of 3 of 6 channels before ReLU; 99.87 % of their values are expected above it"]


@pytest.mark.parametrize(("options", "changed"), [({}, True), ({"absorb_padded": False}, False)])
def test_a_layer_that_pads_absorbs_a_bias_unless_told_not_to(options, changed):
    network = high_bias(nn.ReLU, padding=1)
    student, _ = quantized(DFQ(equalization=False, bias_correction=False, **options), pretrained(network))
    assert torch.equal(dict(quantized_layers(student))["3"].bias, network[3].bias) != changed


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_bias_correction_restores_the_mean_output_of_normal_inputs(act):
    torch.manual_seed(0)
    network = nn.Sequential(*block(3, 16, act()), nn.Conv2d(16, 8, 3, groups=2), nn.ReLU())
    norm = network[1]
    values = act()(norm.bias + norm.weight.abs() * noise(50_000, 16)).view(-1, 16, 1, 1)
    inputs = values.mean(0, keepdim=True).expand(1, 16, 3, 3)  # a convolution of the mean is the mean of convolutions
    errors = []
    for corrected in (True, False):
        student, _ = quantized(DFQ(**NOTHING | {"bias_correction": corrected}), pretrained(network), "hw/w3a8")
        error = dict(quantized_layers(student))["3"](inputs) - network[3](inputs)
        errors.append(error.abs().max().item())
    assert errors[0] < 0.02 * errors[1]


def test_biases_are_corrected_for_the_first_layer_and_the_classifier_too():
    teacher = replace(tiny_teacher(), mean=(0.1, 0.2, 0.3))  # with a mean of one half, pixels are expected to be zero
    first, second = (
        dict(quantized_layers(quantized(DFQ(**NOTHING | {"bias_correction": on}), teacher, "hw/w3a8")[0]))
        for on in (True, False)
    )
    assert [path for path in first if torch.equal(first[path].bias, second[path].bias)] == []


@pytest.mark.parametrize("padding", [0, 1])
def test_dead_channels_are_folded_and_leave_the_network_as_it_is(padding):
    torch.manual_seed(0)
    layers = [*block(3, 6, nn.ReLU()), *block(6, 6, nn.ReLU(), kernel_size=3, groups=6, padding=padding)]
    layers += [nn.Conv2d(6, 4, 1), nn.ReLU()]
    with torch.no_grad():
        layers[1].weight[0], layers[1].bias[0] = 0.0, 2.0  # a constant above zero
        layers[1].weight[1], layers[1].bias[1] = 0.0, -2.0
        layers[0].weight[2], layers[1].running_var[2], layers[1].running_mean[2] = 1e-12, 1e-13, 0.0
        layers[1].bias[2] = -1.0
        layers[4].weight[3] = 0.0
        layers[6].weight[:, 4] = 0.0
        layers[3].weight[:3] *= 100.0  # what reads dead channels sets no range
    network, images = nn.Sequential(*layers), noise(8, 3, 8, 8)
    student, notes = quantized(DFQ(absorption=False), pretrained(network), "hw/w8a8")
    uncorrected, _ = quantized(DFQ(absorption=False, bias_correction=False), pretrained(network))
    with all_off(uncorrected):
        torch.testing.assert_close(uncorrected(images), network(images), rtol=1e-4, atol=1e-4)
    assert notes[0].startswith(
        f"equalization: {5 if padding else 7} channels without weights"
    )  # those that only dead ones feed, too
    read = dict(quantized_layers(student))["3"].weight.abs().amax((1, 2, 3))
    assert (read[1:3] == 0).all()
    assert (read[0] == 0) == (padding == 0)
    finalize(student)
    assert student(images).isfinite().all()


def test_a_network_of_dead_channels_alone_is_quantized():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
    with torch.no_grad():
        for module in network[:4:3]:
            module.weight.zero_()
            module.bias.zero_()
        network[1].weight.zero_()
        network[1].running_var.zero_()
    student, _ = quantized(DFQ(), pretrained(network), "hw_strict/w8a8")
    finalize(student)
    assert student(noise(2, 3, 8, 8)).abs().max() == 0
    assert all(value.isfinite().all() for value in student.state_dict().values())


@pytest.mark.parametrize(("option", "bounded"), [("relu", 0), ("per_channel", 2)])
def test_relu6_between_equalized_layers_becomes_relu_or_gets_a_bound_for_each_channel(option, bounded):
    torch.manual_seed(0)
    layers = [*block(3, 8, nn.ReLU6()), *block(8, 8, nn.ReLU6()), *block(8, 4, nn.ReLU6())]
    layers[1].bias.data += 3.0
    teacher = pretrained(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    student, notes = quantized(DFQ(relu6=option, absorption=False), teacher)
    bounds = [module.bound.shape for module in student.modules() if isinstance(module, BoundedReLU)]
    assert bounds == [torch.Size([8, 1, 1])] * bounded
    assert isinstance(student.get_submodule("8"), nn.ReLU6)  # no pair: averages stand behind it
    assert any(note.startswith("ReLU6 became ReLU behind 2 layers") for note in notes) == (option == "relu")


@pytest.mark.parametrize(("offset", "told"), [(5.0, 1), (-5.0, 0)])
def test_a_table_tells_of_relu6_that_became_relu_where_values_above_six_are_expected(offset, told):
    torch.manual_seed(0)
    layers = [*block(3, 8, nn.ReLU6()), *block(8, 4, nn.ReLU6())]
    layers[1].weight.data.fill_(1.0)
    layers[1].bias.data.fill_(offset)
    teacher = pretrained(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    ctx, quantizer = context(), DFQ(absorption=False)
    quantizer.quantize(quantizer.prepare(teacher, parse_scheme("hw/w8a8")), teacher, None, ctx)
    about = [note for note in ctx.reporter.notes if note.startswith("ReLU6 became ReLU behind 1 layers")]
    assert (len(about), ctx.reporter.footnotes) == (1, about * told)


def uneven_mobilenet():
    """MobileNetV2 whose depthwise channels differ by made-up factors, which the next layers take back."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.5).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.5, 0.5)
    with torch.no_grad():
        for seed in range(3):
            network(noise(16, 3, 32, 32, seed=seed))
        for stage in network.features[2:-1]:
            layers = stage.conv
            factors = torch.logspace(-1.5, 0, len(layers[1][1].weight))[torch.randperm(len(layers[1][1].weight))]
            layers[1][1].weight *= factors
            layers[1][1].bias *= factors
            layers[2].weight /= factors.view(1, -1, 1, 1)
    return pretrained(network, (3, 32, 32))


@pytest.mark.slow("it quantizes a MobileNet twice")
def test_a_mobilenet_with_uneven_ranges_is_lost_in_eight_bits_unless_it_is_equalized():
    teacher, images = uneven_mobilenet(), noise(32, 3, 32, 32, seed=5)
    with torch.no_grad():
        expected = teacher.module(images)
        errors = []
        for equalization in (True, False):
            quantizer = DFQ(relu6="per_channel", equalization=equalization, absorption=False, bias_correction=False)
            student, _ = quantized(quantizer, teacher, "hw/w8a32")
            errors.append(((student(images) - expected).norm() / expected.norm()).item())
    assert errors[0] < 0.2  # with a grid for each channel, not equalized: 0.32
    assert errors[1] > 0.6


@pytest.mark.slow("it evaluates real images")
@parametrize_briefly("scheme", ["hw/w4a4", "hw/w8a8"], 1)
def test_a_real_network_is_quantized_as_well_as_from_real_images(cifar, scheme):
    student, _ = quantized(DFQ(), cifar.teacher, scheme)
    finalize(student)
    # in float 776 of 846; per tensor from end to end on 64 real images 777 and 657, and so without bias correction
    assert cifar.right(student) >= (776 - 8 if scheme == "hw/w8a8" else 690)


@pytest.fixture(scope="module")
def cifar(request):
    return Cifar(request.config.rootpath)


def test_what_it_rejects():
    assert DFQ().rejects(FLOAT) == "it quantizes, and scheme float leaves nothing to quantize"
    assert "leaves it unfolded" in DFQ().rejects(parse_scheme("hast/w8a8"))
    assert "its option grid is affine" in DFQ(grid="affine").rejects(parse_scheme("pot/w8a8"))
    for scheme in ("hw/w8a8", "hw_strict/w4a4", "academic/w8a8", "pot/w8a8"):
        assert DFQ().rejects(parse_scheme(scheme)) is None


def test_a_network_without_norms_is_refused():
    teacher = pretrained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with pytest.raises(ZSQBenchError, match="reads ranges from batch normalisation, and the network has none"):
        quantized(DFQ(), teacher)


@pytest.mark.usefixtures("briefly")
def test_a_norm_that_cannot_be_folded_is_enough():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    check_quantizer(DFQ(), "hw_strict/w8a8", pretrained(network))


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_a_transposed_convolution_with_a_stride_takes_over_no_constants_and_is_equalized(kernel):
    torch.manual_seed(0)
    layers = [*block(3, 6, nn.ReLU()), nn.ConvTranspose2d(6, 4, kernel, 2), nn.BatchNorm2d(4), nn.ReLU()]
    with torch.no_grad():
        layers[1].bias += 100.0  # far above what is absorbed
        layers[1].weight[0] = 0.0  # a dead channel, a constant above zero
    network, images = nn.Sequential(*layers), noise(8, 3, 8, 8)
    student, notes = quantized(DFQ(bias_correction=False), pretrained(network))
    with all_off(student):
        torch.testing.assert_close(student(images), network(images), rtol=1e-4, atol=1e-3)
    assert notes[0].startswith("equalization: 1 pairs of layers")
    assert notes[-1] == "absorption: a part of 0 of 0 channels before ReLU"


def test_bias_correction_counts_a_part_of_the_kernel_of_a_transposed_convolution():
    torch.manual_seed(0)
    network = nn.Sequential(*block(3, 16, nn.ReLU()), nn.ConvTranspose2d(16, 8, 2, 2, groups=2), nn.ReLU())
    norm = network[1]
    values = (norm.bias + norm.weight.abs() * noise(50_000, 16)).relu().view(-1, 16, 1, 1)
    inputs, errors = values.mean(0, keepdim=True).expand(1, 16, 3, 3), []
    for corrected in (True, False):
        student, _ = quantized(DFQ(**NOTHING | {"bias_correction": corrected}), pretrained(network), "hw/w3a8")
        error = dict(quantized_layers(student))["3"](inputs) - network[3](inputs)
        errors.append(error.mean((0, 2, 3)).abs().max().item())
    assert errors[0] < 0.02 * errors[1]


class Branches(nn.Module):
    """Two branches that go through one layer, the second with inputs four times as large."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*block(3, 6, nn.ReLU()))
        self.shared, self.last = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.last(self.shared(x).relu().mean((2, 3)) + self.shared(4 * x).relu().mean((2, 3)))


class LastBranch(Branches):
    def forward(self, x):
        return self.last(self.shared(4 * self.stem(x)).relu().mean((2, 3)))


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("options", [{}, {"relu6": "per_channel"}, {"equalization": False}], 1)
def test_a_layer_that_two_branches_call_is_quantized_and_the_row_says_that_it_is_not_equalized(options):
    torch.manual_seed(0)
    teacher = pretrained(Branches())
    _, notes = quantized(DFQ(**options), teacher)
    assert "left out of equalization and absorption: shared (called 2 times)" in notes
    check_quantizer(DFQ(**options), "hw/w8a8", teacher)


def test_the_range_of_a_tensor_that_several_calls_make_holds_all_of_them():
    torch.manual_seed(0)
    network = Branches()
    student, _ = quantized(DFQ(**NOTHING), pretrained(network), "hw/w8a16")
    ranges = {name: quantizer.range()[1].item() for name, quantizer in activation_quantizers(student)}

    network.__class__ = LastBranch
    student, _ = quantized(DFQ(**NOTHING), pretrained(network), "hw/w8a16")
    larger = {name: quantizer.range()[1].item() for name, quantizer in activation_quantizers(student)}
    assert ranges["relu"] == larger["relu"]


def test_channels_that_are_padded_between_two_layers_keep_their_scale():
    torch.manual_seed(0)
    network = nn.Sequential(
        *block(3, 6, nn.ReLU()), ChannelPadding(), *block(9, 4, nn.ReLU()), nn.Flatten(), nn.Linear(256, 5)
    )
    student, notes = quantized(DFQ(**NOTHING | {"equalization": True}), pretrained(network))
    assert notes[0].endswith(": 0 to 4 (channels are padded between them)")
    plain, _ = quantized(DFQ(**NOTHING), pretrained(network))
    assert torch.equal(student.get_submodule("4").weight, plain.get_submodule("4").weight)


class ChannelPadding(nn.Module):
    def forward(self, x):
        return nn.functional.pad(x, (0, 0, 0, 0, 1, 2))


def test_a_range_that_is_not_finite_is_one_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(*block(3, 6, nn.ReLU()))
            self.last = nn.Linear(6, 5)

        def forward(self, x):
            return self.last(self.first(x).mean((2, 3)) ** -1)

    with pytest.raises(
        ZSQBenchError, match=r"the range of tensor 'pow' .* is not finite: from .* to inf; take a quant"
    ):
        quantized(DFQ(), pretrained(Net()))
