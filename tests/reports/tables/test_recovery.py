import json

from rows import method, row

from zsqbench.reports.tables.leaderboard import leaderboard
from zsqbench.reports.tables.recovery import NOTHING, UNDEFINED
from zsqbench.reports.tables.tabulation import Layout


def recovered(*results):
    """The figure of each method, by generator and quantizer, as the table prints it."""
    lines = [line for line in leaderboard(results, "md", Layout(["recovered"])).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]
    return {(generator.split()[0], quantizer): last for generator, quantizer, *_, last in cells}


def noise(value, **changes):
    return row(value, generator="noise", **changes)


def real(value, **changes):
    return row(value, generator="real", data_free=False, **changes)


def in_json(*results):
    """The figure of each method and the reason beside it."""
    records = json.loads(leaderboard(results, "json", Layout(["recovered"])))["records"]
    return [record["recovered"] for record in records], [record["recovered_reason"] for record in records]


def test_noise_is_at_0_and_real_images_are_at_100():
    found = recovered(noise(50.0), row(80.0), row(95.0, generator="dgh"), row(45.0, generator="dsg"), real(90.0))
    assert found == {
        ("noise", "rtn"): "0.0",
        ("zeroq", "rtn"): "75.0",
        ("dgh", "rtn"): "112.5",
        ("dsg", "rtn"): "-12.5",
        ("real", "rtn"): "100.0",
    }


def test_each_seed_is_beside_the_means_of_both_controls():
    seeds = [noise(40.0, seed=0), noise(60.0, seed=1), real(88.0, seed=0), real(92.0, seed=1)]
    found = recovered(*seeds, row(70.0, seed=0), row(80.0, seed=1))
    assert found["zeroq", "rtn"] == "62.5 ± 17.7"  # 50 and 75
    assert found["noise", "rtn"] == "0.0 ± 35.4"


def test_controls_are_those_of_the_same_quantizer():
    hptq = {"quantizer": "hptq", "methods": {"quantizer": method("hptq")}}
    found = recovered(noise(50.0), row(70.0), real(90.0), row(70.0, **hptq), real(80.0, **hptq))
    assert found["zeroq", "rtn"] == "50.0"
    assert found["zeroq", "hptq"] == ""


def test_the_best_control_counts_where_there_are_several():
    more = {"methods": {"quantizer": method("rtn"), "generator": method("real", images=512)}}
    assert recovered(noise(50.0), row(80.0), real(60.0), real(90.0, **more))["zeroq", "rtn"] == "75.0"


def test_nothing_is_recovered_where_real_images_are_worse_than_noise_or_chance_explains_the_difference():
    for value in (40.0, 50.0, 50.2):
        results = [noise(50.0), row(45.0), real(value)]
        assert all(shown.startswith(UNDEFINED) for shown in recovered(*results).values())
        assert leaderboard(results, "md", Layout(["recovered"])).count(NOTHING) == 1


def test_json_has_the_numbers_and_the_reason():
    numbers, _ = in_json(noise(50.0), row(80.0), real(90.0))
    assert numbers == [0.0, 75.0, 100.0]
    numbers, reasons = in_json(noise(50.0), row(80.0), real(40.0))
    assert numbers == [None] * 3
    assert reasons == [NOTHING] * 3
