import csv
from functools import cache

import pytest
import yaml

from zsqbench.errors import ZSQBenchError
from zsqbench.plugins import load_plugins
from zsqbench.reports.published import SOURCES, published_folder, read_data_sets, read_source
from zsqbench.scheme import parse_scheme
from zsqbench.suite import load_suite, shipped_suites, suites_of_table

NAMES = list(yaml.safe_load((published_folder() / SOURCES).read_text(encoding="utf-8")))


@pytest.fixture
def kept(tmp_path):
    """A folder with one source."""

    def kept(*lines):
        (tmp_path / SOURCES).write_text("some: {name: Some, citation: 'Someone: Something, 2020'}\n")
        head = "table,data,model,generator,quantizer,scheme,metric,value,std,note"
        (tmp_path / "some.csv").write_text("\n".join([head, *lines]) + "\n")
        return tmp_path

    return kept


FULL = "1,cifar10,net,none,fp32,float,top1,94.0,,"
VALUE = "1,cifar10,net,zeroq,rtn,hw/w4a4,top1,90.5,0.25,a word"


@pytest.mark.parametrize("name", NAMES)
def test_every_source_that_is_kept_can_be_read_and_says_each_thing_once(name):
    source = read_source(name)
    places = [(value.table, value.place) for value in source.values]
    assert source.tables
    assert len(places) == len(set(places))
    assert source.citation


@cache
def suite_of(name):
    return load_suite(shipped_suites()[name], find_files=False)


@pytest.mark.parametrize("name", NAMES)
def test_schemes_of_published_values_are_schemes(name):
    """Those that zsqbench has, or that the shipped suites of their table define."""
    for table, scheme in {(value.table, value.scheme) for value in read_source(name).values}:
        if not any(scheme in suite_of(each).schemes for each in suites_of_table(name, table)):
            parse_scheme(scheme)


@pytest.mark.parametrize("name", NAMES)
def test_generators_and_quantizers_of_published_values_are_methods_or_explained(name):
    catalog = load_plugins()
    text = (published_folder() / "README.md").read_text(encoding="utf-8")
    suites = "\n".join(path.read_text(encoding="utf-8") for path in shipped_suites().values())
    for value in read_source(name).values:
        for kind, label in (("generator", value.generator), ("quantizer", value.quantizer)):
            known = label == "none" or (kind, label) in catalog.provided
            assert known or f"{label}:" in suites or f"`{label}`" in text, label


def test_every_file_of_values_is_a_source_and_is_cited():
    folder = published_folder()
    assert sorted(path.stem for path in folder.glob("*.csv")) == sorted(NAMES)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        title = read_source(name).citation.partition(": ")[2].partition(",")[0]
        assert f"`{name}.csv`" in text
        assert title in text


def test_the_columns_are_explained():
    text = (published_folder() / "README.md").read_text(encoding="utf-8")
    with (published_folder() / "hast.csv").open() as file:
        columns = next(csv.reader(file))
    assert [column for column in columns if f"| `{column}` |" not in text] == []


def test_values_of_hast_are_those_of_its_tables():
    found = read_source("hast").find(["1a", "2"])
    told = found["resnet20_cifar10", "hast", "hast", "hast/w3a3", "top1"]
    assert (told["value"], told["std"], told["float"], told["source"]) == (88.34, 0.06, 94.03, "HAST, Table 1a")
    assert found["resnet18", "intraq", "ste", "hast/w4a4", "top1"]["value"] == 66.47


def test_a_value_is_told_with_deviation_float_network_source_and_note(kept):
    (told,) = [v for k, v in read_source("some", kept(FULL, VALUE)).find(["1"]).items() if k[1] == "zeroq"]
    assert told == {
        "value": 90.5,
        "std": 0.25,
        "float": 94.0,
        "source": "Some, Table 1",
        "citation": "Someone: Something, 2020",
        "note": "a word",
    }


def test_what_a_source_does_not_say_is_left_out(kept):
    (told,) = read_source("some", kept("README,c,net,zeroq,rtn,hw/w4a4,top1,90.5,,")).find(["README"]).values()
    assert set(told) == {"value", "source", "citation"}
    assert told["source"] == "Some, README"


def test_the_float_network_of_a_table_without_one_is_the_first_of_the_source(kept):
    lines = [
        FULL,
        FULL.replace("1,", "2,", 1).replace("94.0", "95.0"),
        VALUE.replace("1,", "3,", 1),
        VALUE.replace("1,", "2,", 1),
    ]
    source, place = read_source("some", kept(*lines)), ("net", "zeroq", "rtn", "hw/w4a4", "top1")
    assert [source.find([table])[place]["float"] for table in ("3", "2")] == [94.0, 95.0]


def test_an_unknown_source_is_refused_with_a_suggestion(kept):
    with pytest.raises(ZSQBenchError, match="unknown source of published values 'sone'; did you mean 'some'"):
        read_source("sone", kept())


@pytest.mark.parametrize(
    ("old", "new", "where"), [("90.5", "many", "value"), ("0.25", "x", "std"), (",a word", "", "note")]
)
def test_a_line_that_is_no_value_is_refused_with_its_place(kept, old, new, where):
    with pytest.raises(ZSQBenchError, match=rf"some\.csv:3: {where}: "):
        read_source("some", kept(FULL, VALUE.replace(old, new)))


def test_values_are_found_beside_the_package_or_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("zsqbench.reports.published.__file__", str(tmp_path / "zsqbench" / "reports" / "published.py"))
    with pytest.raises(ZSQBenchError, match="there are no published values beside"):
        published_folder()
    for folder in (tmp_path / "results" / "published", tmp_path / "zsqbench" / "papers"):
        folder.mkdir(parents=True)
        (folder / SOURCES).touch()
        assert published_folder() == folder


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_of_published_values_is_described(name):
    described = read_data_sets()
    assert {value.data for value in read_source(name).values} <= set(described)
    assert all(each.images > 0 and each.source and each.at for each in described.values())


def test_a_table_is_found_by_its_name_and_an_unknown_one_lists_those_that_are(kept):
    source = read_source("some", kept(FULL, VALUE, VALUE.replace("1,", "2,", 1)))
    assert [value.table for value in source.table("2")] == ["2"]
    with pytest.raises(ZSQBenchError, match="unknown table of Some '3'; known: 1, 2"):
        source.table("3")


def test_a_value_knows_its_float_network_and_its_name(kept):
    lines = [FULL, VALUE, VALUE.replace("1,", "2,", 1), VALUE.replace(",net,", ",other,")]
    full, value, elsewhere, without = read_source("some", kept(*lines)).values
    source = read_source("some", kept(*lines))
    assert [source.float_of(each) for each in (full, value, elsewhere, without)] == [94.0, 94.0, 94.0, None]
    assert (full.is_float, value.is_float) == (True, False)
    assert value.name == "cifar10:net:zeroq:rtn:hw/w4a4"


def test_what_a_source_is_known_to_do_otherwise_is_kept_where_a_line_says_so():
    squant = [value for value in read_source("hast").values if value.quantizer == "squant"]
    assert {value.differs for value in squant} == {"other scheme (the last layer stays at 8 bits)"}
    assert all(not value.differs for value in read_source("dgh").values)
