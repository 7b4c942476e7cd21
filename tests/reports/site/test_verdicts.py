from rows import seen

from zsqbench.reports.site.sections import sections
from zsqbench.scheme import FLOAT


def said(*rows):
    (section,) = sections(rows, None)
    return section.verdicts


def test_a_method_that_is_told_from_the_others_is_best_alone():
    (text,) = said(seen(range(90)), seen(range(50), generator="zeroq"), seen(range(10), generator="noise"))
    assert text == (
        "digits, resnet20, hw/w4a4: dgh with rtn (90.00) is best alone. The float network reaches 98.00. "
        "The negative control reaches 10.00 at most (noise with rtn)."
    )


def test_two_methods_that_cannot_be_told_apart_share_the_top():
    (text,) = said(seen(range(90)), seen(range(89), generator="zeroq"))
    assert "dgh with rtn (90.00) shares the top with zeroq with rtn (89.00)." in text


def test_more_methods_at_the_top_are_counted():
    (text,) = said(seen(range(90)), *(seen(range(89 - at), generator=f"g{at}") for at in range(3)))
    assert "dgh with rtn (90.00) shares the top with 3 others." in text


def test_a_method_below_its_control_is_no_winner_and_is_counted():
    (text,) = said(seen(range(40)), seen(range(90), generator="noise"))
    assert "No data-free method is told from the negative controls, and above them." in text
    assert "1 method is below the control with the same quantizer." in text


def test_a_tie_with_what_does_not_beat_its_control_is_not_kept_quiet():
    (text,) = said(
        seen(range(90)),
        seen(range(10), generator="noise"),
        seen(range(90), generator="zeroq", quantizer="other"),
        seen(range(91), generator="noise", quantizer="other"),
    )
    assert "dgh with rtn (90.00) is best alone; 1 other (not above the negative control, or not compared)" in text


def test_what_is_not_done_is_counted():
    (text,) = said(seen(range(90)), seen([], generator="b", status="failed", metrics={}, reason="no"))
    assert text.endswith("1 method is failed.")


def test_a_column_without_a_number_says_so():
    (text,) = said(seen([], status="failed", metrics={}, reason="no"))
    assert "No method has a number here." in text


def test_nothing_is_best_of_random_weights():
    (text,) = said(seen(range(90), model_facts={"random_weights": True}))
    assert "Nothing is best of a network with random weights." in text


def test_nothing_is_best_where_nothing_is_quantized():
    (text,) = said(seen(range(90), scheme=FLOAT.name))
    assert "Nothing is quantized here, so nothing is best." in text


def test_methods_that_could_not_be_compared_are_not_said_to_lose_to_their_control():
    rows = [seen(range(90)), seen(range(50), generator="noise")]
    (text,) = said(*(row.model_copy(update={"correct": None}) for row in rows))
    assert "Nothing is called best, as methods could not be compared: its task keeps no value for each image." in text
    assert "cannot be told from" not in text


def test_a_method_that_is_not_told_from_its_control_is_counted():
    (text,) = said(seen(range(51)), seen(range(50), generator="noise"))
    assert text.endswith("1 method cannot be told from the control with the same quantizer.")
