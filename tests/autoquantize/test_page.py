import pytest

from zsqbench.autoquantize.page import Page, Section

PAGE = Page(
    "net at int8",
    [Section("Why", ["It is <best>."]), Section("Candidates", table=[["name", "value"], ["a & b", "1"], ["c", "22"]])],
)


def test_the_text_has_aligned_tables():
    assert PAGE.text() == "net at int8\n\nWHY\n- It is <best>.\n\nCANDIDATES\nname   value\na & b  1\nc      22"


def test_the_page_is_escaped_and_needs_no_other_file():
    html = PAGE.html()
    assert "<li>It is &lt;best&gt;.</li>" in html
    assert "<tr><th>name</th><th class=number>value</th></tr><tr><td>a &amp; b</td><td class=number>1</td></tr>" in html
    assert html.startswith("<!doctype html>")
    assert "src=" not in html
    assert "href=" not in html


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [(["1", "-22.5", "-", ""], True), (["2.25 MB", "12.3 kB"], True), (["", "chosen"], False), (["", ""], False)],
)
def test_columns_of_numbers_are_aligned_by_their_digits(cells, numbers):
    html = Page("net", [Section("Candidates", table=[["value"], *([cell] for cell in cells)])]).html()
    assert ("<th class=number>value</th>" in html) is numbers
