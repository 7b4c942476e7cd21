from zsqbench.steps import Inspect
from zsqbench.store import Store


def test_a_network_is_inspected_once_for_each_scheme(bench):
    bench.matrix("model: [a, b], quantizer: [toyq, unseeded], scheme: [hw/w4a4, hw/w8a8], seed: [0, 1]")
    assert bench.run().code == 0
    assert len(list(Store(bench.home).keys(Inspect.kind))) == 4


def test_cells_of_a_network_that_cannot_be_quantized_are_impossible_before_anything_is_generated(bench):
    bench.add_plugin("""
        class Untraceable(ToyTask):
            name = "untraceable"

            def load(self, model, ctx):
                import dataclasses
                from torch import nn

                class Choice(nn.Sequential):
                    def forward(self, x):
                        return super().forward(x if x.sum() > 0 else -x)

                loaded = super().load(model, ctx)
                return dataclasses.replace(loaded, module=Choice(loaded.module))
    """)
    bench.matrix("task: untraceable, quantizer: [toyq, fp32], scheme: [hw/w4a4, float]")
    said = bench.run()
    rows = bench.rows()
    states = {cell.split(":", 3)[3]: row["status"] for cell, row in rows.items()}
    assert said.code == 1
    assert states["toyq:hw/w4a4:0"] == "impossible"
    reason = next(row["reason"] for row in rows.values() if row["status"] == "impossible" and "toyq:hw" in row["cell"])
    assert "Choice cannot be traced" in reason
    assert not list(Store(bench.home).keys("generate"))
    assert any("Choice cannot be traced" in str(cell["reason"]) for cell in bench.plan()["cells"])


def test_a_plan_says_what_is_not_inspected_yet(bench):
    bench.matrix("model: [a]")
    assert bench.run().code == 0
    assert bench.plan()["uninspected"] == []
    bench.matrix("model: [a], scheme: hw/w8a8")
    assert bench.plan()["uninspected"] == ["inspect a hw/w8a8"]
