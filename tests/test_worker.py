import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from zsqbench import worker
from zsqbench.errors import ZSQBenchError


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
    with worker.forbid_opening([str(digits.FILE), str(tmp_path / "data")], "peeks"):
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
