import pytest
from faults import rewrite_manifest

import zsqbench
from zsqbench.errors import CorruptArtifactError
from zsqbench.steps.evaluate import Evaluate
from zsqbench.store import Store


@pytest.mark.parametrize(
    ("drawing", "files", "note"),
    [
        ("Image.new('RGB', (2, 2))", {"picture.png"}, []),
        ("None", set(), []),
        ("1 / 0", set(), ["there is no picture: ZeroDivisionError: division by zero"]),
    ],
)
def test_what_a_task_draws_is_kept_and_costs_no_result(bench, drawing, files, note):
    bench.add_plugin(f"""
class Drawing(ToyTask):
    name = "drawing"

    def picture(self, module, pretrained, ctx):
        from PIL import Image
        return {drawing}

""")
    bench.matrix("task: drawing")
    bench.run()
    assert bench.row()["status"] == "done", bench.row()["reason"]
    evaluated = bench.artifact("evaluate")
    assert ({path.name for path in evaluated.folder.glob("*.png")}, evaluated.notes) == (files, note)


@pytest.mark.parametrize("change", [{"samples": [1]}, {"images_read": "x"}, {"images": {}}, {"summary": ["x"]}])
def test_measurements_of_another_shape_are_damage(bench, change):
    bench.matrix("")
    bench.run()
    found = bench.artifact("evaluate")
    rewrite_manifest(found.folder, content=found.content | change)
    plan = zsqbench.plan(bench.file, home=bench.home, results=bench.results)
    with pytest.raises(CorruptArtifactError):
        Evaluate.row(Store(bench.home), plan.cells[0].keys)


def test_outputs_that_are_clipped_are_counted_where_they_are_evaluated(bench):
    bench.add_plugin("""
class Narrow(ToyQuantizer):
    name = "narrow"

    def prepare(self, teacher, scheme):
        from zsqbench.quant import prepare
        return prepare(teacher.module, scheme, teacher.input_size)

    def quantize(self, student, teacher, data, ctx):
        import torch
        from zsqbench.quant import activation_quantizers, calibrate_weights
        calibrate_weights(student, "minmax")
        for _, quantizer in activation_quantizers(student):
            end = 1e-6 if quantizer.role == "logits" else 100.0
            quantizer.set_range(torch.tensor(-100.0 * end), torch.tensor(end))
""")
    bench.matrix("quantizer: [narrow, toyq]")
    bench.run()
    narrow, other = bench.rows().values()
    (share,) = narrow["clipped"].values()
    assert 0.5 < share <= 1
    assert "clipped" not in other
    assert "become equal; the scheme {base: hw, logits: float}" in (bench.results / "toysuite.md").read_text()


def test_measurements_of_an_older_version_have_neither_clipped_outputs_nor_footnotes(bench):
    bench.matrix("")
    bench.run()
    found = bench.artifact("evaluate")
    older = {name: value for name, value in found.content.items() if name not in ("clipped", "footnotes")}
    rewrite_manifest(found.folder, content=older)
    plan = zsqbench.plan(bench.file, home=bench.home, results=bench.results)
    row = Evaluate.row(Store(bench.home), plan.cells[0].keys)
    assert (row["clipped"], row["footnotes"]) == ({}, [])
