"""The imports of the server of worker processes before its first fork. Each worker would import these anyway.

Plugins that are not shipped are not loaded here, so their import affects only the processes that need them.
"""

import contextlib
import threading

import safetensors.torch  # noqa: F401
import torch  # noqa: F401
import torchvision  # noqa: F401 - with what it imports, it takes as long as torch

import zsqbench.quant
import zsqbench.synthesis  # noqa: F401
from zsqbench.execution import worker  # noqa: F401
from zsqbench.plugins import shipped_plugins

for provided in shipped_plugins().provided.values():
    provided.method.model_rebuild()  # the validator, which a command builds of the methods that it uses

with contextlib.suppress(ImportError):
    import tqdm

    # torch.fx makes hidden progress bars with a lock between processes. A worker ends without cleaning up, so the lock
    # would stay, and Python would warn of it when the run ends.
    tqdm.tqdm.set_lock(threading.RLock())
