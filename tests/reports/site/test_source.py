from zsqbench.reports.site.source import LONGEST, page_names


def test_the_name_of_a_page_is_that_of_its_cell():
    assert page_names(["digits:a:noise:rtn:hw/w4a4:0"]) == {
        "digits:a:noise:rtn:hw/w4a4:0": "digits-a-noise-rtn-hw-w4a4-0"
    }


def test_cells_that_would_share_a_name_do_not():
    names = list(page_names(["a:b", "a/b", "A:b", "..", "ä"]).values())
    assert len({name.lower() for name in names}) == len(names)
    assert not any(name.startswith(".") or "/" in name for name in names)


def test_a_long_name_is_cut_and_stays_unique():
    names = list(page_names(["x" * 300 + "1", "x" * 300 + "2"]).values())
    assert len(set(names)) == 2
    assert max(map(len, names)) < LONGEST + 10
