import pytest
import torch

from zsqbench.errors import ZSQBenchError
from zsqbench.zoo.models import Checkpoint
from zsqbench.zoo.userfile import load_user_model

NET = """
import threading
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)
        self.raw = nn.Parameter(torch.ones(2))
        self.scale = 1

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) * self.scale)

class Gain(nn.Module):
    gain = 1.0

    def get_extra_state(self):
        return {"gain": self.gain, "tensors": [torch.ones(2) * self.gain]}

    def set_extra_state(self, state):
        self.gain = state["gain"]

    def forward(self, x):
        return x * self.gain

def net(**attributes):
    made = Net()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made
"""
IMAGE = torch.ones(1, 1, 8, 8)


def load(folder, body, weights="none", told=None):
    """The network of a file whose function `build` has this body."""
    (folder / "net.py").write_text(NET + f"\ndef build():\n    {body}\n")
    source = weights if weights == "none" else Checkpoint(weights, note=[].append if told is None else told.append)
    return load_user_model(folder / "net.py", "build", source)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return net(conv=nn.LazyConv2d(2, 3))", r"without a shape: conv\.weight, conv\.bias; Lazy modules"),
        ("return nn.Sequential(nn.LazyBatchNorm2d())", r"without a shape: 0\.weight, .* and 1 more"),
        ("return torch.jit.script(Net())", "the network is a ScriptModule"),
        ("return torch.jit.trace(Net(), torch.zeros(1, 1, 8, 8))", "the network is a ScriptModule"),
        ("return net(fc=torch.jit.script(nn.Linear(2, 3)))", "module 'fc' of the network is a ScriptModule"),
        ("return net(torch=torch)", r"cannot be copied, .*: attribute 'torch': TypeError: cannot pickle 'module'"),
        ("return nn.Sequential(net(lock=threading.Lock()))", r"attribute '0\.lock': TypeError"),
        ("return nn.Sequential(nn.Linear(2, 2, device='meta'))", r"without values, on device meta: 0\.weight, 0\.bias"),
        (
            "del Gain.gain; return nn.Sequential(Gain())",
            "no state that can be kept: AttributeError: .*no attribute 'gain'",
        ),
        ("made = Net(); made.fc.weight[1, 0] = float('nan'); return made", r"NaN or infinite .* in fc\.weight: "),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch says that TorchScript is old, and that Lazy modules are new
def test_what_can_never_be_quantized_is_refused_in_one_line(tmp_path, body, complaint):
    with pytest.raises(ZSQBenchError, match=complaint) as error:
        load(tmp_path, body)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_a_lazy_module_that_has_seen_a_batch_loads(tmp_path):
    loaded = load(tmp_path, "made = net(conv=nn.LazyConv2d(2, 3)); made(torch.zeros(1, 1, 8, 8)); return made")
    assert loaded(IMAGE).shape == (1, 3)


@pytest.mark.parametrize(
    "body",
    [
        "made = Net(); made.scale = made.raw * 2; return made",
        "made = Net(); del made.scale; made.register_buffer('scale', made.raw * 2); return made",
        "made = Net(); made.others = [made.raw * 2, {'view': (made.raw * 2)[0]}]; return made",
        "return net(scale=SHARED)\n\nSHARED = nn.Parameter(torch.ones(2)) * 2",
    ],
)
def test_tensors_that_were_computed_from_parameters_are_kept_and_can_be_copied(tmp_path, body):
    loaded = load(tmp_path, body)
    assert not any(tensor.requires_grad for tensor in (*loaded.parameters(), torch.as_tensor(loaded.scale)))
    assert loaded(IMAGE).shape == (1, 3)


@pytest.mark.parametrize(
    "body",
    [
        "return torch.compile(Net())",
        "return nn.DataParallel(torch.compile(Net()))",
        "return net(conv=torch.compile(Net().conv))",
        "made = Net(); return nn.Sequential(nn.DataParallel(made.conv), nn.Flatten(), nn.Identity())",
    ],
)
def test_what_only_runs_a_network_is_taken_off(tmp_path, body):
    loaded = load(tmp_path, body)
    assert {type(module).__name__ for module in loaded.modules()} <= {
        *("Net", "Conv2d", "Linear", "Sequential", "Flatten", "Identity")
    }
    assert not any("module." in name or "_orig_mod" in name for name in loaded.state_dict())


def test_extra_state_is_loaded_or_told_to_be_absent(tmp_path):
    source, told = load(tmp_path, "return nn.Sequential(Gain(), nn.Linear(2, 2))"), []
    source[0].gain = 3.0
    torch.save(source.state_dict(), tmp_path / "x.pth")
    body = "return nn.Sequential(Gain(), nn.Linear(2, 2))"
    loaded = load(tmp_path, body, tmp_path / "x.pth", told)
    assert (loaded[0].gain, told) == (3.0, [])
    torch.save({name: value for name, value in source.state_dict().items() if "extra" not in name}, tmp_path / "y.pth")
    loaded = load(tmp_path, body, tmp_path / "y.pth", told)
    assert (loaded[0].gain, told) == (1.0, ["y.pth lacks 0._extra_state, which stays as it was built"])


def test_extra_state_that_the_network_does_not_take_is_one_line(tmp_path):
    torch.save({"_extra_state": {"other": 1}}, tmp_path / "x.pth")
    with pytest.raises(ZSQBenchError, match=r"x\.pth cannot be loaded: KeyError: 'gain'"):
        load(tmp_path, "return Gain()", tmp_path / "x.pth")
