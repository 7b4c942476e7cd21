import json

import pytest
import vl_convert
from rows import method, seen

from zsqbench.methods import Evaluation
from zsqbench.reports.site.paper import KINDS, Absent, paper_figures
from zsqbench.reports.site.sections import sections
from zsqbench.steps import evaluations
from zsqbench.store import Store

KEYS = {"baseline": "a" * 64, "generate": "b" * 64}


def part(gap):
    return {
        "images": 4,
        "difficulty": {"by": "label", "mean": 0.5, "counts": [1, 3]},
        "bn_gaps": [{"layer": "bn", "gap": gap}],
        "patch_similarities": [{"layer": "block", "entropy": gap - 1}],
        "output_ranges": [{"output": "logits", "mean": 1.0, "quantiles": [1.0, 2.0, 3.0, 4.0, 5.0]}],
        "class_balance": {"predicted": [1, 3]},
        "absent": {},
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a float measurement and diagnostics."""
    store = Store(tmp_path_factory.mktemp("home"))
    found = Evaluation({}, [at < 8 for at in range(10)], difficulties=[at / 10 for at in range(10)])
    manifest = {"job": {"task": {"method": "classification", "options": {}}}, "curves": {}, "notes": []}
    content = {"version": "1", "set": part(0.1), "real": part(0.2)}
    store.write(
        "baseline",
        KEYS["baseline"],
        {**manifest, "content": {}},
        lambda path: evaluations.write_samples(path, found, of_float=True),
    )
    store.write("diagnose", "b" * 32 + "0" * 32, {**manifest, "content": content})
    return store


def rows():
    """A sweep of two values at two placements with two widths."""
    task = {"task": {"method": "classification", "options": {}}}
    return [
        seen(range(right), 10, scheme=scheme, keys=KEYS, methods={**task, "generator": dgh, "quantizer": method("rtn")})
        for scheme in ("hw/w4a4", "hw/w8a8", "pot/w4a4")
        for right, images in ((7, 16), (9, 64))
        for dgh in ({**method("dgh", images=images), "options": {"images": images}},)
    ]


def test_there_is_a_figure_of_each_kind_or_the_reason_why_not(store):
    found = paper_figures(rows(), store)
    assert [figure.name.partition(" ")[0] for figure in found] == [kind.name for kind in KINDS]
    assert not [figure for figure in found if isinstance(figure, Absent)]
    without = paper_figures([each.model_copy(update={"keys": {}}) for each in rows()[:1]], store)
    no_set = "no cell has a calibration set"
    whys = {
        "sweep": "no option is swept: no two results of one scheme differ in one option alone",
        "bits": "no method has results at two widths of one placement",
        "placements": "no method has results at two placements with the same bits",
        "error-by-difficulty": f"the measurement of the float network is not in {store.home}",
        **dict.fromkeys(("difficulty", "bn-gap", "patch-entropy", "output-range", "class-balance"), no_set),
    }
    assert without == [Absent(f"{kind.name} digits resnet20", whys[kind.name]) for kind in KINDS]
    assert paper_figures([], store) == []


def test_each_figure_can_be_drawn(store):
    for figure in paper_figures(rows(), store):
        spec = json.dumps(figure.chart.complete({figure.chart.data: figure.columns}))
        drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
        assert figure.chart.title in drawn
        assert "NaN" not in drawn


def test_a_section_has_the_figures_and_says_which_there_are_not(store):
    (section,) = sections(rows()[:2], store.home)
    assert "sweep generator.images digits resnet20" in {chart.name for chart in section.charts}
    assert all(chart.data in section.data for chart in section.charts)
    assert section.absent["bits digits resnet20"] == "no method has results at two widths of one placement"
    notes = section.part({each.cell: 0 for each in rows()}).notes
    assert "no figure bits: no method has results at two widths of one placement" in notes
