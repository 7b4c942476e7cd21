"""A ranking of weights, and cells of mixed precision that are made from it, on a small network."""

import json
import shutil

import pytest
import torch
from faults import rewrite_manifest

import zsqbench
from zsqbench import CalibrationSet
from zsqbench.execution.session import Session, WorkerConfig
from zsqbench.quant import effective_map, rank_weights
from zsqbench.scheme import parse_scheme
from zsqbench.steps import evaluations, quantize
from zsqbench.steps.quantize import Quantize
from zsqbench.steps.sensitivity import Sensitivity
from zsqbench.store import Store

HEAD = """
name: toysuite
plugins: [toy.py, extra.py]
generators: {noise: {images: 6}}
quantizers:
  mixed_2: {method: mixed, over: rtn, layers: 2, images: 4}
  mixed_5: {method: mixed, over: rtn, layers: 5, images: 4}
  learned: {method: mixed, over: short, layers: 2, images: 4}
  short: {method: brecq, weight_iterations: 2, activation_iterations: 2, batch_size: 4}
  trained: {method: ste, start: mixed_2, epochs: 1, updates_per_epoch: 1, batch_size: 4, keep_every: 1}
  none_read: {method: mixed, over: squant, layers: 2, images: 4}
  kept: {method: mixed, over: tuned, layers: 2, images: 4}
  tuned: {method: ste, epochs: 1, updates_per_epoch: 1, batch_size: 4, range_updates: 2, keep_every: 1}
"""
BLOCK = "  - {task: deep, model: a, generator: noise, quantizer: NAMES, scheme: hw/w4a8}\n"


DEEP = """
class Deep(ToyTask):
    name = "deep"

    def load(self, model, ctx):
        import torch
        from torch import nn

        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        for _ in range(5):
            layers += [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))
        return zsqbench.Pretrained(module, (3, 8, 8), (0.0,) * 3, (1.0,) * 3, classes=10)

    def preprocessor(self, pretrained):
        return None
"""
"""A task whose network has seven weights."""
COUNT = 7


def suite(bench, *names, block=BLOCK):
    bench.add_plugin(DEEP)
    return bench.suite(HEAD + "matrix:\n" + block.replace("NAMES", f"[{', '.join(names)}]"))


def done(bench):
    said = bench.run()
    assert said.code == 0, said.out + said.err
    return {row["quantizer"]: row for row in bench.rows().values()}


def loaded(bench, name):
    (cell,) = [cell for cell, row in bench.rows().items() if row["quantizer"] == name]
    return zsqbench.load_student(bench.file, cell, home=bench.home, results=bench.results)[0]


def raised(student):
    return {tensor.name for tensor in effective_map(student) if tensor.kind == "weight" and tensor.bits == 8}


def ranking(bench, row):
    return [weight.name for weight in Sensitivity.weights(Store(bench.home), row["keys"]["sensitivity"])]


@pytest.fixture
def ran(bench):
    suite(bench, "rtn", "mixed_2", "mixed_5", "learned")
    return bench, done(bench)


def test_cells_of_one_set_share_a_ranking_and_get_more_bits_by_it(ran):
    bench, rows = ran
    artifact = bench.artifact("sensitivity")
    assert {row["keys"].get("sensitivity") for row in rows.values()} == {None, artifact.key}
    assert rows["rtn"]["keys"].keys() == {"baseline", "generate", "quantize", "evaluate"}
    order = ranking(bench, rows["mixed_2"])
    assert (artifact.content["images"], len(order)) == (4, COUNT)
    for name, count in {"rtn": 0, "mixed_2": 2, "mixed_5": 5, "learned": 2}.items():
        assert raised(loaded(bench, name)) == set(order[:count]), name
    assert len({row["keys"]["quantize"] for row in rows.values()}) == 4
    # a row says how large its weights are, and that mixed precision took four images of which brecq reads six
    weights = {weight["name"]: weight["elements"] for weight in artifact.content["weights"]}
    for name, count in {"rtn": 0, "mixed_2": 2, "mixed_5": 5, "learned": 2}.items():
        bits = sum((8 if weight in order[:count] else 4) * size for weight, size in weights.items())
        found = rows[name]["tensors"]
        assert found["mean_weight_bits"] == pytest.approx(bits / sum(weights.values()), abs=1e-4)
        assert found["size_mb"] == pytest.approx(bits / 8e6, abs=1e-6)
    assert [rows[name]["data"]["calibrated"] for name in ("rtn", "mixed_2", "learned")] == [6, 6, 6]
    # mixed precision stands in columns of its own
    heads = bench.zsqbench("leaderboard", bench.file, "--results", bench.results).out.splitlines()[4]
    sizes = [rows[name]["tensors"] for name in ("mixed_2", "mixed_5")]
    for size in sizes:
        assert f"hw/w4a8 (mixed: {size['mean_weight_bits']:.1f} bits, {size['size_mb']:.3g} MB) " in heads
    assert heads.count("hw/w4a8") == 3
    # show prints the ranking
    said = bench.zsqbench("show", bench.file, "mixed_2", *bench.places())
    lines = [line.split()[0] for line in said.out.splitlines() if line]
    head = lines.index("sensitivity:")
    assert lines[head + 1 : head + COUNT + 2] == ["weight", *order]
    shown = json.loads(bench.zsqbench("show", bench.file, "mixed_2", "--format", "json", *bench.places()).out)
    assert shown["sensitivity"] == artifact.content
    # nothing is done twice
    assert "0 steps to do" in bench.run().err


def test_the_ranking_is_that_of_the_library(bench):
    suite(bench, "mixed_2")
    row = done(bench)["mixed_2"]
    job = Quantize.model_validate(bench.artifact("quantize").manifest["job"])
    plugins = (bench.folder / "toy.py", bench.folder / "extra.py")
    network = Session(WorkerConfig(bench.home, plugin_files=plugins, device="cpu")).teacher(job).module
    images = CalibrationSet.load(bench.artifact("generate").file("calibration.safetensors")).images
    expected = rank_weights(network, parse_scheme("hw/w4a8"), (3, 8, 8), images[:4])
    found = Sensitivity.weights(Store(bench.home), row["keys"]["sensitivity"])
    assert [weight.name for weight in found] == [weight.name for weight in expected]
    assert [weight.error for weight in found] == pytest.approx([weight.error for weight in expected], rel=1e-4)


def test_the_student_that_is_measured_is_the_one_that_was_quantized(bench, monkeypatch):
    images, outputs = torch.randn(4, 3, 8, 8), {}
    save, measure = quantize.save_student, evaluations.measure

    def saves(student, path):
        outputs["quantized"] = student.eval()(images)
        save(student, path)

    def measures(session, job, reporter, module, teacher):
        outputs[job.kind] = module(images)
        return measure(session, job, reporter, module, teacher)

    monkeypatch.setattr(quantize, "save_student", saves)
    monkeypatch.setattr(evaluations, "measure", measures)
    suite(bench, "mixed_5")
    done(bench)
    outputs["loaded"] = loaded(bench, "mixed_5")(images)
    assert torch.equal(outputs["quantized"], outputs["evaluate"])
    assert torch.equal(outputs["quantized"], outputs["loaded"])
    assert not torch.equal(outputs["quantized"], outputs["baseline"])


def test_training_starts_from_mixed_precision_and_keeps_its_bits(bench):
    suite(bench, "mixed_2", "trained")
    rows = done(bench)
    assert rows["trained"]["keys"]["start"] == rows["mixed_2"]["keys"]["quantize"]
    assert raised(loaded(bench, "trained")) == set(ranking(bench, rows["mixed_2"])[:2])
    assert rows["trained"]["oracle"]["of"] == 1
    heads = bench.zsqbench("leaderboard", bench.file, "--results", bench.results).out.splitlines()[4]
    assert heads.count("(mixed: ") == heads.count("hw/w4a8") == 2
    assert "(oracle)" in heads


def test_epochs_are_kept_where_what_it_is_over_keeps_them(bench):
    suite(bench, "kept")
    row = done(bench)["kept"]
    assert (row["status"], row["oracle"]["of"]) == ("done", 1)


def test_what_it_is_over_may_read_no_images_itself(bench):
    suite(bench, "none_read")
    row = done(bench)["none_read"]
    assert (row["generator"], row["data"]["calibrated"]) == ("noise", 4)
    assert raised(loaded(bench, "none_read")) == set(ranking(bench, row)[:2])


def test_a_ranking_that_is_damaged_is_made_again(bench):
    suite(bench, "mixed_2")
    before = done(bench)["mixed_2"]
    found = bench.artifact("sensitivity")
    rewrite_manifest(found.folder, content={"weights": ["x"]})
    for folder in (*bench.artifacts("evaluate"), *bench.artifacts("quantize")):
        shutil.rmtree(folder)
    assert bench.run().code == 0
    assert bench.row()["metrics"] == before["metrics"]
    assert bench.artifact("sensitivity").content == found.content


def test_the_key_of_a_ranking_is_that_of_what_it_reads(bench):
    suite(bench, "mixed_2", "learned")
    (key,) = {step["key"] for step in bench.planned("sensitivity").values()}

    def keys(*overrides):
        options = [part for override in overrides for part in ("--set", override)]
        return {step["key"] for step in bench.planned("sensitivity", *options).values()}

    assert keys("quantizers.mixed_2.layers=3", "quantizers.short.weight_iterations=3") == {key}
    for other in ("generators.noise.images=5", "matrix.0.scheme=hw/w3a8", "quantizers.mixed_2.images=5"):
        assert keys(other) != {key}
    assert len(keys("quantizers.mixed_2.images=5")) == 2


IMPOSSIBLE = {
    "generator: none": "mixed needs calibration images, but the generator is none",
    "scheme: hw/w8a8": "mixed rejects hw/w8a8: its option bits is 8, and the scheme's weights have 8 already",
    "scheme: float": "mixed rejects float: it quantizes, and scheme float leaves nothing to quantize",
}


@pytest.mark.parametrize("axis", IMPOSSIBLE)
def test_a_cell_that_cannot_be_says_why(bench, axis):
    name = axis.partition(":")[0]
    old = {"generator": "generator: noise", "scheme": "scheme: hw/w4a8"}[name]
    suite(bench, "mixed_2", block=BLOCK.replace(old, axis))
    (cell,) = bench.plan()["cells"]
    assert cell["reason"] == IMPOSSIBLE[axis]


def test_what_it_is_over_has_to_be_possible_too(bench):
    suite(bench, "mixed_2", block=BLOCK.replace("hw/w4a8", "pot/w4a8"))
    bench.write("toy.yaml", bench.file.read_text().replace("over: rtn, layers: 2,", "over: short, layers: 2,"))
    (cell,) = bench.plan()["cells"]
    assert cell["reason"] == (
        "mixed_2 is over short, and brecq rejects pot/w4a8: the scheme demands the grid power_of_two, and it has "
        "affine, symmetric"
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            "layers: 8",
            (
                "quantize: mixed: layers is 8, and 7 weights of the network have less than 8 bits at hw/w4a8; "
                "expected at most 7"
            ),
        ),
        (
            "budget: 0.001",
            (
                "quantize: mixed: budget is 0.001 MB, and the weights have 0.001694 MB at hw/w4a8 already; give more, "
                "or a scheme with fewer bits"
            ),
        ),
    ],
)
def test_what_only_the_network_can_refuse_fails_its_cell_with_one_line(bench, given, reason):
    suite(bench, "mixed_2")
    bench.write("toy.yaml", bench.file.read_text().replace("over: rtn, layers: 2,", f"over: rtn, {given},"))
    assert bench.run().code == 1
    row = bench.row()
    assert (row["status"], row["reason"], row.get("traceback")) == ("failed", reason, None)


@pytest.mark.parametrize(
    ("quantizers", "error"),
    [
        ("m: {method: mixed, over: rtn}", "5: quantizers.m: expected exactly one of layers and budget, got "),
        (
            "m: {method: mixed, over: rtn, layers: 1, budget: 2}",
            "5: quantizers.m: expected exactly one of layers and budget, got both",
        ),
        ("m: {method: mixed, layers: 1}", "5: option of mixed 'over' is missing"),
        ("m: {method: mixed, over: rtm, layers: 1}", "unknown quantizer 'rtm' in toy.yaml:5; did you mean 'rtn'?"),
        ("m: {method: mixed, over: m, layers: 1}", "5: m cannot be over m, which is itself over another quantizer"),
        (
            "m: {method: mixed, over: n, layers: 1}, n: {method: mixed, over: rtn, layers: 2}",
            "5: m cannot be over n, which is itself over another quantizer",
        ),
        (
            "m: {method: mixed, over: n, layers: 1}, n: {method: ste, start: rtn}",
            "5: m cannot be over n, which starts from rtn; let n start from m, and m be over rtn",
        ),
        ("m: {method: mixed, over: rtn, layers: 1, bits: 17}", "5: quantizers.m.bits: "),
    ],
)
def test_a_mistake_is_one_line(bench, quantizers, error):
    bench.suite(
        "name: toysuite\nplugins: [toy.py]\n\nquantizers:\n"
        f"  {{{quantizers}}}\nmatrix:\n"
        "  - {task: toytask, model: a, generator: toy, quantizer: m, scheme: hw/w4a4}\n"
    )
    said = bench.error()
    assert error in said, said
