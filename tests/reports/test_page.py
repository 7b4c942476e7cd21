from zsqbench.reports.page import page, section


def test_a_page_is_one_file_that_runs_and_fetches_nothing():
    made = page("<b>", [section("1 < 2", "<table></table>", ["a & b", "c"])])
    assert made.startswith("<!DOCTYPE html>")
    assert "<title>&lt;b&gt;</title>" in made
    assert "<h1>&lt;b&gt;</h1>" in made
    assert "<h2>1 &lt; 2</h2>\n<main>\n<table></table></main>" in made
    assert "<li>a &amp; b</li>\n<li>c</li>" in made
    assert not [word for word in ("<script", "http", "src=", "url(", "{{") if word in made]
