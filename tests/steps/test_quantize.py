import json

import pytest
from faults import flip

from zsqbench import CalibrationSet

BAD_QUANTIZERS = {
    "raises": ("raise RuntimeError('no')", "quantize: RuntimeError: no"),
    "changes the teacher": (
        "teacher.module[0].weight.zero_()",
        "quantize: quantizer bad changed the teacher's weights or buffers; it must not",
    ),
    "adds a tensor": (
        "student.register_buffer('more', torch.ones(1))",
        "evaluate: RuntimeError: the state and the student differ in more",
    ),
    "changes a shape": (
        "student[4].bias = torch.nn.Parameter(torch.ones(3))",
        "evaluate: RuntimeError: Error(s) in loading state_dict",
    ),
}


@pytest.mark.parametrize("what", BAD_QUANTIZERS)
def test_a_quantizer_that_goes_wrong_fails_its_cell_with_the_reason_and_no_other(bench, what):
    body, reason = BAD_QUANTIZERS[what]
    bench.add_plugin(f"""
import torch

class Bad(ToyQuantizer):
    name = "bad"

    def quantize(self, student, teacher, data, ctx):
        {body}
""")
    bench.matrix("quantizer: [bad, toyq]")
    bench.run()
    bad, good = bench.rows().values()
    assert (bad["status"], good["status"]) == ("failed", "done")
    assert bad["reason"].startswith(reason), bad["reason"]


def test_a_student_that_is_no_copy_does_not_reach_the_next_step(bench):
    bench.add_plugin("""
class Hooked(ToyQuantizer):
    name = "hooked"

    def prepare(self, teacher, scheme):
        teacher.module.register_forward_hook(lambda module, args, out: out * 0)
        return teacher.module

    def quantize(self, student, teacher, data, ctx):
        pass
""")
    bench.matrix("quantizer: toyq")
    bench.run()
    alone = bench.rows()["toytask:a:toy:toyq:hw/w4a4:0"]["metrics"]
    bench.matrix("quantizer: [hooked, toyq]")
    bench.run_anew("other")
    assert alone == bench.rows()["toytask:a:toy:toyq:hw/w4a4:0"]["metrics"]


HANDS_OVER = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        import json, torch
        started = None if ctx.start is None else [ctx.start[-1].bias.tolist(), ctx.start.training]
        (HERE / "start.json").write_text(json.dumps([teacher.module[-1].bias.tolist(), started]))
        super().quantize(student, teacher, data, ctx)
"""


def handed(bench, *options):
    bench.add_plugin(HANDS_OVER)
    bench.matrix("quantizer: fine", head=f"quantizers: {{{', '.join(options)}}}")
    said = bench.run()
    assert said.code == 0, said.err
    return json.loads((bench.folder / "start.json").read_text())


def test_a_quantizer_is_handed_the_student_that_it_starts_from(bench):
    bias, (found, training) = handed(
        bench, "fine: {method: starts, start: first}", "first: {method: datafree, shift: 2.0}"
    )
    assert (found, training) == (pytest.approx([value + 2.0 for value in bias]), False)


def test_a_quantizer_that_starts_from_nothing_is_handed_none(bench):
    assert handed(bench, "fine: {method: starts}")[1] is None


def test_a_start_of_a_start_is_what_it_ended_with(bench):
    bias, (found, _) = handed(
        bench,
        "fine: {method: starts, start: middle}",
        "middle: {method: starts, start: first, shift: 1.0}",
        "first: {method: datafree, shift: 2.0}",
    )
    (images,) = (CalibrationSet.load(folder / "calibration.safetensors") for folder in bench.artifacts("generate"))
    assert found == pytest.approx([value + 1.0 + images.images.mean().item() for value in bias])


def test_a_start_with_quantizers_is_restored_with_its_integers(bench):
    bench.add_plugin("""
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        from zsqbench.quant import quantized_layers, take_over
        assert [layer.is_finalized for _, layer in quantized_layers(ctx.start)] == [True, True]
        ctx.start(data.images)
        take_over(student, ctx.start)
""")
    bench.matrix("quantizer: fine", head="quantizers: {fine: {method: starts, start: rtn}}")
    bench.run()
    assert bench.row()["status"] == "done", bench.row()["reason"]


def test_what_a_quantizer_starts_from_prepares_the_student_for_both(bench):
    bench.add_plugin("""
class Wider(ToyQuantizer):
    name = "wider"

    def prepare(self, teacher, scheme):
        import torch
        student = super().prepare(teacher, scheme)
        student.register_buffer("wider", torch.zeros(()))
        return student


class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        student.wider.copy_(ctx.start.wider + 1)
""")
    quantizers = "{finer: {method: starts, start: fine}, fine: {method: starts, start: wider}}"
    bench.matrix("quantizer: finer", head=f"quantizers: {quantizers}")
    bench.run()
    assert bench.row()["status"] == "done", bench.row()["reason"]


STARTS = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        note(f"from {ctx.start[-1].bias[0].item():.3f}")
        super().quantize(student, teacher, data, ctx)

class Bad(ToyQuantizer):
    name = "bad"

    def quantize(self, *all):
        raise RuntimeError("no")
"""


def started(bench, first="toyq", block="quantizer: fine"):
    bench.add_plugin(STARTS)
    bench.matrix(block, head=f"quantizers: {{fine: {{method: starts, start: first}}, first: {{method: {first}}}}}")
    return bench.run()


def test_what_two_cells_start_from_is_made_once(bench):
    started(bench, block="quantizer: [fine, first]")
    calls = bench.calls()
    assert (calls.count("quantize 0"), list(bench.statuses().values())) == (3 - 1, ["done", "done"])
    assert [call.split()[0] for call in calls].count("from") == 1


def test_a_row_holds_what_its_quantizer_started_from(bench):
    started(bench)
    (row,) = bench.rows().values()
    assert row["keys"]["start"] in {path.name for path in bench.artifacts("quantize")}
    assert (
        sorted(row["seconds"])
        == sorted(row["peak_memory"])
        == ["baseline", "evaluate", "generate", "quantize", "start"]
    )
    described = row["methods"]["quantizer"]
    assert (described["changed"], described["start"]["method"]) == ({"start": "first"}, "toyq")


def test_a_start_that_fails_fails_its_cell_with_its_name(bench):
    said = started(bench, first="bad")
    (row,) = bench.rows().values()
    assert (said.code, row["status"], row["reason"]) == (1, "failed", "start first: RuntimeError: no")
    assert "RuntimeError: no" in row["traceback"]


def test_a_damaged_start_is_made_again_where_it_is_needed(bench):
    started(bench, block="quantizer: first")
    flip(bench.artifacts("quantize")[0] / "model.safetensors")
    bench.calls()
    said = started(bench)
    assert (said.code, [call.split()[0] for call in bench.calls()].count("quantize")) == (0, 2)


def test_a_start_that_is_gone_is_no_reason_to_run_a_finished_cell_again(bench):
    started(bench)
    rows = (bench.results / "toysuite.jsonl").read_bytes()
    key = next(iter(bench.rows().values()))["keys"]["start"]
    (bench.home / "store" / "quantize" / key).rename(bench.folder / "aside")
    bench.calls()
    assert (bench.run().code, bench.calls(), (bench.results / "toysuite.jsonl").read_bytes()) == (0, [], rows)


def test_at_qdq_the_artifact_and_what_is_evaluated_have_the_image_on_valid_pixels(bench):
    bench.add_plugin("""
class Looks(ToyTask):
    name = "looks"

    def evaluate(self, module, pretrained, ctx):
        image = getattr(module, "activation_quantizers", None)
        if image is not None:
            image = image.get_submodule("input")
            note(f"image {image.scale.item() * 255:.4f} {image.zero_point.item():.0f} {image.enabled}")
        return super().evaluate(module, pretrained, ctx)
""")
    bench.matrix("task: looks, quantizer: rtn, scheme: qdq/w8a8", head="tasks: {looks: {method: looks}}")
    assert bench.run().code == 0
    artifact = bench.artifact("quantize")
    tensors = {(each["kind"], each["name"]): each for each in artifact.content["tensors"]}
    image, weight = tensors["activation", "input"], tensors["weight", "0"]
    # pixels are normal noise, and valid ones lie between 0 and 1
    assert (image["grid"], image["low"], image["high"]) == ("affine", 0, pytest.approx(1))
    assert weight["grid"] == "symmetric"
    assert "image 1.0000 0 True" in bench.calls()
    bench.run()
    assert bench.calls() == []


def test_footnotes_of_all_that_a_result_is_made_of_stand_in_its_row_and_below_the_table(bench):
    bench.add_plugin("""
class Telling(Toy):
    name = "telling"

    def generate(self, teacher, ctx):
        ctx.footnote("images are grey")
        ctx.note("not for tables")
        return super().generate(teacher, ctx)

class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        ctx.footnote("biases are large" if self.start is None else "trained for long")
        super().quantize(student, teacher, data, ctx)
""")
    bench.matrix("generator: telling, quantizer: fine", head="quantizers: {fine: {method: starts, start: starts}}")
    bench.run()
    told = ["images are grey", "biases are large", "trained for long"]
    assert bench.row()["footnotes"] == told
    table = (bench.results / "toysuite.md").read_text()
    assert all(f"- [{number}] {line}" in table for number, line in enumerate(told, start=1))
    assert "not for tables" not in table
