"""All that the server of worker processes imports before it forks the first: what each of them would import anyway.

It loads no plugin of others: what these do when they are imported reaches only the processes that need them.
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

    # torch.fx makes bars that it does not show, with a lock between processes. A worker ends without cleaning up: the
    # lock would stay, and Python would warn of it when the run ends.
    tqdm.tqdm.set_lock(threading.RLock())
