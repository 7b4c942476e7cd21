import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.reports.site.drawing import check_figure_file, draw

SPEC = {"data": {"values": [{"a": 1}]}, "mark": "point", "encoding": {"x": {"field": "a", "type": "quantitative"}}}


@pytest.mark.parametrize(("name", "begins"), [("f.svg", b"<svg"), ("f.PDF", b"%PDF"), ("f.png", b"\x89PNG")])
def test_a_chart_is_drawn_by_the_ending_of_its_file(tmp_path, name, begins):
    draw(SPEC, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"f\.jpg does not end in \.svg, \.pdf or \.png"):
        check_figure_file(tmp_path / "f.jpg")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ZSQBenchError, match="there is no folder"):
        check_figure_file(tmp_path / "no" / "f.svg")


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "f.svg").mkdir()
    with pytest.raises(ZSQBenchError, match=r"cannot write .*f\.svg: Is a directory"):
        draw(SPEC, tmp_path / "f.svg")


def test_data_that_would_be_fetched_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"url|URL|allowed"):
        draw({**SPEC, "data": {"url": "https://example.com/data.json"}}, tmp_path / "f.svg")
