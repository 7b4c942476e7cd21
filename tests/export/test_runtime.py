"""ONNX Runtime as a network."""

import numpy as np
import onnx
import pytest
import torch
from exportnets import EVEN, SMALL, exported, images, pixels
from torch import nn

from zsqbench import Pretrained
from zsqbench.errors import ZSQBenchError
from zsqbench.export import runtime
from zsqbench.export.runtime import RuntimeNetwork, fed, open_session, run, seen, structure_of


def complaint(*arguments):
    with pytest.raises(ZSQBenchError) as error:
        open_session(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_runtime_network_returns_what_the_network_does_in_its_own_structure():
    file = exported("shared", "qdq/w8a8")
    given = images(file.of, 4)
    with torch.no_grad():
        expected = file.integer.student(given)
    network = RuntimeNetwork(open_session(file.path, optimized=False), structure_of(expected), file.of, kept=3)
    found = network(given)
    assert found.keys() == expected.keys()
    assert isinstance(found["boxes"], tuple)
    for one, other in zip([*found["boxes"], found["scores"]], [*expected["boxes"], expected["scores"]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)
    network(given)
    assert torch.equal(torch.cat(network.images), given[:3])


def test_files_of_pixels_are_given_pixels_and_networks_what_these_stand_for():
    file = exported("moving", "qdq/w4a8", **SMALL)
    session, bytes_ = open_session(file.path), pixels(5)
    given = images(file.of, 5)
    assert torch.equal(fed(session, given, file.of), bytes_)
    torch.testing.assert_close(seen(bytes_, file.of), given)
    beyond = torch.stack([given[0] - 9, given[0] + 9])
    assert fed(session, beyond, file.of).unique().tolist() == [0, 255]
    plain = open_session(exported("bounded", "qdq/w8a8").path)
    assert fed(plain, given, file.of) is given
    assert seen(given, file.of) is given


def test_values_from_minus_one_are_pixels_too():
    of = Pretrained(nn.Identity(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3, (-1.0, 1.0))
    session = open_session(exported("moving", "qdq/w4a8", **SMALL).path)
    given = 2 * (pixels() / 255) - 1
    assert torch.equal(fed(session, given, of), pixels())
    torch.testing.assert_close(seen(pixels(), of), given)


def test_some_outputs_are_had_by_name():
    file = exported("shared", "qdq/w8a8")
    session = open_session(file.path)
    (scores,) = run(session, images(file.of, 2).numpy(), ["output_0"])
    np.testing.assert_array_equal(scores, run(session, images(file.of, 2))[0])


def test_a_provider_that_is_not_there_is_one_line_with_those_that_are():
    text = complaint(exported("bounded", "qdq/w8a8").path, ("NoExecutionProvider",))
    assert text.startswith("ONNX Runtime has no execution provider NoExecutionProvider here; it has ")
    assert "CPUExecutionProvider" in text


def test_a_file_that_the_runtime_refuses_is_one_line(tmp_path):
    proto = onnx.load(exported("bounded", "qdq/w8a8").path)
    proto.opset_import[0].version = 99
    onnx.save(proto, tmp_path / "new.onnx")
    text = complaint(tmp_path / "new.onnx")
    assert f"refuses {tmp_path / 'new.onnx'}: " in text
    assert text.endswith("; an older opset may help")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2", True),
        ("x86_64", "avx2 avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
        ("x86_64", "", False),
    ],
)
def test_products_saturate_on_x86_without_vnni(monkeypatch, machine, flags, expected):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(runtime, "_cpu_info", lambda field: flags if field == "flags" else "A CPU")
    assert runtime.saturates() == expected
    assert runtime.processor().startswith("A CPU (")


def test_the_extra_that_is_missing_is_named_with_how_to_install_it(monkeypatch):
    import zsqbench.export

    assert zsqbench.export.missing() is None
    monkeypatch.setattr(zsqbench.export.importlib.util, "find_spec", lambda name: None if name == "onnx_ir" else name)
    assert zsqbench.export.missing() == "onnx_ir is not installed: pip install 'zsqbench[onnx]'"


def test_feeding_of_all_channels_alike_is_that_of_the_tests():
    assert exported("bounded", "qdq/w8a8").of.mean == EVEN[0]
