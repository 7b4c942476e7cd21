import json
import re
import time

from zsqbench.execution.plan import make_plan
from zsqbench.methods import DataFiles
from zsqbench.plugins import shipped_plugins
from zsqbench.steps import Data, NetworkFacts, Outcome
from zsqbench.store import Store
from zsqbench.suite import load_suite


def test_a_step_comes_after_what_it_needs(bench):
    bench.matrix("model: [a, b], quantizer: [toyq, unseeded], seed: [0, 1]")
    seen = set()
    for step in bench.plan()["steps"]:
        assert seen >= set(step["needs"]), step["label"]
        seen.add(step["key"])


def test_a_method_that_needs_batch_normalisation_cannot_go_with_a_network_without(bench):
    bench.add_plugin("class NeedsBN(Toy):\n    name = 'needs_bn'\n    needs_bn = True\n")
    bench.matrix("model: [a, without_bn], generator: needs_bn")
    said = bench.run()
    row = bench.rows()["toytask:without_bn:needs_bn:toyq:hw/w4a4:0"]
    expected = (1, "impossible", "needs_bn needs batch normalisation, and without_bn has none")
    assert expected == (said.code, row["status"], row["reason"])


def test_a_method_that_needs_classes_cannot_go_with_a_network_that_is_no_classifier(bench):
    bench.add_plugin("""
        class NeedsClasses(Toy):
            name = "needs_classes"
            needs_classes = True

        class Detection(ToyTask):
            name = "detection"

            def load(self, model, ctx):
                import dataclasses
                return dataclasses.replace(super().load(model, ctx), classes=None)
    """)
    bench.matrix("task: detection, generator: needs_classes")
    bench.run()
    (row,) = bench.rows().values()
    assert row["reason"] == "needs_classes needs a classifier, and a is not one"


def test_a_method_that_compares_classes_cannot_go_with_a_network_of_one(bench):
    bench.add_plugin("""
        class Compares(Toy):
            name = "compares"
            needs_classes = True
            least_classes = 2

        class OneClass(ToyTask):
            name = "one_class"

            def load(self, model, ctx):
                import dataclasses
                return dataclasses.replace(super().load(model, ctx), classes=1 if model.name == "a" else 2)
    """)
    bench.matrix("task: one_class, model: [a, b], generator: compares")
    bench.run()
    reasons = {name.split(":")[1]: row.get("reason") for name, row in bench.rows().items()}
    assert reasons == {"a": "compares needs at least 2 classes, and a has 1", "b": None}


def test_a_method_that_needs_a_training_loss_cannot_go_with_a_task_that_hands_out_none(bench):
    bench.add_plugin("""
        class NeedsLoss(Toy):
            name = "needs_loss"
            needs_training_loss = True

        class Detection(ToyTask):
            name = "detection"

            def load(self, model, ctx):
                import dataclasses
                import zsqbench
                detection = zsqbench.Detection((1,), lambda *_: None, lambda *_: None)
                return dataclasses.replace(super().load(model, ctx), detection=detection)
    """)
    bench.matrix("task: [toytask, detection], generator: needs_loss")
    bench.run()
    rows = {row["task"]: row for row in bench.rows().values()}
    expected = "needs_loss needs a detector whose task hands out its training loss, and a is not one"
    assert (rows["toytask"]["status"], rows["toytask"]["reason"]) == ("impossible", expected)
    assert rows["detection"]["status"] == "done"


def test_a_quantizer_that_looks_at_the_last_map_cannot_go_with_a_network_without_one(bench):
    bench.add_plugin("""
        class NeedsMap(ToyQuantizer):
            name = "needs_map"

            @property
            def needs_map(self):
                return True

        class Flat(ToyTask):
            name = "flat"

            def load(self, model, ctx):
                import dataclasses
                from torch import nn
                loaded = super().load(model, ctx)
                channels, height, width = loaded.input_size
                layers = nn.Flatten(), nn.Linear(channels * height * width, 2)
                return dataclasses.replace(loaded, module=nn.Sequential(*layers).eval().requires_grad_(False))
    """)
    bench.matrix("task: [flat, toytask], quantizer: needs_map")
    bench.run()
    reasons = {name.partition(":")[0]: (row["status"], row.get("reason")) for name, row in bench.rows().items()}
    reason = "needs_map needs a convolution whose map has more than one position, and a has none"
    assert reasons == {"flat": ("impossible", reason), "toytask": ("done", None)}


def test_a_generator_of_real_images_cannot_go_with_a_task_that_has_none(bench):
    (bench.folder / "data" / "train.txt").unlink()
    bench.matrix("generator: [toyreal, toy]")
    bench.run()
    rows = bench.rows()
    assert [row["status"] for row in rows.values()] == ["impossible", "done"]
    assert "real images" in rows["toytask:a:toyreal:toyq:hw/w4a4:0"]["reason"]


def test_a_generator_that_looks_at_attention_cannot_go_with_networks_without_it_or_with_other_patches(bench):
    bench.add_plugin("""
        from torch import nn
        from zsqbench.testing import tiny_transformer

        class NeedsAttention(Toy):
            name = "needs_attention"
            needs_attention = True

        class Tokens(ToyTask):
            name = "tokens"
            sides: int = 0

            def load(self, model, ctx):
                import dataclasses
                loaded = super().load(model, ctx)
                channels, height, width = loaded.input_size
                last = nn.Linear(10, 10)
                nn.init.eye_(last.weight), nn.init.zeros_(last.bias)
                network = nn.Sequential(tiny_transformer(loaded.input_size).module, last).eval().requires_grad_(False)
                more = channels, height + self.sides, width
                return dataclasses.replace(loaded, module=network, classes=10, input_size=more)
    """)
    head = "tasks: {uneven: {method: tokens, sides: 1}, tokens: {}, toytask: {}}"
    bench.matrix("task: [toytask, tokens, uneven], generator: [toy, needs_attention]", head=head)
    bench.run()
    found = {":".join(name.split(":")[:3:2]): row for name, row in bench.rows().items()}
    reasons = {name: row.get("reason") for name, row in found.items() if row["status"] == "impossible"}
    assert reasons == {
        "toytask:needs_attention": "needs_attention needs attention that capture takes apart, softmax and product with "
        "the values, and a has none",
        "uneven:needs_attention": "needs_attention needs patches that fill the image, and a cuts 9 x 8 pixels into "
        "patches of 2 x 2",
    }
    assert found["tokens:needs_attention"]["status"] == "done"


def test_a_start_that_needs_batch_normalisation_cannot_go_with_a_network_without(bench):
    bench.add_plugin("""
        class Starts(ToyQuantizer):
            name = "starts"
            start: str | None = None

        class NeedsBN(ToyQuantizer):
            name = "needs_bn"
            needs_bn = True
    """)
    bench.matrix("model: without_bn, quantizer: fine", head="quantizers: {fine: {method: starts, start: needs_bn}}")
    bench.run()
    (row,) = bench.rows().values()
    assert row["reason"] == "needs_bn needs batch normalisation, and without_bn has none"


def test_a_plan_before_the_first_run_says_which_model_is_pending(bench):
    assert bench.plan()["pending"] == ["a"]


def test_a_plan_before_the_first_run_refuses_no_shipped_method_for_what_is_not_known(bench):
    given = {"mixed": "over: rtn, layers: 1", "ait": "host: gdfq", "file": "path: toy.yaml"}
    names = {"generator": [], "quantizer": []}
    for kind, name in shipped_plugins().provided:
        if kind in names:
            names[kind].append(name)
    head = "\n".join(
        f"{kind}s: {{{', '.join(f'my_{name}: {{method: {name}, {given.get(name, str())}}}' for name in each)}}}"
        for kind, each in names.items()
    )
    generators, quantizers = (", ".join(f"my_{name}" for name in each) for each in names.values())
    for_quantizers = f"generator: [my_noise, none], quantizer: [{quantizers}], scheme: hast/w4a4"
    bench.matrix(f"generator: [{generators}]", for_quantizers, head=head)
    cells = bench.plan()["cells"]
    reasons = {cell["reason"] for cell in cells if cell["state"] == "impossible"}
    of_the_suite = r"\w+ (reads no calibration images,|needs calibration images,|rejects hast/w4a4:) .*"
    assert {reason for reason in reasons if not re.fullmatch(of_the_suite, reason)} == set()
    assert (
        len([cell for cell in cells if cell["state"] == "to do"])
        >= len(names["generator"]) + len(names["quantizer"]) - 2
    )


def test_a_plan_after_a_run_finds_everything_done(bench):
    bench.run()
    plan = bench.plan()
    assert ({"done"}, []) == ({cell["state"] for cell in plan["cells"]}, plan["pending"])


def test_a_model_that_could_not_be_loaded_fails_its_cells_only(bench):
    bench.matrix("model: [a, b]")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    facts = {("toytask", "a"): NetworkFacts("digest"), ("toytask", "b"): Outcome("failed", error="no weights")}
    plan = make_plan(suite, suite.cells, data, facts, {}, Store(bench.home))
    assert [(len(planned.steps), planned.reason) for planned in plan.cells] == [(4, None), (0, "no weights")]


def test_ten_thousand_cells_are_planned_within_seconds(bench):
    seeds = list(range(2500))
    bench.matrix(f"model: [a, b], scheme: [hw/w4a4, hw/w8a8], seed: {json.dumps(seeds)}")
    suite = load_suite(bench.file)
    data = {"toytask": Data(DataFiles({}, {}), "", None)}
    facts = {("toytask", model): NetworkFacts(f"digest of {model}") for model in ("a", "b")}
    started = time.process_time()
    plan = make_plan(suite, suite.cells, data, facts, {}, Store(bench.home))
    assert time.process_time() - started < 5  # 0.4 s where nothing else runs
    assert (len(plan.cells), len(plan.steps)) == (10_000, 2 + 2 * 5_000 + 10_000 + 10_000)
