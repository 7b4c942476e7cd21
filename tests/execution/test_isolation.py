import copy
import copyreg
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
from brief import parametrize_briefly
from faults import bad_generator
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import isolation


@parametrize_briefly(
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
    4,
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
    assert bench.row()["reason"].startswith(f"generate: bad opened {folder}/")
    assert "methods must not read the task's data" in bench.row()["reason"]


def test_a_quantizer_that_opens_a_file_in_the_tasks_data_fails_its_cell(bench):
    bench.add_plugin("""
class Bad(ToyQuantizer):
    name = "bad"

    def quantize(self, student, teacher, data, ctx):
        open(HERE / "data" / "train.txt")
""")
    bench.matrix("quantizer: bad")
    bench.run()
    assert bench.row()["reason"].startswith("quantize: bad opened ")


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
    assert bench.row()["status"] == "failed"


def test_a_method_may_open_any_other_file(bench):
    bad_generator(
        bench, "(HERE / 'toy.py').read_text(); (HERE / 'dataset').write_text('beside data'); torch.save(x, HERE / 'x')"
    )
    bench.matrix("generator: bad")
    bench.run()
    assert bench.row()["status"] == "done"


def test_the_data_is_open_again_after_a_method_that_failed(bench):
    bad_generator(bench, "open(HERE / 'data' / 'eval.txt')")
    bench.matrix("generator: [bad, toyreal]")
    bench.run()
    assert list(bench.statuses().values()) == ["failed", "done"]


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
    assert bench.row()["status"] == "done"


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


def check_that_nothing_reaches_the_next_step(bench, *deeds):
    """A generator sees the same behind generators that left something behind as alone."""
    bench.add_plugin(
        f"""
import torch
{STATE}
"""
        + "".join(
            f"""
class Leaves{number}(Toy):
    name = "leaves{number}"

    def generate(self, teacher, ctx):
        x = ctx.randn(self.images, *teacher.input_size)
        {deed}
        return zsqbench.CalibrationSet(x.float())
"""
            for number, deed in enumerate(deeds)
        )
    )

    def seen(*generators):
        bench.matrix(f"generator: [{', '.join(generators)}]")
        bench.run_anew(str(len(generators)))
        seen = json.loads((bench.folder / "seen.json").read_text())
        (bench.folder / "seen.json").unlink()
        return seen

    alone = seen("looks")
    assert alone == seen(*(f"leaves{number}" for number in range(len(deeds))), "looks")
    assert len(bench.rows()) == len(deeds) + 1


@pytest.mark.usefixtures("torch_as_it_was")
def test_what_methods_leave_behind_does_not_reach_the_next_step(bench):
    check_that_nothing_reaches_the_next_step(bench, *LEFT_BEHIND.values())


@pytest.mark.slow("the test above leaves all of them behind, one after another")
@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_a_method_leaves_behind_does_not_reach_the_next_step(bench, what):
    check_that_nothing_reaches_the_next_step(bench, LEFT_BEHIND[what])


def test_the_same_step_makes_the_same_artifact(bench):
    contents = []
    for name in ("one", "two"):
        bench.run_anew(name)
        found = sorted((bench.home / "store").glob("*/*/*"))
        contents.append(
            {path.parent.name + path.name: path.read_bytes() for path in found if not path.name.startswith("manifest.")}
        )
    assert contents[0] == contents[1]


@pytest.fixture
def fast():
    """Empty tables are copied fast, as in a worker; afterwards as before."""
    before = dict(copyreg.dispatch_table)
    isolation.copy_empty_tables_fast()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.usefixtures("fast")
def test_a_copy_of_a_network_shares_no_table_of_hooks_with_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network[0].register_forward_hook(lambda *_: None)
    copied = copy.deepcopy(network)
    assert [len(each._forward_hooks) for each in copied.modules()] == [0, 1, 0]
    for mine, theirs in zip(copied.modules(), network.modules(), strict=True):
        tables = [name for name, table in vars(theirs).items() if isinstance(table, OrderedDict)]
        assert len(tables) > 5
        assert all(getattr(mine, name) is not getattr(theirs, name) for name in tables)
        assert len({id(getattr(mine, name)) for name in tables}) == len(tables)
        assert [type(getattr(mine, name)) for name in tables] == [OrderedDict] * len(tables)


def tables():
    """Tables that copying has to tell apart: an empty one, one with items, and an empty one with an attribute."""
    filled, noted = OrderedDict(a=[1], b={}), OrderedDict()
    noted.note = [2]
    return [OrderedDict(), filled, noted]


@pytest.mark.usefixtures("fast")
def test_a_table_is_copied_with_its_items_and_attributes_and_stays_one_where_it_was_one():
    first, second, third = tables()
    copied = copy.deepcopy([first, second, third, first])
    assert copied == [first, second, third, first]
    assert [type(table) for table in copied] == [OrderedDict] * 4
    assert copied[3] is copied[0] is not first
    assert copied[1]["a"] is not second["a"]
    assert copied[2].note == [2]
    assert copied[2].note is not third.note


def test_tables_are_pickled_as_before(request):
    before = [pickle.dumps(tables(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    request.getfixturevalue("fast")
    assert [pickle.dumps(tables(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)] == before
