from rows import CITATION, IMAGES, NAN_IMAGES, markdown_cells, method, published, records, row

from zsqbench.reports.tables.leaderboard import leaderboard


def test_what_settings_cost_is_a_mean_over_distinct_steps():
    def timed(seconds, key, **changes):
        return row(seconds={"generate": seconds, "quantize": 1.0}, keys={"generate": key, "quantize": key}, **changes)

    fast = {"settings": {"precision": "bf16"}}
    rows = [timed(4.0, "a"), timed(4.0, "a", scheme="hw/w8a8"), timed(8.0, "b", model="b"), timed(3.0, "c", **fast)]
    notes = leaderboard(rows, "md")
    assert "mean seconds to generate with zeroq: default settings 6.00; precision bf16 3.00 (0.50 x)" in notes
    assert "mean seconds to quantize with rtn: default settings 1.00; precision bf16 1.00 (1.00 x)" in notes
    assert "mean seconds" not in leaderboard(rows[:3], "md")


def test_where_all_cells_failed_the_samples_of_the_float_network_are_counted():
    results = [row(**NAN_IMAGES | {"data": data}) for data in ({"evaluated": IMAGES, "calibrated": None}, {})]

    text = leaderboard(results, "md")

    assert "- digits: top-1 accuracy in percent, 1000 samples evaluated\n" in text
    assert "calibrated on" not in text


def test_an_unknown_count_is_no_count():
    results = [row(**NAN_IMAGES | {"data": {"evaluated": None, "calibrated": None}})]

    assert ", no samples evaluated\n" in leaderboard(results, "md")


def test_different_calibration_budgets_are_told_apart():
    text = leaderboard([row(), row(generator="dgh", data={"evaluated": IMAGES, "calibrated": 128})], "md")

    assert "- calibrated on 1024 images (zeroq); 128 images (dgh)\n" in text


def test_a_generator_is_named_with_its_quantizers_where_these_read_different_numbers_of_images():
    few = {"evaluated": IMAGES, "images": 1024, "calibrated": 64}
    text = leaderboard([row(), row(quantizer="ste", data=few), row(generator="dgh", data=few)], "md")

    assert "- calibrated on 1024 images (zeroq with rtn); 64 images (zeroq with ste, dgh)\n" in text


def bits(quantizer, digest, **changes):
    tensors = {"hash": f"grids of {quantizer}", "bits": digest}
    return row(quantizer=quantizer, methods={"quantizer": method(quantizer)}, tensors=tensors, **changes)


def test_a_column_in_which_rows_quantize_other_tensors_or_bits_is_named():
    results = [bits("rtn", "x"), bits("hptq", "x"), bits("mine", "y"), bits("mine", "y", scheme="hw/w8a8")]
    text = leaderboard(results, "md")

    expected = (
        "- digits resnet20 hw/w4a4: these quantize other tensors, or at other bits, and do not compare: rtn, hptq and "
        "mine; `zsqbench show` prints the tensors of a row\n"
    )
    assert expected in text.replace("\\", "")
    assert "hw/w8a8: these" not in text


def test_grids_of_ones_own_other_columns_and_a_float_control_are_no_other_bits():
    control = row(quantizer="fp32", methods={"quantizer": method("fp32", "float")}, tensors={"hash": "-", "bits": "-"})
    failed = bits("bad", "z", status="failed")
    results = [bits("rtn", "x"), bits("hptq", "x"), bits("rtn", "y", model="vgg"), control, failed]

    assert "do not compare" not in leaderboard(results, "md")


def test_float_networks_that_differ_under_one_name_are_pointed_out():
    text = leaderboard([row(), row(generator="dgh", float_metrics={"top1": 97.0})], "md")

    assert "digits resnet20: float accuracy differs between rows (97.0, 98.0); run the suite again" in text


def test_what_a_task_noted_of_the_float_network_stands_below_the_table_once():
    results = [row(notes=["boxes are odd"]), row(generator="dgh", notes=["boxes are odd"]), row(model="vgg")]

    assert leaderboard(results, "md").count("digits resnet20: boxes are odd") == 1
    assert "vgg: " not in leaderboard(results, "md")


def test_a_suite_without_seeds_says_so():
    assert "unseeded; in parentheses" in leaderboard([row(seed=None)], "md")


def test_a_metric_of_another_task_goes_by_its_own_name():
    text = leaderboard([row(metric="mIoU", metrics={"mIoU": 30.0}, float_metrics={"mIoU": 40.0})], "md")

    assert "digits: mIoU, 1000 samples evaluated" in text


def test_published_values_are_cited_once_with_their_tables():
    results = [
        row(published=published(92.0)),
        row(generator="dgh", published=published(91.0, source="Some, Table 2")),
        row(generator="genie", published=published(90.0)),
    ]

    text = leaderboard(results, "md")

    assert f"- published: Some, Table 1, Some, Table 2, as its authors measured it: {CITATION}\n" in text + "\n"
    assert text.count(CITATION) == 1


def test_what_loading_a_network_told_is_said_once_for_each_network():
    facts = {"notes": ["the average was taken"]}
    results = [row(model_facts=facts), row(model_facts=facts, seed=1), row(model="b", model_facts=facts)]

    text = leaderboard(results, "md")

    assert text.count("- resnet20: the average was taken\n") == text.count("- b: the average was taken\n") == 1


def clipped(share, **changes):
    return row(clipped={"classifier": share}, **changes)


def test_outputs_that_are_clipped_in_many_images_are_named_with_the_scheme_that_leaves_them_alone():
    results = [clipped(0.482), clipped(0.03, generator="dgh")]
    assert [line[-1] for line in markdown_cells(results)[2:]] == ["**91.00 (-7.00) a [1]**", "**91.00 (-7.00) a**"]
    assert leaderboard(results, "md").splitlines()[-1] == (
        "- [1] in 48 % of the evaluated images, several of the largest values of the output classifier lie beyond its "
        "grid and become equal; the scheme {base: hw, logits: float} leaves outputs in float"
    )


def test_the_share_of_clipped_images_is_a_mean_over_seeds():
    assert "in 8 % of" in leaderboard([clipped(0.1, seed=0), clipped(0.06, seed=1)], "md")
    assert "of the evaluated images" not in leaderboard([clipped(0.07, seed=0), clipped(0.01, seed=1)], "md")


def test_a_scheme_of_the_suite_is_told_what_to_add():
    assert "become equal; `logits: float` in scheme mine" in leaderboard([clipped(0.5, scheme="mine/w8a8")], "json")


def test_what_a_method_marks_stands_below_the_table_once_and_competes_all_the_same():
    told = ["ReLU6 became ReLU"]
    results = [row(footnotes=told, seed=0), row(footnotes=told, seed=1), row(80.0, generator="dgh", footnotes=told)]
    assert [line[-1] for line in markdown_cells(results)[2:]] == [
        "**91.00 ± 0.00 (-7.00) a [1]**",
        "80.00 (-18.00) b [1]",
    ]
    assert leaderboard(results, "md").endswith("- [1] ReLU6 became ReLU")
    assert [record["remarks"] for record in records(results)] == told * 2
