import pytest
from rows import method, seen

from zsqbench.methods import Evaluation
from zsqbench.reports.site.paper import Absent
from zsqbench.reports.site.paper.errors import errors_by_difficulty
from zsqbench.reports.site.sections import sections
from zsqbench.steps import evaluations
from zsqbench.store import Store

KEYS = {"baseline": "a" * 64}
WHERE = "digits resnet20"


@pytest.fixture
def store(tmp_path):
    """A store in which the first eight of ten images are easy for the float network, and two are hard."""
    return measured(Store(tmp_path), [0.01] * 8 + [0.95, 1.0])


def measured(store, difficulties):
    found = Evaluation({}, [at < 8 for at in range(10)], difficulties=difficulties)
    manifest = {"content": {}, "curves": {}, "notes": []}
    store.write(
        "baseline",
        KEYS["baseline"],
        manifest,
        lambda folder: evaluations.write_samples(folder, found, of_float=True),
    )
    return store


def test_errors_are_counted_by_how_hard_images_are_for_the_float_network(store):
    rows = [seen(range(6), 10, seed=0, keys=KEYS), seen([0, 8], 10, seed=1, keys=KEYS)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    records = {each["difficulty"]: each for each in figure.columns.records()}
    # 2 and 7 of the 8 easy images are wrong, 2 and 1 of the other 2
    assert {difficulty: each["error"] for difficulty, each in records.items()} == {0.05: 56.25, 0.95: 75.0}
    assert [each["count"] for each in records.values()] == [8, 2]
    assert {each["seeds"] for each in records.values()} == {2}
    assert {each["method"] for each in records.values()} == {"dgh with rtn"}


@pytest.mark.parametrize(
    "other", [{"settings": {"precision": "double"}}, {"methods": {"quantizer": method("rtn", a=2)}}]
)
def test_two_variants_of_a_method_have_a_line_each_and_are_called_as_in_other_charts(store, other):
    rows = [seen(range(6), 10, keys=KEYS), seen([0, 8], 10, keys=KEYS, **{"settings": {}, "methods": {}} | other)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    errors = {each["method"]: each["error"] for each in figure.columns.records() if each["difficulty"] == 0.05}
    assert sorted(errors.values()) == [25.0, 87.5]
    (section,) = sections(rows, None)
    assert set(errors) == set(section.methods.values())


def test_why_there_are_none_is_told(store, tmp_path):
    def why(row, store):
        (absent,) = errors_by_difficulty([row], store, WHERE)
        assert isinstance(absent, Absent)
        return absent.why

    row = seen([0], 10, keys=KEYS)
    assert why(row.model_copy(update={"correct": None}), store) == "no done result says which images were right"
    elsewhere = Store(tmp_path / "empty")
    assert why(row, elsewhere) == f"the measurement of the float network is not in {elsewhere.home}"
    assert why(seen([0], 100, keys=KEYS), store) == "the float network was measured on another number of images"
    (store.folder("baseline", KEYS["baseline"]) / "samples.safetensors").write_bytes(b"other")
    assert "is damaged" in why(row, store)


def test_a_method_that_is_right_on_few_hard_images_and_wrong_on_many_easy_ones_is_not_the_best(store):
    rows = [seen([8, 9], 10, generator="noise", keys=KEYS), seen(range(8), 10, generator="dgh", keys=KEYS)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    assert figure.chart.spec["spec"]["layer"][0]["encoding"]["color"]["sort"] == ["dgh with rtn", "noise with rtn"]


def test_a_task_that_does_not_tell_difficulties_has_no_such_figure(tmp_path):
    (absent,) = errors_by_difficulty([seen([0], 10, keys=KEYS)], measured(Store(tmp_path), ()), WHERE)
    assert absent.why == "the measurement of the float network does not say how hard each image is"


def test_a_result_of_mixed_precision_has_a_panel_of_its_own(store):
    mixed = {"quantizer": method("mixed") | {"over": method("rtn")}}
    rows = [seen([0], 10, keys=KEYS), seen([1], 10, keys=KEYS, methods=mixed)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    assert len({each["scheme"] for each in figure.columns.records()}) == 2


def test_the_methods_with_the_fewest_errors_come_first_and_more_than_there_is_room_for_are_left_out(store):
    rows = [seen(range(at % 8), 10, generator=f"g{at}", keys=KEYS) for at in range(24)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    methods = figure.chart.spec["spec"]["layer"][0]["encoding"]["color"]["sort"]
    assert methods[:4] == ["g7 with rtn", "g15 with rtn", "g23 with rtn", "g6 with rtn"]
    assert {each["method"] for each in figure.columns.records()} == set(methods)
    assert len(methods) == 20
    assert figure.chart.title.endswith("(the best 20 of 24 methods)")
