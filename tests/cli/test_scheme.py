import json

import pytest


def test_a_scheme_is_shown_tensor_by_tensor(bench):
    said = bench.zsqbench("scheme", "hw/w4a8", "cifar_resnet20")
    lines = said.out.splitlines()
    assert (said.code, lines[0]) == (0, "hw/w4a8 on cifar_resnet20"), said.err
    assert [line.split() for line in (lines[2], lines[3], lines[23], lines[24])] == [
        ["kind", "tensor", "role", "bits"],
        ["weight", "conv1", "first_weight", "4"],
        ["activation", "input", "input", "float"],
        ["activation", "relu", "relu", "8"],
    ]
    assert lines[-4:] == [
        "weights: 20 at 4 bits (1 first_weight, 18 weight, 1 last_weight)",
        "activations: 20 at 8 bits (19 relu, 1 logits); 11 in float (1 input, 9 addend, 1 pooled)",
        "batch normalisation: folded",
        "grid: the quantizer's choice",
    ]


def test_two_schemes_are_compared(bench):
    said = bench.zsqbench("scheme", "hw/w4a4", "academic/w4a4", "resnet20")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[2:8] == [
        ["kind", "tensor", "role", "hw/w4a4", "academic/w4a4"],
        ["weight", "conv1", "first_weight", "4", "8"],
        ["weight", "linear", "last_weight", "4", "8"],
        ["activation", "relu", "relu/stem", "4", "8"],
        ["activation", "linear", "logits", "4", "float"],
        [],
    ]
    assert "different bits: 2 of 20 weights and 2 of 31 activations" in said.out.splitlines()


def test_a_scheme_is_shown_as_json(bench):
    one = json.loads(bench.zsqbench("scheme", "pot/w8a8", "resnet20", "--format", "json").out)
    assert (one["scheme"], one["grid"], len(one["tensors"])) == ("pot/w8a8", "power_of_two", 51)
    two = json.loads(bench.zsqbench("scheme", "hw/w4a4", "hast/w4a4", "resnet20", "--format", "json").out)
    assert two["tensors"] == [
        {"kind": "activation", "name": "linear", "roles": ["logits"] * 2, "patterns": [None, None], "bits": [4, 32]}
    ]


def test_a_published_network_is_not_downloaded_for_its_structure(bench, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    said = bench.zsqbench("scheme", "hast/w4a4", "torchvision/squeezenet1_1")
    assert (said.code, "26 relu" in said.out) == (0, True), said.err


@pytest.mark.parametrize("name", ["scenedetector", "torchvision/ssdlite320_mobilenet_v3_large"])
def test_a_detector_is_named_as_in_a_suite(bench, name):
    said = bench.zsqbench("scheme", "academic/w4a8", name, "--format", "json")
    tensors = json.loads(said.out)["tensors"]
    last = [tensor["name"] for tensor in tensors if tensor["role"] == "last_weight"]
    outputs = [tensor["name"] for tensor in tensors if tensor["role"] == "logits"]
    assert last == outputs, said.err
    assert len(last) == {"scenedetector": 2}.get(name, 12)


def test_a_suite_brings_models_and_schemes_of_its_own(bench):
    bench.write(
        "my_net.py",
        """
        from torch import nn
        def build():
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        """,
    )
    bench.write(
        "own.yaml",
        """
        name: own
        tasks: {cifar: {method: classification, data: cifar10}}
        schemes: {mine: {base: academic, stem: null, relu: 6}}
        models:
          mynet: {file: my_net.py, weights: none, input_size: [3, 8, 8]}
        matrix:
          - {task: cifar, model: mynet, quantizer: fp32, scheme: float}
        """,
    )
    said = bench.zsqbench("scheme", "mine/w4a4", "mynet", "--suite", bench.folder / "own.yaml")
    assert said.code == 0, said.err
    assert [line.split()[1:] for line in said.out.splitlines()[3:8]] == [
        ["0", "first_weight", "8"],
        ["3", "last_weight", "8"],
        ["input", "input", "float"],
        ["1", "features", "8"],
        ["3", "logits", "float"],
    ]
    said = bench.zsqbench("scheme", "hw/w4a4", "cifar_resnet20", "--suite", bench.folder / "own.yaml")
    assert said.code == 0, said.err  # a named network that the suite does not use


MIXED = 'schemes: {mixed: {base: hw, tensors: {"*": 8, "0": {weight: 6}, "4": {weight: 2, activation: float}}}}'


def test_patterns_of_a_scheme_are_shown_with_what_they_set(bench):
    bench.matrix("scheme: mixed/w4a4", head=MIXED)
    said = bench.zsqbench("scheme", "mixed/w4a4", "a", "--suite", bench.file)
    assert said.code == 0, said.err
    assert said.out.splitlines()[2:] == [
        "kind        tensor  role          bits",
        "weight      0       first_weight  6 by 0",
        "weight      4       last_weight   2 by 4",
        "activation  input   input         8 by *",
        "activation  2       relu          8 by *",
        "activation  4       logits        float by 4",
        "",
        "weights: 1 at 2 bits (1 last_weight); 1 at 6 bits (1 first_weight)",
        "activations: 2 at 8 bits (1 input, 1 relu); 1 in float (1 logits)",
        "bits by pattern: 2 by *, 1 by 0, 2 by 4",
        "batch normalisation: folded",
        "grid: the quantizer's choice",
    ]
    found = json.loads(bench.zsqbench("scheme", "mixed/w4a4", "a", "--suite", bench.file, "--format", "json").out)
    assert found["patterns"] == ["*", "0", "4"]
    assert [tensor["pattern"] for tensor in found["tensors"]] == ["0", "4", "*", "*", "4"]
    said = bench.zsqbench("scheme", "mixed/w8a8", "hw/w8a8", "a", "--suite", bench.file)
    assert said.out.splitlines()[3:7] == [
        "weight      0       first_weight  6 by 0      8",
        "weight      4       last_weight   2 by 4      8",
        "activation  input   input         8 by *      float",
        "activation  4       logits        float by 4  8",
    ]


def test_a_pattern_that_matches_nothing_is_one_line(bench):
    bench.matrix("scheme: mixed/w4a4", head='schemes: {mixed: {base: hw, tensors: {"1": 8}}}')
    said = bench.zsqbench("scheme", "mixed/w4a4", "a", "--suite", bench.file)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "error: scheme mixed/w4a4: the pattern '1' matches no weight and no activation of the network; "
        "`zsqbench scheme hw/w4a4 MODEL` lists its tensors\n"
    )


def test_the_task_of_a_suite_builds_its_models(bench):
    said = bench.zsqbench("scheme", "hw/w4a4", "a", "--suite", bench.file)
    assert (said.code, "activations: 2 at 4 bits (1 relu, 1 logits)" in said.out) == (0, True), said.err


SCHEME_MISTAKES = {
    "an unknown scheme": (
        ["hww/w4a4", "resnet20"], "unknown scheme 'hww' in 'hww/w4a4'; did you mean 'hw'? known: academic, ",
    ),
    "a scheme without bits": (["hw", "resnet20"], "scheme 'hw' is not a placement and bit-widths such as 'hw/w4a4'"),
    "an unknown model": (["hw/w4a4", "resnet21"], "unknown model 'resnet21'; did you mean 'resnet20'? known: "),
    "an unknown network of a library": (
        ["hw/w4a4", "torchvision/resnet19"], "unknown torchvision model 'resnet19'; did you mean 'resnet1",
    ),
    "a file": (["hw/w4a4", "net.py"], "model 'net.py' is a file: name it under 'models' in a suite, and give --suite"),
    "an unknown suite": (["hw/w4a4", "resnet20", "--suite", "smokes"], "there is no suite file smokes; did you mean"),
    "an unknown model of a suite": (
        ["hw/w4a4", "zzz", "--suite", "TOY"], "unknown model 'zzz'; known: a, b, without_bn",
    ),
    "a plugin without a suite": (
        ["hw/w4a4", "resnet20", "--plugin", "toy.py"], "--plugin and --no-plugin are for the methods of a suite; name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SCHEME_MISTAKES)
def test_a_mistake_of_the_scheme_command_is_one_line(bench, mistake):
    arguments, expected = SCHEME_MISTAKES[mistake]
    said = bench.zsqbench("scheme", *(bench.file if word == "TOY" else word for word in arguments))
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said.err
    assert said.err.startswith(f"error: {expected}")


def test_a_misspelt_model_of_a_suite_is_told_with_a_suggestion(bench):
    bench.matrix("model: mynet", head="models: {mynet: {base: a, weights: none}}")
    said = bench.zsqbench("scheme", "hw/w4a4", "mynt", "--suite", bench.file)
    assert said.err == f"error: unknown model 'mynt' in {bench.file}; did you mean 'mynet'? known: mynet\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("features_sum: 8", "unknown key 'features_sum'; did you mean 'feature_sum'? known: activation, activation_"),
        ("activations: a", "unknown key 'activations'; did you mean 'activation'? known: "),
        ("stem: 1", "schemes.mine.stem: expected 'w' (weight bits), 'a' (activation bits), 'float' or 2 to 16 bits"),
        ("relu: null", "schemes.mine.relu: expected 'w' (weight bits), 'a' (activation bits), 'float' or 2 to 16"),
        ("grid: pot", "schemes.mine.grid: expected 'affine', 'symmetric' or 'power_of_two', got \"pot\""),
        (
            "weight_grid: int8",
            "schemes.mine.weight_grid: expected 'affine', 'symmetric' or 'power_of_two', got \"int8\"",
        ),
        ("input_range: pixels", "schemes.mine.input_range: expected 'calibrated' or 'valid', got \"pixels\""),
        (
            "grid: affine, weight_grid: symmetric",
            "schemes.mine: grid affine is for all tensors, and weight_grid is symmetric: give one of the two",
        ),
        ("preactivation: 1", "schemes.mine.preactivation: expected 'w' (weight bits), 'a' (activation bits), 'float'"),
        ("tensors: {conv: 1}", "schemes.mine.tensors.conv: expected 'w' (weight bits), 'a' (activation bits), 'float'"),
        ("tensors: {a.b: {weight: 1}}", "schemes.mine.tensors.a.b.weight: expected 'w' (weight bits), 'a' (activation"),
        ("tensors: {conv: null}", "schemes.mine.tensors.conv: expected 'w' (weight bits), 'a' (activation bits), "),
        ("tensors: {conv: {}}", "schemes.mine.tensors.conv: expected a width, or a mapping of 'weight', 'activation'"),
        ("tensors: {conv: {weigth: 4}}", "unknown key 'weigth'; did you mean 'weight'? known: activation, "),
        ("tensors: [conv]", "schemes.mine.tensors: expected a"),
    ],
)
def test_a_wrong_role_of_a_scheme_is_one_line_with_its_place(bench, key, expected):
    bench.matrix("scheme: mine/w4a4", head=f"schemes: {{mine: {{base: hw, {key}}}}}")
    said = bench.zsqbench("scheme", "mine/w4a4", "a", "--suite", bench.file)
    assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
    assert said.err.startswith(f"error: {bench.file}:3: {expected}")


@pytest.mark.parametrize("arguments", [[], ["hw/w4a4"], ["hw/w4a4", "hw/w4a4", "hw/w4a4", "resnet20"]])
def test_a_scheme_command_without_scheme_or_model_says_how_it_is_meant(bench, arguments):
    said = bench.zsqbench("scheme", *arguments)
    assert (said.code, said.err.splitlines()[0]) == (2, "Usage: zsqbench scheme [OPTIONS] SCHEME [SCHEME] MODEL")
