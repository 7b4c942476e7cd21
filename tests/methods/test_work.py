import math

import pytest
from pydantic import Field

import zsqbench
from zsqbench.methods import NetworkTraits
from zsqbench.methods.work import shortened
from zsqbench.plugins import shipped_plugins
from zsqbench.scheme import parse_scheme

NETWORK = NetworkTraits((3, 32, 32), 10)
SCHEME = parse_scheme("hw/w4a4")
GIVEN = {"mixed": {"over": "rtn", "layers": 1}, "file": {"images": 64}}
AMOUNTS = ("iterations", "weight_iterations", "activation_iterations", "epochs")
METHODS = {
    f"{kind} {name}": provided.method
    for (kind, name), provided in shipped_plugins().provided.items()
    if kind in ("generator", "quantizer")
}


def made(method, tmp_path, **options):
    given = dict(GIVEN.get(method.name, {}))
    if method.name == "file":
        (tmp_path / "images.safetensors").touch()
        given["path"] = str(tmp_path / "images.safetensors")
    return method.model_validate(given | options).resolved(NETWORK, SCHEME)


@pytest.mark.parametrize("name", METHODS)
def test_each_shipped_method_has_a_finite_amount_of_work(name, tmp_path):
    method = made(METHODS[name], tmp_path)
    assert all(0 < method.work(images) < math.inf for images in (0, 1, 1000))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if {*AMOUNTS} & {*method.model_fields}])
def test_the_work_of_each_shipped_method_grows_linearly_with_its_iterations(name, tmp_path):
    amounts = [amount for amount in AMOUNTS if amount in METHODS[name].model_fields]
    least, more, most = (
        made(METHODS[name], tmp_path, **dict.fromkeys(amounts, count)).work(64) for count in (10, 20, 40)
    )
    assert (most - least, more > least) == (pytest.approx(3 * (more - least)), True)


class Mine(zsqbench.Generator):
    """A stranger's."""

    name = "mine"
    batch_size: int = Field(16, gt=0, description="images at a time")
    iterations: int = Field(100, gt=0, description="steps")

    def generate(self, teacher, ctx):
        """Nothing."""


class ByEpochs(zsqbench.Quantizer):
    """Another one's."""

    name = "by_epochs"
    batch_size: int = Field(10, gt=0, description="images at a time")
    epochs: int = Field(3, gt=0, description="of all images")

    def quantize(self, student, teacher, data, ctx):
        """Nothing."""


def test_a_generator_steps_with_each_of_its_images():
    assert Mine(images=32).work(32) == 1 + 32 + 3 * 100 * 32


def test_epochs_without_a_number_of_updates_are_of_all_images():
    assert ByEpochs().work(100) == 1 + 100 + 3 * (3 * 10) * 10


def test_a_shortened_method_has_few_steps_and_small_batches():
    short = shortened(Mine(images=32, batch_size=32), 2, 8)
    assert (short.iterations, short.images, short.batch_size) == (2, 8, 8)


def test_a_method_without_such_options_is_itself():
    rtn = METHODS["quantizer rtn"]()
    assert shortened(rtn, 2, 64) is rtn
