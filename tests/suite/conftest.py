"""A suite as tests of several files load it."""

import pytest

from zsqbench.suite import load_suite


@pytest.fixture
def load(bench):
    def load(text=None, *overrides, data_root=None):
        if text is not None:
            bench.suite(text)
        return load_suite(bench.file, without=["mlflow"], overrides=overrides, data_root=data_root)

    return load


@pytest.fixture
def data_root(tmp_path):
    """A data root with all files that shipped suites name, empty: they are read when a suite runs."""
    networks = ["resnet18_imagenet.pth.tar", "resnet50_imagenet.pth.tar", "mobilenetv2.pth.tar"]
    files = ["models/resnet20_cifar10.safetensors", *(f"brecq/{network}" for network in networks)]
    files += [f"yolo/{network}.py" for network in ("yolov5s", "yolov5l", "yolo11s", "yolo11l")]
    for file in (*files, *(f"sets/{method}.safetensors" for method in ("zeroq", "intraq", "hast", "dgh"))):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path
