import zipfile

import pytest
import torch
from torch import nn

from zsqbench.autoquantize.request import Request, check_images, model_entry
from zsqbench.errors import ZSQBenchError

NET = """
from torch import nn
def build():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    {said}
    return network
"""


def complaint(call, *arguments, **named):
    with pytest.raises(ZSQBenchError) as error:
        call(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


def net(folder, said="pass"):
    (folder / "net.py").write_text(NET.format(said=said))
    return str(folder / "net.py")


def test_a_name_is_a_variant_of_a_named_network(tmp_path):
    (tmp_path / "w.pth").touch()
    assert model_entry("torchvision/resnet18") == {"base": "torchvision/resnet18"}
    given = model_entry("resnet20", str(tmp_path / "w.pth"), mean=[0.5])
    assert given == {"base": "resnet20", "weights": str(tmp_path / "w.pth"), "mean": [0.5]}


def test_a_file_says_by_attributes_of_its_network_how_it_is_fed(tmp_path):
    file = net(tmp_path, "network.input_size, network.mean, network.std = (3, 8, 8), (0.5,) * 3, (0.25,) * 3")
    entry = model_entry(file, "none")
    expected = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "weights": "none"}
    assert entry == {"file": file, **expected}


def test_a_file_may_load_its_weights_itself(tmp_path):
    file = net(tmp_path, "network.input_size, network.mean, network.std = (3, 8, 8), (0.5,) * 3, (0.25,) * 3")
    assert model_entry(file, "built")["weights"] == "built"
    assert Request(file, model_entry(file, "built"), "int8", 60.0, tmp_path).folder.name


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert complaint(check_images, tmp_path) == f"{tmp_path} holds no images; expected files such as .png, .jpg, .jpeg"
    assert complaint(check_images, tmp_path / "no").startswith(f"there is no folder {tmp_path / 'no'}; ")
    (tmp_path / "a.png").touch()
    check_images(tmp_path)


def test_options_go_before_attributes(tmp_path):
    file = net(tmp_path, "network.input_size, network.mean, network.std = (3, 9, 9), (0.5,) * 3, (0.25,) * 3")
    assert model_entry(file, "none", input_size=[3, 8, 8])["input_size"] == [3, 8, 8]


def test_what_nobody_says_of_a_file_is_asked_for(tmp_path):
    file = net(tmp_path)
    own = "--weights built where build() loads them itself"
    assert complaint(model_entry, file) == f"{file} needs --weights FILE, {own}, or --weights none for random ones"
    said = complaint(model_entry, file, "none", input_size=[3, 8, 8], std=[1.0] * 3)
    expected = f"{file} does not say its mean: give --mean, or the network that build() returns an attribute 'mean'"
    assert said == expected


INSTEAD = "give a .py file with a function build() that returns the network, and its weights by --weights"


def test_torchscript_exported_programs_and_onnx_are_told_apart_with_what_to_give_instead(tmp_path):
    module, example = nn.Linear(2, 2).eval(), torch.zeros(1, 2)
    with pytest.warns():  # of torch, which has given it up
        torch.jit.save(torch.jit.trace(module, example), tmp_path / "script.pt")
    torch.export.save(torch.export.export(module, (example,)), tmp_path / "program.pt2")
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    reasons = {
        "script.pt": f"is TorchScript, whose layers cannot be replaced by quantized layers: {INSTEAD}",
        "program.pt2": f"is an exported program, in which batch normalisations and layers are already split: {INSTEAD}",
        "weights.pth": f"is not a network; if it holds weights, {INSTEAD}",
        "model.onnx": f"is ONNX, but images and learning need a PyTorch network: {INSTEAD}",
    }
    said = {name: complaint(model_entry, str(tmp_path / name)) for name in reasons}
    assert said == {name: f"{tmp_path / name} {reason}" for name, reason in reasons.items()}
    assert zipfile.is_zipfile(tmp_path / "weights.pth")  # which alone makes no TorchScript


def test_a_detector_is_sent_to_its_task():
    assert "run a suite with the task coco_detection" in complaint(model_entry, "scenedetector")


def test_unknown_names_and_absent_files_are_refused(tmp_path):
    assert complaint(model_entry, "resnet2").startswith("unknown model 'resnet2'; did you mean 'resnet20'?")
    assert (
        complaint(model_entry, "no.py")
        == "there is no file no.py; expected a .py file with a function build(), or a name"
    )
    assert complaint(model_entry, "no.pt").startswith("there is no file no.pt; ")
    said = complaint(model_entry, "resnet20", str(tmp_path / "w"))
    assert said.startswith(f"there is no file {tmp_path / 'w'}; expected a file of weights, 'none' (random weights)")
    assert complaint(model_entry, "resnet20", "built").startswith("--weights built is for a .py file")


def test_a_request_has_a_folder_of_its_own_which_changed_weights_change(tmp_path):
    (tmp_path / "w").write_text("1")
    entry = {"base": "resnet20", "weights": str(tmp_path / "w")}

    def folder(target="int8", budget=60.0):
        return Request("resnet20", entry, target, budget, tmp_path).folder

    first = folder()
    assert (folder(), folder("int4") == first, folder(budget=61) == first) == (first, False, False)
    (tmp_path / "w").write_text("2")
    assert folder() != first
