import json
import os
from datetime import UTC, datetime

from brief import parametrize_briefly
from faults import rewrite_manifest

import zsqbench
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


def test_a_row_says_when_its_cell_finished(bench):
    before = datetime.now(UTC)
    bench.run()
    times = [datetime.fromisoformat(row["finished"]) for row in bench.rows().values()]
    assert before < times[0] < times[1] < datetime.now(UTC)


def test_a_row_that_is_kept_or_made_again_with_the_same_end_keeps_its_time(bench):
    bench.add_plugin("class Bad(Toy):\n    name = 'bad'\n    def generate(self, *all): raise ValueError('no')\n")
    bench.matrix("generator: [toy, bad], scheme: [hw/w4a4, float]")
    bench.run()
    times = [row["finished"] for row in bench.rows().values()]
    bench.run()
    assert (len(times), [row["finished"] for row in bench.rows().values()]) == (4, times)


def test_a_clock_that_was_set_back_makes_no_row_the_older_one(bench):
    bench.matrix("")
    bench.run()
    path = bench.results / "toysuite.jsonl"
    path.write_text(json.dumps(bench.row() | {"definition": "another", "finished": "2999-01-01T00:00:00Z"}) + "\n")
    bench.run()
    assert bench.row()["finished"] == "2999-01-01T00:00:00Z"
    assert bench.row()["definition"] != "another"


DAMAGES = """
class Damages(ToyQuantizer):
    name = "damages"

    def quantize(self, student, teacher, data, ctx):
        for path in (HERE / "home" / "store" / "KIND").glob("*/manifest.json"):
            DAMAGE
        super().quantize(student, teacher, data, ctx)
"""

DAMAGE = {
    "damaged": ("path.write_text('{}')", "its schema is none, and this zsqbench reads 2 and 3"),
    "deleted": ("import shutil; shutil.rmtree(path.parent)", "manifest.json: "),
}


@parametrize_briefly(
    "kind,how",
    [("baseline", "damaged"), ("evaluate", "deleted"), ("baseline", "deleted"), ("evaluate", "damaged")],
    2,
)
def test_a_measurement_that_a_plugin_damages_fails_its_cells_while_the_others_go_on(bench, kind, how):
    code, detail = DAMAGE[how]
    bench.add_plugin(DAMAGES.replace("KIND", kind).replace("DAMAGE", code))
    bench.matrix("")
    bench.run()
    bench.matrix("quantizer: [toyq, damages, unseeded]", "quantizer: toyq, model: b")
    (bench.results / "toysuite.jsonl").unlink()
    said = bench.run()
    rows = {row["quantizer"] + row["model"]: row for row in bench.rows().values()}
    assert (said.code, rows["toyqb"]["status"]) == (1, "done"), said.err
    failed = [row for row in rows.values() if row["status"] == "failed"]
    assert failed
    for row in failed:
        begin, end = f"{kind}: its artifact was damaged during the run ({detail}", "); run again"
        assert row["reason"].startswith(begin), row["reason"]
        assert row["reason"].endswith(end), row["reason"]
    again = bench.run("-k", "not damages")
    others = {row["status"] for row in bench.rows().values() if row["quantizer"] != "damages"}
    assert (again.code, others) == (0, {"done"}), again.err


def test_a_measurement_of_before_that_is_no_number_fails_its_cell(bench):
    bench.matrix("")
    bench.run()
    artifact = bench.artifact("evaluate")
    rewrite_manifest(artifact.folder, content=artifact.content | {"metrics": {"top1": float("nan")}})
    (bench.results / "toysuite.jsonl").unlink()
    said, row = bench.run(), bench.row()
    assert (said.code, row["status"], row["reason"]) == (
        1,
        "failed",
        "metrics.top1 is nan, which is not a valid measurement",
    )


def test_rows_of_a_run_share_what_they_say_alike(bench):
    bench.matrix("seed: [0, 1]")
    places = {"home": bench.home, "results": bench.results}
    one, other = zsqbench.run(bench.file, **places, without=["mlflow"], workers=0).results
    for name in ("methods", "model_facts", "environment", "settings"):
        assert getattr(one, name) is getattr(other, name)
