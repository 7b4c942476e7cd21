"""A delivery writes files, and leaves none where it fails."""

from pathlib import Path

import pytest

from zsqbench.autoquantize.delivery import all_or_none, check_extra, check_output, files_of
from zsqbench.errors import ZSQBenchError


def complaint(path):
    with pytest.raises(ZSQBenchError) as error:
        check_output(path)
    return str(error.value)


@pytest.mark.parametrize("name", ["net.onnx", "net.py", "net.txt", "net.html"])
def test_no_file_is_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    said = complaint(tmp_path / "net.onnx")
    assert said == f"{tmp_path / name} is there already, and is left as it is; remove it, or name another file"
    assert (tmp_path / name).read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    assert complaint(tmp_path / "file" / "net.onnx").startswith(f"cannot write into {tmp_path / 'file'}: ")
    assert complaint(Path("/proc/net.onnx")).startswith("cannot write into /proc: ")
    assert (
        complaint(tmp_path / "net.pt")
        == f"the model is written as ONNX: expected -o NAME.onnx, got {tmp_path / 'net.pt'}"
    )


def test_a_good_place_stays_as_it_was(tmp_path):
    check_output(tmp_path / "new" / "net.onnx")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_extra_is_asked_for_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(
        ZSQBenchError, match=r"an export is not possible: onnxscript is not installed: pip install 'zsqbench\[onnx\]'"
    ):
        check_extra()


def test_what_was_begun_is_removed_where_the_rest_fails(tmp_path):
    path = tmp_path / "net.onnx"

    def write_half():
        with all_or_none(path):
            path.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []
    with all_or_none(path):
        for file in files_of(path):
            file.touch()
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net.py", "net.txt", "net.html"}
