import pytest
from rows import (
    BELOW_CONTROL,
    NAN_IMAGES,
    below_control,
    markdown_cells,
    method,
    oracle,
    published,
    records,
    row,
    with_quantizer,
)

from zsqbench.reports.tables.leaderboard import leaderboard

MANY = {"evaluated": 100_000}


def test_a_mean_over_the_seeds_that_survived_is_not_bold():
    survivor = [row(95.0, seed=0), row(seed=1, **NAN_IMAGES)]
    assert "**95.00" not in leaderboard([*survivor, row(90.0, generator="dgh")], "md")


def test_the_best_data_free_method_is_bold_and_controls_do_not_compete():
    results = [
        row(91.0),
        row(90.0, generator="dgh"),
        row(99.0, generator="real", data_free=False),
        row(85.0, generator="noise", quantizer="ste"),
    ]

    assert [line[-1].startswith("**") for line in markdown_cells(results)[1:]] == [False, True, False, False, False]


def test_methods_that_look_equal_are_both_best():
    assert [
        record["best"] for record in records([row(91.001, data=MANY), row(91.004, generator="dgh", data=MANY)])
    ] == [True, True]


def test_a_method_below_noise_is_not_bold_and_has_a_footnote():
    results = [row(95.0, generator="noise"), row(91.0), row(96.0, generator="dgh")]

    assert [line[-1] for line in markdown_cells(results)[2:]] == [
        "95.00 (-3.00) b",
        "91.00 (-7.00) c [1]",
        "**96.00 (-2.00) a**",
    ]


def test_nothing_is_bold_in_a_column_where_noise_is_ahead():
    results = [row(95.0, generator="noise"), row(91.0), row(scheme="hw/w8a8")]

    assert [record["best"] for record in records(results)] == [False, False, True]


def test_the_best_above_its_own_noise_is_bold_where_a_higher_number_cannot_be_told_from_its_own():
    results = [
        row(90.1, generator="noise"),
        row(90.2),
        row(80.0, generator="noise", quantizer="ste", methods=with_quantizer("ste")),
        row(90.0, quantizer="ste", methods={"quantizer": method("ste")}),
    ]

    assert [record["best"] for record in records(results)] == [False, False, False, True]


def test_all_that_is_below_noise_shares_one_footnote_after_the_reasons():
    noise = [row(95.0, generator="noise"), row(95.0, generator="noise", scheme="hw/w8a8")]
    results = [*noise, row(91.0), row(scheme="hw/w8a8"), row(92.0, generator="dgh"), row(**NAN_IMAGES, seed=1)]

    text = leaderboard(results, "md")

    assert [line[2:] for line in markdown_cells(results)[3:]] == [
        ["91.00 (-7.00) c [1] [2]", "91.00 (-7.00) b [2]"],
        ["92.00 (-6.00) b [2]", ""],
    ]
    assert text.endswith(f"- [1] 1 of 2 seeds failed: generate: images are NaN\n- [2] {BELOW_CONTROL}")


def test_what_looks_equal_to_noise_is_not_below_it():
    assert below_control([row(91.004, generator="noise", data=MANY), row(91.001, data=MANY)]) == [False, False]


@pytest.mark.parametrize(
    "noise",
    [
        {"quantizer": "ste"},
        {"methods": with_quantizer("rtn", clip="minmax")},
        {"settings": {"precision": "bf16"}},
        {"scheme": "hw/w8a8"},
        {"model": "vgg"},
        {"task": "cifar10"},
    ],
)
def test_noise_is_the_control_of_nothing_but_the_same_quantizer_options_settings_and_column(noise):
    assert below_control([row(generator="dgh"), row(99.0, generator="noise", **noise)])[0] is None


def test_noise_of_any_name_and_budget_is_a_control_and_the_best_counts():
    few = {"generator": method("noise", "negative", images=8), "quantizer": method("rtn")}
    results = [row(95.0, generator="noise"), row(80.0, generator="few", methods=few), row(91.0)]

    assert below_control(results) == [False, False, True]


@pytest.mark.parametrize("failed", ["noise", "zeroq"])
def test_what_has_no_number_is_not_compared_to_noise(failed):
    results = [row(**({"generator": name} | (NAN_IMAGES if name == failed else {}))) for name in ("noise", "zeroq")]

    assert below_control(results)[1] is None


def test_real_images_below_noise_have_the_footnote_too():
    results = [row(95.0, generator="noise"), row(generator="real", data_free=False)]

    assert markdown_cells(results)[3][-1] == "91.00 (-7.00) b [1]"


def test_the_note_on_bold_is_silent_about_noise_where_there_is_none():
    assert (
        "\n- bold: in each column, the best data-free method; controls do not compete\n"
        in leaderboard([row()], "md") + "\n"
    )


def test_nothing_is_best_where_nothing_is_quantized():
    assert not records([row(98.0, quantizer="fp32", scheme="float")])[0]["best"]


def test_controls_are_marked_in_their_row():
    labels = [line[0] for line in markdown_cells([row(generator="noise"), row(generator="real", data_free=False)])[2:]]

    assert labels == ["noise (negative control)", "real (real data, not data-free)"]


def test_a_control_is_known_by_its_method_whatever_the_suite_calls_it():
    methods = {"generator": method("noise", "negative", images=64)}

    assert markdown_cells([row(generator="few", methods=methods)])[2][0] == "few (noise, 64 images, negative control)"


def test_a_strangers_method_is_the_control_that_it_declares_to_be():
    results = [
        row(95.0, generator="static", methods={"generator": method("static", "negative"), "quantizer": method("rtn")}),
        row(91.0),
        row(97.0, generator="photos", methods={"generator": method("photos", "positive")}, data_free=False),
        row(96.0, generator="oracle", methods={"generator": method("oracle", "positive")}),
    ]
    assert [line[0] for line in markdown_cells(results)[2:]] == [
        "static (negative control)",
        "zeroq",
        "photos (real data, not data-free)",
        "oracle (positive control)",
    ]
    assert below_control(results) == [False, True, False, False]
    assert "- positive control: a reference that has more than methods have\n" in leaderboard(results, "md")


def test_the_float_quantizer_is_marked_as_a_control_whatever_the_suite_calls_it():
    changes = {"generator": None, "quantizer": "whole", "scheme": "float"}
    results = [row(98.0, methods={"quantizer": method("fp32", "float")}, **changes)]

    assert markdown_cells(results)[2][:2] == ["none", "whole (fp32, float control)"]
    assert "- float control: nothing is quantized, so it must reproduce the float network" in leaderboard(results, "md")
    assert records(results)[0]["control"] == "float control"


def test_options_that_are_not_default_are_named_in_the_row():
    changed = {"images": 128, "lr": 0.1, "preset": "paper", "flip": False, "smooth_loss": True, "betas": [0.5, 0.9]}
    methods = {"generator": {"method": "dgh", "changed": changed}}

    label = markdown_cells([row(generator="dgh", methods=methods)])[2][0]

    assert label == "dgh (128 images, lr 0.1, preset paper, no flip, smooth loss, betas [0.5, 0.9])"


def test_an_input_file_is_named_without_the_folder_that_differs_between_machines():
    methods = {"generator": method("file", path="/home/me/images.safetensors")}

    assert markdown_cells([row(generator="file", methods=methods)])[2][0] == "file (path images.safetensors)"


def test_one_label_with_two_budgets_makes_two_rows():
    short = {"generator": method("zeroq", images=8)}

    assert [line[0] for line in markdown_cells([row(), row(methods=short)])[2:]] == ["zeroq", "zeroq (8 images)"]


def test_settings_that_are_not_default_make_a_row_of_their_own():
    rows = markdown_cells([row(settings={"precision": "fp32"}), row(settings={"precision": "bf16", "threads": 4})])

    assert [line[2] for line in rows] == ["settings", "", "", "precision bf16, 4 threads"]


def test_a_quantizer_that_reads_no_images_has_no_generator():
    assert markdown_cells([row(generator=None, quantizer="squant", methods={})])[2][:2] == ["none", "squant"]


def test_a_model_with_random_weights_is_marked_in_every_column_even_where_a_cell_did_not_run():
    results = [row(status="excluded", metrics={}), row(scheme="hw/w8a8", model_facts={"random_weights": True})]

    assert markdown_cells(results)[0][2:] == [
        "resnet20 (random weights) hw/w4a4",
        "resnet20 (random weights) hw/w8a8",
    ]


def test_the_oracle_does_not_compete_and_is_not_compared_with_noise():
    results = [
        row(90.0, generator="noise", oracle=oracle(99.0)),
        row(91.0, oracle=oracle(91.5)),
        row(92.0, generator="dgh"),
    ]

    text = leaderboard(results, "md")

    assert [line[-2:] for line in markdown_cells(results)[1:]] == [
        ["98.00", ""],
        ["90.00 (-8.00) c", "99.00 (+1.00)"],
        ["91.00 (-7.00) b", "91.50 (-6.50)"],
        ["**92.00 (-6.00) a**", ""],
    ]
    assert BELOW_CONTROL not in text.partition("- bold")[2].partition("\n")[2]


def test_a_column_of_the_oracle_says_what_it_is():
    note = "oracle: the best epoch, chosen on the evaluated images themselves, which nobody without them can do"

    assert note in leaderboard([row(oracle=oracle(92.0))], "md")
    assert "oracle" not in leaderboard([row()], "md")


def test_a_published_value_does_not_compete():
    assert [
        record["best"] for record in records([row(90.0, published=published(99.0)), row(91.0, generator="dgh")])
    ] == [
        False,
        True,
    ]


def mixed(value, bits, size, **changes):
    """A result of mixed precision whose weights have these mean bits and this size."""
    methods = {"quantizer": {**method("mixed", over="rtn", layers=5), "over": method("rtn")}}
    methods |= {"generator": method(changes.get("generator", "zeroq"))}
    if changes.get("generator") == "noise":
        methods["generator"] = method("noise", "negative")
    tensors = {"hash": "h", "bits": f"{bits}", "mean_weight_bits": bits, "size_mb": size}
    return row(value, quantizer="mixed_5", methods=methods, tensors=tensors, **changes)


UNIFORM = {"hash": "h", "bits": "uniform", "mean_weight_bits": 4.0, "size_mb": 2.3}


def test_mixed_precision_has_columns_of_its_own_by_mean_bits_and_size():
    results = [
        row(90.0, tensors=UNIFORM),
        mixed(91.0, 4.76, 2.6612),
        mixed(92.0, 4.84, 2.6588, generator="dgh"),
        mixed(93.0, 5.2, 2.9, generator="genie"),
    ]

    assert [line[2:] for line in markdown_cells(results)] == [
        [f"resnet20 hw/w4a4{mixed}" for mixed in ("", " (mixed: 4.8 bits, 2.66 MB)", " (mixed: 5.2 bits, 2.9 MB)")],
        ["98.00", "98.00", "98.00"],
        ["**90.00 (-8.00)**", "", ""],
        ["", "91.00 (-7.00) b", ""],
        ["", "**92.00 (-6.00) a**", ""],
        ["", "", "**93.00 (-5.00)**"],
    ]
    assert "do not compare" not in leaderboard(results, "md")


def test_seeds_of_mixed_precision_are_one_entry_at_their_mean_size():
    failed = mixed(0.0, 0.0, 0.0, seed=2).model_copy(update={"tensors": {}, "status": "failed", "reason": "no"})
    heads, _, entry = markdown_cells([mixed(91.0, 4.7, 2.6), mixed(93.0, 4.9, 2.8, seed=1), failed])
    assert heads[2:] == ["resnet20 hw/w4a4 (mixed: 4.8 bits, 2.7 MB)"]
    assert entry[2].startswith("92.00 ± 1.41")


def test_mixed_precision_that_is_not_done_has_no_size():
    failed = mixed(0.0, 0.0, 0.0).model_copy(update={"tensors": {}, "status": "failed", "reason": "no", "metrics": {}})
    assert markdown_cells([failed])[0][2:] == ["resnet20 hw/w4a4 (mixed)"]


def test_mixed_precision_is_compared_with_its_negative_control_at_another_size():
    results = [mixed(92.0, 4.8, 2.66, generator="noise"), mixed(91.0, 4.9, 2.7), row(90.0, tensors=UNIFORM)]
    assert [record["below_control"] for record in records(results)] == [False, True, None]


def test_what_is_trained_from_mixed_precision_is_mixed():
    start = {**method("mixed", over="rtn", layers=5), "over": method("rtn")}
    methods = {"quantizer": {**method("ste", start="mixed_5"), "start": start}}
    tensors = {"hash": "h", "bits": "b", "mean_weight_bits": 4.8, "size_mb": 2.66}

    heads, _, entry = markdown_cells([row(quantizer="ste", methods=methods, tensors=tensors)])

    assert heads[2].endswith("(mixed: 4.8 bits, 2.66 MB)")
    assert entry[1] == "ste (start mixed_5 (mixed, over rtn, 5 layers))"


def test_a_row_says_what_its_quantizer_starts_from():
    start = {"method": "brecq", "changed": {"weight_iterations": 100}}
    methods = {"quantizer": {"method": "ste", "changed": {"start": "short", "lr": 0.1}, "start": start}}

    label = markdown_cells([row(quantizer="ste", methods=methods)])[2][1]

    assert label == "ste (start short (brecq, 100 weight iterations), lr 0.1)"
