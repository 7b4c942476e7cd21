"""What is written, and what the page says of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from zsqbench.autoquantize import delivery
from zsqbench.autoquantize.candidates import Candidate, Level
from zsqbench.autoquantize.delivery import Delivery, check_extra, check_output, deliver_all, make_page
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.runtime import Latency, Runtime
from zsqbench.autoquantize.search import Found, Tried
from zsqbench.errors import ZSQBenchError
from zsqbench.quant import Examination
from zsqbench.reports.doctor import Checkup
from zsqbench.reports.results import Result

RUNTIME = Runtime(100.0, 0.5, 16, Latency(1.0, 2.0), Latency(3.0, 4.0), 8.0)


def tried(name, generator=None, control=False, **metrics):
    row = Result(
        suite="s",
        cell=name,
        definition="d",
        task="t",
        model="m",
        generator=generator,
        quantizer=name,
        scheme="x",
        seed=0,
        status="done" if metrics else "failed",
        reason=None if metrics else "it broke",
        metric="agreement",
        metrics=metrics,
        float_metrics={"top1": 90.0},
        notes=["the task noted this"],
    )
    return Tried(Candidate(name, generator, control), row, 2.0)


BEST = tried("hptq", "dgh", agreement=98.0, fidelity=90.0)
SECOND = tried("dfq", agreement=97.0, fidelity=80.0)
FOUND = Found(
    Path("suite"),
    Path("rows"),
    Level(16, 20, 20),
    Path("file"),
    "dgh",
    [BEST, SECOND],
    {"brecq on dgh": "no time"},
    9.0,
)
REQUEST = Request("net", {}, "int8", 60.0, Path("home"))
DELIVERY = Delivery(Path("net.onnx"), BEST, 2.0, [], RUNTIME, 0.0)


@pytest.fixture
def checkup():
    examination = Examination(**{name: {} for name in Examination.__dataclass_fields__} | {"blocker": None})
    return Checkup("net", (3, 8, 8), 100, False, examination, {}, {}, {})


def page(checkup, found=FOUND, request=REQUEST, **changes):
    return make_page(request, found, checkup, [replace(DELIVERY, **changes)]).text()


def test_the_page_says_what_was_chosen_and_why_and_what_it_costs(checkup):
    text = page(checkup)
    for line in (
        "net at int8 (hw_strict/w8a8)",
        "- hptq on dgh is in net.onnx.",
        "- It has the highest agreement of 2 candidates: 98.00 % equal decisions with the float network.",
        "- The second is dfq without images, with 97.00 % equal decisions with the float network.",
        "- Judged on 16 images that dgh made with another seed than those calibrated on.",
        "- Size: 2.00 MB, float 8.00 MB.",
        "- onnxruntime against the simulation: 100.00 % equal decisions, 0.5 % error.",
        "hptq on dgh                       1.00    2.00",
        "hptq on dgh         98.00      90.00     2.0      chosen",
        "- brecq on dgh: no time",
    ):
        assert line in text.splitlines(), line


def test_synthetic_images_alone_are_to_be_feared(checkup):
    assert "- Agreement was measured on synthetic images only; give some of yours by --images." in page(checkup)
    assert "synthetic images only" not in page(checkup, request=replace(REQUEST, images=Path("mine")))


@pytest.mark.parametrize(
    ("changes", "fear"),
    [
        ({"clipped": 0.05}, "5.0 % of the float outputs lie beyond the range of the quantized outputs"),
        ({"runtime": replace(RUNTIME, equal=90.0)}, "onnxruntime decides otherwise than the simulation on 10.0 %"),
        ({"runtime": replace(RUNTIME, quantized=Latency(5.0, 6.0))}, "slower than float: 5.00 and 3.00 ms"),
        ({"notes": ["the exporter says so"]}, "- the exporter says so"),
    ],
)
def test_what_was_measured_is_to_be_feared_where_it_is_bad(checkup, changes, fear):
    assert fear in page(checkup, **changes)
    assert fear not in page(checkup)


def test_a_control_that_is_as_good_is_told(checkup):
    control = tried("rtn", "noise", control=True, agreement=99.0, fidelity=95.0)
    text = page(checkup, replace(FOUND, tried=[BEST, control]))
    assert "- The control, rtn on noise, has 99.00 % equal decisions with the float network." in text
    assert "- The control, rtn on noise, is as good: the images made no difference that is seen." in text
    assert "- hptq on dgh is in net.onnx." in text


def test_random_weights_doctors_warnings_and_failures_stand_on_the_page(checkup):
    found = replace(FOUND, tried=[BEST, tried("squant")])
    checkup = replace(checkup, random_weights=True, notes=["names were odd"])
    text = page(checkup, found)
    assert "- The network has random weights: nothing here says anything of a trained one." in text
    assert "- doctor: names were odd\n- the task noted this\n" in text
    assert "failed: it broke" in text


def test_accuracy_stands_there_where_images_are_labelled(checkup):
    best = tried("hptq", "dgh", agreement=98.0, fidelity=90.0, top1=88.5)
    text = page(checkup, replace(FOUND, tried=[best]), tried=best)
    assert "- Accuracy on the labelled images: 88.50 %, float 90.00 %." in text


# --- what is written ------------------------------------------------------------------------------------------------


def complaint(path):
    with pytest.raises(ZSQBenchError) as error:
        check_output(path)
    return str(error.value)


@pytest.mark.parametrize("name", ["net.onnx", "net.txt", "net.html"])
def test_no_file_is_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    said = complaint(tmp_path / "net.onnx")
    assert said == f"{tmp_path / name} is there already, and is left as it is; remove it, or name another file"
    assert (tmp_path / name).read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    assert complaint(tmp_path / "file" / "net.onnx").startswith(f"cannot write into {tmp_path / 'file'}: ")
    assert complaint(Path("/proc/net.onnx")).startswith("cannot write into /proc: ")
    assert (
        complaint(tmp_path / "net.pt")
        == f"the model is written as ONNX: expected -o NAME.onnx, got {tmp_path / 'net.pt'}"
    )


def test_a_good_place_stays_as_it_was(tmp_path):
    check_output(tmp_path / "new" / "net.onnx")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_extra_is_asked_for_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ZSQBenchError, match=r"an export needs onnxscript: pip install 'zsqbench\[onnx\]'"):
        check_extra()


def test_the_second_is_delivered_where_time_is_left_and_leaves_no_file(tmp_path, monkeypatch):
    paths = []

    def deliver(_, __, ___, chosen, path):
        path.write_text(chosen.candidate.name)
        paths.append(path)
        return replace(DELIVERY, tried=chosen)

    monkeypatch.setattr(delivery, "deliver", deliver)
    for seconds, names in (([100, 90, 90], ["hptq", "dfq"]), ([100, 40, 40], ["hptq"])):
        left = iter(seconds)
        made = deliver_all(REQUEST, FOUND, None, tmp_path / "net.onnx", lambda left=left: next(left))
        assert [one.tried.candidate.quantizer for one in made] == names
    assert [path.exists() for path in paths] == [True, False, True]


class Low(nn.Module):
    """A student whose outputs end at 1."""

    def forward(self, x):
        return x.clamp(max=1.0)


def test_outputs_beyond_all_that_the_student_gives_are_clipped():
    images = torch.linspace(-1, 3, 401).reshape(1, 1, 1, 401)
    clipped = delivery._clipped(Low(), nn.Identity(), images)
    assert clipped == pytest.approx(200 / 401, abs=0.01)
    assert delivery._clipped(nn.Identity(), nn.Identity(), images) == 0
