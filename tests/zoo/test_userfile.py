import pytest
import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.userfile import load_user_model


def write(path, text):
    path.write_text(text)
    return path


def test_two_files_of_one_name_are_two_modules(tmp_path):
    built = []
    for width in (2, 3):
        (tmp_path / str(width)).mkdir()
        text = f"from torch import nn\ndef make(): return nn.Linear({width}, 1)\n"
        built.append(load_user_model(write(tmp_path / str(width) / "net.py", text), "make", "none"))
    assert [module.in_features for module in built] == [2, 3]
    assert not built[0].weight.requires_grad


def test_a_model_file_may_define_dataclasses(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Config:\n    width: int = 3\n"
        "def build(): return nn.Linear(Config().width, 1)\n"
    )
    assert isinstance(load_user_model(write(tmp_path / "net.py", text), "build", "none"), torch.nn.Module)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\n", "has no function 'build'"),
        ("build = 3\n", "has no function 'build'"),
        ("def build(): return 3\n", r"build\(\) of model file .* returned int"),
        ("def build():\n    return 1 / 0\n", r"fails in build\(\) \(line 2\): ZeroDivisionError"),
        ("def build(): raise SystemExit(3)\n", "SystemExit: 3"),
        ("import no_such_module\n", r"cannot be imported \(line 1\): ModuleNotFoundError"),
        ("def build(:\n", "cannot be imported.*SyntaxError"),
        ("def build(width): return width\n", "TypeError.*missing 1 required"),
    ],
)
def test_what_is_wrong_with_a_model_file_is_one_clear_line(tmp_path, text, complaint):
    with pytest.raises(ZSQBenchError, match=complaint) as error:
        load_user_model(write(tmp_path / "net.py", text), "build", "none")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_python_is_told(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"not a \.py file"):
        load_user_model(write(tmp_path / "net.yaml", ""), "build", "none")
