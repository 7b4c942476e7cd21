from zsqbench.errors import unknown


def test_what_is_unknown_is_told_with_all_that_is_known():
    assert unknown("scheme", "hw/w4a5", ["pot/w8a8", "hw/w4a4"], "suite") == (
        "unknown scheme 'hw/w4a5' in suite; did you mean 'hw/w4a4'? known: hw/w4a4, pot/w8a8"
    )
    assert unknown("scheme", "x", []) == "unknown scheme 'x'; known: none"


def test_of_many_names_a_dozen_are_told():
    text = unknown("cell", "nosuch", [f"digits:{number:03}" for number in range(167)])
    assert text.endswith("digits:010, digits:011 and 155 more")
    assert text.count(", ") == 11
