"""Export networks to ONNX and say what a runtime makes of them: `python benchmarks/export.py`.

Each network has random weights, and batch normalisations whose statistics are those of noise, so that values are as
large as in a trained network. It is rounded to nearest at each scheme, exported, compared with its simulation on seeded
noise, and timed beside the float network. A line for each: layers that run with integers, tensors whose codes differ
from the student's by more than ties explain, equal decisions without optimisation and as users run it, seconds of the
export, and milliseconds of one image on one thread, float and quantized. `--only NAME...` takes some networks,
`--schemes NAME...` others than qdq/w8a8 and pot/w8a8, and `--quick` one small network.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from zsqbench_plugins.rtn import RTN

import zsqbench
from zsqbench.export.comparison import Check, check
from zsqbench.export.exporting import Description, export_float, export_student
from zsqbench.export.integers import with_integer_biases
from zsqbench.export.latency import Times, latency
from zsqbench.export.runtime import processor
from zsqbench.quant import calibrate_activations_mse, calibrate_weights, finalize
from zsqbench.scheme import parse_scheme
from zsqbench.zoo.models import load_named

NAMES = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
)
SCHEMES = ("qdq/w8a8", "pot/w8a8")
IMAGES = 16


def network(name: str) -> zsqbench.Pretrained:
    """A network of torchvision with random weights, whose batch normalisations know the noise that it is given."""
    torch.manual_seed(0)
    loaded = load_named(f"torchvision/{name}", "none")
    fed, module = loaded.feeding, loaded.module
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
            layer.reset_running_stats()
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    pretrained = zsqbench.Pretrained(module, fed.input_size, fed.mean, fed.std, fed.value_range)
    with torch.no_grad():
        module.train()(noise(pretrained, 1))
    module.eval().requires_grad_(requires_grad=False)
    return pretrained


def noise(pretrained: zsqbench.Pretrained, seed: int) -> torch.Tensor:
    """Seeded images of uniform pixels, in the network's space."""
    low, high = pretrained.valid_range()
    pixels = torch.rand(IMAGES, *pretrained.input_size, generator=torch.Generator().manual_seed(seed))
    return low + pixels * (high - low)


def line(name: str, scheme: str, found: Check, seconds: float, times: dict[str, Times]) -> str:
    """The figures of one network at one scheme."""
    structure, of = found.structure, found.images
    departed = sum(not departure.tolerated for departure in found.exact)
    identical = "bit-identical" if found.bit_identical else f"{departed} tensors depart"
    quantized, plain = times["quantized"].p50, times["float"].p50
    return (
        f"{name:20} {scheme:9} {structure.integer:3} of {len(structure.layers):3} integer  {identical:18} "
        f"{found.equal_exact:2}/{of} exact {found.equal:2}/{of} optimised  export {seconds:5.1f} s  "
        f"float {plain:6.2f} ms  quantized {quantized:6.2f} ms  {plain / quantized:4.2f} x"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES, help="names of torchvision")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    names, schemes = (("shufflenet_v2_x0_5",), SCHEMES) if arguments.quick else (arguments.only, arguments.schemes)
    torch.set_num_threads(1)
    print(processor(), flush=True)
    for name in names:
        pretrained = network(name)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            plain = export_float(copy.deepcopy(pretrained.module), Description(pretrained), folder / "float.onnx")
            for scheme in schemes:
                student = RTN().make_student(pretrained, parse_scheme(scheme))
                with torch.no_grad():
                    calibrate_weights(student, "minmax")
                    calibrate_activations_mse(student, noise(pretrained, 1))
                finalize(student)
                started = time.perf_counter()
                made = export_student(student, Description(pretrained), folder / "model.onnx")
                seconds = time.perf_counter() - started
                found = check(made.path, student, with_integer_biases(student), noise(pretrained, 2), pretrained)
                times = latency({"quantized": made.path, "float": plain.path}, pretrained.input_size, (1,))[1]
                print(line(name, scheme, found, seconds, times), flush=True)
                for problem in found.problems:
                    print(f"  problem: {problem}", flush=True)


if __name__ == "__main__":
    main()
