import json
import shutil

import pytest

HEAD = "table,data,model,generator,quantizer,scheme,metric,value,std,note,differs"
VALUES = [
    "1,toys,a,none,fp32,float,top1,60.0,,,",
    "1,toys,a,toy,toyq,hw/w4a4,top1,30.0,0.5,,",
    "1,toys,a,none,datafree,hw/w4a4,top1,99.0,,,",
    "2,toys,a,toy,toyq,hw/w4a4,top1,99.0,,,",
]


@pytest.fixture
def paper(bench, monkeypatch):
    """A paper of two tables; the suite of the bench is shipped and asks for the first."""
    folder = bench.folder / "published"
    bench.write("published/sources.yaml", "some: {name: Some, citation: 'Someone: Something, 2020', caveats: [old]}")
    bench.write("published/data.yaml", "toys: {title: toys, images: 20, source: a shop, at: data}")
    bench.write("published/some.csv", "\n".join([HEAD, *VALUES]) + "\n")
    monkeypatch.setattr("zsqbench.reports.published.published_folder", lambda: folder)
    monkeypatch.setattr("zsqbench.suite.files.shipped_suites", lambda: {"paper/toy": bench.file})
    bench.matrix("seed: [0, 1, 2]", "generator: none, quantizer: datafree", head="published: {source: some, table: 1}")
    return bench


def reproduce(bench, *arguments):
    return bench.zsqbench("reproduce", *arguments, "--no-plugin", "mlflow", *bench.places())


def run(bench, *arguments):
    return reproduce(bench, *arguments, "--run", "--workers", 0, "--no-plugin", "progress")


def error(said):
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    return line


def verdicts(said):
    return {each["name"].split(":")[3]: each["verdict"] for each in json.loads(said.out)["values"]}


def test_without_run_nothing_runs_and_the_plan_is_told(paper):
    said = reproduce(paper, "some", "1")
    assert said.code == 0, said.err
    assert paper.calls() == []
    lines = said.out.splitlines()
    assert lines[:2] == ["Some, table 1", f"shipped suite: {paper.file}"]
    assert "  data toytask: toys (20) from a shop; below the data root as data" in lines
    assert "  4 cells, of which 4 can run here" in lines
    assert "  work: 3 sets of images, 4 networks to quantize" in lines
    assert "    generator toy: images 4" in lines
    assert "  time: unknown: no step like these 15 has run yet" in lines
    assert "3 values: 3 not run" in lines
    assert lines[-2:] == ["caveat: old", "published: Someone: Something, 2020"]


def test_a_run_measures_what_is_published_and_gives_each_value_a_verdict(paper):
    said = run(paper, "some", "1", "--format", "json")
    found = {each["name"].split(":")[3]: each for each in json.loads(said.out)["values"]}
    assert (said.code, len(paper.rows())) == (1, 4)  # a value is not reached
    assert found["datafree"]["verdict"] == "not reached"
    assert found["toyq"]["verdict"] == "reached"
    assert len(found["toyq"]["measured"]["seeds"]) == 3
    assert found["fp32"]["measured"]["images"] == 20
    assert verdicts(reproduce(paper, "some", "1", "toyq", "--format", "json")) == {"toyq": "reached"}
    paper.calls()
    assert run(paper, "some", "1", "toyq").code == 0
    assert paper.calls() == []


def test_what_is_changed_is_never_called_not_reached(paper):
    changes = ["--set", "generators.toy.images=2", "--set", "matrix.0.seed=0"]
    said = run(paper, "some", "1", "toyq", *changes)
    assert said.code == 0
    budget = "not comparable: other budget (generator images 2, published 4; 1 of 3 seeds)"
    assert budget in said.out
    # the rows are still there without --set, and are told from those of the suite as it is
    assert budget in reproduce(paper, "some", "1", "toyq").out


def test_a_suite_of_ones_own_is_measured_and_compared_with_the_shipped_one(paper):
    text = paper.file.read_text().replace("toysuite", "mine") + "\nmodels: {a: {base: b}}\n"
    mine = paper.write("mine.yaml", text)
    said = run(paper, "some", "1", "toyq", "--suite", mine)
    assert said.code == 0, said.err
    assert f"measured by: {mine}" in said.out
    assert "not comparable: other weights (b, published a)" in said.out
    assert (paper.results / "mine.jsonl").is_file()


def test_what_is_missing_is_told_and_a_run_of_nothing_is_refused(paper):
    shutil.rmtree(paper.folder / "data")
    said = run(paper, "some", "1")
    assert said.code == 5
    missing = f"task toytask: there is no folder {paper.folder / 'data'}"
    assert f"\nmissing here\n  {missing}\n" in said.out
    assert said.out.count(f"not run: {missing}") == 3
    assert said.err == f"error: no cell of some 1 can run here: {missing}\n"


def test_a_cell_that_fails_is_not_run_and_makes_the_exit_code_1(paper):
    paper.add_plugin("""
class Failing(ToyQuantizer):
    name = "failing"
    def quantize(self, student, teacher, data, ctx):
        raise RuntimeError("no luck")
""")
    head = "published: {source: some, table: 1}\nquantizers: {toyq: {method: failing}}"
    paper.matrix("seed: [0, 1, 2]", head=head)
    said = run(paper, "some", "1", "toyq")
    assert said.code == 1
    assert "not run: failed: quantize: RuntimeError: no luck" in said.out


def test_what_a_run_warns_of_is_told(paper):
    (paper.results / "toysuite.md").mkdir(parents=True)
    said = run(paper, "some", "1", "toyq")
    assert said.code == 0
    assert said.err.startswith("warning: cannot write ")
    assert "1 value: 1 reached" in said.out


def test_a_table_that_no_shipped_suite_asks_for_is_shown_and_a_suite_may_be_given(paper):
    said = reproduce(paper, "some", "2")
    assert (said.code, said.err) == (0, "")
    assert "not run: no shipped suite asks for this table; give --suite FILE" in said.out
    assert run(paper, "some", "2").err == "error: no cell of some 2 can run here: no suite measures it\n"
    assert error(reproduce(paper, "some", "2", "--set", "a.b=1")).endswith("no shipped one asks for some 2")
    assert run(paper, "some", "2", "--suite", paper.file).code == 0
    said = reproduce(paper, "some", "2", "--suite", paper.file, "--format", "json")
    assert verdicts(said) == {"toyq": "not comparable"}


def test_of_several_suites_for_a_table_one_has_to_be_given(paper, monkeypatch):
    monkeypatch.setattr("zsqbench.suite.files.shipped_suites", lambda: {"one": paper.file, "two": paper.file})
    line = error(reproduce(paper, "some", "1"))
    assert line == "error: 2 suites ask for table 1 of some; give one of them: --suite one or --suite two"
    assert reproduce(paper, "some", "1", "--suite", "two").code == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sone", "1"], "unknown source of published values 'sone'; did you mean 'some'? known: some"),
        (["some", "1a"], "unknown table of Some '1a'; did you mean '1'? known: 1, 2"),
        (["some", "1", "toyk"], "none of the 3 values matches ROW 'toyk'; did you mean 'toy'?"),
        (["some", "1", "("], "cannot read ROW '('; expected words joined by and, or, not, with parentheses, "),
        (["some", "1", "--suite", "nowhere.yaml"], "there is no suite file nowhere.yaml; shipped: paper/toy"),
        (["some", "1", "--set", "matrix.0.sead=1"], "unknown key 'sead'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(paper, arguments, line):
    assert line in error(reproduce(paper, *arguments))


def test_the_shipped_table_of_hast_finds_its_suite_by_itself(bench):
    said = reproduce(bench, "hast", "1a", "hast:hast", "--data-root", bench.folder)
    assert said.code == 0, said.err
    assert said.out.splitlines()[1].endswith("suites/paper/hast_table1a.yaml")
    assert "  10 cells, of which 0 can run here" in said.out
    assert "2 values: 2 not run" in said.out


def test_python_has_the_same(paper):
    import zsqbench

    places = {"home": paper.home, "results": paper.results, "without": ["mlflow", "progress"]}
    found = zsqbench.reproduce("some", "1", "toyq", run=True, workers=0, **places)
    assert [each.verdict for each in found.values] == ["reached"]
    assert zsqbench.reproduce("some", "2").counts == {"not run": 1}
