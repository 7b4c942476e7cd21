import pytest
from torch import nn
from zsqbench_plugins.gdfq import GDFQ
from zsqbench_plugins.shared.protocols import GDFQ_PROTOCOL, HAST_PROTOCOL
from zsqbench_plugins.ste import STE

from zsqbench import Pretrained


@pytest.mark.parametrize(
    ("size", "classes", "name"), [(32, 10, "cifar10"), (32, 100, "cifar100"), (224, 9, "imagenet")]
)
def test_values_go_by_data_set(size, classes, name):
    teacher = Pretrained(nn.Identity(), (3, size, size), (0.0,) * 3, (1.0,) * 3, classes=classes)
    for method, protocol in ((STE, HAST_PROTOCOL), (GDFQ, GDFQ_PROTOCOL)):
        assert protocol[name].items() <= method().resolved(teacher).options().items()
    assert STE(lr=3.0).resolved(teacher).lr == 3


def test_the_published_schedules_have_29400_updates_and_400_epochs():
    assert STE().updates_per_epoch * HAST_PROTOCOL["cifar10"]["epochs"] == 29_400
    for protocol in GDFQ_PROTOCOL.values():
        assert protocol["epochs"] * 200 + protocol["warmup"] == 400 * 200
