import pytest
from rows import seen

from zsqbench.methods import Evaluation
from zsqbench.reports.site.flips import LISTED, Flip, find_flips
from zsqbench.steps import evaluations
from zsqbench.store import Store

KEYS = {"baseline": "a" * 64, "evaluate": "c" * 64}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def keep(store, kind, right, predictions=(), labels=(), images=10):
    """A measurement in which these samples are right."""
    found = Evaluation({}, [at in right for at in range(images)], list(predictions), list(labels))
    manifest = {"content": {}, "curves": {}, "notes": []}
    store.write(kind, KEYS[kind], manifest, lambda folder: evaluations.write_samples(folder, found, of_float=True))


def test_samples_that_flip_are_listed_with_label_and_predictions(store):
    keep(store, "baseline", {0, 1, 2}, [5] * 10, range(10))
    keep(store, "evaluate", {1, 2, 3}, [7] * 10)
    found = find_flips(seen([1, 2, 3], images=10, keys=KEYS), store)
    assert (found.losses, found.wins, found.samples) == (1, 1, 10)
    assert (found.lost, found.won) == ((Flip(0, 0, 5, 7),), (Flip(3, 3, 5, 7),))


def test_without_the_measurement_of_the_quantized_network_its_row_says_which_flip(store):
    keep(store, "baseline", {0, 1}, [5] * 10, range(10))
    found = find_flips(seen([1], images=10, keys=KEYS), store)
    assert found.lost == (Flip(0, 0, 5, None),)


def test_many_flips_are_counted_and_the_first_are_listed(store):
    keep(store, "baseline", set(range(300)), images=300)
    found = find_flips(seen([], images=300, keys=KEYS), store)
    assert (found.losses, len(found.lost), found.lost[0]) == (300, LISTED, Flip(0, None, None, None))


def test_without_the_float_measurement_it_is_said_that_they_are_not_known(store):
    said = find_flips(seen([1], images=10, keys=KEYS), store)
    assert said == f"the measurement of the float network is not in {store.home}"


def test_without_bits_it_is_said_that_the_task_keeps_none(store):
    row = seen([1], images=10).model_copy(update={"correct": None})
    assert find_flips(row, store) == "the task keeps no value for each sample"


def test_a_damaged_measurement_is_named(store):
    keep(store, "baseline", {0})
    (store.folder("baseline", KEYS["baseline"]) / "samples.safetensors").write_bytes(b"other")
    assert "is damaged" in find_flips(seen([1], images=10, keys=KEYS), store)


def test_other_numbers_of_samples_are_no_flips(store):
    keep(store, "baseline", {0}, images=100)
    said = find_flips(seen([1], images=10, keys=KEYS), store)
    assert said == "the float network was measured on another number of samples"
