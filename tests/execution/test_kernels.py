import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zsqbench.execution import kernels
from zsqbench.execution.kernels import FOLDER, TRITONS_FOLDER, archives, is_sound, kept_kernels

NETWORK = "0123abcd"


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv(TRITONS_FOLDER, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(tmp_path / "tmp"))


def compile_(home, *names, network=NETWORK):
    """A step that compiles these, unless they are there; returns those that it found."""
    with kept_kernels(home, network):
        folder = Path(os.environ[FOLDER])
        found = [name for name in names if (folder / name).exists()]
        for name in set(names) - set(found):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"kernel {name}")
    return found


def test_the_next_step_finds_what_one_compiled(tmp_path):
    assert compile_(tmp_path, "ab/one.so", "ab/two.py") == []
    assert compile_(tmp_path, "ab/one.so", "ab/two.py", "three.so") == ["ab/one.so", "ab/two.py"]
    assert compile_(tmp_path, "three.so") == ["three.so"]
    assert len(archives(tmp_path)) == 2  # one for each step that added something
    assert compile_(tmp_path, "ab/one.so", network="another") == []


def test_the_folder_of_a_step_is_gone_after_it_and_no_variable_stays(tmp_path):
    with kept_kernels(tmp_path, NETWORK):
        folder = Path(os.environ[FOLDER])
        os.environ[TRITONS_FOLDER] = f"{folder}/triton"  # as torch does
        assert folder.is_dir()
    assert (folder.exists(), FOLDER in os.environ, TRITONS_FOLDER in os.environ) == (False, False, False)


def test_of_a_step_that_fails_nothing_is_kept(tmp_path):
    def fail():
        with kept_kernels(tmp_path, NETWORK):
            Path(os.environ[FOLDER], "half.so").write_text("ker")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (archives(tmp_path), FOLDER in os.environ, list((tmp_path / "tmp").iterdir())) == ([], False, [])


def test_locks_and_parts_are_not_kept(tmp_path):
    compile_(tmp_path, "locks/one.lock", "one.o", ".12.34.tmp")
    assert archives(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_what_is_damaged_is_compiled_anew(tmp_path, damage):
    compile_(tmp_path, "one.so")
    (archive,) = archives(tmp_path)
    content = bytearray(archive.read_bytes())
    content[40] ^= 1
    archive.write_bytes({"flip": bytes(content), "cut": bytes(content[:50]), "empty": b""}[damage])
    assert not is_sound(archive)
    assert compile_(tmp_path, "one.so") == []
    (archive,) = archives(tmp_path)
    assert is_sound(archive)
    assert compile_(tmp_path, "one.so") == ["one.so"]


def test_a_home_that_cannot_be_written_to_keeps_nothing(tmp_path):
    (tmp_path / "compiled").write_text("not ours")
    assert compile_(tmp_path, "one.so") == []
    assert (tmp_path / "compiled").read_text() == "not ours"


def test_a_disk_that_is_full_keeps_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernels.zipfile.ZipFile, "write", full)
    compile_(tmp_path, "one.so")
    assert list(tmp_path.glob("compiled/*/*/*")) == []


def test_two_steps_at_once_keep_what_both_compiled(tmp_path):
    with kept_kernels(tmp_path, NETWORK):
        Path(os.environ[FOLDER], "one.so").write_text("of the first")
        own = os.environ.pop(FOLDER)  # the other worker has its own
        assert compile_(tmp_path, "one.so", "two.so") == []
        assert [path.name for path in Path(own).iterdir()] == ["one.so"]
        os.environ[FOLDER] = own
    assert sorted(compile_(tmp_path, "one.so", "two.so")) == ["one.so", "two.so"]


def test_a_folder_that_the_user_named_is_left_to_torch(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    with kept_kernels(tmp_path, NETWORK):
        assert os.environ[FOLDER] == str(tmp_path / "mine")
    assert (archives(tmp_path), os.environ[FOLDER]) == ([], str(tmp_path / "mine"))


def test_the_folder_that_torch_takes_by_itself_is_none_that_the_user_named(tmp_path, monkeypatch):
    own = str(tmp_path / "tmp" / "torchinductor_me")
    monkeypatch.setenv(FOLDER, own)
    compile_(tmp_path, "one.so")
    assert (compile_(tmp_path, "one.so"), os.environ[FOLDER]) == (["one.so"], own)


def test_the_folder_of_a_step_that_was_killed_is_removed_later(tmp_path):
    left, young = tmp_path / "tmp" / "zsqbench-compiled-left", tmp_path / "tmp" / "zsqbench-compiled-young"
    for folder in (left, young):
        folder.mkdir()
        (folder / "half.so").write_text("ker")
    os.utime(left, (0, 0))
    with kept_kernels(tmp_path, NETWORK):
        os.utime(os.environ[FOLDER], (0, 0))
        mine = Path(os.environ[FOLDER])
        own = os.environ.pop(FOLDER)
        compile_(tmp_path, "one.so")
        os.environ[FOLDER] = own
        assert (left.exists(), young.exists(), mine.exists()) == (False, True, True)


def test_kernels_of_another_processor_or_torch_are_not_taken(tmp_path, monkeypatch):
    compile_(tmp_path, "one.so")
    monkeypatch.setattr(kernels, "_machine", lambda: "another")
    assert compile_(tmp_path, "one.so") == []


COMPILES = """
import sys, time
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from zsqbench.execution.kernels import kept_kernels
from zsqbench.testing import context

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient

ctx = context()
ctx.settings = ctx.settings.model_copy(update={"compile": True})
with kept_kernels(Path(sys.argv[1]), "network"):
    x = torch.ones(1000, requires_grad=True)
    ctx.compile(lambda x: Double.apply(x.sin().exp()).sum())(x).backward()
print(dict(counters["aot_autograd"]).get("autograd_cache_hit", 0), x.grad[0].item())
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.slow("it compiles C++, which takes half a minute")
def test_torch_finds_a_whole_graph_in_another_process(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    hits = []
    for _ in range(2):
        command = [sys.executable, "-c", COMPILES, str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        hits.append(done.stdout.split())
    assert ([hit for hit, _ in hits], hits[0][1]) == (["0", "1"], hits[1][1])
    assert len(archives(tmp_path)) == 1
