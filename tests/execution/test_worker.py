import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import isolation, session, worker
from zsqbench.execution import reporter as reporting


def only_row(bench):
    (row,) = bench.rows().values()
    return row


BAD_GENERATORS = {
    "nan": ("x[1, 0, 0, 0] = float('nan')", "generate: generator bad returned NaN or infinite pixels in 1 of 4 images"),
    "inf": ("x[:2] = float('inf')", "generate: generator bad returned NaN or infinite pixels in 2 of 4 images"),
    "shape": (
        "x = x[:, :, :4]",
        "generate: generator bad returned images of shape (4, 3, 4, 8); expected ('N', 3, 8, 8)",
    ),
    "no batch": ("x = x[0]", "generate: generator bad returned images of shape (3, 8, 8); expected ('N', 3, 8, 8)"),
    "no images": (
        "x = x[:0]",
        "generate: generator bad returned images of shape (0, 3, 8, 8); expected ('N', 3, 8, 8)",
    ),
    "type": ("x = x.double()", "generate: generator bad returned torch.float64 images; expected torch.float32"),
    "labels": ("labels = torch.zeros(3)", "generate: generator bad returned 3 labels for 4 images"),
    "tensor": ("return x", "generate: generator bad returned Tensor; expected a CalibrationSet"),
    "nothing": ("return None", "generate: generator bad returned NoneType; expected a CalibrationSet"),
    "raises": ("raise ValueError('no luck')", "generate: ValueError: no luck"),
    "raises lines": ("raise ValueError('no\\nluck')", "generate: ValueError: no luck"),
    "raises nothing": ("raise ValueError", "generate: ValueError"),
    "raises an assertion": ("assert not len(x)", "generate: AssertionError"),
    "exits": ("sys.exit(0)", "generate: SystemExit: 0"),
    "changes weights": (
        "teacher.module[0].weight.mul_(2)",
        "generate: generator bad changed the teacher's weights or buffers; it must not",
    ),
    "changes statistics": (
        "teacher.module.train()(x)",
        "generate: generator bad changed the teacher's weights or buffers; it must not",
    ),
    "images that are none": ("x = x.tolist()", "generate: "),
    "odd text": ("raise ValueError('caf\\udce9')", "generate: ValueError: caf"),
}


def bad_generator(bench, body, name="bad"):
    bench.add_plugin(f"""
import torch

class Bad(Toy):
    name = {name!r}

    def generate(self, teacher, ctx):
        labels = None
        x = ctx.randn(self.images, *teacher.input_size)
        {body}
        return zsqbench.CalibrationSet(x, labels)
""")


@pytest.mark.parametrize("what", BAD_GENERATORS)
def test_a_generator_that_goes_wrong_fails_its_cell_with_the_reason_and_no_other(bench, what):
    body, reason = BAD_GENERATORS[what]
    bad_generator(bench, body)
    bench.matrix("generator: [bad, toy]")
    said = bench.run()
    bad, good = bench.rows().values()
    assert (said.code, bad["status"], good["status"]) == (1, "failed", "done")
    assert bad["reason"].startswith(reason), bad["reason"]


def test_a_bug_in_a_method_keeps_its_traceback(bench):
    bad_generator(bench, "raise ValueError('no luck')")
    bench.matrix("generator: bad")
    bench.run()
    assert "extra.py" in only_row(bench)["traceback"]


def test_a_mistake_that_is_the_users_has_no_traceback(bench):
    bad_generator(bench, "x[0] = float('nan')")
    bench.matrix("generator: bad")
    bench.run()
    assert "traceback" not in only_row(bench)


BAD_QUANTIZERS = {
    "raises": ("raise RuntimeError('no')", "quantize: RuntimeError: no"),
    "changes the teacher": (
        "teacher.module[0].weight.zero_()",
        "quantize: quantizer bad changed the teacher's weights or buffers; it must not",
    ),
    "adds a tensor": (
        "student.register_buffer('more', torch.ones(1))",
        "evaluate: RuntimeError: Error(s) in loading state_dict",
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


@pytest.mark.parametrize(
    "opened",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.read_text()",
        "os.open(path, os.O_RDONLY)",
        "open(os.path.relpath(path))",
        "open(str(path).encode())",
        "open(link(path))",
        "open(path.parent / 'written', 'w')",
        "__import__('numpy').loadtxt(path)",
    ],
)
def test_a_method_that_opens_a_file_in_the_tasks_data_fails_its_cell(bench, opened):
    bad_generator(
        bench,
        f"""path = HERE / "data" / "eval.txt"
        def link(path):
            (HERE / "link").symlink_to(path)
            return HERE / "link"
        {opened}""",
    )
    bench.matrix("generator: bad")
    bench.run()
    folder = bench.folder / "data"
    assert only_row(bench)["reason"].startswith(f"generate: bad opened {folder}/")
    assert "methods must not read the task's data" in only_row(bench)["reason"]


def test_a_quantizer_that_opens_a_file_in_the_tasks_data_fails_its_cell(bench):
    bench.add_plugin("""
class Bad(ToyQuantizer):
    name = "bad"

    def quantize(self, student, teacher, data, ctx):
        open(HERE / "data" / "train.txt")
""")
    bench.matrix("quantizer: bad")
    bench.run()
    assert only_row(bench)["reason"].startswith("quantize: bad opened ")


def test_a_quantizer_that_opens_data_when_it_prepares_the_student_to_be_evaluated_fails_its_cell(bench):
    bench.add_plugin("""
class Bad(ToyQuantizer):
    name = "bad"
    asked: list = []

    def prepare(self, teacher, scheme):
        if (HERE / "second").exists():
            (HERE / "data" / "eval.txt").read_text()
        (HERE / "second").touch()
        return super().prepare(teacher, scheme)
""")
    bench.matrix("quantizer: bad")
    bench.run()
    assert only_row(bench)["status"] == "failed"


def test_a_method_may_open_any_other_file(bench):
    bad_generator(
        bench, "(HERE / 'toy.py').read_text(); (HERE / 'dataset').write_text('beside data'); torch.save(x, HERE / 'x')"
    )
    bench.matrix("generator: bad")
    bench.run()
    assert only_row(bench)["status"] == "done"


def test_the_data_is_open_again_after_a_method_that_failed(bench):
    bad_generator(bench, "open(HERE / 'data' / 'eval.txt')")
    bench.matrix("generator: [bad, toyreal]")
    bench.run()
    assert list(bench.statuses().values()) == ["failed", "done"]


def test_a_method_that_was_handed_no_real_images_sees_none(bench):
    bad_generator(bench, "assert ctx.real_images is None and not hasattr(ctx, 'data_root')")
    bench.matrix("generator: bad")
    bench.run()
    assert only_row(bench)["status"] == "done"


LEFT_BEHIND = {
    "grad mode": "torch.set_grad_enabled(False)",
    "default type": "torch.set_default_dtype(torch.float64)",
    "threads": "torch.set_num_threads(3)",
    "global random numbers": "torch.manual_seed(5); import random; random.seed(5)",
    "a hook on the teacher": "teacher.module.register_forward_hook(lambda module, args, out: out * 0)",
    "a hook on all modules": "torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 0)",
    "gradients": "teacher.module.requires_grad_(True)(x).sum().backward()",
    "train mode": "teacher.module.train()",
    "a default device": "torch.set_default_device('meta')",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "a working folder": "os.chdir('/')",
    "a precision of products": "torch.set_float32_matmul_precision('medium')",
    "autocast": "torch.autocast('cpu', torch.bfloat16).__enter__()",
}

STATE = """
class Looks(Toy):
    name = "looks"

    def generate(self, teacher, ctx):
        import json, random
        x = torch.ones(1, 3, 8, 8)
        y = teacher.module(x)
        seen = {
            "y": y.tolist(), "dtype": str(y.dtype), "device": str(torch.ones(1).device),
            "grad": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(), "random": [random.random(), torch.rand(1).item()],
            "training": teacher.module.training, "requires": [p.requires_grad for p in teacher.module.parameters()],
            "grads": [p.grad is None for p in teacher.module.parameters()], "cwd": os.getcwd(),
            "deterministic": torch.are_deterministic_algorithms_enabled(), "autocast": torch.is_autocast_enabled("cpu"),
            "products": torch.get_float32_matmul_precision(),
        }
        (HERE / "seen.json").write_text(json.dumps(seen))
        return super().generate(teacher, ctx)
"""


@pytest.fixture
def torch_as_it_was():
    """Mend what a test leaves behind on purpose, so that the next one does not suffer."""
    import torch
    from torch.nn.modules import module

    folder = Path.cwd()
    yield
    os.chdir(folder)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_autocast_enabled("cpu", False)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    module._global_forward_hooks.clear()


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_a_method_leaves_behind_does_not_reach_the_next_step(bench, what):
    def seen(*generators):
        bench.add_plugin(f"""
import torch
{STATE}

class Leaves(Toy):
    name = "leaves"

    def generate(self, teacher, ctx):
        x = ctx.randn(self.images, *teacher.input_size)
        {LEFT_BEHIND[what]}
        return zsqbench.CalibrationSet(x.float())
""")
        bench.matrix(f"generator: [{', '.join(generators)}]")
        bench.run_anew(str(len(generators)))
        seen = json.loads((bench.folder / "seen.json").read_text())
        (bench.folder / "seen.json").unlink()
        return seen

    alone = seen("looks")
    assert alone == seen("leaves", "looks")


def test_a_network_that_changes_after_it_was_resolved_is_refused_and_taken_anew_by_the_next_run(bench):
    bench.add_plugin("""
class Drifts(ToyTask):
    name = "drifts"

    def load(self, model, ctx):
        pretrained = super().load(model, ctx)
        if (HERE / "now").exists():
            pretrained.module[0].weight.data.mul_(2)
        return pretrained
""")
    bench.matrix("task: drifts, scheme: hw/w4a4")
    bench.run()
    bench.write("now", "")
    bench.matrix("task: drifts, scheme: hw/w8a8")
    worker._session.cache_clear()  # a new process
    bench.run()
    refused = only_row(bench)
    bench.run()
    assert ("changed after it was resolved" in refused["reason"], only_row(bench)["status"]) == (True, "done")


def test_a_curve_keeps_the_values_that_a_tensor_had(bench):
    bench.add_plugin("""
class Counts(Toy):
    name = "counts"

    def generate(self, teacher, ctx):
        import torch
        value = torch.zeros(())
        for step in range(3):
            value.add_(1)
            ctx.log("value", value, step)
        return super().generate(teacher, ctx)
""")
    bench.matrix("generator: counts")
    bench.run()
    (folder,) = bench.artifacts("generate")
    assert json.loads((folder / "curves.json").read_text())["value"] == [[0, 1.0], [1, 2.0], [2, 3.0]]


def test_the_embedded_data_and_a_link_to_data_are_watched(tmp_path):
    from zsqbench.zoo import digits

    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    with isolation.forbid_opening([str(digits.FILE), str(tmp_path / "data")], "peeks"):
        with pytest.raises(ZSQBenchError, match="peeks opened"):
            digits.load_digits("test")
        with pytest.raises(ZSQBenchError, match="peeks opened"):
            (tmp_path / "data/link").read_text()


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


def test_the_same_step_makes_the_same_artifact(bench):
    contents = []
    for name in ("one", "two"):
        bench.run_anew(name)
        found = sorted((bench.home / "store").glob("*/*/*"))
        contents.append(
            {path.parent.name + path.name: path.read_bytes() for path in found if not path.name.startswith("manifest.")}
        )
    assert contents[0] == contents[1]


def test_a_task_that_measures_no_number_does_not_lose_its_row(bench):
    bench.add_plugin("""
class NoNumber(ToyTask):
    name = "nonumber"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": 50.0, "loss": float("nan")}, [True])
""")
    bench.matrix("task: nonumber")
    said = bench.run()
    assert (0, "50.00" in said.out) == (said.code, True), said


def test_a_task_that_does_not_measure_its_metric_fails_its_cells(bench):
    bench.add_plugin("""
class Forgets(ToyTask):
    name = "forgets"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top5": 50.0}, [True])
""")
    bench.matrix("task: forgets")
    bench.run()
    row = only_row(bench)
    assert (row["status"], "top1" in row.get("reason", "")) == ("failed", True)


FIXED_TASK = """
class Fixed(ToyTask):
    name = "fixed"

    def evaluate(self, module, pretrained, ctx):
        return zsqbench.Evaluation({"top1": MEASURED}, [True])
"""


@pytest.mark.parametrize(
    ("said", "measured", "status"),
    [("71.08", "71.08", "done"), ("71.08", "70.98", "done"), ("71.08", "71.1801", "failed"), ("71", "nan", "failed")],
)
def test_a_float_network_has_to_reach_what_the_suite_says(bench, said, measured, status):
    bench.add_plugin(FIXED_TASK.replace("MEASURED", f"float('{measured}')"))
    bench.matrix("task: fixed, model: mine", head=f"models: {{mine: {{base: a, float_accuracy: {said}}}}}")
    bench.run()
    assert only_row(bench)["status"] == status


def test_a_float_network_that_does_not_reach_it_fails_all_its_cells_and_no_other_in_one_line(bench):
    bench.add_plugin(FIXED_TASK.replace("MEASURED", "70.9"))
    models = "models: {mine: {base: a, float_accuracy: 71.08}, other: {base: b, float_accuracy: 70.9}}"
    bench.matrix("task: fixed, model: [mine, other], scheme: [hw/w4a4, hw/w8a8]", head=models)
    bench.run()
    bad, good = [[row for row in bench.rows().values() if row["model"] == name] for name in ("mine", "other")]
    expected = (
        "baseline: the float network mine reaches 70.900 % top1, and its float_accuracy is 71.08: "
        "check its weights, the evaluation data, and how images are resized, cropped and normalised"
    )
    assert [(row["status"], row["reason"], row.get("traceback")) for row in bad] == [("failed", expected, None)] * 2
    assert [row["status"] for row in good] == ["done"] * 2


def test_what_a_float_network_should_reach_is_in_no_key_of_what_is_made_of_it(bench):
    keys = []
    for said in ("", ", float_accuracy: 50", ", float_accuracy: 50.05"):
        bench.add_plugin(FIXED_TASK.replace("MEASURED", "50.0"))
        bench.matrix("task: fixed, model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        bench.run()
        row = only_row(bench)
        assert row["status"] == "done"
        keys.append([row["keys"][kind] for kind in ("generate", "quantize", "evaluate")])
    assert keys[0] == keys[1] == keys[2]


def test_numbers_of_torch_and_numpy_are_numbers(bench):
    bench.add_plugin("""
class Tensors(ToyTask):
    name = "tensors"

    def evaluate(self, module, pretrained, ctx):
        import numpy, torch
        return zsqbench.Evaluation({"top1": torch.tensor(50.0), "top5": numpy.float32(60)}, torch.tensor([True, False]))
""")
    bench.matrix("task: tensors")
    bench.run()
    row = only_row(bench)
    assert row.get("metrics") == {"top1": 50.0, "top5": 60.0}, row.get("reason")


def test_which_samples_were_right_is_kept(bench):
    import numpy as np

    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts("baseline")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    bits = np.unpackbits(np.frombuffer((folder / "correct.bits").read_bytes(), np.uint8))[: evaluation["samples"]]
    assert evaluation["metrics"]["top1"] == 100 * bits.mean()


def test_curves_are_kept_with_the_artifact(bench):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts("generate")
    assert json.loads((folder / "curves.json").read_text()) == {"loss": [[0, 0.5]]}


def test_notes_are_kept_with_the_artifact_each_line_once(bench):
    bad_generator(bench, "for line in ('two units', 'undone in 4', 'two units'): ctx.note(line)")
    bench.matrix("generator: bad")
    bench.run()
    (folder,) = bench.artifacts("generate")
    assert json.loads((folder / "notes.json").read_text()) == ["two units", "undone in 4"]


def test_a_step_without_notes_leaves_no_file_of_them(bench):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts("generate")
    assert not (folder / "notes.json").exists()


def test_a_finished_step_leaves_nothing_partial(bench):
    bad_generator(bench, "ctx.reporter._keep({'x': x, 'i': 3}); ctx.progress(1, 2)")
    bench.matrix("generator: bad")
    bench.run()
    assert (only_row(bench)["status"], list((bench.home / "partial").iterdir())) == ("done", [])


def test_a_step_resumes_from_its_checkpoint_with_its_random_numbers(bench, monkeypatch):
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    body = """state = ctx.resume() or {"i": 0, "x": x * 0}
        for i in range(state["i"], 4):
            if i == 2 and not (HERE / "again").exists():
                (HERE / "again").touch()
                raise KeyboardInterrupt
            state["x"] = state["x"] + ctx.randn(*x.shape)
            ctx.log("i", i, i)
            ctx.note(f"half {i // 2}")
            ctx.checkpoint({"i": i + 1, "x": state["x"]})
        x = state["x"]"""
    bad_generator(bench, body)
    bench.matrix("generator: bad")
    assert bench.run().code == 130
    bench.run()
    (resumed,) = bench.artifacts("generate")
    bench.run_anew("whole")
    (whole,) = bench.artifacts("generate")
    names = ("calibration.safetensors", "curves.json", "notes.json")
    assert json.loads((resumed / "notes.json").read_text()) == ["half 0", "half 1"]
    assert [(whole / name).read_bytes() for name in names] == [(resumed / name).read_bytes() for name in names]


def test_a_checkpoint_that_is_damaged_is_no_checkpoint(bench):
    bad_generator(bench, "assert ctx.resume() is None")
    bench.matrix("generator: bad")
    bench.run()
    (key,) = [step["key"] for step in bench.plan()["steps"] if step["kind"] == "generate"]
    partial = bench.home / "partial" / key
    for content in (b"", b"rubbish"):
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "checkpoint.safetensors").write_bytes(content)
        for folder in bench.artifacts("generate") + bench.artifacts("quantize") + bench.artifacts("evaluate"):
            shutil.rmtree(folder)
        bench.results.joinpath("toysuite.jsonl").unlink()
        bench.run()
        assert only_row(bench)["status"] == "done", only_row(bench).get("traceback")


def test_other_threads_may_open_the_data_only_when_no_method_runs(bench):
    bad_generator(
        bench,
        """import threading
        found = []
        def read():
            try:
                found.append((HERE / "data" / "eval.txt").read_text())
            except Exception:
                pass
        thread = threading.Thread(target=read); thread.start(); thread.join()
        assert not found""",
    )
    bench.matrix("generator: bad")
    bench.run()
    assert (only_row(bench)["status"], threading.active_count()) == ("done", 1)


def test_bf16_runs_methods_under_autocast(bench):
    bad_generator(bench, "assert teacher.module(x).dtype == torch.bfloat16")
    bench.matrix("generator: bad, settings: {precision: bf16}")
    bench.run()
    assert only_row(bench)["status"] == "done", only_row(bench).get("reason")


def test_channels_last_is_the_layout_of_the_teacher(bench):
    bad_generator(bench, "assert teacher.module[0].weight.is_contiguous(memory_format=torch.channels_last)")
    bench.matrix("generator: bad, settings: {layout: channels_last}")
    bench.run()
    assert only_row(bench)["status"] == "done", only_row(bench).get("reason")


def test_the_threads_of_a_step_are_those_of_its_settings(bench):
    bad_generator(bench, "assert torch.get_num_threads() == 2")
    bench.matrix("generator: bad, settings: {threads: 2}")
    bench.run()
    assert only_row(bench)["status"] == "done", only_row(bench).get("reason")


# --- a quantizer that goes on from the result of another --------------------------------------------------------------


STARTS = """
class Starts(ToyQuantizer):
    name = "starts"
    start: str | None = None

    def quantize(self, student, teacher, data, ctx):
        import json, torch
        started = None if ctx.start is None else [ctx.start[-1].bias.tolist(), ctx.start.training]
        (HERE / "start.json").write_text(json.dumps([teacher.module[-1].bias.tolist(), started]))
        super().quantize(student, teacher, data, ctx)
"""


def started(bench, *options):
    bench.add_plugin(STARTS)
    bench.matrix("quantizer: fine", head=f"quantizers: {{{', '.join(options)}}}")
    said = bench.run()
    assert said.code == 0, said.err
    return json.loads((bench.folder / "start.json").read_text())


def test_a_quantizer_is_handed_the_student_that_it_starts_from(bench):
    bias, (found, training) = started(
        bench, "fine: {method: starts, start: first}", "first: {method: datafree, shift: 2.0}"
    )
    assert (found, training) == (pytest.approx([value + 2.0 for value in bias]), False)


def test_a_quantizer_that_starts_from_nothing_is_handed_none(bench):
    assert started(bench, "fine: {method: starts}")[1] is None


def test_a_start_of_a_start_is_what_it_ended_with(bench):
    bias, (found, _) = started(
        bench,
        "fine: {method: starts, start: middle}",
        "middle: {method: starts, start: first, shift: 1.0}",
        "first: {method: datafree, shift: 2.0}",
    )
    (images,) = (
        session.CalibrationSet.load(folder / "calibration.safetensors") for folder in bench.artifacts("generate")
    )
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
    assert only_row(bench)["status"] == "done", only_row(bench)["reason"]


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
    assert only_row(bench)["status"] == "done", only_row(bench)["reason"]


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
    row = only_row(bench)
    assert row["status"] == "done", row["reason"]
    folder = bench.home / "store" / "evaluate" / row["keys"]["evaluate"]
    assert {path.name for path in folder.glob("*.png")} == files
    notes = folder / "notes.json"
    assert (json.loads(notes.read_text()) if notes.is_file() else []) == note


# --- epochs that are kept ---------------------------------------------------------------------------------------------


KEEPS = """
class Keeps(ToyQuantizer):
    name = "keeps"
    keep_every: int = 1
    asked: int = 1

    @property
    def keeps_epochs(self):
        return self.keep_every > 0

    def quantize(self, student, teacher, data, ctx):
        state = ctx.resume() or {"epoch": 0, "bias": student[-1].bias}
        student[-1].bias.copy_(state["bias"])
        for epoch in range(state["epoch"] + 1, 13):
            note(f"epoch {epoch}")
            student[-1].bias[{11: 0, 12: 1}.get(epoch, 3)] += 10.0**epoch
            if self.keep_every and epoch % self.keep_every == 0:
                ctx.keep_epoch(epoch, student)
            ctx.checkpoint({"epoch": epoch, "bias": student[-1].bias})
            if epoch == 11 and (HERE / "interrupt").exists():
                (HERE / "interrupt").unlink()
                raise KeyboardInterrupt
"""
"""In which epoch 11 makes every sample right, for all are said to be of class 0, and the last makes every one wrong."""


def keeps(bench, options="", **changes):
    bench.add_plugin(KEEPS)
    bench.matrix("quantizer: keeps", head=f"quantizers: {{keeps: {{{options}}}}}")
    return bench.run(**changes)


def of_oracle(bench):
    (folder,) = bench.artifacts("oracle")
    return json.loads((folder / "oracle.json").read_text())


def test_the_oracle_measures_every_kept_epoch_and_names_the_best(bench):
    said = keeps(bench)
    found, row = of_oracle(bench), only_row(bench)
    assert said.code == 0, said.err
    assert [one["epoch"] for one in found["epochs"]] == list(range(1, 13))
    assert [one["metrics"]["top1"] for one in found["epochs"]][-2:] == [100.0, 0.0]
    assert found["best"] == found["epochs"][10]
    assert row["oracle"] == {"epoch": 11, "metrics": {"top1": 100.0}, "of": 12}
    assert row["metrics"]["top1"] == 0.0


def test_what_is_kept_lies_beside_the_result_in_flat_files(bench):
    keeps(bench, "keep_every: 6")
    (folder,) = bench.artifacts("quantize")
    kept = [path.name for path in sorted(folder.glob("epoch-*"))]
    assert kept == ["epoch-0006.safetensors", "epoch-0012.safetensors"]
    assert (folder / kept[1]).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not list((bench.home / "partial").iterdir())


def test_the_first_of_equal_epochs_is_the_best(bench):
    keeps(bench, "keep_every: 5")
    assert [one["metrics"]["top1"] for one in of_oracle(bench)["epochs"]] == [0.0, 0.0]
    assert only_row(bench)["oracle"]["epoch"] == 5


def test_an_epoch_without_a_number_is_not_the_best():
    epochs = [{"epoch": n, "metrics": {"top1": value}} for n, value in enumerate([float("nan"), 3.0, 4.0], start=1)]
    assert session._best(epochs, "top1")["epoch"] == 3
    assert session._best(epochs[:1], "top1")["epoch"] == 1


def test_a_quantizer_that_was_not_asked_keeps_nothing_and_has_no_oracle(bench):
    keeps(bench, "keep_every: 0")
    assert (bench.home / "store" / "oracle").exists() is False
    assert "oracle" not in only_row(bench)
    assert not list(bench.artifacts("quantize")[0].glob("epoch-*"))


def test_a_quantizer_that_says_it_keeps_epochs_and_keeps_none_fails_its_cell(bench):
    said = keeps(bench, "keep_every: 50")
    reason = (
        "oracle: quantizer keeps says that it keeps epochs, and kept none; it must call ctx.keep_epoch, or its options "
        "must leave an epoch to keep"
    )
    row = only_row(bench)
    assert (said.code, row["status"], row["reason"], row.get("traceback")) == (1, "failed", reason, None)


def test_an_interrupted_and_resumed_run_has_all_epochs(bench, monkeypatch):
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    bench.write("interrupt", "")
    assert keeps(bench).code == 130
    bench.calls()
    bench.run()
    calls = bench.calls()
    resumed = {path.name: path.read_bytes() for path in bench.artifacts("quantize")[0].glob("*.safetensors")}
    bench.run_anew("whole")
    whole = {path.name: path.read_bytes() for path in bench.artifacts("quantize")[0].glob("*.safetensors")}
    assert [call for call in calls if call.startswith("epoch")] == ["epoch 12"]
    assert (len(whole), whole == resumed) == (13, True)


def test_an_oracle_that_was_interrupted_goes_on_with_the_next_epoch(bench, monkeypatch):
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    bench.add_plugin(
        KEEPS
        + """
class Stops(ToyTask):
    name = "stops"

    def evaluate(self, module, pretrained, ctx):
        calls = (HERE / "calls.txt").read_text().count("evaluate")
        if calls == 5 and not (HERE / "was").exists():
            (HERE / "was").touch()
            raise KeyboardInterrupt
        return super().evaluate(module, pretrained, ctx)
"""
    )
    bench.matrix("task: stops, quantizer: keeps")
    assert bench.run().code == 130
    bench.calls()
    bench.run()
    assert (bench.calls().count("evaluate"), len(of_oracle(bench)["epochs"])) == (12 - 3, 12)


def test_a_disk_that_is_full_keeps_the_epochs_that_were_kept(bench, monkeypatch):
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    write = reporting.Reporter._write

    def full(self, name, content):
        if name == "epoch-0003.safetensors":
            raise OSError(28, "No space left on device")
        return write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "_write", full)
        keeps(bench)
    reason = only_row(bench)["reason"]
    bench.calls()
    bench.run()
    assert "cannot keep epoch 3 in " in reason
    assert next(call for call in bench.calls() if call.startswith("epoch")) == "epoch 3"
    assert len(of_oracle(bench)["epochs"]) == 12


# --- training that diverges -------------------------------------------------------------------------------------------


DIVERGES = """
class Diverges(ToyQuantizer):
    name = "diverges"

    def quantize(self, student, teacher, data, ctx):
        import torch
        from zsqbench.errors import DivergedError
        assert ctx.resume() is None
        ctx.checkpoint({"updates": 6})
        if not (HERE / "ready").exists():
            raise DivergedError("the loss is nan at update 7", STATE)
        super().quantize(student, teacher, data, ctx)
"""


def diverges(bench, monkeypatch, state):
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    bench.add_plugin(DIVERGES.replace("STATE", state))
    bench.matrix("quantizer: diverges")
    bench.run()
    return only_row(bench)


def test_the_last_good_state_of_training_that_diverges_is_kept_to_be_looked_at(bench, monkeypatch):
    from safetensors.torch import load_file

    row = diverges(bench, monkeypatch, "{'weight': torch.arange(6.0).view(2, 3).T, 'updates': 6}")
    (path,) = (bench.home / "partial").glob("*/*")
    place = f"partial/{row['keys']['quantize']}/last-good.safetensors"
    expected = f"quantize: the loss is nan at update 7; it is in {place} of the home folder"
    assert (row["status"], row["reason"], row.get("traceback")) == ("failed", expected, None)
    assert path == bench.home / place
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {"weight": [[0, 3], [1, 4], [2, 5]]}


def test_the_curves_of_a_step_that_failed_are_kept_until_it_is_tried_again(bench, monkeypatch):
    row = diverges(bench, monkeypatch, "ctx.log('loss', 2.5, 6)")  # which gives no state
    place = f"partial/{row['keys']['quantize']}/curves.json"
    assert row["reason"] == f"quantize: the loss is nan at update 7; its curves are in {place} of the home folder"
    assert json.loads((bench.home / place).read_text()) == {"loss": [[6, 2.5]]}
    bench.write("ready", "")
    bench.run()
    assert list((bench.home / "partial").iterdir()) == []


def test_nothing_goes_on_from_training_that_diverged(bench, monkeypatch):
    diverges(bench, monkeypatch, "{'weight': torch.ones(1)}")
    bench.write("ready", "")
    bench.run()
    assert (only_row(bench)["status"], list((bench.home / "partial").iterdir())) == ("done", [])


@pytest.mark.parametrize("state", ["None", "{}", "{'updates': 6}"])
def test_training_that_diverges_without_a_good_state_leaves_nothing(bench, monkeypatch, state):
    row = diverges(bench, monkeypatch, state)
    assert (row["reason"], list((bench.home / "partial").iterdir())) == ("quantize: the loss is nan at update 7", [])


def test_a_last_good_state_that_cannot_be_written_is_no_other_error(bench, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "_write", full)
        row = diverges(bench, monkeypatch, "{'weight': torch.ones(1)}")
    assert row["reason"] == "quantize: the loss is nan at update 7"


# --- predictions ------------------------------------------------------------------------------------------------------


PREDICTS = """
class Predicts(ToyTask):
    name = "predicts"

    def evaluate(self, module, pretrained, ctx):
        evaluation = super().evaluate(module, pretrained, ctx)
        return zsqbench.Evaluation(evaluation.metrics, evaluation.per_sample, PREDICTIONS)
"""


@pytest.mark.parametrize(("top", "dtype"), [(9, "int16"), (40_000, "int32")])
def test_predictions_are_kept_as_small_integers(bench, top, dtype):
    import numpy as np

    bench.add_plugin(PREDICTS.replace("PREDICTIONS", f"[-1, {top}] * 10"))
    bench.matrix("task: predicts")
    bench.run()
    (folder,) = bench.artifacts("evaluate")
    found = np.load(folder / "predictions.npy")
    assert (found.tolist(), found.dtype) == ([-1, top] * 10, dtype)


def test_as_many_predictions_as_samples_are_demanded(bench):
    bench.add_plugin(PREDICTS.replace("PREDICTIONS", "[1, 2, 3]"))
    bench.matrix("task: predicts")
    bench.run()
    assert only_row(bench)["reason"] == "baseline: task predicts gave 3 predictions of 20 samples"


def test_a_task_without_predictions_leaves_no_file_of_them(bench):
    bench.matrix("")
    bench.run()
    assert not (bench.artifacts("evaluate")[0] / "predictions.npy").exists()


def test_a_checkpoint_of_another_kind_of_device_is_no_checkpoint(tmp_path):
    """A generator on a GPU has a state of 16 bytes."""
    import torch

    class Elsewhere:
        def get_state(self):
            return torch.zeros(16, dtype=torch.uint8)

    reporting.Reporter(tmp_path, Elsewhere())._keep({"i": 1})
    reporter = reporting.Reporter(tmp_path, torch.Generator().manual_seed(0))
    expected = reporter.rng.get_state()
    assert reporter.resume() is None
    assert torch.equal(reporter.rng.get_state(), expected)
    assert reporter.notes == ["the step began anew: its checkpoint has random numbers of another kind of device"]


def test_a_checkpoint_that_takes_long_is_kept_seldom(tmp_path, monkeypatch):
    import torch

    now, kept = [0.0], []

    def keep(self, state):
        kept.append(state["step"])
        now[0] += 2.0

    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(reporting.Reporter, "_keep", keep)
    reporter = reporting.Reporter(tmp_path, torch.Generator())
    for step in range(100):
        now[0] += 1.0
        reporter.checkpoint({"step": step})
    assert kept == [4, 44, 84]  # the first after five seconds, then each after twenty times what the last took
