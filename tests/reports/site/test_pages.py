import pytest

from zsqbench.reports.site.pages import rounded


@pytest.mark.parametrize(
    ("value", "shown"), [(1.234567, "1.2346"), (-0.00001, "0.0"), (-1.25, "-1.25"), (None, "None")]
)
def test_a_number_has_four_decimals_and_zero_no_sign(value, shown):
    assert str(rounded(value)) == shown
