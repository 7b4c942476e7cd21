import pytest
from papers import DATA, cells_of, suite_of

from zsqbench.reports.reproduction.requirements import Requirements

HEAD = "name: needy\ntasks: {photos: {method: classification, data: imagefolder, root: photos, calibration: train}}\n"


@pytest.fixture
def needs(tmp_path):
    """The needs of the cells of a suite with these models and this block."""

    def needs(models, block, root=tmp_path):
        text = f"{HEAD}models: {models}\nmatrix: [{{task: photos, model: net, scheme: hw/w4a4, {block}}}]\n"
        suite = suite_of(tmp_path, text)
        return Requirements(suite, suite.cells, root, {"photos": DATA["digits"]})

    return needs


def photos(folder, count):
    (folder / "a").mkdir(parents=True)
    for number in range(count):
        (folder / "a" / f"{number}.png").touch()


MINE = "{net: {base: cifar_resnet20, weights: mine.safetensors}}"
ZEROQ = "generator: zeroq, quantizer: rtn"


def test_all_that_is_missing_is_told_at_once_and_nothing_can_run(needs, tmp_path):
    found = needs(MINE, ZEROQ)
    data, network = found.needs
    assert data.source == "digits (1,000) from here; below the data root as anywhere"
    assert data.missing.startswith(f"there is no folder {tmp_path / 'photos'}")
    assert network.missing == f"there is no file mine.safetensors, neither beside the suite nor below {tmp_path}"
    assert found.runnable == []
    assert found.missing(found.cells[0]) == data.missing


def test_without_a_data_root_it_says_so(needs):
    data, network = needs(MINE, ZEROQ, root=None).needs
    assert "give --data-root" in data.missing
    assert network.missing.endswith("nor below the data root, which is not given (--data-root)")


def test_what_is_there_can_run_and_fewer_images_are_remarked(needs, tmp_path):
    photos(tmp_path / "photos", 7)
    (tmp_path / "train").mkdir()
    (tmp_path / "mine.safetensors").touch()
    found = needs(MINE, ZEROQ)
    assert [need.missing for need in found.needs] == [None, None]
    assert found.needs[0].remark == "7 of 1,000 images are here"
    assert found.runnable == found.cells


def test_images_to_calibrate_on_are_needed_by_real_ones_alone(needs, tmp_path):
    photos(tmp_path / "photos", 7)
    (tmp_path / "train").mkdir()
    (tmp_path / "mine.safetensors").touch()
    found = needs(MINE, "generator: [zeroq, real], quantizer: rtn")
    assert [cell.generator for cell in found.runnable] == ["zeroq"]
    (calibration,) = [need for need in found.needs if need.kind == "calibration"]
    assert calibration.missing.startswith(f"the calibration folder {tmp_path / 'train'} holds no images")


def test_a_library_that_is_not_installed_is_missing(needs, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    network = needs("{net: {base: pytorchcv/resnet20_cifar10, float_accuracy: 94.03}}", ZEROQ).needs[1]
    assert network.missing == "model 'pytorchcv/resnet20_cifar10' needs pytorchcv, which is not installed"
    assert network.source == (
        "pytorchcv/resnet20_cifar10: pip install 'zsqbench[pytorchcv]'; its weights are downloaded when it is first "
        "loaded; it reaches 94.03 in float"
    )


def test_weights_that_a_release_has_are_named_with_their_place(needs):
    network = needs("{net: {base: brecq/resnet18, weights: r18.pth.tar}}", ZEROQ).needs[1]
    assert "resnet18_imagenet.pth.tar of https://github.com/yhhhli/BRECQ/releases/tag/v1.0" in network.source


def test_a_file_that_a_method_reads_is_needed(tmp_path):
    text = f"""{HEAD}
generators: {{images: {{method: file, path: {tmp_path.parent / "set.safetensors"}}}}}
models: {MINE}
matrix: [{{task: photos, model: net, generator: images, quantizer: rtn, scheme: hw/w4a4}}]
"""
    suite = suite_of(tmp_path, text)
    found = Requirements(suite, suite.cells, tmp_path, {})
    (file,) = [need for need in found.needs if need.kind == "file"]
    assert file.name == "generator images"
    assert file.missing == f"there is no file {tmp_path.parent / 'set.safetensors'}"
    assert found.needs[0].source == "as the suite says"


def test_cells_that_can_nowhere_run_need_nothing(needs):
    found = needs(MINE, "generator: none, quantizer: rtn")
    assert (found.needs, found.runnable) == ([], [])
    assert cells_of(found.suite, "none")
