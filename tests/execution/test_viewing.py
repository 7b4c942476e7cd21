import pytest
from rows import method, seen
from zsqbench_plugins.classification import Classification

from zsqbench.execution.session import Session, WorkerConfig
from zsqbench.execution.viewing import Viewers
from zsqbench.steps.planning import Data
from zsqbench.store import FileDigests, Store


@pytest.fixture
def viewers(tmp_path):
    return Viewers(Session(WorkerConfig(tmp_path)))


def digits_row(tmp_path, digest=None, **options):
    task = Classification(data="digits")
    known = Data.of(task.find_data(None), FileDigests(Store(tmp_path))).evaluation
    call = {"method": "classification", "options": {**task.options(), **options}}
    return seen([0], methods={"task": call}, data={"evaluated": 450, "digest": digest or known})


def test_a_sample_is_shown_as_it_lies_in_the_data(viewers, tmp_path):
    from zsqbench.zoo.digits import load_digits

    viewer = viewers(digits_row(tmp_path))
    assert (viewer.image(3).size, viewer.classes[3]) == ((8, 8), "3")
    expected = load_digits("test")[0][3].squeeze().mul(255).round().byte()
    assert list(viewer.image(3).tobytes()) == expected.flatten().tolist()


def test_other_data_than_a_row_was_evaluated_on_is_not_shown(viewers, tmp_path):
    said = viewers(digits_row(tmp_path, "other"))
    assert said == "the data has changed since the evaluation"


def test_absent_data_is_told(viewers, tmp_path):
    said = viewers(digits_row(tmp_path, data="cifar10"))
    assert said == "cifar10 needs a data root: give --data-root or set ZSQBENCH_DATA_ROOT"


def test_a_task_that_is_not_here_is_told(viewers):
    assert "unknown task 'strange'" in viewers(seen([0], methods={"task": method("strange") | {"options": {}}}))


def test_a_task_without_a_viewer_shows_nothing(tmp_path):
    plugin = tmp_path / "blind.py"
    plugin.write_text(
        "import zsqbench\n"
        "class Blind(zsqbench.Task):\n"
        "    name = 'blind'\n"
        "    metric = 'top1'\n"
        "    def find_data(self, data_root): raise AssertionError('not asked for')\n"
        "    def find_model(self, model): return {}\n"
        "    def load(self, model, ctx): pass\n"
        "    def evaluate(self, module, pretrained, ctx): pass\n"
        "    def calibration_images(self, count, seed, pretrained, ctx): pass\n"
        "@zsqbench.hookimpl\n"
        "def register_tasks(): return [Blind]\n"
    )
    viewers = Viewers(Session(WorkerConfig(tmp_path, plugin_files=(plugin,))))
    assert viewers(seen([0], methods={"task": method("blind") | {"options": {}}})) == "task blind shows no samples"


def test_a_row_that_does_not_say_the_options_of_its_task_is_told(viewers):
    assert "options" in viewers(seen([0], methods={"task": method("classification")}))


def test_a_row_of_no_known_task_is_told(viewers):
    assert viewers(seen([0], methods={})) == "the row does not say which task evaluated it"
