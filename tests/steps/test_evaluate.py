import pytest


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
