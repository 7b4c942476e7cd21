"""The search on an embedded network: a budget that is kept, what is left out, and what is chosen."""

from dataclasses import replace

import pytest

from zsqbench import api
from zsqbench.autoquantize import search as module
from zsqbench.autoquantize.candidates import Candidate, Level
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.search import Found, Search, Tried
from zsqbench.cli.networks import load_network
from zsqbench.errors import ZSQBenchError
from zsqbench.reports.results import Result

TINY = Level(images=8, iterations=2, learning=2)


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def searching(tmp_path, monkeypatch):
    """A search on the embedded ResNet with tiny sets, its clock, and what it told."""
    monkeypatch.setattr(module, "LEVELS", (TINY,))
    monkeypatch.setattr("zsqbench.reports.plots.diagnostics_figure", lambda *_: _Blank())
    clock, told = Clock(), []

    def make(budget=600.0, tell=told.append, lacks=None):
        request = Request("resnet20", {"base": "resnet20"}, "int8", budget, tmp_path, workers=0, device="cpu")
        network = load_network("resnet20").pretrained
        return Search(request, network, 17_000, "agreement", False, dict(lacks or {}), tell, 0.0, clock)

    return make, clock, told


class _Blank:
    def savefig(self, path, **_):
        path.write_bytes(b"blank")


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
    assert (found.control, found.generator, found.level) == (None, "dgh", TINY)


def test_a_search_again_takes_what_is_done_and_goes_on_from_there(searching, monkeypatch):
    make, clock, told = searching

    def tell(text):
        told.append(text)
        if text.startswith("dfq without images: ") and "agreement" in text:
            clock.now = 1000.0

    make(tell=tell).run()
    clock.now, told[:] = 0.0, []
    ran = []
    original = api.execute

    def execute(this, cells, *others):
        report = original(this, cells, *others)
        ran.extend(step.label for step in report.plan.to_do().values())
        return report

    lacks = dict.fromkeys(["rtn", "hptq", "brecq"], "it is not wanted here")
    monkeypatch.setattr(api, "execute", execute)
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
    found = make(lacks=lacks).run()
    assert found.generator == "noise"
    assert found.left_out["rtn on dgh"] == "needs batch normalisation"
    assert found.control is not None


def test_images_that_take_too_long_are_left_out_with_what_calibrates_on_them(searching, monkeypatch):
    make, _, _ = searching
    monkeypatch.setattr(module, "LEVELS", (replace(TINY, iterations=10**9),))
    lacks = dict.fromkeys(["dfq", "hptq", "brecq"], "no")
    found = make(lacks=lacks).run()
    assert found.generator == "noise"
    assert found.left_out["rtn on dgh"].startswith("its smallest set takes about ")


def test_a_budget_for_nothing_is_one_line(searching):
    make, _, _ = searching
    with pytest.raises(ZSQBenchError, match="no candidate could be judged; give more time by --budget") as error:
        make(budget=0.5).run()
    assert "\n" not in str(error.value)


def test_an_interruption_ends_the_search_with_its_signal(searching, monkeypatch):
    make, _, _ = searching
    original, calls = api.execute, []

    def execute(this, cells, *others):
        report = original(this, cells, *others)
        calls.append(cells)
        return replace(report, signal=15) if len(calls) == 2 else report

    monkeypatch.setattr(api, "execute", execute)
    found = make().run()
    assert (found.signal, len(calls), list(found.tried)) == (15, 2, [])


def test_the_highest_level_is_taken_whose_images_take_no_more_than_their_part(searching, monkeypatch):
    make, _, _ = searching
    levels = tuple(replace(TINY, iterations=count) for count in (2, 20, 200_000_000))
    monkeypatch.setattr(module, "LEVELS", levels)
    assert make()._level() == levels[1]


def tried(name, control=False, status="done", **metrics):
    row = Result(
        suite="s", cell=name, definition="d", task="t", model="m", generator=None, quantizer=name, scheme="x", seed=0,
        status=status,
        metric="agreement", metrics=metrics,
    )  # fmt: skip
    return Tried(Candidate(name, control=control), row, 1.0)


def test_the_highest_agreement_is_first_and_fidelity_decides_among_equals(tmp_path):
    all_of_them = [
        tried("a", agreement=90.0, fidelity=99.0),
        tried("b", agreement=95.0, fidelity=60.0),
        tried("c", agreement=95.0, fidelity=70.0),
        tried("d", control=True, agreement=99.0, fidelity=99.0),
        tried("e", status="failed"),
    ]
    found = Found(tmp_path, tmp_path, TINY, tmp_path, "dgh", all_of_them, {}, 1.0)
    assert [one.candidate.quantizer for one in found.ranking] == ["c", "b", "a"]
    assert found.control is all_of_them[3]
