import pytest

from zsqbench.durations import in_words, parse_duration
from zsqbench.errors import ZSQBenchError

GIVEN = [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400), ("2h5s", 7205), ("90", 90), ("0.5", 0.5)]


@pytest.mark.parametrize(("text", "seconds"), GIVEN)
def test_a_duration_is_numbers_with_units_or_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "0", "0s", "-1m", "-5", "1 m", "20min", "30m1h", "1m1m", "nan", "inf", "1e9"]
)
def test_a_duration_that_is_no_time_is_refused(text):
    with pytest.raises(ZSQBenchError) as error:
        parse_duration(text, "budget")
    expected = "expected 90s, 20m, 1h30m, or a number of seconds"
    assert str(error.value) == f"budget {text!r} is not a duration; {expected}"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (7500, "2 h 05 min")])
def test_a_duration_is_rounded_for_people(seconds, text):
    assert in_words(seconds) == text
