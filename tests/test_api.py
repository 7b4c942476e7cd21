"""zsqbench from Python: run, plan, results, and what a run made, taken out of the store by another process."""

import json
import pkgutil
import shutil

import pytest

import zsqbench
from zsqbench import ZSQBenchError
from zsqbench.reports.resultfile import ResultFile
from zsqbench.steps.evaluations import read_samples
from zsqbench.store import Store

CELL = "digits:resnet20:noise_short:rtn:hw/w4a4:0"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke suite, of which one cell was run: where, and what the run said."""
    folder = tmp_path_factory.mktemp("smoke")
    places = {"home": folder / "home", "results": folder / "results"}
    report = zsqbench.run(
        "smoke", **places, select="noise_short and w4a4", workers=0, without=["mlflow", "progress"], device="cpu"
    )
    return places, report


@pytest.fixture
def ran(bench):
    """The arguments of a suite of two toy cells that was run."""
    bench.matrix("quantizer: [toyq, q], seed: 1", head="quantizers: {q: {method: toyq, shift: 0.5}}")
    assert bench.run().code == 0
    return {"suite": bench.file, "results": bench.results}


def places_of(bench, results=True):
    return {"home": bench.home} | ({"results": bench.results} if results else {})


# --- run and plan ---------------------------------------------------------------------------------------------------


def test_a_run_says_what_became_of_each_cell_and_finishes_everything_itself(smoke):
    places, report = smoke
    assert [(result.cell, result.status) for result in report.results] == [(CELL, "done")]
    assert (report.failed, report.interrupted, report.background_failures) == (False, False, {})
    assert (places["results"] / "smoke.md").read_text() == f"{report.table}\n"
    assert list(ResultFile(places["results"] / "smoke.jsonl").read()) == [("smoke", CELL)]


def test_a_run_takes_what_its_command_takes(bench):
    bench.write("root/data/eval.txt", "3")
    bench.write("root/data/train.txt", "4")
    report = zsqbench.run(
        str(bench.file),
        home=str(bench.home),
        results=str(bench.results),
        data_root=str(bench.folder / "root"),
        select="w4a4:1",
        overrides=["generators.toy.images=3"],
        without=("mlflow", "progress"),
        workers=0,
    )
    (row,) = report.results
    assert (row.seed, row.methods["generator"]["changed"], row.data["calibrated"]) == (1, {"images": 3}, 3)
    assert list(bench.statuses()) == [row.cell]


def test_a_failed_cell_is_no_error_of_the_run(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: [bad, toy]")
    report = zsqbench.run(bench.file, **places_of(bench), workers=0, without=("mlflow", "progress"))
    assert (report.failed, [result.status for result in report.results]) == (True, ["failed", "done"])


def test_a_plan_says_what_a_run_would_do_and_runs_nothing(bench):
    plan = zsqbench.plan(bench.file, **places_of(bench), select="w4a4:1")
    assert [planned.cell.name for planned in plan.cells] == ["toytask:a:toy:toyq:hw/w4a4:1"]
    assert [step.kind for step in plan.to_do().values()] == ["baseline", "generate", "quantize", "evaluate", "diagnose"]
    assert (bench.calls(), bench.results.exists()) == ([], False)
    bench.run()
    plan = zsqbench.plan(bench.file, **places_of(bench))
    assert ([plan.is_finished(planned) for planned in plan.cells], plan.to_do()) == ([True, True], {})


# --- results --------------------------------------------------------------------------------------------------------


def test_results_have_a_row_for_each_cell_with_options_and_seconds_as_columns(ran):
    frame = zsqbench.results(**ran)
    assert list(frame["cell"]) == ["toytask:a:toy:toyq:hw/w4a4:1", "toytask:a:toy:q:hw/w4a4:1"]
    assert list(frame["quantizer.shift"]) == [0.0, 0.5]
    assert list(frame["generator.images"]) == [4, 4]
    assert list(frame["quantizer.method"]) == ["toyq", "toyq"]
    assert (frame["seconds.generate"] > 0).all()
    assert (frame["peak_memory.quantize"] > 0).all()
    assert list(frame["metrics.top1"]) == [row["metrics"]["top1"] for row in rows_of(ran)]
    assert {"status", "seed", "settings.precision", "data.calibrated", "task.samples", "keys.evaluate"} <= set(frame)


def rows_of(ran):
    return [json.loads(line) for line in (ran["results"] / "toysuite.jsonl").read_text().splitlines()]


def test_results_hold_the_options_that_the_suite_left_to_the_method(bench):
    bench.add_plugin("""
class Learns(ToyQuantizer):
    name = "learns"
    lr: zsqbench.Auto[float] = zsqbench.auto(description="learning rate")

    def automatic(self, network, scheme):
        return {"lr": 0.5 if network.classes == 10 else 0.1}
""")
    bench.matrix("quantizer: learns")
    assert bench.run().code == 0
    frame = zsqbench.results(bench.file, results=bench.results)
    assert list(frame["quantizer.lr"]) == [0.5]


def test_results_hold_what_a_quantizer_started_from_and_the_oracle(bench):
    bench.add_plugin("""
class Fine(Keeper):
    name = "fine"
    start: str = "toyq"
""")
    bench.matrix("quantizer: fine")
    assert bench.run().code == 0
    (row,) = zsqbench.results(bench.file, results=bench.results).to_dict("records")
    assert (row["quantizer.start"], row["quantizer.start.method"], row["quantizer.start.shift"]) == ("toyq", "toyq", 0)
    assert (row["oracle.epoch"], row["oracle.metrics.top1"], row["seconds.start"] > 0) == (1, row["metrics.top1"], True)


def test_results_show_a_row_that_a_hand_changed_as_failed_where_its_artifact_is_at_hand(ran, bench):
    path = ran["results"] / "toysuite.jsonl"
    path.write_text(path.read_text().replace('"top1":', '"top1":9', 1))
    frame = zsqbench.results(**ran, home=bench.home)
    assert list(frame["status"]) == ["failed", "done"]
    assert list(zsqbench.results(**ran, home=bench.folder / "elsewhere")["status"]) == ["done", "done"]


def test_results_are_those_of_the_cells_that_the_suite_has_with_these_overrides(ran):
    frame = zsqbench.results(**ran, overrides=["matrix.0.quantizer=q"])
    assert list(frame["quantizer"]) == ["q"]
    assert "matrix.9" in complaint(zsqbench.results, **ran, overrides=["matrix.9.quantizer=q"])


def test_results_may_be_selected(ran):
    assert list(zsqbench.results(**ran, select="not :q:")["quantizer"]) == ["toyq"]


# --- students and images --------------------------------------------------------------------------------------------


def test_two_methods_are_compared_as_data(ran, bench):
    found = zsqbench.compare(**ran, a="toyq", b=":q:", home=bench.home, margin=100)
    (pair,) = found.pairs
    values = dict(zip(zsqbench.results(**ran)["quantizer"], zsqbench.results(**ran)["metrics.top1"], strict=True))
    assert (pair.a.mean, pair.b.mean) == (values["toyq"], values["q"])
    assert pair.difference.points == pytest.approx(values["q"] - values["toyq"])
    assert (found.suite, found.failing, found.left_out, pair.passes) == ("toysuite", (), (), True)


def test_a_suite_file_that_is_wrong_elsewhere_hides_no_rows_and_is_told_once(ran, bench, caplog):
    bench.file.write_text(bench.file.read_text().replace("seed: 1", "seed: one"))
    assert len(zsqbench.compare(**ran, a="toyq", b=":q:", other=bench.results, home=bench.home).pairs) == 1
    assert caplog.text.count("all rows of the suite are taken") == 1


def test_what_cannot_be_compared_is_refused(ran, bench):
    said = complaint(zsqbench.compare, **ran, a="toyq", b="qq", home=bench.home)
    assert said.startswith(f"none of 2 rows in {ran['results']} matches B, 'qq'")
    said = complaint(zsqbench.compare, bench.file, "toyq", "q", results=bench.folder)
    assert said.startswith("there are no results of toysuite in")


def first_predictions(student, preprocess, count):
    """The logits of a network for the first of the evaluated digits, each of them alone."""
    import torch

    from zsqbench.zoo.image_data import find_digits

    images = [sample.open() for sample in find_digits().evaluation.samples()[:count]]
    with torch.no_grad():
        return [int(student(preprocess(image)).argmax()) for image in images]


def test_a_student_says_of_a_digit_what_it_said_when_it_was_evaluated(smoke):
    places, report = smoke
    student, preprocess = zsqbench.load_student("smoke", CELL, **places)
    kept = read_samples(Store(places["home"]).read("evaluate", report.results[0].keys["evaluate"]))["predictions"]
    assert student.training is False
    assert first_predictions(student, preprocess, 200) == kept[:200].tolist()


def test_a_student_gives_the_logits_that_its_evaluation_saw(bench):
    """The toy task keeps what the network gave; a batch of one gives the same as the batch of all."""
    bench.add_plugin("""
class Keeps(ToyTask):
    name = "keeps"

    def evaluate(self, module, pretrained, ctx):
        images = self.images(self.samples, "eval.txt", ctx)
        return zsqbench.Evaluation({"top1": 50.0}, tensors={"images": images, "logits": module(images)})

    def preprocessor(self, pretrained):
        return lambda image: image[None]
""")
    bench.matrix("task: keeps, quantizer: rtn")
    assert bench.run().code == 0
    import torch

    kept = {name: torch.from_numpy(values) for name, values in read_samples(bench.artifact("evaluate")).items()}
    student, preprocess = zsqbench.load_student(bench.file, "rtn", **places_of(bench))
    with torch.no_grad():
        logits = torch.cat([student(preprocess(image)) for image in kept["task.images"]])
    assert torch.allclose(logits, kept["task.logits"], atol=1e-6)


@pytest.mark.slow("its process imports torch")
def test_a_student_and_images_are_there_in_another_process_and_folder(smoke, python, tmp_path):
    places, report = smoke
    done = python(
        f"""
        import json
        import zsqbench
        from pathlib import Path
        student, preprocess = zsqbench.load_student("smoke", {CELL!r}, home={str(places["home"])!r},
                                                    results={str(places["results"])!r})
        from zsqbench.zoo.image_data import find_digits
        images = [sample.open() for sample in find_digits().evaluation.samples()[:20]]
        found = [int(student(preprocess(image)).argmax()) for image in images]
        images = zsqbench.load_images("smoke", {CELL!r}, home=Path({str(places["home"])!r}),
                                      results={str(places["results"])!r})
        print(json.dumps([found, list(images.shape), str(images.dtype), images.sum().item()]))
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found, shape, dtype, total = json.loads(done.stdout)
    kept = read_samples(Store(places["home"]).read("evaluate", report.results[0].keys["evaluate"]))["predictions"]
    assert found == kept[:20].tolist()
    assert (shape, dtype) == ([16, 1, 16, 16], "torch.float32")
    assert total == zsqbench.load_images("smoke", CELL, **places).sum().item()


def test_a_cell_is_found_by_a_part_of_its_name(smoke):
    places, _ = smoke
    assert zsqbench.load_images("smoke", "noise_short", **places).shape == (16, 1, 16, 16)


def test_a_student_of_a_suite_with_odd_names_is_loaded(bench):
    bench.add_plugin("class Says(ToyTask):\n    name = 'says'\n    def preprocessor(self, pretrained): return None\n")
    bench.matrix('task: says, quantizer: "q (my own)"', head='quantizers: {"q (my own)": {method: toyq, shift: 2.0}}')
    assert bench.run().code == 0
    student, _ = zsqbench.load_student(bench.file, bench.row()["cell"], **places_of(bench))
    assert student[-1].bias.mean() > 1


def test_a_student_needs_a_plugin_of_the_command_line_again(bench):
    bench.matrix("quantizer: toyq")
    bench.run()
    bench.suite(bench.file.read_text().replace("plugins: [toy.py]\n", ""))
    with pytest.raises(ZSQBenchError, match="unknown quantizer 'toyq'"):
        zsqbench.load_student(bench.file, "toyq", **places_of(bench))
    with pytest.raises(ZSQBenchError, match="task toytask does not say how one image is preprocessed"):
        zsqbench.load_student(bench.file, "toyq", **places_of(bench), plugins=[bench.folder / "toy.py"])


# --- what cannot be meant -------------------------------------------------------------------------------------------


def complaint(call, *arguments, **named):
    with pytest.raises(ZSQBenchError) as error:
        call(*arguments, **named)
    text = str(error.value)
    assert "\n" not in text
    return text


def export_images(*arguments, **named):
    zsqbench.export_images(*arguments, folder="never", **named)


LOADERS = [zsqbench.load_student, zsqbench.load_images, export_images]


@pytest.mark.parametrize("call", LOADERS)
def test_an_unknown_cell_is_refused_with_what_there_is(ran, bench, call):
    said = complaint(call, cell="toytask:a:toy:toyq:hw/w4a4:2", home=bench.home, **ran)
    assert said.startswith("unknown cell 'toytask:a:toy:toyq:hw/w4a4:2'; did you mean 'toytask:a:toy:toyq:hw/w4a4:1'?")


@pytest.mark.parametrize("call", LOADERS)
def test_a_part_of_several_names_is_refused(ran, bench, call):
    assert complaint(call, cell="w4a4", home=bench.home, **ran).startswith("'w4a4' is part of 2 names: ")


def test_a_student_of_a_cell_that_is_not_done_is_refused_with_the_reason(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise RuntimeError('no')\n")
    bench.matrix("generator: bad")
    bench.run()
    said = complaint(zsqbench.load_student, bench.file, "bad", **places_of(bench))
    assert said == "cell toytask:a:bad:toyq:hw/w4a4:0 is failed: generate: RuntimeError: no"


def test_images_of_a_cell_that_reads_none_are_refused(bench):
    bench.matrix("generator: none, quantizer: datafree")
    bench.run()
    said = complaint(zsqbench.load_images, bench.file, "datafree", **places_of(bench))
    assert said == "cell toytask:a:none:datafree:hw/w4a4:- has no calibration images"


@pytest.mark.parametrize(
    ("call", "kind", "what"),
    [
        (LOADERS[0], "quantize", "quantized network"),
        (LOADERS[1], "generate", "calibration set"),
        (LOADERS[2], "generate", "calibration set"),
    ],
)
def test_what_is_gone_is_refused_with_how_to_make_it_again(ran, bench, call, kind, what):
    shutil.rmtree(bench.home / "store" / kind)
    said = complaint(call, cell=":q:", home=bench.home, **ran)
    assert said == (
        f"the {what} of toytask:a:toy:q:hw/w4a4:1 is not in {bench.home}: it was made with another home, or removed; "
        "run the suite with an empty home to make it again"
    )


@pytest.mark.parametrize(("call", "kind"), [(LOADERS[0], "quantize"), *((call, "generate") for call in LOADERS[1:])])
def test_what_is_damaged_is_refused(ran, bench, call, kind):
    for folder in bench.artifacts(kind):
        (folder / "manifest.json").write_text("{")
    assert "is damaged (manifest.json: " in complaint(call, cell=":q:", home=bench.home, **ran)


@pytest.mark.parametrize("call", [zsqbench.run, zsqbench.plan, zsqbench.results, *LOADERS])
def test_an_unknown_suite_is_refused_with_what_is_shipped(call, tmp_path):
    cell = ["cell"] if call in LOADERS else []
    said = complaint(call, "smok", *cell, results=tmp_path)
    assert said.startswith("there is no suite file smok; did you mean 'smoke'? shipped: ")


@pytest.mark.parametrize("call", [zsqbench.results, *LOADERS])
def test_a_suite_without_rows_is_refused_with_how_to_make_them(call, bench):
    cell = ["cell"] if call in LOADERS else []
    said = complaint(call, bench.file, *cell, results=bench.results)
    assert said == f"there are no results of toysuite in {bench.results}; `zsqbench run {bench.file}` makes them"


def test_rows_of_another_schema_are_refused(ran):
    path = ran["results"] / "toysuite.jsonl"
    path.write_text(path.read_text().replace('"schema":2,', ""))
    assert "has rows of schema 1, and this zsqbench reads 2; run the suite again" in complaint(zsqbench.results, **ran)


def test_a_selection_that_matches_nothing_is_refused(ran, bench):
    said = complaint(zsqbench.results, **ran, select="zeroq")
    assert said == "none of the 2 rows of toysuite matches -k 'zeroq'"
    said = complaint(zsqbench.run, ran["suite"], home=bench.home, results=ran["results"], select="zeroq", workers=0)
    assert said == "no cell of suite toysuite can run: none is selected"


def test_a_device_that_a_pool_cannot_have_is_refused(bench):
    said = complaint(zsqbench.run, bench.file, **places_of(bench), device="cuda:1")
    assert said == "--device cuda:1 needs --workers 0; for the pool, set CUDA_VISIBLE_DEVICES instead"


# --- one name for one thing -----------------------------------------------------------------------------------------


def test_no_module_has_the_name_of_a_function_which_its_import_would_replace():
    modules = {module.name for module in pkgutil.iter_modules(zsqbench.__path__)}
    assert not modules & set(zsqbench.__all__)


@pytest.mark.slow("it imports all modules in a process of its own")
def test_plan_and_results_are_functions_whatever_was_imported(ran, bench, python):
    done = python(
        f"""
        import importlib, pkgutil
        import zsqbench
        names = [module.name for module in pkgutil.walk_packages(zsqbench.__path__, "zsqbench.")]
        names = [name for name in names if not name.startswith("zsqbench.templates.") and name != "zsqbench.__main__"]
        for name in names:
            importlib.import_module(name)
        plan = zsqbench.plan({str(bench.file)!r}, home={str(bench.home)!r}, results={str(bench.results)!r})
        frame = zsqbench.results({str(bench.file)!r}, results={str(bench.results)!r})
        assert callable(zsqbench.run)
        print(len(names) > 100, len(plan.cells), len(frame))
        """
    )
    assert done.stdout == "True 2 2\n", done.stderr
