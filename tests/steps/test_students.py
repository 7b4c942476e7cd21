import shutil
from dataclasses import asdict, replace

import pytest
import torch
from faults import rewrite_manifest
from safetensors.torch import load_file, save
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import (
    Grids,
    calibrate_activations_minmax,
    calibrate_weights,
    effective_map,
    finalize,
    measured_map,
    prepare,
)
from zsqbench.scheme import parse_scheme
from zsqbench.steps import students
from zsqbench.steps.students import MODEL, check_structure, load_artifact, save_student, state_of
from zsqbench.store import Artifact

KEY = "0123456789abcdef"
IMAGES = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8).sin()


def network(layers=2):
    torch.manual_seed(0)
    convolutions = [part for _ in range(layers) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(192, 10)).eval()


def prepared(scheme="hw/w4a4", grids=None, layers=2):
    return prepare(network(layers), parse_scheme(scheme), (3, 8, 8), grids)


@pytest.fixture
def made(tmp_path):
    """A quantized network in w4a4 and its artifact."""
    student = prepared()
    calibrate_weights(student, "minmax")
    calibrate_activations_minmax(student, [IMAGES])
    finalize(student)
    save_student(student, tmp_path / MODEL)
    content = {"tensors": [asdict(tensor) for tensor in measured_map(student)]}
    return student, Artifact("quantize", KEY, tmp_path, {"content": content, "files": {MODEL: "its digest"}})


def test_an_artifact_gives_back_the_network_that_was_quantized(made):
    student, artifact = made
    with torch.no_grad():
        assert torch.equal(load_artifact(prepared(), artifact)(IMAGES), student(IMAGES))


OTHERS = {
    # The options of the student, the tensor that differs, its form in the artifact and in the student.
    "more bits of activations": (
        {"scheme": "hw/w4a8"},
        "activation 1",
        "relu at 4 bits (affine, per tensor)",
        "relu at 8 bits (affine, per tensor)",
    ),
    "more bits of weights": (
        {"scheme": "hw/w8a4"},
        "weight 0",
        "first_weight at 4 bits (affine, axis 0)",
        "first_weight at 8 bits (affine, axis 0)",
    ),
    "another grid of weights": (
        {"grids": Grids(weights="symmetric")},
        "weight 0",
        "first_weight at 4 bits (affine, axis 0)",
        "first_weight at 4 bits (symmetric, axis 0)",
    ),
    "another grid of activations": (
        {"grids": Grids(activations="power_of_two")},
        "activation 1",
        "relu at 4 bits (affine, per tensor)",
        "relu at 4 bits (power_of_two, per tensor)",
    ),
    "another axis": (
        {"grids": Grids(per_channel=False)},
        "weight 0",
        "first_weight at 4 bits (affine, axis 0)",
        "first_weight at 4 bits (affine, per tensor)",
    ),
    "another role": (
        {"layers": 1},
        "weight 3",
        "absent",
        "last_weight at 4 bits (affine, axis 0)",
    ),
    "one more tensor": (
        {"layers": 3},
        "weight 4",
        "absent",
        "weight at 4 bits (affine, axis 0)",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_an_artifact_that_does_not_fit_is_refused_in_one_line(made, what):
    changes, place, there, here = OTHERS[what]
    with pytest.raises(ZSQBenchError) as error:
        load_artifact(prepared(**changes), made[1])
    assert str(error.value) == (
        f"artifact {KEY[:12]} does not fit its student: {place} is {there} in the artifact, and {here} in the student; "
        "if what prepares the student was changed, raise its version"
    )


@pytest.mark.parametrize(("name", "value"), [("role", "add"), ("bits", 8), ("grid", "symmetric"), ("axis", 1)])
@pytest.mark.parametrize("place", [0, -1])
def test_whatever_decides_how_codes_are_read_is_compared(made, name, value, place):
    tensors = measured_map(made[0])
    tensors[place] = replace(tensors[place], **{name: value})
    where = f"{tensors[place].kind} {tensors[place].name}"
    with pytest.raises(ZSQBenchError, match=f"does not fit its student: {where} is "):
        check_structure(tensors, effective_map(prepared()), KEY)


def test_a_tensor_that_is_missing_or_left_over_is_named(made):
    tensors, expected = measured_map(made[0]), effective_map(prepared())
    name = f"{tensors[-1].kind} {tensors[-1].name}"
    with pytest.raises(ZSQBenchError, match=f"{name} is absent in the artifact, and logits at 4 bits"):
        check_structure(tensors[:-1], expected, KEY)
    with pytest.raises(
        ZSQBenchError, match=f"{name} is logits at 4 bits .* in the artifact, and absent in the student"
    ):
        check_structure(tensors, expected[:-1], KEY)


def test_ranges_and_sizes_are_no_part_of_the_structure(made):
    tensors = [replace(tensor, low=-9.0, high=9.0, groups=7, elements=5) for tensor in measured_map(made[0])]
    check_structure(tensors, effective_map(prepared()), KEY)


def test_an_evaluation_refuses_the_artifact_of_another_scheme(bench):
    bench.matrix("quantizer: rtn, scheme: [hw/w4a4, hw/w4a8]")
    bench.run()
    few, many = bench.rows().values()
    folders = [bench.home / "store" / "quantize" / row["keys"]["quantize"] for row in (few, many)]
    shutil.rmtree(folders[1])
    shutil.copytree(folders[0], folders[1])
    shutil.rmtree(bench.home / "store" / "evaluate" / many["keys"]["evaluate"])
    said = bench.run()
    row = bench.rows()[many["cell"]]
    assert (said.code, row["status"], row.get("traceback"), bench.rows()[few["cell"]]) == (1, "failed", None, few)
    assert row["reason"] == (
        f"evaluate: artifact {many['keys']['quantize'][:12]} does not fit its student: "
        "activation 2 is relu at 4 bits (affine, per tensor) in the artifact, and relu at 8 bits (affine, per tensor) "
        "in the student; if what prepares the student was changed, raise its version"
    )


def test_a_network_without_quantizers_has_an_empty_map_and_is_loaded(bench):
    bench.matrix("")
    bench.run()
    quantized = bench.artifact("quantize")
    assert (quantized.content["tensors"], bench.row()["status"]) == ([], "done")
    weight = {"kind": "weight", "name": "4", "role": "weight", "bits": 4, "grid": "affine", "axis": 0}
    rewrite_manifest(quantized.folder, content=quantized.content | {"tensors": [weight]})
    shutil.rmtree(bench.home / "store" / "evaluate")
    bench.run()
    reason = "weight 4 is weight at 4 bits (affine, axis 0) in the artifact, and absent in the student"
    assert reason in bench.row()["reason"]


def test_extra_state_of_modules_is_no_part_of_an_artifact_and_stays_with_the_student(bench):
    bench.add_plugin("""
import torch

class Gain(torch.nn.Module):
    gain = 1.0

    def get_extra_state(self):
        return {"gain": self.gain, "tensors": [torch.ones(1) * self.gain]}

    def set_extra_state(self, state):
        self.gain = state["gain"]

    def forward(self, x):
        return x * self.gain

class Extra(ToyTask):
    name = "extra"

    def load(self, model, ctx):
        pretrained = super().load(model, ctx)
        pretrained.module.insert(0, Gain())
        pretrained.module[0].gain = 3.0
        return pretrained
""")
    bench.matrix("task: extra")
    said = bench.run()
    kept = load_file(bench.artifact("quantize").folder / MODEL)
    assert (said.code, bench.row()["status"], "0._extra_state" in kept, "1.weight" in kept) == (0, "done", False, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_is_kept_as_safetensors_writes_it(tmp_path, dtype):
    student = network().to(dtype)
    student.register_buffer("flags", torch.tensor([True, False]))
    student.register_buffer("count", torch.tensor(3))
    student.register_buffer("nothing", torch.empty(0, 3))
    save_student(student, tmp_path / MODEL)
    assert (tmp_path / MODEL).read_bytes() == save(state_of(student))
    path = tmp_path / MODEL
    for small in (path.stat().st_size, path.stat().st_size + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(students, "SMALL", small)
            found = students._load_state(path)
        assert found.keys() == state_of(student).keys()
        assert all(torch.equal(found[name], value) for name, value in state_of(student).items())
