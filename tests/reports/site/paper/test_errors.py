import pytest
from rows import method, seen

from zsqbench.methods import Evaluation
from zsqbench.reports.site.paper import Absent
from zsqbench.reports.site.paper.errors import EASY, errors_by_difficulty
from zsqbench.reports.site.sections import sections
from zsqbench.steps import evaluations
from zsqbench.store import Store

KEYS = {"baseline": "a" * 64}
WHERE = "digits resnet20"


@pytest.fixture
def store(tmp_path):
    """A store in which the float network has the first eight of ten images right."""
    store = Store(tmp_path)
    found = Evaluation({}, [at < 8 for at in range(10)])
    manifest = {"content": {}, "curves": {}, "notes": []}
    store.write("baseline", KEYS["baseline"], manifest, lambda folder: evaluations.write_samples(folder, found))
    return store


def test_errors_are_counted_where_the_float_network_is_right_and_where_it_is_wrong(store):
    rows = [seen(range(6), 10, seed=0, keys=KEYS), seen([0, 8], 10, seed=1, keys=KEYS)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    records = {each["images"]: each for each in figure.columns.records()}
    # 2 and 7 of the 8 that the float network has right are wrong, 2 and 1 of the other 2
    assert records["float network right"]["error"] == 56.25
    assert records["float network wrong"]["error"] == 75.0
    assert [records[images]["count"] for images in records] == [8, 2]
    assert {each["seeds"] for each in records.values()} == {2}
    assert {each["method"] for each in records.values()} == {"dgh with rtn"}


@pytest.mark.parametrize(
    "other", [{"settings": {"precision": "double"}}, {"methods": {"quantizer": method("rtn", a=2)}}]
)
def test_two_variants_of_a_method_have_a_bar_each_and_are_called_as_in_other_charts(store, other):
    rows = [seen(range(6), 10, keys=KEYS), seen([0, 8], 10, keys=KEYS, **{"settings": {}, "methods": {}} | other)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    errors = {each["method"]: each["error"] for each in figure.columns.records() if each["images"] == EASY}
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


def test_the_methods_with_the_fewest_errors_come_first_and_more_than_there_is_room_for_are_left_out(store):
    rows = [seen(range(at % 8), 10, generator=f"g{at}", keys=KEYS) for at in range(24)]
    (figure,) = errors_by_difficulty(rows, store, WHERE)
    methods = figure.chart.spec["spec"]["layer"][0]["encoding"]["y"]["sort"]
    assert methods[:4] == ["g7 with rtn", "g15 with rtn", "g23 with rtn", "g6 with rtn"]
    assert {each["method"] for each in figure.columns.records()} == set(methods)
    assert len(methods) == 20
    assert figure.chart.title.endswith("(the best 20 of 24 methods)")
