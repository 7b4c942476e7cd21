"""ONNX Runtime as a network: sessions as users open them, and exact sessions for comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zsqbench.compat import TreeSpec, tree_structure, tree_unflatten
from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.methods import Pretrained

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PRECISE = "session.x64quantprecision"
"""An entry of a session's configuration. Without it uint8 x int8 may saturate on x86 without VNNI. On other
processors it has no effect."""

CPU = "CPUExecutionProvider"


def open_session(
    path: Path | str,
    providers: Sequence[str] = (CPU,),
    *,
    threads: int = 1,
    optimized: bool = True,
    precise: bool = True,
    save_optimized: Path | None = None,
) -> "InferenceSession":
    """A session of a file. Raises ZSQBenchError for a provider that is not installed, and for a refused file."""
    import onnxruntime as ort

    check_providers(providers)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if precise:
        options.add_session_config_entry(PRECISE, "1")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise ZSQBenchError(
            f"ONNX Runtime {ort.__version__} refuses {path}: {one_line(error)}; an older opset may help"
        ) from error


def check_providers(providers: Sequence[str]) -> None:
    """Raise ZSQBenchError for an execution provider that is not installed."""
    import onnxruntime as ort

    known = ort.get_available_providers()
    if absent := [name for name in providers if name not in known]:
        raise ZSQBenchError(f"ONNX Runtime has no execution provider {absent[0]} here; it has {', '.join(known)}")


def run(
    session: "InferenceSession", images: Tensor | NDArray[Any], names: Sequence[str] | None = None
) -> list[NDArray[Any]]:
    """The outputs of a session for images [N, C, H, W], by default all outputs."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    found: list[NDArray[Any]] = session.run(names, {session.get_inputs()[0].name: np.ascontiguousarray(array)})
    return found


class RuntimeNetwork(nn.Module):
    """A session that replaces a network: it takes normalised images and returns outputs in the network's structure.

    The first `kept` images are kept for a later comparison.
    """

    def __init__(self, session: "InferenceSession", structure: TreeSpec, pretrained: Pretrained, kept: int = 0) -> None:
        super().__init__()
        self.session = session
        self.pretrained = pretrained
        self.structure = structure
        self.images: list[Tensor] = []
        self._missing = kept

    def forward(self, images: Tensor) -> Any:
        """The outputs for images [N, C, H, W], on the CPU."""
        if self._missing > 0:
            self.images.append(images[: self._missing].detach().cpu().clone())
            self._missing -= len(self.images[-1])
        outputs = run(self.session, fed(self.session, images, self.pretrained))
        return tree_unflatten([torch.from_numpy(values) for values in outputs], self.structure)


def fed(session: "InferenceSession", images: Tensor, pretrained: Pretrained) -> Tensor:
    """Normalised images [N, C, H, W] in the form of a session: unchanged, or as the original pixels."""
    if session.get_inputs()[0].type != "tensor(uint8)":
        return images
    black, white = (end.to(images) for end in pretrained.valid_range())
    return (255 * (images - black) / (white - black)).round().clamp(0, 255).to(torch.uint8)


def seen(given: Tensor, pretrained: Pretrained) -> Tensor:
    """Images [N, C, H, W] in the form of a session, as normalised images."""
    if given.dtype != torch.uint8:
        return given
    black, white = pretrained.valid_range()
    return black + (white - black) * given / 255


def structure_of(returned: Any) -> TreeSpec:
    """The structure of a network's outputs."""
    return tree_structure(returned)


def saturates() -> bool:
    """True if products of uint8 and int8 may saturate on this processor: x86 without VNNI."""
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    flags = _cpu_flags()
    return not flags & {"avx512_vnni", "avx_vnni", "amx_int8"} if flags else False


def processor() -> str:
    """The processor's name, with the features that decide the speed of integers."""
    flags = _cpu_flags()
    known = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags]
    return f"{_cpu_name()} ({', '.join(known) or 'no AVX2'})"


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split())


def _cpu_name() -> str:
    import platform

    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    """A line of Linux's description of the first processor. Empty on other systems."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
