import json

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.quant import inspection

OWN = """
name: own
tasks: {digits: {method: classification, data: digits}}
models:
  net: {file: net.py, weights: none, input_size: [1, 8, 8], mean: [0.3], std: [0.3]}
matrix:
  - {task: digits, model: net, generator: noise, quantizer: [rtn, squant], scheme: hw/w4a4}
"""

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
    def forward(self, x%s):
        x = self.conv(x).mean((2, 3))
        %s
        return self.linear(x)
def build():
    return Net()
"""


@pytest.fixture
def doctor(bench):
    """The toy network (or another), examined with the methods of the toy suite: exit code and data."""

    def doctor(model="a", *arguments):
        said = bench.zsqbench("doctor", model, "--suite", bench.file, "--format", "json", *arguments)
        assert said.code in (0, 1), said.err
        return said.code, json.loads(said.out)

    return doctor


@pytest.fixture
def own(bench):
    """A network of a file, with an argument and a line of code more: what the command says."""

    def own(argument="", line="", *arguments):
        bench.write("net.py", NET % (argument, line))
        return bench.zsqbench("doctor", "net", "--suite", bench.write("own.yaml", OWN), *arguments)

    return own


def test_a_named_network_is_examined_with_all_that_is_installed(bench):
    said = bench.zsqbench("doctor", "cifar_resnet20", "--weights", "none")
    lines = said.out.splitlines()
    assert said.code == 0, said.err
    assert lines[0] == "cifar_resnet20: 269,722 parameters, random weights, images 3 x 32 x 32"
    assert lines[1] == "layers: 19 Conv2d, 1 Linear"
    assert "hw_strict/w8a8  20       31           19      0           yes" in lines
    assert "  not file: needs its option 'path', which a suite gives" in lines
    assert "quantizers at pot/w8a8: adaround, dfq, hptq, rtn" in lines
    assert "  not fp32: it leaves the network in floating point, so it runs at scheme float only" in lines
    assert (lines[-2], lines[-1]) == ("", "no blocker")


def test_a_detector_is_no_classifier(bench):
    found = json.loads(bench.zsqbench("doctor", "scenedetector", "--format", "json").out)
    assert found["generators"]["zeroq"] is None
    assert found["generators"]["hast"] == "needs a classifier, and scenedetector is not one"
    assert (found["accuracy"], len(found["examination"]["outputs"])) == (None, 2)


def test_a_suite_says_what_is_examined(bench, doctor):
    bench.matrix("")
    code, found = doctor()
    assert (code, found["blockers"]) == (0, [])
    assert found["generators"] == {"toy": None}
    assert found["quantizers"] == {"hw/w4a4": {"toyq": None}}
    assert found["students"]["hw/w4a4"]["folded"] == ["0"]
    bench.run()
    (row,) = bench.rows().values()
    assert (found["accuracy"]["metric"], found["accuracy"]["value"]) == ("top1", row["float_metrics"]["top1"])


def test_a_scheme_that_quantizes_nothing_has_no_student(bench, doctor):
    bench.matrix("scheme: [float, hw/w4a4]")
    _, found = doctor()
    assert list(found["students"]) == ["hw/w4a4"]
    assert "leaves nothing to quantize" in found["quantizers"]["float"]["toyq"]


def test_schemes_that_quantize_the_same_tensors_share_a_student(bench, doctor, monkeypatch):
    prepared = []
    real = inspection.prepare
    monkeypatch.setattr(inspection, "prepare", lambda *args: prepared.append(args[1].name) or real(*args))
    bench.matrix("scheme: [hw_strict/w4a4, pot/w8a8, hw/w8a8, hw_strict/w4a32]")
    _, found = doctor()
    assert prepared == ["hw_strict/w4a4", "hw/w8a8", "hw_strict/w4a32"]
    assert [student["activations"] for student in found["students"].values()] == [3, 3, 2, 0]


def test_units_are_compared_where_a_quantizer_needs_them_and_stop_it_alone(bench, doctor, monkeypatch):
    compared = []

    def fail(student, _):
        compared.append(student)
        raise ZSQBenchError("the units depart")

    monkeypatch.setattr(inspection, "_check_units", fail)
    doctor()
    assert not compared
    bench.add_plugin("class ByUnits(ToyQuantizer):\n    name = 'byunits'\n    by_units = True\n")
    bench.matrix("scheme: [hw/w4a4, hw_strict/w4a4, hast/w4a4], quantizer: [toyq, byunits]")
    code, found = doctor()
    assert (code, len(compared)) == (0, 2)  # folded, and not
    assert found["quantizers"]["hw_strict/w4a4"] == {"toyq": None, "byunits": "the units depart"}


def test_what_a_method_needs_of_the_network_is_said(bench, doctor):
    bench.add_plugin(
        "class NeedsBN(Toy):\n    name = 'needsbn'\n    needs_bn = True\n"
        "class AlsoBN(ToyQuantizer):\n    name = 'alsobn'\n    needs_bn = True\n"
    )
    bench.matrix("generator: [toy, needsbn], quantizer: alsobn")
    lack = "needs batch normalisation, and without_bn has none"
    _, found = doctor("without_bn")
    assert found["generators"] == {"toy": None, "needsbn": lack}
    assert found["quantizers"] == {"hw/w4a4": {"alsobn": lack}}
    _, found = doctor("a")
    assert found["generators"]["needsbn"] is None


def test_what_a_generator_needs_of_attention_is_said(bench, doctor):
    bench.add_plugin("class Looks(Toy):\n    name = 'looks'\n    needs_attention = True\n")
    bench.matrix("generator: [toy, looks]")
    lack = "needs attention that capture takes apart, softmax and product with the values, and the network has none"
    _, found = doctor("a")
    assert found["generators"] == {"toy": None, "looks": lack}


def test_what_a_quantizer_starts_from_has_needs_too(bench, doctor):
    bench.add_plugin(
        "class First(ToyQuantizer):\n    name = 'first'\n    needs_bn = True\n"
        "class Second(ToyQuantizer):\n    name = 'second'\n    start: str | None = None\n"
    )
    bench.matrix("quantizer: second", head="quantizers: {second: {start: first}}")
    _, found = doctor("without_bn")
    assert found["quantizers"]["hw/w4a4"]["second"] == (
        "starts from first, of which is said: needs batch normalisation, and without_bn has none"
    )


def test_options_that_do_not_go_together_for_the_network_are_told(bench, doctor):
    bench.add_plugin(
        """
class Picky(ToyQuantizer):
    name = 'picky'
    def resolved(self, network, scheme=None):
        raise zsqbench.ZSQBenchError(f"not with {network.classes} classes")
"""
    )
    bench.matrix("quantizer: picky")
    assert doctor()[1]["quantizers"]["hw/w4a4"]["picky"] == "not with 10 classes"


def test_a_quantizer_without_graph_does_not_care_about_the_student(bench):
    bench.add_plugin("class Whole(ToyQuantizer):\n    name = 'whole'\n    needs_graph = False\n")
    bench.write("net.py", NET % ("", "x = x if x.sum() > 0 else -x"))
    suite = bench.write("own.yaml", OWN.replace("[rtn, squant]", "[rtn, whole]") + "plugins: [toy.py, extra.py]\n")
    found = json.loads(bench.zsqbench("doctor", "net", "--suite", suite, "--format", "json").out)
    assert found["quantizers"]["hw/w4a4"] == {"rtn": "see the blocker", "whole": None}


def test_real_images_are_what_a_task_has_besides_what_it_evaluates(bench, doctor):
    bench.matrix("generator: toyreal")
    assert doctor()[1]["generators"] == {"toyreal": None}
    (bench.folder / "data" / "train.txt").unlink()
    code, found = doctor()
    assert (code, found["generators"]) == (
        0,
        {"toyreal": "needs real images, and task toytask has none that it does not evaluate"},
    )


def test_without_data_neither_the_accuracy_nor_real_images_are_there(bench, doctor):
    bench.add_plugin(
        """
class Absent(ToyTask):
    name = 'absent'
    def find_data(self, data_root):
        raise zsqbench.ZSQBenchError("there is no folder data")
"""
    )
    bench.matrix("task: absent, generator: toyreal")
    code, found = doctor()
    assert (code, found["accuracy"]["value"], found["accuracy"]["reason"]) == (
        0,
        None,
        "because there is no folder data",
    )
    assert found["generators"]["toyreal"] == "there is no folder data"


def test_the_accuracy_of_random_weights_is_not_measured(bench, doctor):
    _, found = doctor("a", "--weights", "none")
    assert (found["random_weights"], found["accuracy"]["reason"]) == (True, "because its weights are random")
    assert "evaluate" not in (bench.folder / "calls.txt").read_text()


def test_weights_that_a_file_loads_itself_are_measured(own):
    random, built = (own("", "", "--weights", weights).out for weights in ("none", "built"))
    assert [" random weights" in text.splitlines()[0] for text in (random, built)] == [True, False]
    assert "top1" in built


def test_the_accuracy_can_be_left_out(bench, doctor):
    assert doctor("a", "--no-accuracy")[1]["accuracy"] is None
    assert "evaluate" not in (bench.folder / "calls.txt").read_text()


def test_another_accuracy_than_the_suite_says_is_a_blocker(bench, doctor):
    bench.matrix("model: mine", head="models: {mine: {base: a, float_accuracy: 101}}")
    code, found = doctor("mine")
    assert (code, found["accuracy"]["value"], len(found["blockers"])) == (1, None, 1)
    assert "its float_accuracy is 101.0" in found["blockers"][0]


def test_a_network_that_cannot_be_traced_is_blocked_and_examined_all_the_same(own):
    said = own("", "x = x if x.sum() > 0 else -x")
    lines = said.out.splitlines()
    assert said.code == 1
    assert lines[1:3] == ["layers: 1 Conv2d, 1 Linear", "normalisations: none"]
    assert "a choice depends on the values in a tensor" in lines[-1]
    assert lines[-1].startswith("blocker: Net cannot be traced")
    assert "  not rtn, squant: see the blocker" in lines


def test_weights_that_overflow_are_a_blocker(own):
    said = own("", "x = x / 0")
    assert said.code == 1
    assert said.out.splitlines()[-1] == (
        "blocker: outputs on seeded normal noise are NaN or infinite, so that they have no range"
    )


@pytest.mark.parametrize(
    ("argument", "line", "expected"),
    [
        (", more", "", "model 'net' fails on an input of [2, 1, 8, 8]: "),
        ("", "return x.sum()", "model 'net' returns [] for 2 images, expected logits [N, classes]"),
    ],
)
def test_a_network_that_its_task_cannot_use_is_one_line(own, argument, line, expected):
    said = own(argument, line)
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert said.err.startswith(f"error: {expected}")


def test_weights_that_are_not_finite_are_one_line(bench):
    import torch

    from zsqbench.zoo.models import load_named

    state = load_named("resnet20").module.state_dict()
    state["conv1.weight"][0] = torch.nan
    torch.save(state, bench.folder / "nan.pth")
    said = bench.zsqbench("doctor", "resnet20", "--weights", bench.folder / "nan.pth")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "are NaN or infinite in conv1.weight" in said.err


def test_what_was_found_in_a_file_of_weights_is_noted(bench):
    import torch

    from zsqbench.zoo.models import load_named

    state = {f"model.{name}": value for name, value in load_named("mobilenetv2").module.state_dict().items()}
    torch.save(state, bench.folder / "net.pth")
    said = bench.zsqbench("doctor", "mobilenetv2", "--weights", bench.folder / "net.pth")
    assert (said.code, said.out.count("\nnote: names in net.pth begin with")) == (0, 1), said


def test_it_says_what_it_does_once_it_takes_long(bench, monkeypatch):
    monkeypatch.setattr("zsqbench.cli.doctor.PATIENCE", -1.0)
    said = bench.zsqbench("doctor", "a", "--suite", bench.file)
    assert said.err.splitlines() == [
        "examining the network",
        "preparing a student at hw/w4a4",
        "measuring the float network on toytask",
    ]


MISTAKES = {
    "an unknown model": (["resnet21"], "unknown model 'resnet21'; did you mean 'resnet20'? known: "),
    "a file": (["net.py"], "model 'net.py' is a file: name it under 'models' in a suite, and give --suite"),
    "no weights": (["cifar_resnet20"], "model 'cifar_resnet20' comes without weights; give 'weights': a file, or none"),
    "absent weights": (["resnet20", "--weights", "x.pt"], "there is no file x.pt; expected a file of weights, 'none'"),
    "no file of one's own": (
        ["resnet20", "--weights", "built"],
        "--weights built is for a .py file of yours, and 'resnet20' is not one: a named network has its own where no",
    ),
    "an unknown suite": (["resnet20", "--suite", "smokes"], "there is no suite file smokes; did you mean"),
    "an unknown model of a suite": (["zzz", "--suite", "TOY"], "unknown model 'zzz'; known: a, b, without_bn"),
    "an unknown plugin": (["resnet20", "--no-plugin", "rtm"], "unknown plugin 'rtm' in --no-plugin; did you mean"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(bench, mistake):
    arguments, expected = MISTAKES[mistake]
    said = bench.zsqbench("doctor", *(bench.file if word == "TOY" else word for word in arguments))
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said.err
    assert said.err.startswith(f"error: {expected}")


def test_an_unknown_scheme_of_a_suite_is_one_line(bench):
    bench.matrix("scheme: hww/w4a4")
    said = bench.zsqbench("doctor", "a", "--suite", bench.file)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'?" in said.err
