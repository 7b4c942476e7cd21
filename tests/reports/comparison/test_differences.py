import numpy as np
import pytest
from rows import method, seen
from safetensors.numpy import save_file

from zsqbench.reports.comparison.differences import ClassLoss, classes_that_lose, options_that_differ
from zsqbench.steps.baseline import Baseline
from zsqbench.steps.evaluations import SAMPLES
from zsqbench.store import Store

KEY = "a" * 64


def described(name, options, *changed, **others):
    return {
        **method(name, **{option: options[option] for option in changed}),
        "options": options,
        "version": 1,
        **others,
    }


def differing(a, b):
    return {each.name: (each.a, each.b) for each in options_that_differ(a, b)}


def of_generator(name, options, *changed, label=None, **others):
    methods = {"generator": described(name, options, *changed, **others), "quantizer": method("rtn")}
    return seen(range(9), generator=label or name, methods=methods)


def test_equal_rows_differ_in_nothing():
    assert differing(seen(range(9)), seen(range(3), seed=1)) == {}


def test_options_versions_and_networks_of_one_method_are_compared():
    a = of_generator("dgh", {"images": 64, "lr": 0.1})
    b = of_generator("dgh", {"images": 32, "lr": 0.1}, "images", label="short", version=2)
    b = b.model_copy(update={"model_facts": {"digest": "b" * 64}})
    a = a.model_copy(update={"model_facts": {"digest": "a" * 64}})
    assert differing(a, b) == {
        "generator": ("dgh", "short"),
        "generator.version": (1, 2),
        "generator.images": (64, 32),
        "model.digest": ("a" * 12, "b" * 12),
    }


def test_of_two_methods_the_options_of_one_are_told_where_the_suite_set_them():
    a = of_generator("dgh", {"images": 64, "lr": 0.1, "steps": 200}, "steps", version=3)
    b = of_generator("zeroq", {"images": 32, "rate": 0.5})
    assert differing(a, b) == {
        "generator": ("dgh", "zeroq"),
        "generator.images": (64, 32),
        "generator.steps": (200, None),
    }


def test_a_start_and_what_is_left_to_another_are_compared():
    a, b = ({"quantizer": {**method("ste"), "start": described("rtn", {"grid": grid})}} for grid in ("affine", "pot"))
    rows = (seen(range(9), generator=None, methods=methods) for methods in (a, b))
    assert differing(*rows) == {"quantizer.start.grid": ("affine", "pot")}


def test_scheme_settings_and_versions_of_libraries_are_compared():
    a = seen(range(9), settings={"threads": 1}, environment={"torch": "2.13"})
    b = seen(range(9), scheme="hw/w8a8", settings={"threads": 2}, environment={"torch": "2.14", "device": "cpu"})
    assert differing(a, b) == {
        "scheme": ("hw/w4a4", "hw/w8a8"),
        "settings.threads": (1, 2),
        "environment.torch": ("2.13", "2.14"),
    }


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def keep(store, **samples):
    store.write(Baseline.kind, KEY, {}, lambda folder: save_file({**samples}, folder / SAMPLES) if samples else None)


ROW = seen(range(9), keys={"baseline": KEY})
LESS = np.array([[-1, -1, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0]], dtype=np.int8)
"""B less A of two seeds and six images."""


def test_classes_that_lose_stand_by_how_much_they_lose(store):
    keep(store, labels=np.array([5, 2, 2, 2, 7, 7], dtype=np.int16))
    assert classes_that_lose(LESS, [seen(range(9)), ROW], store) == (
        (ClassLoss(5, 1, -100.0), ClassLoss(2, 3, pytest.approx(-100 / 6))),
        None,
    )


def test_no_class_may_lose(store):
    keep(store, labels=np.zeros(6, dtype=np.int16))
    assert classes_that_lose(-LESS, [ROW], store) == ((), None)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ({"predictions": np.zeros(6, dtype=np.int16)}, "the task keeps no labels"),
        ({"labels": np.zeros(7, dtype=np.int16)}, "there are labels of 7 images, and values of 6"),
    ],
)
def test_classes_are_not_known_without_labels_of_the_images(store, samples, why):
    keep(store, **samples)
    assert classes_that_lose(LESS, [ROW], store) == ((), why)


def test_classes_are_not_known_where_the_artifact_is_elsewhere_or_damaged(store):
    why = f"the labels of the images are not in {store.home}, where the step baseline leaves them"
    assert classes_that_lose(LESS, [ROW], store) == classes_that_lose(LESS, [seen([1])], store) == ((), why)
    keep(store, labels=np.zeros(6, dtype=np.int16))
    (store.folder(Baseline.kind, KEY) / SAMPLES).write_bytes(b"")
    assert "is damaged" in classes_that_lose(LESS, [ROW], store)[1]
