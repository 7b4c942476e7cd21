import pytest
from brief import parametrize_briefly
from pydantic import Field

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.scheme import Placement, parse_scheme
from zsqbench.testing import conformance, tiny_teachers
from zsqbench.testing.conformance import check_method, reduce_options


class Big(zsqbench.Generator):
    name = "big"

    images: int = 1024
    batch_size: int = Field(100, ge=10)
    weight_iterations: int = 20_000
    iterations: int | None = None
    search_images: int | None = None
    odd_steps: int = Field(1001, multiple_of=1001)
    epochs: float = 10.0
    epochs_of_rest: int = 1000
    updates_per_epoch: int = 200
    warmup: float = 0.2
    steps: int = 2
    renamed: int = Field(500, alias="max_steps")

    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(ctx.randn(self.images, *teacher.input_size))


SMALL = {"images": 8, "batch_size": 16, "weight_iterations": 4, "iterations": 4, "updates_per_epoch": 4, "max_steps": 4}


def test_options_that_say_how_much_there_is_to_do_are_small_as_far_as_they_may_be():
    method, reduced = reduce_options(Big, {})
    assert reduced == SMALL
    assert method.changed_options() == SMALL


def test_options_that_are_given_stay():
    method, reduced = reduce_options(Big, {"images": 100, "max_steps": 7})
    assert (method.images, method.renamed) == (100, 7)
    assert reduced.keys() == SMALL.keys() - {"images", "max_steps"}


def test_options_of_a_task_stay():
    classification = load_plugins().find("task", "classification").method
    assert reduce_options(classification, {"data": "digits"})[1] == {}


class Pair(Big):
    name = "pair"
    path: zsqbench.InputFile
    other: int = Field(0, le=0)


def test_options_that_are_wrong_are_one_line_in_our_words():
    with pytest.raises(ZSQBenchError) as raised:
        reduce_options(Pair, {"images": "many", "batchsize": 4, "other": 1})
    lines = str(raised.value).split("; ")
    assert "option of pair 'images': expected a valid integer, got \"many\"" in lines
    assert "option of pair 'path' is missing: give --set path=VALUE" in lines
    assert "option of pair 'other': expected less than or equal to 0, got 1" in lines
    assert "unknown option of pair 'batchsize'" in lines
    assert any(line.startswith("did you mean 'batch_size'? known: ") for line in lines)


def test_options_that_do_not_go_together_are_one_line():
    classification = load_plugins().find("task", "classification").method
    with pytest.raises(ZSQBenchError, match=r"^options of classification: data: imagefolder needs 'root'"):
        reduce_options(classification, {"data": "imagefolder"})


def test_a_file_is_looked_for_below_the_data_root(tmp_path):
    (tmp_path / "images.safetensors").touch()
    method, _ = reduce_options(Pair, {"path": "images.safetensors"}, tmp_path)
    assert method.path == tmp_path / "images.safetensors"


def outcomes(method):
    return {finding.check: finding.outcome for finding in check_method(method, {}).findings}


def test_a_scheme_that_is_rejected_is_not_checked():
    fp32 = load_plugins().find("quantizer", "fp32").method
    found = outcomes(fp32())
    assert (found["works at hw/w4a4"], found["works on plain BN, float"]) == ("not checked", "ok")


class Affine(zsqbench.Quantizer):
    name = "affine"

    def quantize(self, student, teacher, data, ctx):
        raise AssertionError


class Symmetric(Affine):
    name = "symmetric"
    weight_grids = ("affine", "symmetric")


def test_a_quantizer_is_checked_in_full_at_its_first_scheme_and_on_networks_at_the_others(monkeypatch):
    tried = []
    monkeypatch.setattr(conformance, "examine_quantizer", examination(tried))
    no_relu = "residual, concat and SiLU"
    left_out = {f"works on {no_relu}, hast/w4a4": "not checked"}
    assert outcomes(Affine()) == {"works at qdq/w4a4": "not checked"} | left_out
    assert tried == [
        ("hw/w4a4", None),
        ("academic/w4a4", NETWORKS),
        ("hast/w4a4", [name for name in NETWORKS if name != no_relu]),
        ("hw_strict/w4a4", NETWORKS),
    ]
    assert outcomes(Symmetric()) == left_out
    assert tried[-1] == ("qdq/w4a4", NETWORKS)


NETWORKS = list(tiny_teachers())


def examination(tried):
    """In place of the checks of a quantizer: notes the scheme and the networks."""

    def examine(_, scheme, teachers=None):
        tried.append((scheme.name, teachers and list(teachers)))
        return "a network"

    return examine


def test_a_quantizer_that_does_not_work_at_its_first_scheme_is_not_tried_at_others(monkeypatch):
    monkeypatch.setattr(conformance, "examine_quantizer", lambda *_: None)
    findings = check_method(Affine(), {}).findings
    assert findings[-1].check == "works at hw_strict/w4a4"
    assert findings[-1].reason == "it does not even work at hw/w4a4"


def test_schemes_that_are_given_take_the_place_of_the_usual_ones(monkeypatch):
    tried = []
    monkeypatch.setattr(conformance, "examine_quantizer", examination(tried))
    schemes = [parse_scheme(text) for text in ("qdq/w8a8", "repq/w4a4", "pot/w4a4", "hw/w2a2")]
    findings = {finding.check: finding for finding in check_method(Affine(), {}, schemes=schemes).findings}
    assert tried == [("repq/w4a4", None), ("hw/w2a2", NETWORKS)]
    assert list(findings) == ["works at qdq/w8a8", "works at pot/w4a4"]
    assert findings["works at pot/w4a4"].reason.startswith("it rejects this scheme: ")


def test_widths_by_names_of_tensors_are_left_out_and_that_is_told(monkeypatch):
    tried = []
    monkeypatch.setattr(conformance, "examine_quantizer", lambda _, scheme: tried.append(scheme))
    scheme = parse_scheme("mine/w4a4", {"mine": Placement(tensors={"layer1.*": 8}, pooled="float")})
    (finding,) = check_method(Affine(), {}, schemes=[scheme]).findings
    assert (finding.check, finding.outcome) == ("patterns of mine/w4a4", "not checked")
    assert finding.reason == "layer1.* name tensors of your network; the rest is checked"
    assert tried == [parse_scheme("mine/w4a4", {"mine": Placement(pooled="float")})]


def test_a_quantizer_that_rejects_every_scheme_is_not_checked():
    class Picky(zsqbench.Quantizer):
        name = "picky"

        def rejects(self, scheme):
            return "it likes none"

        def quantize(self, student, teacher, data, ctx):
            raise AssertionError

    assert outcomes(Picky())["quantizes"] == "not checked"


def test_an_engine_has_no_checks():
    with pytest.raises(ZSQBenchError, match="there are no checks of an engine"):
        check_method(load_plugins().find("engine", "in_process").method(), {})


@parametrize_briefly("kind,name", [("generator", "real"), ("generator", "zeroq")], 1)
def test_a_shipped_method_conforms(kind, name):
    method, reduced = reduce_options(load_plugins().find(kind, name).method, {})
    assert check_method(method, reduced).passed


def test_a_quantizer_that_leaves_its_work_to_another_is_not_checked_alone():
    kind = load_plugins().find("quantizer", "mixed").method
    checked = check_method(*reduce_options(kind, {"over": "rtn", "layers": 1}))
    (finding,) = [finding for finding in checked.findings if finding.outcome == "not checked"]
    assert finding.reason == "it leaves that to 'rtn', which a suite gives it; check that one"
    assert checked.passed
