import numpy as np
import pytest
import torch
from brief import parametrize_briefly
from torch import nn
from torch.nn import functional
from zsqbench_plugins.pd_quant import PDQuant, corrected, prediction_difference

from zsqbench import CalibrationSet, synthesis
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import NetworkTraits
from zsqbench.quant import Memory, Rounding, Stage, StepSizes, WeightQuantizer, find_units, prepare
from zsqbench.quant.reconstruction import Annealing, SoftRounding, reconstruction_loss
from zsqbench.quant.reconstruction.activation_cache import ActivationCache
from zsqbench.quant.reconstruction.learning import Learning
from zsqbench.quant.reconstruction.propagation import in_float, push
from zsqbench.quant.reconstruction.soft_rounding import rectified_sigmoid
from zsqbench.quant.student import activation_quantizers, quantized_layers
from zsqbench.scheme import parse_scheme
from zsqbench.testing import check_quantizer, context, tiny_teacher, tiny_teacher_without_bn

SHORT = {"iterations": 6, "batch_size": 8, "correction_steps": 3}


@pytest.fixture
def stored(shared):
    """The arrays of a file that the released code computed."""

    def stored(name):
        arrays = np.load(shared / "golden" / "2025" / f"{name}.npz")
        return {key: torch.from_numpy(arrays[key]) for key in arrays if arrays[key].dtype.kind in "fi"}

    return stored


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    """The network of the released block's vectors."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.block, self.block2 = Block(5), Block(5)
        self.fc = nn.Linear(5, 8)

    def forward(self, x):
        x = self.block2(self.block(functional.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def loaded(module, vectors, prefix=""):
    state = {name.removeprefix(prefix): value for name, value in vectors.items() if name.startswith(prefix)}
    known = module.state_dict()
    module.load_state_dict({name: value for name, value in state.items() if name in known}, strict=False)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize(("suffix", "tolerance"), [("", 1e-5), ("_f64", 1e-9)])
def test_losses_and_gradients_are_those_of_the_release(stored, suffix, tolerance):
    vectors = stored("pdquant_loss_a")
    dtype = torch.float64 if suffix else torch.float32
    pred, target, found, expected = (
        vectors[name].to(dtype) for name in ("pred", "target", "logits_quant", "logits_float")
    )
    pred.requires_grad_()
    found.requires_grad_()
    distance = reconstruction_loss(pred, target) if not suffix else (pred - target).square().sum(1).mean()
    difference = prediction_difference(found, expected, float(vectors["T"])) / float(vectors["lamb_r"])
    (distance + difference).backward()
    assert distance.item() == pytest.approx(vectors[f"rec_loss{suffix}"].item(), rel=tolerance)
    assert difference.item() == pytest.approx(vectors[f"pd_loss_over_lamb{suffix}"].item(), rel=tolerance)
    for tensor, name in ((pred, "grad_pred"), (found, "grad_logits_quant")):
        torch.testing.assert_close(tensor.grad, vectors[f"{name}{suffix}"], rtol=1e-4, atol=1e-8)


def penalty(logits, beta):
    """The sum whose gradient pulls h(V) to 0 and 1."""
    return (1 - (2 * rectified_sigmoid(logits) - 1).abs().pow(beta)).sum().item()


@pytest.mark.parametrize("suffix", ["", "_f64"])
@pytest.mark.parametrize("count", [100, 401, 1300, 2000])
def test_the_regulariser_is_that_of_the_release_at_every_count(stored, count, suffix):
    vectors = stored("pdquant_loss_a")
    dtype, tolerance = (torch.float64, 1e-6) if suffix else (torch.float32, 1e-5)
    annealing = Annealing(float(vectors["b_start"]), float(vectors["b_end"]), float(vectors["warmup"]))
    settings = Rounding(regularizer=float(vectors["weight"]), annealing=annealing)
    beta = annealing(count, int(vectors["iters"]))
    assert (beta is None) == (count == 100)
    assert beta is None or beta == pytest.approx(float(vectors[f"b_{count}"]), rel=1e-6)
    for index in (0, 1):
        weight = vectors[f"weight_{index}"]
        shape = tuple(vectors[f"delta_{index}"].shape)
        quantizer = WeightQuantizer("w", "weight", int(vectors["n_bits"]), axis=0, shape=shape)
        quantizer.set_parameters(vectors[f"delta_{index}"], vectors[f"zero_point_{index}"])
        rounding = SoftRounding(quantizer, weight, settings)
        with torch.no_grad():
            rounding.logits.data = vectors[f"alpha_{index}"].to(dtype, copy=True)
        rounding.logits.grad = torch.zeros_like(rounding.logits)
        rounding.regularize(count, int(vectors["iters"]))
        wanted = vectors[f"grad_alpha_{index}_{count}{suffix}"]
        torch.testing.assert_close(rounding.logits.grad, wanted, rtol=10 * tolerance, atol=tolerance / 10)
    pulled = 0.0 if beta is None else sum(penalty(vectors[f"alpha_{index}"].to(dtype), beta) for index in (0, 1))
    parts = vectors[f"rec_loss{suffix}"] + vectors[f"pd_loss_over_lamb{suffix}"]
    total = parts.item() + settings.regularizer * pulled
    assert total == pytest.approx(vectors[f"total_{count}{suffix}"].item(), rel=tolerance)


@pytest.mark.parametrize("suffix", ["", "_f64"])
@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-4), (2, 1e-4), (10, 1e-4), (100, 1e-2)])
def test_corrected_inputs_are_those_of_the_release(stored, steps, tolerance, suffix):
    vectors = stored("pdquant_dc_a")
    block = loaded(Block(6), vectors)
    start, scale = vectors["block_input"], float(vectors["lamb_c"])
    (moved,) = corrected(block, [start], steps=steps, lr=float(vectors["bn_lr"]), scale=scale)
    movement, expected = moved - start, vectors[f"input_after_{steps}{suffix}"].float() - start
    # single precision against single precision is closer than against double precision
    assert (movement - expected).norm() <= (tolerance if suffix else 1e-5) * expected.norm()


def test_corrected_inputs_are_those_of_the_release_after_all_steps(stored, monkeypatch):
    vectors, trace, gradients = stored("pdquant_dc_a"), [], []

    class Noted(synthesis.Plateau):
        def step(self, loss):
            trace.append((loss, self.lr))
            super().step(loss)

    class NotedAdam(torch.optim.Adam):
        def step(self):
            gradients.append(self.param_groups[0]["params"][0].grad)
            super().step()

    monkeypatch.setattr(synthesis, "Plateau", Noted)
    monkeypatch.setattr(torch.optim, "Adam", NotedAdam)
    block = loaded(Block(6), vectors).double()
    start, scale = vectors["block_input"].double(), float(vectors["lamb_c"])
    (moved,) = corrected(block, [start], steps=500, lr=float(vectors["bn_lr"]), scale=scale)
    expected = vectors["corrected_input_f64"].double() - start
    assert (moved - start - expected).norm() <= 1e-4 * expected.norm()
    gradient = vectors["grad_input_step1_f64"]
    assert (gradients[0] - gradient).norm() <= 1e-6 * gradient.norm()
    expected = vectors["loss_trace_f64"][:, 3:]  # the whole loss, and the rate, which falls
    torch.testing.assert_close(torch.tensor(trace).double(), expected.double(), rtol=1e-6, atol=0)
    assert trace[-1][1] < trace[0][1]
    uncorrected = vectors["block_output_uncorrected"].double()
    torch.testing.assert_close(block(start), uncorrected, rtol=1e-5, atol=1e-5)
    made = block(moved)
    torch.testing.assert_close(made.float(), vectors["block_output_corrected_f64"].float(), rtol=1e-3, atol=1e-3)


def test_a_step_on_a_block_has_the_loss_and_the_gradients_of_the_release(stored, monkeypatch):
    vectors = stored("pdquant_block_a")
    net = loaded(Net(), vectors, "net.")
    scheme = parse_scheme("academic/w4a4")
    student = prepare(net, scheme, (3, 6, 6))
    units = find_units(student)
    place = next(index for index, unit in enumerate(units) if unit.name == "block")
    unit, memory = units[place], Memory(torch.device("cpu"))
    live = {units[0].inputs[0]: ActivationCache.of(vectors["images"], memory)}
    for before in units[:place]:
        with in_float(before):
            live = push(before, live, set(unit.inputs), 12, memory)
    (source,) = unit.inputs

    layers = dict(quantized_layers(student))
    names = {"block.conv1": "conv1", "block.conv2": "conv2"}
    for path, name in names.items():
        weight, quantizer = layers[path].weight, layers[path].weight_quantizer
        torch.testing.assert_close(weight.detach(), vectors[f"{name}.weight_folded"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layers[path].bias.detach(), vectors[f"{name}.bias_folded"], rtol=1e-5, atol=1e-6)
        quantizer.set_parameters(vectors[f"{name}.w_delta"], vectors[f"{name}.w_zero"])
    inner, outer = unit.quantizers
    inner.set_parameters(vectors["conv1.act_delta"], vectors["conv1.act_zero"])
    outer.set_parameters(vectors["block.act_delta"], vectors["block.act_zero"])

    method = PDQuant(temperature=float(vectors["T"]), prediction_scale=float(vectors["lamb_r"]))
    seen = {}

    def noted(batch):
        seen["logits_quant"] = batch.prediction()
        (seen["block_out_dropped_input"],) = batch.outputs.values()
        return method.loss(batch)

    unit.module.register_forward_pre_hook(lambda _, given: seen.update(mixed_input=given[0][:6]))
    stage = Stage(
        int(vectors["iters"]), int(vectors["batch_size"]),
        rounding=Rounding(1e-9, float(vectors["weight"]), Annealing(warmup=0.0)), step_sizes=StepSizes(1e-9),
        quantize_activations=True, source="mixed", drop=0.5, loss=noted, doubled=True,
    )  # fmt: skip
    masks = iter([vectors[name] < 0.5 for name in ("u_input_drop", "u_act_drop_0", "u_act_drop_1")])
    monkeypatch.setattr("zsqbench.quant.reconstruction.learning.draw", lambda *_: [vectors["idx"]])
    monkeypatch.setattr("zsqbench.quant.reconstruction.learning.keep_mask", lambda *_: next(masks))
    cached = {
        name: ActivationCache.of(vectors[name], memory)
        for name in ("quantized_input", "corrected_input", "target_output")
    }
    ctx = context()
    learning = Learning(
        unit=unit, stage=stage, ctx=ctx, memory=memory, inputs={source: cached["quantized_input"]}, plain=live,
        mixed_with={source: cached["corrected_input"]}, targets=dict.fromkeys(unit.targets, cached["target_output"]),
        layers=[layers[path] for path in names], later=units[place + 1 :], curve="block", tick=lambda: None,
    )  # fmt: skip
    soft = learning._begin()
    for rounding, name in zip(soft, names.values(), strict=True):
        with torch.no_grad():
            rounding.logits.copy_(vectors[f"{name}.alpha"])
    torch.testing.assert_close(
        learning._prediction.in_float(slice(0, 12)), vectors["float_logits"], rtol=1e-4, atol=1e-5
    )
    learning._optimize(soft, None)
    ((_, loss),) = ctx.reporter.curves["block"]
    assert loss == pytest.approx((vectors["rec"] + vectors["pd_over_lamb_r"]).item(), rel=1e-4)
    for name, found in seen.items():
        torch.testing.assert_close(found.detach(), vectors[name], rtol=1e-4, atol=1e-5)
    beta = stage.rounding.annealing(1, stage.iterations)
    pulled = sum(penalty(vectors[f"{name}.alpha"], beta) for name in names.values())
    assert loss + vectors["weight"].item() * pulled == pytest.approx(vectors["total"].item(), rel=1e-5)
    for rounding, name in zip(soft, names.values(), strict=True):
        torch.testing.assert_close(rounding.logits.grad, vectors[f"grad_alpha_{name}"], rtol=1e-3, atol=1e-5)
    for quantizer, name in ((inner, "conv1"), (outer, "block")):
        assert quantizer.scale.grad.item() == pytest.approx(vectors[f"grad_{name}.act_delta"].item(), rel=1e-3)


@pytest.mark.usefixtures("briefly")
@parametrize_briefly("scheme", ["hast/w3a3", "academic_intended/w2a4", "qdq/w4a4", "hw/w4a4"], 1)
def test_it_is_a_quantizer(scheme):
    check_quantizer(PDQuant(**SHORT), scheme, tiny_teacher())


def learned(ctx=None, teacher=None, **options):
    teacher, scheme = teacher or tiny_teacher(), parse_scheme("hw/w3a4")
    quantizer = PDQuant(**SHORT, **options)
    student = quantizer.prepare(teacher, scheme)
    images = torch.randn(16, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    ctx = ctx or context(scheme=scheme)
    quantizer.quantize(student, teacher, CalibrationSet(images), ctx)
    return student


def curves(**options):
    ctx = context(scheme=parse_scheme("hw/w3a4"))
    learned(ctx, **options)
    return [value for name in ctx.reporter.curves for _, value in ctx.reporter.curves[name]]


@pytest.mark.slow("it learns four times; vectors of the release show each part")
def test_each_of_its_parts_changes_what_is_learned():
    plain = curves()
    for options in ({"prediction_scale": 1e6}, {"temperature": 1.0}, {"correction_scale": 1.0}, {"drop": 0.0}):
        assert curves(**options) != plain, options


def test_a_correction_brings_statistics_closer_to_those_that_are_stored():
    block = Block(4).eval().requires_grad_(False)
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0)) + 2
    seen = []
    hook = block.bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((2, 3)).abs().mean().item()))
    block(x)
    (moved,) = corrected(block, [x], steps=60, lr=0.05, scale=10.0)
    block(moved)
    hook.remove()
    assert seen[-1] < 0.7 * seen[0]
    (held,) = corrected(block, [x], steps=60, lr=0.05, scale=1e-6)
    assert (held - x).abs().max() < (moved - x).abs().max() / 5


def test_activation_ranges_come_from_the_units_before_and_from_more_images_than_a_batch():
    first, second = (learned(search_images=count) for count in (8, 16))
    scales = [[quantizer.scale for _, quantizer in activation_quantizers(student)] for student in (first, second)]
    assert not all(torch.equal(*pair) for pair in zip(*scales, strict=True))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (None, (4.0, 0.02, 0.01)),
        ("brecq/resnet18", (4.0, 0.02, 0.01)),
        ("brecq/mobilenetv2", (1.0, 0.005, 0.1)),
        ("torchvision/mnasnet1_0", (1.0, 0.001, 0.2)),
        ("torchvision/regnet_x_400mf", (4.0, 0.01, 0.01)),
    ],
)
def test_families_of_networks_have_what_the_released_script_has(architecture, expected):
    found = PDQuant().resolved(NetworkTraits((3, 224, 224), 1000, architecture))
    assert (found.temperature, found.correction_scale, found.rounding_weight) == expected


def test_a_network_without_batch_normalisation_is_refused_in_one_line():
    with pytest.raises(ZSQBenchError, match=r"^quantizer 'pd_quant' corrects inputs .* has none$"):
        learned(teacher=tiny_teacher_without_bn())


def test_pot_is_not_its_grid():
    assert "grid" in PDQuant().rejects(parse_scheme("pot/w8a8"))
