"""The page about a search and the files that it made."""

import base64
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from torch import nn

from zsqbench.autoquantize.candidates import Candidate, Level
from zsqbench.autoquantize.delivery import Delivery
from zsqbench.autoquantize.findings import Found, Tried
from zsqbench.autoquantize.report import make_page
from zsqbench.autoquantize.request import Request
from zsqbench.autoquantize.runtime import Runtime
from zsqbench.methods import Pretrained
from zsqbench.quant import Examination
from zsqbench.reports.doctor import Checkup
from zsqbench.reports.results import Result

comparison = pytest.importorskip("zsqbench.export.comparison")
latency = pytest.importorskip("zsqbench.export.latency")
structure = pytest.importorskip("zsqbench.export.structure")

ISLAND = "its input is not quantized"
CHECK = comparison.Check(
    images=16,
    structure=structure.Structure(
        (structure.Layer("stem", None, found=True), structure.Layer("head", ISLAND, found=False))
    ),
    exact=(),
    optimized=(),
    equal_exact=16,
    equal=16,
    equal_biases=16,
    equal_double=16,
    equal_saturating=None,
    reference=1e-6,
    bit_identical=True,
)
RUNTIME = Runtime(CHECK, latency.Times(1.0, 2.0), latency.Times(3.0, 4.0), 8.0, "a processor")
NETWORK = Pretrained(nn.Identity(), (3, 8, 8), (0.5,) * 3, (0.1, 0.2, 0.3), (0.0, 1.0))


FED = "from 0 to 1 in the order red, green, blue, less 0.5, divided by (0.1, 0.2, 0.3)."


def tried(name, generator=None, control=False, right=16, metric="agreement", part=0, bits=8.0, **metrics):
    """A candidate that agrees on the first so many of 16 images."""
    correct = ((1 << right) - 1) << (16 - right)
    row = Result(
        suite="s",
        cell=name,
        definition="d",
        task="t",
        model="m",
        generator=generator,
        quantizer=name,
        scheme="qdq/w8a8",
        seed=0,
        status="done" if metrics else "failed",
        reason=None if metrics else "it broke",
        metric=metric,
        metrics={"samples": 16.0, "images/samples": 16.0, **metrics} if metrics else {},
        float_metrics={"top1": 90.0},
        notes=["the task noted this"],
        correct=base64.b64encode(correct.to_bytes(2)).decode(),
        tensors={"mean_weight_bits": bits, "size_mb": bits / 2},
    )
    return Tried(Candidate(name, generator, control, Fraction(part)), row, 2.0)


BEST = tried("hptq", "dgh", agreement=100.0, fidelity=90.0)
SECOND = tried("dfq", right=15, agreement=93.75, fidelity=80.0)
WORST = tried("squant", right=4, agreement=25.0, fidelity=99.0)
CONTROL = tried("rtn", "noise", control=True, right=8, agreement=50.0, fidelity=20.0)
FOUND = Found(
    Path("suite"),
    Path("rows"),
    Level(16, 20, 20),
    Path("file"),
    ("dgh",),
    False,
    [CONTROL, WORST, SECOND, BEST],
    {"brecq on dgh": "about 90 s, and 3 s of the budget were left"},
    9.0,
)
REQUEST = Request("net", {}, "int8", 60.0, Path("home"))
DELIVERY = Delivery(Path("net.onnx"), BEST, 2.0, [], RUNTIME)


@pytest.fixture
def checkup():
    examination = Examination(**{name: {} for name in Examination.__dataclass_fields__} | {"blocker": None})
    return Checkup("net", (3, 8, 8), 100, False, examination, {}, {}, {})


def page(checkup, found=FOUND, request=REQUEST, network=NETWORK, **changes):
    return make_page(request, found, checkup, network, replace(DELIVERY, **changes)).text()


def judged(*others, **named):
    """The findings of a search that tried these alone."""
    return replace(FOUND, tried=list(others), **named)


def test_the_page_begins_with_what_was_made_how_near_it_is_and_what_it_costs(checkup):
    lines = page(checkup).splitlines()
    assert lines[:10] == [
        "net, quantized to weights and activations of 8 bits",
        "",
        "IN SHORT",
        "- The model is net.onnx. net.py beside it runs it on an image.",
        "- hptq on dgh made it.",
        "- It decides for the same class as the float network in 100.00 % of 16 synthetic images.",
        "- The file has 2.00 MB; in float 8.00 MB (4.0 x).",
        "- An image takes 1.00 ms; in float 3.00 ms (3.0 x).",
        "- 1 of 2 layers run with integers in ONNX Runtime.",
        f"- It takes float32 [N, 3, 8, 8]: pixels {FED}",
    ]


def test_all_candidates_stand_in_a_table_and_those_left_out_below(checkup):
    text = page(checkup, judged(*FOUND.tried, tried("brecq")))
    for line in (
        "candidate              agreement  fidelity  seconds",
        "hptq on dgh            100.00     90.00     2        chosen",
        "dfq without images     93.75      80.00     2",
        "squant without images  25.00      99.00     2",
        "rtn on noise           50.00      20.00     2        control",
        "brecq without images   -          -         2        failed: it broke",
        "- brecq on dgh: about 90 s, and 3 s of the budget were left.",
        "- The search took 9 s of a budget of 60 s; steps done before took none.",
    ):
        assert line in text.splitlines(), line
    assert "- No candidate was left out." in page(checkup, replace(FOUND, left_out={})).splitlines()


def test_candidates_that_chance_could_explain_are_named(checkup):
    text = page(checkup)
    said = (
        "- hptq on dgh has the highest agreement. dfq without images cannot be told from it: so small a difference is "
    )
    assert f"{said}often chance (sign test, 5 %). Among these the highest fidelity is chosen." in text
    alone = page(checkup, judged(BEST, WORST))
    assert "- The highest agreement is chosen; no other candidate comes so near that it could be chance." in alone


PURE = tried("rtn", "dgh", right=9, bits=4.0, agreement=56.25, fidelity=60.0)
THIRD = tried("rtn", "dgh", right=15, part="1/3", bits=4.5, agreement=93.75, fidelity=80.0)
HALF = tried("rtn", "dgh", right=16, part="1/2", bits=5.25, agreement=100.0, fidelity=90.0)
INT4 = replace(REQUEST, target="int4")


def test_where_sizes_differ_the_page_says_what_other_bits_would_bring_and_cost(checkup):
    third, half = THIRD.candidate.name, HALF.candidate.name
    lines = page(checkup, judged(PURE, THIRD, HALF), INT4, tried=THIRD).splitlines()
    for line in (
        "net, quantized to weights of 4 bits and activations of 8; 1/3 of the layers have weights of 8",
        f"- {third} made it; its weights have 4.5 bits on average.",
        (
            f"- {half} has the highest agreement. {third} cannot be told from it: so small a difference is often "
            "chance (sign test, 5 %). Among these the fewest bits are chosen, then the highest fidelity."
        ),
        (
            "- Fewer bits: the weights of rtn on dgh have 4.0 bits on average and 2.00 MB, instead of 4.5 and 2.25 MB; "
            "its agreement is 56.25 instead of 93.75."
        ),
        (
            f"- More bits: the weights of {half} have 5.2 bits on average and 2.62 MB, instead of 4.5 and 2.25 MB; "
            "its agreement is 100.00 instead of 93.75."
        ),
        "candidate                  agreement  fidelity  bits  weights  seconds",
        "mixed 1/3 over rtn on dgh  93.75      80.00     4.5   2.25 MB  2        chosen",
        "rtn on dgh                 56.25      60.00     4.0   2.00 MB  2",
    ):
        assert line in lines, line
    assert any(line.startswith("- mixed: gives 8 bits to a part of the layers") for line in lines)
    assert any(line.startswith("- bits: how many bits a weight has on average") for line in lines)
    alone = page(checkup, judged(PURE), INT4, tried=PURE)
    assert "bits:" not in alone
    assert "weights of mixed" not in alone


def test_a_network_that_is_no_classifier_bears_a_little_less_fidelity_for_fewer_bits(checkup):
    half = tried("rtn", "dgh", metric="fidelity", part="1/2", bits=5.0, fidelity=90.0)
    pure = tried("rtn", "dgh", metric="fidelity", bits=4.0, fidelity=86.0)
    text = page(checkup, judged(half, pure), INT4, tried=pure)
    assert (
        "- mixed 1/2 over rtn on dgh has the highest fidelity. Among those that have at most 5 less, the fewest bits "
        "are chosen, then the highest fidelity."
    ) in text


def test_every_word_that_is_used_is_explained(checkup):
    text = page(checkup)
    used = [line.partition(":")[0] for line in text.partition("WORDS\n- ")[2].split("\n- ")]
    words = ["agreement", "fidelity", "control", "simulation", "p50, p95", "codes"]
    assert used == [*words, "squant", "dfq", "hptq", "dgh", "rtn", "noise", "brecq"]


def test_a_network_that_is_no_classifier_is_judged_by_its_outputs(checkup):
    best = tried("hptq", "dgh", metric="fidelity", fidelity=97.0)
    text = page(checkup, judged(best, tried("dfq", metric="fidelity", fidelity=96.0)), tried=best)
    assert "- Its outputs differ from the float network's by 3.00 % of their size, on 16 synthetic images." in text
    assert "- The highest fidelity is chosen." in text
    assert "agreement" not in text


def test_accuracy_stands_there_where_images_are_labelled(checkup):
    best = tried("hptq", "dgh", agreement=98.0, fidelity=90.0, top1=88.5)
    mine = replace(REQUEST, images=Path("mine"))
    text = page(checkup, judged(best), mine, tried=best)
    assert "- Of your labels it meets 88.50 %; the float network meets 90.00 %." in text
    assert "% of 16 images of mine." in text
    assert "the float network  100.00     100.00    90.00" in text


def test_small_files_are_told_in_kilobytes(checkup):
    assert "- The file has 12.3 kB; in float 8.00 MB (650.4 x)." in page(checkup, size_mb=0.0123)


def test_grey_and_reversed_channels_are_told(checkup):
    grey = replace(NETWORK, input_size=(1, 8, 8), mean=(0.5,), std=(0.5,), value_range=(0.0, 255.0))
    assert "It takes float32 [N, 1, 8, 8]: pixels from 0 to 255, less 0.5, divided by 0.5." in page(
        checkup, network=grey
    )
    turned = replace(NETWORK, preprocessing={"channels": "bgr"})
    assert "in the order blue, green, red" in page(checkup, network=turned)


# --- what to fear ---------------------------------------------------------------------------------------------------


def test_synthetic_images_alone_are_to_be_feared(checkup):
    alone = "- It was judged on synthetic images alone, which can be easier or harder than real ones."
    same = "- It was calibrated on images that dgh made, as are those that it is judged on."
    assert alone in page(checkup)
    assert same in page(checkup)
    mine = page(checkup, request=replace(REQUEST, images=Path("mine")))
    assert alone not in mine
    assert same not in mine


def test_few_images_are_to_be_feared(checkup):
    assert "- It was judged on 16 images: one more or less is 6.2 %." in page(checkup)


def test_noise_to_judge_on_is_to_be_feared(checkup):
    noisy, fear = replace(FOUND, generators=("noise",)), "- It was judged on noise, for which no network is made"
    assert fear in page(checkup, noisy)
    assert fear not in page(checkup, replace(noisy, images=True), replace(REQUEST, images=Path("mine")))


CLIPPED = tried("hptq", "dgh", agreement=98.0).row.model_copy(
    update={"clipped": {"fc": 0.25}, "footnotes": ["the method says so"]}
)


@pytest.mark.parametrize(
    ("changes", "fear"),
    [
        ({"tried": replace(BEST, row=CLIPPED)}, "- in 25 % of the evaluated images, several of the largest values of"),
        ({"tried": replace(BEST, row=CLIPPED)}, "- the method says so."),
        (
            {"runtime": replace(RUNTIME, quantized=latency.Times(5.0, 6.0))},
            "- On this processor it is slower than the float",
        ),
        ({"tried": WORST}, "- It decides otherwise than float in 75.00 %: see whether your use can bear that"),
        ({"size_mb": 8.1}, "- The file is not smaller than the float network's"),
        ({"notes": ["the exporter says so"]}, "- the exporter says so."),
        (
            {"runtime": replace(RUNTIME, check=replace(CHECK, exact=(comparison.Departure("stem", 0.5, 3, 0.5),)))},
            "- ONNX Runtime and the simulation differ: without optimisation it departs first at tensor stem",
        ),
        (
            {"runtime": replace(RUNTIME, check=replace(CHECK, equal_saturating=10))},
            "without it 10 of 16 decisions are as simulated.",
        ),
    ],
)
def test_what_was_measured_is_to_be_feared_where_it_is_bad(checkup, changes, fear):
    assert fear in page(checkup, **changes)
    assert fear not in page(checkup)


def test_a_control_that_is_as_good_is_to_be_feared_and_one_that_was_not_run_too(checkup):
    control = tried("rtn", "noise", control=True, agreement=100.0, fidelity=95.0)
    near = tried("rtn", "noise", control=True, right=12, agreement=75.0, fidelity=20.0)
    for one in (control, near):
        assert "- The control, rtn on noise, cannot be told from it" in page(checkup, judged(BEST, one))
    assert "- The control was not run" in page(checkup, judged(BEST))
    assert "- The control" not in page(checkup).partition("WHY")[0]


BETTER = tried("rtn", "noise", control=True, agreement=100.0, fidelity=95.0)


def test_a_control_that_is_clearly_better_is_never_said_to_be_as_good(checkup):
    """Noise that is judged on is like what the control is calibrated on, so the worse candidate stays."""
    text = page(checkup, judged(WORST, BETTER, generators=("noise",)), tried=WORST)
    assert "cannot be told" not in text
    because = "this means nothing, because the control is calibrated on noise, and only noise was used for judging"
    assert f"- The control, rtn on noise, has the higher agreement, 100.00 instead of 25.00: {because}." in text
    assert "- The highest agreement but for the control's is chosen; no other candidate comes so near" in text
    assert f"- The control is rtn on noise; {because}." in text


def test_a_control_that_is_chosen_is_to_be_feared(checkup):
    text = page(checkup, judged(WORST, BETTER), tried=BETTER)
    assert "- rtn on noise made it." in text
    assert "- It is the control, rtn on noise, than which all candidates are worse" in text
    said = "- All candidates have less agreement than the control, rtn on noise, by more than chance explains"
    assert f"{said} (sign test, 5 %): so the control is chosen." in text
    assert "rtn on noise           100.00     95.00     2        chosen" in text.splitlines()
    assert "squant without images  25.00      99.00     2" in text.splitlines()
    assert "cannot be told" not in text
    outputs = [replace(one, row=one.row.model_copy(update={"metric": "fidelity"})) for one in (CLOSE, BETTER)]
    assert "- All candidates have less fidelity than the control, rtn on noise, by more than 5: so" in page(
        checkup, judged(*outputs), tried=outputs[1]
    )


CLOSE = tried("dfq", right=15, agreement=93.75, fidelity=80.0)


def test_a_control_that_leads_by_little_is_told(checkup):
    text = page(checkup, judged(CLOSE, BETTER), tried=CLOSE)
    assert "- The control, rtn on noise, cannot be told from it" in text
    assert "- The highest agreement but for the control's is chosen" in text
    assert "- The control is rtn on noise; its lead is too small to choose it for." in text
    best, near = (tried("dfq", metric="fidelity", fidelity=value, control=value > 96) for value in (96.0, 97.0))
    text = page(checkup, judged(best, near), tried=best)
    assert "- The control, dfq without images, has the higher fidelity, 97.00 instead of 96.00: its lead is" in text
    assert "- The highest fidelity but for the control's is chosen." in text


def test_candidates_that_are_near_the_best_one_and_worse_than_the_control_are_named(checkup):
    small = tried("squant", right=10, bits=4.0, agreement=62.5, fidelity=70.0)
    text = page(checkup, judged(CLOSE, small, BETTER), tried=CLOSE)
    assert "- Not chosen, because the control is clearly better: squant without images." in text
    assert "is chosen; no other one that the control is not clearly better than comes so near" in text


def test_images_of_two_generators_are_told(checkup):
    best = tried("hptq", "psaq_vit", agreement=100.0, fidelity=90.0)
    text = page(checkup, judged(best, CONTROL, generators=("image_prior", "psaq_vit")), tried=best)
    assert "- Candidates were judged on 32 synthetic images; none" in text
    assert (
        "- image_prior and psaq_vit make 16 images each to calibrate on, and as many of another seed to judge." in text
    )
    assert "- It was calibrated on images that psaq_vit made, as are some of those that it is judged on." in text
    assert "\n- psaq_vit: makes images that the network takes for classes, and whose patches" in text


def test_random_weights_and_what_the_doctor_and_the_task_say_stand_on_the_page(checkup):
    text = page(replace(checkup, random_weights=True, notes=["names were odd"]))
    fears = text.partition("WHAT TO FEAR\n- ")[2].partition("\n\n")[0].split("\n- ")
    assert fears[0] == "The network has random weights: nothing here says anything of a trained one."
    assert fears[-2:] == ["the task noted this.", "zsqbench doctor says: names were odd."]


def test_nothing_to_fear_is_told(checkup):
    clean = replace(
        BEST, row=BEST.row.model_copy(update={"notes": [], "metrics": BEST.row.metrics | {"samples": 500.0}})
    )
    text = page(checkup, judged(clean, CONTROL), replace(REQUEST, images=Path("mine")), tried=clean)
    assert "WHAT TO FEAR\n- Nothing was found.\n" in text
