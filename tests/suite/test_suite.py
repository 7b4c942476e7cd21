import json

import pytest

from zsqbench.suite import load_suite, shipped_suites

BLOCK = "  - {task: toytask, model: a, generator: toy, quantizer: toyq, scheme: hw/w4a4}\n"


MATRIX = f"matrix:\n{BLOCK}"


HEAD = "name: toysuite\nplugins: [toy.py]\n"


PUBLISHED = """
name: toysuite
plugins: [toy.py]
models: {resnet18: {base: a}}
generators: {hast: {method: toy}, intraq: {method: toy}}
quantizers: {hast: {method: toyq}, ste: {method: toyq}}
matrix:
  - {task: toytask, model: resnet18, generator: [hast, intraq], quantizer: [hast, ste], scheme: [hw/w3a3, hast/w3a3]}
"""


def test_what_a_paper_says_of_a_cell_is_found_by_the_names_of_its_parts(load):
    suite = load(f"{PUBLISHED}published: {{source: hast, table: 2}}\n")
    told = {cell.name: suite.published_of(cell) for cell in suite.cells if suite.published_of(cell)}
    assert {name: value["value"] for name, value in told.items()} == {
        "toytask:resnet18:hast:hast:hast/w3a3:0": 51.15,
        "toytask:resnet18:intraq:ste:hast/w3a3:0": 45.51,
    }
    assert suite.notes == []


def test_the_table_that_is_named_first_counts(load):
    values = []
    for tables in ("[6, 2]", "2", "4"):
        suite = load(f"{PUBLISHED}published: [{{source: hast, table: {tables}}}, {{source: hast, table: 4}}]\n")
        values.append([suite.published_of(cell).get("source") for cell in suite.cells])
    two, four = "HAST, Table 2", "HAST, Table 4"
    assert values == [
        [None, two, None, four, None, None, None, two],
        [None, two, None, four, None, None, None, two],
        [None, four, None, four, None, None, None, None],
    ]


def test_tables_that_say_nothing_of_a_cell_are_noted(bench, load):
    suite = load(f"{HEAD}{MATRIX}published: {{source: hast, table: 2}}\n")
    assert suite.notes == [
        f"{bench.file}:5: these tables have no value for any cell; name the parts of a cell as the tables do"
    ]


def test_what_a_paper_says_is_in_no_definition(load):
    definitions = []
    for table in ("2", "4"):
        suite = load(f"{PUBLISHED}published: {{source: hast, table: {table}}}\n")
        definitions.append([suite.definition(cell) for cell in suite.cells])
    assert definitions[0] == definitions[1]


@pytest.mark.parametrize("name", [name for name in shipped_suites() if name.startswith("paper/")])
def test_every_published_value_of_the_tables_of_a_shipped_suite_stands_beside_a_cell(name, data_root):
    suite = load_suite(shipped_suites()[name], data_root=data_root)
    there = {
        (cell.model, cell.generator or "none", cell.quantizer, cell.scheme, suite.task(cell.task).metric)
        for cell in suite.cells
    }
    assert {place for place in suite.published if place[3] != "float"} <= there


def test_the_definition_of_a_cell_does_not_know_folders(bench, load):
    bench.write("weights.txt", "3")
    bench.matrix("model: mine", head="models: {mine: {base: a, weights: weights.txt}}")
    here = load()
    (bench.folder / "weights.txt").unlink()
    bench.write("root/weights.txt", "3")
    there = load(data_root=bench.folder / "root")
    assert here.definition(here.cells[0]) == there.definition(there.cells[0])


def test_the_definition_of_a_cell_says_which_float_accuracy_was_asked_for(bench, load):
    definitions = set()
    for said in ("", ", float_accuracy: null", ", float_accuracy: 71", ", float_accuracy: 71.08"):
        bench.matrix("model: mine", head=f"models: {{mine: {{base: a{said}}}}}")
        suite = load()
        definitions.add(suite.definition(suite.cells[0]))
    assert len(definitions) == 3


def test_the_schema_of_a_suite_is_json(bench):
    said = bench.zsqbench("schema")
    assert {"name", "matrix", "exclude"} <= set(json.loads(said.out)["properties"])


def test_two_cells_never_share_a_name(bench):
    head = "models: {'a:x': {base: a}}\ngenerators: {'x:toy': {method: toy}}"
    bench.matrix("model: a, generator: 'x:toy'", "model: 'a:x', generator: toy", head=head)
    said = bench.zsqbench("plan", bench.file, "--no-plugin", "mlflow", *bench.places())
    refused = said.code == 2 and "':'" in said.err
    cells = [line.split()[2] for line in said.out.splitlines() if ":toyq:" in line]
    assert refused or len({*cells}) == 2, cells
