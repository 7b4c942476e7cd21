import os

from zsqbench.reports.resultfile import SCHEMA


def test_a_row_holds_what_is_needed_to_read_it_alone(bench):
    bench.matrix("generator: small", head="generators: {small: {method: toy, images: 2}}")
    bench.run()
    (row,) = bench.rows().values()
    read = {
        "changed": row["methods"]["generator"]["changed"],
        "data": row["data"],
        "options": row["methods"]["generator"]["options"],
        "schema": row["schema"],
        "steps": sorted(row["seconds"]),
        "classes": row["model_facts"]["classes"],
        "cores": row["environment"]["cores"],
    }
    expected = {
        "changed": {"images": 2},
        "data": {
            "evaluated": 20,
            "digest": bench.artifact("baseline").content["data"],
            "images": 2,
            "calibrated": 2,
        },
        "options": {"images": 2, "scale": 1.0},
        "schema": SCHEMA,
        "steps": ["baseline", "evaluate", "generate", "quantize"],
        "classes": 10,
        "cores": os.cpu_count(),
    }
    assert expected == read


def test_a_row_of_real_images_is_marked_as_not_data_free(bench):
    bench.matrix("generator: [toy, toyreal]")
    bench.run()
    assert [row.get("data_free", True) for row in bench.rows().values()] == [True, False]


PUBLISHED = """
name: toysuite
plugins: [toy.py]
models: {resnet18: {base: a}}
generators: {hast: {method: toy}}
quantizers: {hast: {method: toyq}}
matrix:
  - {task: toytask, model: resnet18, generator: hast, quantizer: hast, scheme: [hast/w3a3, hast/w4a4, float]}
"""


def test_a_row_holds_what_a_paper_says_of_its_cell_whatever_became_of_it(bench):
    bench.suite(f"{PUBLISHED}published: {{source: hast, table: [2, 4]}}\n")
    bench.run()
    rows = list(bench.rows().values())
    assert [row.get("published", {}).get("value") for row in rows] == [51.15, 66.91, None]
    assert rows[0]["published"]["source"] == "HAST, Table 2"


def test_a_table_that_a_suite_names_later_is_added_to_its_rows_and_nothing_runs(bench):
    bench.suite(PUBLISHED)
    bench.run()
    bench.calls()
    bench.suite(f"{PUBLISHED}published: {{source: hast, table: 2}}\n")
    bench.run()
    added = [row.get("published", {}).get("value") for row in bench.rows().values()]
    bench.suite(PUBLISHED)
    bench.run()
    assert (bench.calls(), added) == ([], [51.15, 66.91, None])
    assert not any("published" in row for row in bench.rows().values())


def test_a_row_that_was_cut_off_is_written_again_from_the_store(bench):
    bench.run()
    path = bench.results / "toysuite.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    bench.calls()
    said = bench.run()
    assert (said.code, bench.calls(), list(bench.statuses().values())) == (0, [], ["done", "done"])
