import pytest

from zsqbench.autoquantize.candidates import CANDIDATES, LEVELS
from zsqbench.autoquantize.request import SCHEMES, Request
from zsqbench.autoquantize.suites import Judged, candidates_suite, held_out_suite
from zsqbench.errors import ZSQBenchError
from zsqbench.suite import load_suite


def request(home, images=None):
    return Request("resnet20", {"base": "resnet20"}, "int4", 60.0, home, images)


def test_images_that_are_judged_on_have_another_seed_than_those_calibrated_on(tmp_path):
    (tmp_path / "file").touch()
    first = load_suite(held_out_suite(request(tmp_path), LEVELS[0]))
    second = load_suite(
        candidates_suite(
            request(tmp_path), LEVELS[0], CANDIDATES["int4"], "agreement", Judged(tmp_path / "file", 1), relu6=True
        )
    )
    assert [cell.name for cell in first.cells] == ["held_out:network:dgh:fastest:qdq_float_logits/w4a8:1"]
    assert {cell.seed for cell in second.cells if cell.generator == "dgh"} == {0}
    assert first.generators["dgh"].digest == second.generators["dgh"].digest


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("relu6", [True, False])
def test_every_quantizer_runs_at_the_scheme_of_each_target(tmp_path, target, relu6):
    made = Request("resnet20", {"base": "resnet20"}, target, 60.0, tmp_path)
    suite = load_suite(held_out_suite(made, LEVELS[0], relu6=relu6))
    scheme = suite.schemes[made.scheme]
    assert (scheme.placement.logits, scheme.placement.weight_grid) == ("float", "symmetric")
    for variant in suite.quantizers.values():
        assert variant.quantizer.rejects(scheme) is None


@pytest.mark.parametrize(("generator", "task"), [("dgh", "fidelity"), ("noise", "fidelity"), ("psaq_vit", "agreement")])
def test_images_of_classes_are_made_for_a_classifier(tmp_path, generator, task):
    suite = load_suite(held_out_suite(request(tmp_path), LEVELS[0], generator))
    assert suite.task("held_out").name == task


@pytest.mark.parametrize("target", SCHEMES)
def test_repq_vit_is_no_candidate_because_it_refuses_symmetric_weights(tmp_path, target):
    made = Request("resnet20", {"base": "resnet20"}, target, 60.0, tmp_path)
    suite = load_suite(held_out_suite(made, LEVELS[0]))
    method = suite.catalog.find("quantizer", "repq_vit").method(round_zero_point=True)
    assert "symmetric" in method.rejects(suite.schemes[made.scheme])


def test_the_suite_has_a_cell_for_each_candidate_in_their_order(tmp_path):
    (tmp_path / "file").touch()
    made = request(tmp_path, tmp_path / "mine")
    suite = load_suite(
        candidates_suite(made, LEVELS[0], CANDIDATES["int4"], "fidelity", Judged(tmp_path / "file", 50), relu6=False)
    )
    found = [(cell.quantizer, cell.generator) for cell in suite.cells]
    assert found == [(candidate.label, candidate.generator) for candidate in CANDIDATES["int4"]]
    task = suite.task("held_out")
    expected = ("fidelity", tmp_path / "mine", 50, tmp_path / "file")
    assert (task.name, task.folder, task.most, task.file) == expected


def test_a_home_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ZSQBenchError, match=r"cannot write to .*/file: .*; see --home"):
        held_out_suite(request(tmp_path / "file"), LEVELS[0])
