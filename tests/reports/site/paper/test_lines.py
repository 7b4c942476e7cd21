import pytest
from rows import row

from zsqbench.reports.site.paper import Absent
from zsqbench.reports.site.paper.lines import bits, option_sweeps, placements

WHERE = "digits resnet20"


def described(name, options=None, **changed):
    """The fields of a row about a method: what holds, and what the suite set."""
    return {"method": name, "version": 1, "options": {"images": 64} | (options or {}) | changed, "changed": changed}


def of_images(images, seed=0, value=90.0, generator="dgh", scheme="hw/w4a4", **changed):
    methods = {"generator": described(generator, images=images, **changed), "quantizer": described("rtn", {})}
    return row(value, seed=seed, scheme=scheme, generator=f"{generator}-images-{images}", methods=methods)


def records(figure):
    return figure.columns.records()


def test_results_that_differ_in_one_option_are_a_line_with_all_of_their_seeds():
    rows = [of_images(images, seed, value) for images, value in ((16, 80.0), (256, 90.0)) for seed in (0, 1)]
    (figure,) = option_sweeps(rows, WHERE)
    assert figure.name == "sweep generator.images digits resnet20"
    points = [(each["method"], each["panel"], each["x"], each["seed"], each["value"]) for each in records(figure)]
    assert points == [
        ("dgh with rtn", "hw/w4a4", 16, 0, 80.0),
        ("dgh with rtn", "hw/w4a4", 16, 1, 80.0),
        ("dgh with rtn", "hw/w4a4", 256, 0, 90.0),
        ("dgh with rtn", "hw/w4a4", 256, 1, 90.0),
    ]
    assert {each["float"] for each in records(figure)} == {98.0}
    assert figure.chart.spec["spec"]["layer"][2]["encoding"]["y"]["title"] == "top-1 accuracy in percent"


@pytest.mark.parametrize(("largest", "scale"), [(256, "log"), (32, None)])
def test_a_wide_axis_is_logarithmic(largest, scale):
    (figure,) = option_sweeps([of_images(16), of_images(largest)], WHERE)
    x = figure.chart.spec["spec"]["layer"][2]["encoding"]["x"]
    assert (x["scale"].get("type"), x["axis"]["values"]) == (scale, [16, largest])


def test_lines_of_the_same_methods_are_told_apart_by_the_options_in_which_they_differ():
    rows = [of_images(images, lr=lr, decay=0.5) for images in (16, 64) for lr in (1, 2)]
    by_images, by_lr = option_sweeps(rows, WHERE)
    assert {each["method"] for each in records(by_images)} == {"dgh with rtn, lr 1", "dgh with rtn, lr 2"}
    assert {each["method"] for each in records(by_lr)} == {"dgh with rtn, images 16", "dgh with rtn, images 64"}


def test_results_that_differ_in_more_or_are_not_done_are_no_sweep():
    rows = [of_images(16, lr=1), of_images(64, lr=2), of_images(16, generator="zeroq"), of_images(64, scheme="hw/w8a8")]
    failed = of_images(256, lr=1).model_copy(update={"status": "failed"})
    (absent,) = option_sweeps([*rows, failed], WHERE)
    why = "no option is swept: no two results of one scheme differ in one option alone"
    assert absent == Absent("sweep digits resnet20", why)


def test_a_start_counts_by_what_it_is_and_not_by_its_name():
    rows = []
    for iterations in (10, 100):
        start = described("adaround", iterations=iterations)
        ste = described("ste", start=f"rounded-iterations-{iterations}") | {"start": start}
        rows.append(row(methods={"generator": described("dgh"), "quantizer": ste}))
    (figure,) = option_sweeps(rows, WHERE)
    assert figure.name == "sweep quantizer.start.iterations digits resnet20"


def test_words_and_files():
    (figure,) = option_sweeps([of_images(16, loss=loss) for loss in ("kl", "fa", None, True)], WHERE)
    assert figure.chart.spec["spec"]["layer"][2]["encoding"]["x"]["sort"] == ["kl", "fa", "null", "true"]
    (absent,) = option_sweeps([of_images(16, path=f"/sets/{name}") for name in "ab"], WHERE)
    assert isinstance(absent, Absent)


def test_bits_are_in_their_order_and_placements_are_panels():
    rows = [of_images(16, scheme=f"{placement}/w{bits}a8") for placement in ("hw", "pot") for bits in (10, 2)]
    (figure,) = bits([*rows, of_images(16, scheme="float")], WHERE)
    assert figure.chart.spec["spec"]["layer"][2]["encoding"]["x"]["sort"] == ["w2a8", "w10a8"]
    assert {each["panel"] for each in records(figure)} == {"hw", "pot"}
    (figure,) = placements(rows, WHERE)
    assert [each["x"] for each in records(figure)] == ["hw", "pot", "hw", "pot"]
    assert figure.chart.spec["facet"]["sort"] == ["w2a8", "w10a8"]


def test_a_line_of_one_point_is_none():
    one = [of_images(16), of_images(16, seed=1)]
    assert bits(one, WHERE) == [Absent("bits digits resnet20", "no method has results at two widths of one placement")]
    assert placements(one, WHERE) == [
        Absent("placements digits resnet20", "no method has results at two placements with the same bits")
    ]


def test_options_that_depend_on_the_scheme_do_not_part_a_line_over_bits():
    rows = [of_images(16, scheme=f"hw/w{width}a8") for width in (2, 4)]
    for width, each in enumerate(rows):
        each.methods["quantizer"]["options"]["norm"] = width
    (figure,) = bits(rows, WHERE)
    assert len(records(figure)) == 2


def test_the_best_of_many_methods_are_shown():
    rows = [of_images(images, value=number, generator=f"g{number}") for images in (16, 64) for number in range(25)]
    (figure,) = option_sweeps(rows, WHERE)
    assert len({each["method"] for each in records(figure)}) == 20
    assert "g4 with rtn" not in {each["method"] for each in records(figure)}
    assert figure.chart.title == "digits resnet20: results over images (the best 20 of 25 methods)"
