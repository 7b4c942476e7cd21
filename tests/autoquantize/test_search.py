"""The search on a small network: a budget that is kept, and what is left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from zsqbench.autoquantize import search as module
from zsqbench.autoquantize.candidates import Level
from zsqbench.autoquantize.request import Request, model_entry
from zsqbench.autoquantize.search import Pace, Search, measure_pace
from zsqbench.autoquantize.suites import held_out_suite
from zsqbench.cli.networks import load_network
from zsqbench.errors import ZSQBenchError
from zsqbench.suite import load_suite

TINY = Level(images=8, iterations=2, learning=2)


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


SMALL = """
from torch import nn
def build():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))
    network.input_size, network.mean, network.std = (3, 8, 8), (0.5,) * 3, (0.25,) * 3
    return network
"""


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """The entry of a network in a suite."""
    file = tmp_path_factory.mktemp("network") / "net.py"
    file.write_text(SMALL, encoding="utf-8")
    return model_entry(str(file), weights="none")


@pytest.fixture(scope="module")
def network(entry, tmp_path_factory):
    request = Request("net.py", entry, "int8", 60.0, tmp_path_factory.mktemp("home"))
    return load_network("network", load_suite(held_out_suite(request, TINY))).pretrained


@pytest.fixture
def searching(tmp_path, monkeypatch, network, entry):
    """A search on the network with tiny sets, its clock, and what it told; a pass takes a millisecond."""
    monkeypatch.setattr(module, "LEVELS", (TINY,))
    monkeypatch.setattr(module, "measure_pace", lambda *_: Pace(0.001, 1.0))
    monkeypatch.setattr("zsqbench.reports.plots.diagnostics_figure", lambda *_: _Blank())
    clock, told = Clock(), []

    def make(budget=600.0, tell=told.append, lacks=None, images=None, target="int8"):
        request = Request("net.py", entry, target, budget, tmp_path, images, workers=0, device="cpu")
        return Search(request, network, 3_000, 7, "agreement", False, dict(lacks or {}), tell, 0.0, clock)

    return make, clock, told


class _Blank:
    def savefig(self, path, **_):
        path.write_bytes(b"blank")


@pytest.mark.slow("it searches again; test_images_that_take_too_long names what is left out, too")
def test_what_the_budget_has_no_time_for_is_left_out_by_name(searching):
    make, clock, told = searching

    def tell(text):
        told.append(text)
        if text.startswith("squant without images: ") and "agreement" in text:
            clock.now = 550.0  # so that what is left is the reserve alone

    found = make(tell=tell).run()
    assert [tried.candidate.name for tried in found.tried] == ["squant without images"]
    assert list(found.left_out) == ["dfq without images", "rtn on dgh", "hptq on dgh", "rtn on noise", "brecq on dgh"]
    assert all(reason.endswith("s, and 0 s of the budget were left") for reason in found.left_out.values())
    assert found.ranking == list(found.tried)
    assert (found.control, found.generators, found.level) == (None, ("dgh",), TINY)


def test_a_search_again_takes_what_is_done_and_goes_on_from_there(searching, monkeypatch):
    make, clock, told = searching

    def tell(text):
        told.append(text)
        if text.startswith("dfq without images: ") and "agreement" in text:
            clock.now = 1000.0

    make(tell=tell).run()
    clock.now, told[:] = 0.0, []
    ran = []
    original = module.execute

    def execute(this, cells, *others):
        report = original(this, cells, *others)
        ran.extend(step.label for step in report.plan.to_do().values())
        return report

    lacks = dict.fromkeys(["rtn", "hptq", "brecq"], "it is not wanted here")
    monkeypatch.setattr(module, "execute", execute)
    found = make(lacks=lacks).run()
    assert [tried.candidate.name for tried in found.tried] == ["squant without images", "dfq without images"]
    assert found.left_out == dict.fromkeys(
        ["rtn on noise", "rtn on dgh", "hptq on dgh", "brecq on dgh"], "it is not wanted here"
    )
    assert "squant without images: about 0 s" in told
    assert ran == []


def test_without_synthetic_images_noise_is_judged_on(searching):
    make, _, _ = searching
    lacks = dict.fromkeys(["dfq", "hptq", "brecq"], "no") | {"dgh": "needs batch normalisation"}
    found = make(lacks=lacks | dict.fromkeys(["image_prior", "psaq_vit"], "needs a classifier")).run()
    assert (found.generators, found.at_home) == (("noise",), True)
    assert found.left_out["rtn on image_prior"] == found.left_out["rtn on psaq_vit"] == "needs a classifier"
    assert "rtn on dgh" not in found.left_out
    assert found.control is not None


def test_without_batch_normalisation_other_generators_make_the_images(searching):
    make, _, _ = searching
    lacks = dict.fromkeys(["squant", "dfq", "hptq", "brecq"], "no") | {"dgh": "needs batch normalisation"}
    found = make(lacks=lacks).run()  # the network has no attention, so that psaq_vit makes nothing
    assert (found.generators, found.at_home) == (("image_prior",), False)
    assert [tried.candidate.name for tried in found.tried] == ["rtn on image_prior", "rtn on noise"]
    assert found.left_out["rtn on psaq_vit"].startswith("it made no images to judge on: psaq_vit needs attention")
    assert all(tried.row.metrics["samples"] == TINY.images for tried in found.tried)


def test_generators_are_taken_as_far_as_there_is_time_for_their_images(searching):
    make, _, _ = searching
    search = make(lacks={"dgh": "needs batch normalisation"})
    assert search._affordable(replace(TINY, iterations=1000)) == ("image_prior", "psaq_vit")
    assert search._affordable(replace(TINY, iterations=5000)) == ("image_prior",)
    assert search.lacks["psaq_vit"].startswith("its smallest set takes about ")
    assert search._affordable(replace(TINY, iterations=9000)) == ()


def test_no_images_to_judge_on_is_one_line(searching):
    make, _, _ = searching
    with pytest.raises(ZSQBenchError, match=r"no images to judge on could be made: .*psaq_vit") as error:
        make()._hold_out(TINY, ("psaq_vit",), Path("file"))
    assert "\n" not in str(error.value)


def test_images_that_take_too_long_are_left_out_with_what_calibrates_on_them(searching, monkeypatch):
    make, _, _ = searching
    monkeypatch.setattr(module, "LEVELS", (replace(TINY, iterations=10**9),))
    lacks = dict.fromkeys(["dfq", "hptq", "brecq"], "no")
    found = make(lacks=lacks).run()
    assert found.generators == ("noise",)
    assert found.left_out["rtn on dgh"].startswith("its smallest set takes about ")


def test_a_budget_for_nothing_is_one_line(searching):
    make, _, _ = searching
    with pytest.raises(ZSQBenchError, match="no candidate could be judged; give more time by --budget") as error:
        make(budget=0.5).run()
    assert "\n" not in str(error.value)


def test_an_interruption_ends_the_search_with_its_signal(searching, monkeypatch):
    make, _, _ = searching
    original, calls = module.execute, []

    def execute(this, cells, *others):
        report = original(this, cells, *others)
        calls.append(cells)
        return replace(report, signal=15) if len(calls) == 2 else report

    monkeypatch.setattr(module, "execute", execute)
    found = make().run()
    assert (found.signal, len(calls), list(found.tried)) == (15, 2, [])


def test_the_highest_level_is_taken_whose_images_take_no_more_than_their_part(searching, monkeypatch):
    make, _, _ = searching
    levels = tuple(replace(TINY, iterations=count) for count in (2, 20, 200_000_000))
    monkeypatch.setattr(module, "LEVELS", levels)
    assert make()._level() == levels[1]


@pytest.mark.slow("it searches again, with mixed widths")
def test_at_4_bits_the_most_sensitive_layers_may_have_8(searching):
    make, _, told = searching
    lacks = dict.fromkeys(["squant", "dfq", "hptq", "brecq"], "it is not wanted here")
    found = make(lacks=lacks, target="int4").run()
    bits = {tried.candidate.name: tried.bits for tried in found.tried}
    assert list(bits) == ["rtn on dgh", "mixed 1/3 over rtn on dgh", "mixed 1/2 over rtn on dgh", "rtn on noise"]
    plain, third, half, noise = bits.values()
    assert plain == noise == 4 < third < half < 8
    assert "sensitivity" in found.tried[1].row.seconds
    estimates = [line for line in told if line.startswith("mixed 1/3 over rtn on dgh: about ")]
    assert len(estimates) == 1


def test_mixed_is_left_out_where_the_network_does_not_allow_it_or_the_budget_has_no_time_for_it(searching):
    make, clock, _ = searching

    def tell(text):
        if text.startswith("rtn on dgh: ") and "agreement" in text:
            clock.now = 550.0

    lacks = dict.fromkeys(["squant", "dfq", "hptq", "brecq", "mixed_1_3"], "it is not wanted here")
    found = make(lacks=lacks, target="int4", tell=tell).run()
    assert found.left_out["mixed 1/3 over rtn on dgh"] == "it is not wanted here"
    assert found.left_out["mixed 1/2 over rtn on dgh"].endswith("s, and 0 s of the budget were left")


# --- how much is judged on, and made -------------------------------------------------------------------------------


def test_the_users_images_are_as_many_as_there_is_time_to_judge_on(searching, tmp_path, monkeypatch):
    make, _, _ = searching
    for index in range(50):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{index}.png").touch()
    monkeypatch.setattr(module, "measure_pace", lambda *_: Pace(1.0, 1.0))
    assert make(budget=2000.0).most == 0
    assert make(budget=6080.0, images=tmp_path / "mine").most == 40
    assert make(budget=60.0, images=tmp_path / "mine").most == 32
    assert make(budget=1e6, images=tmp_path / "mine").most == 50


def test_a_search_again_judges_and_makes_as_many_images_whatever_the_machine_does_then(searching, monkeypatch):
    make, _, _ = searching
    monkeypatch.setattr(module, "measure_pace", lambda *_: Pace(1.0, 1.0))
    first = make()
    monkeypatch.setattr(module, "measure_pace", lambda *_: Pace(2.0, 1.0))
    assert make()._costs == first._costs
    assert make(budget=601.0)._costs != first._costs


@pytest.mark.parametrize(("busy", "slower"), [(1.0, 1.5), (2.0, 2.0), (9.0, 3.0)])
def test_more_of_the_budget_is_kept_where_the_machine_is_busy(searching, monkeypatch, busy, slower):
    make, _, _ = searching
    monkeypatch.setattr(module, "measure_pace", lambda *_: Pace(0.1, busy))
    search = make(budget=700.0)
    assert search.left - search._left == pytest.approx(max(0.15 * 700, slower * search._costs.delivery))


def test_a_pace_is_that_of_a_pass_and_says_how_busy_the_machine_is(network):
    pace = measure_pace(network, 1)
    assert 0 < pace.image < 1
    assert pace.busy > 0.5
