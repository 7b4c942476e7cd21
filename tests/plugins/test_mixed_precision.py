"""A scheme that gives single layers bits of their own, with a quantizer of each kind on the embedded ResNet-20."""

import pytest
from brief import parametrize_briefly

import zsqbench
from zsqbench.quant import activation_quantizers, effective_map, quantized_layers

LEARNING = "batch_size: 4"
TRAINING = "epochs: 1, updates_per_epoch: 1, batch_size: 4"
QUANTIZERS = {
    "rtn": "",
    "adaround": f"iterations: 2, {LEARNING}",
    "lsq": TRAINING,
    "squant": "noise_images: 2",
    "hptq": "equalization: true",
    "brecq": f"weight_iterations: 2, activation_iterations: 2, {LEARNING}",
    "ste": f"{TRAINING}, range_updates: 2",
    "dfq": "",
    "gdfq": f"{TRAINING}, warmup: 1, range_updates: 2",
}
READS_NOTHING = {"squant", "dfq", "gdfq"}
SUITE = """
name: toysuite
tasks: {digits: {method: classification, data: digits}}
generators: {noise: {images: 4}}
quantizers: {NAME: {OPTIONS}}
schemes:
  mixed:
    base: hw
    tensors:
      layer1.*: 8
      layer1.1.*: {weight: 3}
      layer2.0.conv2: {weight: float, activation: 6}
      layer3.2.relu?: float
      linear: {weight: 6, activation: 16}
matrix:
  - {task: digits, model: resnet20, generator: GENERATOR, quantizer: NAME, scheme: mixed/w4a5}
"""


def expected_bits(kind, name, role):
    """The bits that `SUITE` says, in other words."""
    given = {"weight": 4, "activation": 32 if role in ("input", "addend", "pooled") else 5}
    if name.startswith("layer1."):
        given = {"weight": 3 if name.startswith("layer1.1.") else 8, "activation": 8}
    elif name == "layer2.0.conv2":
        given = {"weight": 32, "activation": 6}
    elif name in ("layer3.2.relu1", "layer3.2.relu2"):
        given = {"weight": 32, "activation": 32}
    elif name == "linear":
        given = {"weight": 6, "activation": 16}
    return given[kind]


@parametrize_briefly("name", QUANTIZERS, 1)
def test_a_cell_of_mixed_precision_runs_and_each_tensor_has_its_bits(bench, name):
    generator = "none" if name in READS_NOTHING else "noise"
    bench.suite(SUITE.replace("NAME", name).replace("OPTIONS", QUANTIZERS[name]).replace("GENERATOR", generator))
    said = bench.run()
    assert (said.code, bench.row()["status"]) == (0, "done"), said.out + said.err
    student, _ = zsqbench.load_student(bench.file, bench.row()["cell"], home=bench.home, results=bench.results)
    tensors = effective_map(student)
    assert len(tensors) == 20 + 31
    assert {(tensor.kind, tensor.name): tensor.bits for tensor in tensors} == {
        (tensor.kind, tensor.name): expected_bits(tensor.kind, tensor.name, tensor.role) for tensor in tensors
    }
    for path, layer in quantized_layers(student):
        largest = 2 ** expected_bits("weight", path, "weight") - 1
        assert largest / 4 < layer.weight_codes.max() <= largest, path
    for path, quantizer in activation_quantizers(student):
        low, high = quantizer.range()
        steps = 2 ** expected_bits("activation", path, quantizer.role) - 1
        assert float((high - low) / quantizer.scale) == pytest.approx(steps, rel=1e-4), path
