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
