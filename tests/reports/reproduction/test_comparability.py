from pathlib import Path

import pytest
from papers import DATA, FLOAT, cells_of, row_of, rows_of, suite_of, value, with_option

from zsqbench.methods import ModelSpec
from zsqbench.reports.reproduction.comparability import Asked, budget_of, origin, others, others_of_float


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return suite_of(tmp_path_factory.mktemp("suite"))


def asked(suite, generator="zeroq", quantizer="rtn", full=FLOAT):
    return Asked(value(90.0), full, DATA["digits"], suite, cells_of(suite, generator, quantizer))


def found(suite, rows, used=None, **named):
    return list(map(str, others(rows, asked(suite, **named), used or suite)))


@pytest.mark.parametrize("method", [("zeroq", "rtn"), ("zeroq", "ste"), ("none", "squant"), ("real", "ste")])
def test_rows_of_the_papers_suite_compare(suite, method):
    assert found(suite, rows_of(suite, 90.0, *method), generator=method[0], quantizer=method[1]) == []


def test_a_shorter_budget_is_found_in_the_rows(suite):
    rows = [with_option(row, "generator", iterations=20) for row in rows_of(suite, 90.0)]
    assert found(suite, rows) == ["other budget (generator iterations 20, published 100)"]


def test_a_value_that_a_method_gives_itself_is_compared_too(suite):
    rows = [with_option(row, "quantizer", batch_size=8) for row in rows_of(suite, 90.0, quantizer="ste")]
    assert found(suite, rows, quantizer="ste") == ["other budget (quantizer batch_size 8, published 256)"]


def test_an_option_that_is_no_budget_is_another_option(suite):
    rows = [with_option(row, "quantizer", lr=0.5) for row in rows_of(suite, 90.0, quantizer="ste")]
    assert found(suite, rows, quantizer="ste") == ["other options (quantizer lr 0.5, published 1e-05)"]


def test_of_many_options_three_are_named(suite):
    changes = {"epochs": 1, "updates_per_epoch": 1, "batch_size": 1, "range_updates": 1}
    rows = [with_option(row, "quantizer", **changes) for row in rows_of(suite, 90.0, quantizer="ste")]
    (text,) = found(suite, rows, quantizer="ste")
    assert text.startswith("other budget (quantizer batch_size 1, published 256; ")
    assert text.endswith("; 1 more)")


def test_what_is_kept_beside_the_result_is_no_other_option(suite):
    rows = [with_option(row, "quantizer", keep_every=1) for row in rows_of(suite, 90.0, quantizer="ste")]
    assert found(suite, rows, quantizer="ste") == []


def test_another_method_and_another_version_are_told(suite):
    row = rows_of(suite, 90.0)[0]
    methods = dict(row.methods)
    for changed, text in (
        ({"method": "dgh"}, "other method (generator is dgh, published zeroq)"),
        ({"version": 0}, "other version (zeroq 0, and it is "),
    ):
        other = row.model_copy(update={"methods": methods | {"generator": methods["generator"] | changed}})
        assert found(suite, [other] * 3)[0].startswith(text)


def test_a_quantizer_that_starts_from_another_one_is_compared_with_that_one_too(tmp_path):
    text = """
name: chain
tasks: {digits: {method: classification, data: digits}}
models: {net: {base: resnet20}}
quantizers:
  rounded: {method: adaround, iterations: 50}
  tuned: {method: ste, start: rounded, epochs: 1}
matrix: [{task: digits, model: net, generator: zeroq, quantizer: tuned, scheme: hw/w4a4}]
"""
    suite = suite_of(tmp_path, text)
    (row,) = rows_of(suite, 90.0, quantizer="tuned")
    assert found(suite, [row], quantizer="tuned") == []
    quantizer = dict(row.methods["quantizer"])
    start = quantizer["start"] | {"options": quantizer["start"]["options"] | {"iterations": 7}}
    shorter = row.model_copy(update={"methods": {**row.methods, "quantizer": quantizer | {"start": start}}})
    assert found(suite, [shorter], quantizer="tuned") == ["other budget (quantizer start iterations 7, published 50)"]


def test_fewer_images_are_other_data(suite):
    assert found(suite, rows_of(suite, 90.0, images=846)) == ["other data (846 of 1,000 images)"]
    rows = [row.model_copy(update={"data": {}}) for row in rows_of(suite, 90.0)]
    assert found(suite, rows) == ["other data (an unknown number of 1,000 images)"]


def test_another_kind_of_data_is_other_data(suite, tmp_path):
    text = suite.path.read_text().replace("data: digits}", "data: imagefolder, root: jpeg}")
    used = suite_of(tmp_path, text)
    assert found(suite, rows_of(used, 90.0), used) == [
        "other data (classification imagefolder jpeg, published classification digits)"
    ]


def test_fewer_real_images_than_are_asked_for_are_other_data(suite):
    rows = rows_of(suite, 90.0, "real", data={"evaluated": 1000, "digest": "photos", "images": 7})
    (text,) = found(suite, rows, generator="real")
    assert text.startswith("other data (7 calibration images, of ")


def test_other_weights_are_found_by_what_the_suite_says(suite, tmp_path):
    used = suite_of(tmp_path, suite.path.read_text().replace("base: resnet20", "base: resnet20, weights: none"))
    assert found(suite, rows_of(used, 90.0), used) == ["other weights (resnet20 with none, published resnet20)"]


def test_a_network_that_is_fed_otherwise_is_told(suite, tmp_path):
    text = suite.path.read_text().replace("base: resnet20", "base: resnet20, mean: [0.5], std: [0.5]")
    used = suite_of(tmp_path, text)
    assert found(suite, rows_of(used, 90.0), used) == ["other options (mean, std of the network)"]


def test_another_float_accuracy_is_other_weights_or_data(suite):
    near = rows_of(suite, 90.0, float_metrics={"top1": FLOAT - 0.09})
    far = rows_of(suite, 90.0, float_metrics={"top1": FLOAT - 0.2})
    assert found(suite, near) == []
    assert found(suite, far) == ["other weights or data (float network 94.80, published 95.00)"]
    assert found(suite, far, full=None) == []


def test_the_float_accuracy_that_the_papers_suite_expects_holds_beside_the_published_one(suite, tmp_path):
    expected = suite_of(
        tmp_path, suite.path.read_text().replace("base: resnet20", "base: resnet20, float_accuracy: 95")
    )
    assert found(expected, rows_of(expected, 90.0), full=96.0) == []
    (row,) = rows_of(expected, 90.0)[:1]
    assert others_of_float(row, asked(expected, full=96.0), expected) == []


def test_precision_counts_and_threads_do_not(suite):
    rows = rows_of(suite, 90.0)
    threads = [row.model_copy(update={"settings": {"threads": 4}}) for row in rows]
    bf16 = [row.model_copy(update={"settings": {"precision": "bf16"}}) for row in rows]
    assert found(suite, threads) == []
    assert found(suite, bf16) == ["other settings (precision bf16, published fp32)"]


def test_fewer_seeds_are_another_budget(suite):
    assert found(suite, rows_of(suite, 90.0)[:2]) == ["other budget (2 of 3 seeds)"]


def test_a_row_of_another_state_of_the_suite_is_told(suite):
    rows = rows_of(suite, 90.0, definition="before")
    assert found(suite, rows) == [
        "other definition (suite paper has changed since, or was run with --set: run it again)"
    ]


def test_a_single_seed_that_was_measured_otherwise_is_found(suite):
    rows = rows_of(suite, 90.0)
    shorter = with_option(rows[2], "generator", iterations=20)
    assert found(suite, [*rows[:2], shorter]) == ["other budget (generator iterations 20, published 100)"]
    elsewhere = rows[2].model_copy(update={"data": {**rows[2].data, "digest": "others"}})
    assert found(suite, [*rows[:2], elsewhere]) == ["other data (seeds were evaluated on different images)"]


def test_weights_of_a_row_of_another_state_are_not_taken_from_the_suite(suite, tmp_path):
    used = suite_of(tmp_path, suite.path.read_text().replace("base: resnet20", "base: resnet20, weights: none"))
    rows = [with_option(row, "generator", iterations=20) for row in rows_of(used, 90.0, definition="before")]
    assert found(suite, rows, used) == ["other budget (generator iterations 20, published 100)"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"base": "resnet20"}, "resnet20"),
        ({"base": "resnet20", "weights": "none"}, "resnet20 with none"),
        (
            {"file": Path(__file__), "weights": "built", "input_size": (3, 8, 8)},
            f"build() of {Path(__file__).name} with built",
        ),
        ({"base": "cifar_resnet20", "weights": __file__}, f"cifar_resnet20 with {Path(__file__).name}"),
    ],
)
def test_an_origin_names_network_and_weights(spec, said):
    assert origin(ModelSpec(name="net", **spec)) == said


def test_a_budget_has_the_values_that_hold_for_the_papers_data(suite):
    ste = suite.quantizers["ste"].method
    assert budget_of(ste, "cifar10")["batch_size"] == 256
    assert budget_of(ste, "imagenet")["batch_size"] == 16
    assert budget_of(ste, "other")["epochs"] == 4
    assert "lr" not in budget_of(ste, "cifar10")


def test_all_rows_of_a_cell_are_of_the_suite(suite):
    cell = cells_of(suite)[0]
    assert row_of(suite, cell, 90.0).definition == suite.definition(cell)
