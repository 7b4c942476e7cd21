"""Methods fill in options that a suite leaves open: a value for each, by preset, network and scheme alone."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, model_validator

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.methods import DATA_SETS, Auto, ByDataSet, NetworkTraits, auto
from zsqbench.plugins import load_plugins
from zsqbench.scheme import parse_scheme
from zsqbench.testing import tiny_teacher

CHECKOUT = Path(__file__).resolve().parents[2]

SCHEMES = [parse_scheme(text) for text in ("hw/w4a4", "hast/w4a4", "pot/w8a8", "academic/w4a4")]

SHIPPED = {
    (kind, name): provided.method
    for (kind, name), provided in load_plugins().provided.items()
    if kind in ("generator", "quantizer")
}

LEFT_OPEN = {
    ("generator", "attention_prior", "lr"): "unset: 0.25 for windows, 0.20 for others",
    ("generator", "attention_prior", "prior_weight"): "unset: 0.1 of the squared number of patches",
    ("generator", "file", "images"): "unset: all",
    ("generator", "psaq_vit", "lr"): "unset: 0.25 for windows, 0.20 for others",
    ("generator", "zeroq", "pairing"): "unset: outputs of convolutions where all fit",
    ("quantizer", "hptq", "z_threshold"): "unset: no value is an outlier",
    ("quantizer", "squant", "sigmas"): "unset: chosen by each tensor's bits",
    ("quantizer", "ste", "labels"): "unset: the set where it has labels",
    ("quantizer", "ste", "start"): "another quantizer of the suite",
    **{
        ("quantizer", "ait", name): "for Qimera's generator only"
        for name in ("mixed", "mixed_classes", "latent", "embeddings")
    },
    ("quantizer", "hast", "start"): "another quantizer of the suite",
    ("quantizer", "detect_kd", "boxes"): "unset: the set where it has boxes",
    ("quantizer", "detect_kd", "start"): "another quantizer of the suite",
    ("quantizer", "lsq", "labels"): "unset: the set where it has labels",
    ("quantizer", "lsq", "start"): "another quantizer of the suite",
    ("quantizer", "plf", "start"): "another quantizer of the suite",
    ("quantizer", "synq", "start"): "another quantizer of the suite",
    ("quantizer", "mixed", "budget"): "unset: layers decides",
}
"""The options that no preset, network and scheme decides, and what their description says None means."""


REQUIRED = {"file": {"path": __file__}, "mixed": {"over": "rtn", "layers": 2}}
"""Values for options without a default."""


def build(kind, preset, **options):
    """The method with its defaults, and with what it requires."""
    return kind(**REQUIRED.get(kind.name, {}), **({"preset": preset} if preset else {}), **options)


CASES = [
    pytest.param(method, preset, id="-".join(filter(None, (kind, name, preset))))
    for (kind, name), method in sorted(SHIPPED.items())
    for preset in method.presets or [""]
]


def places(method):
    """Each data set's network, at each of the schemes that a quantizer takes."""
    taken = [scheme for scheme in SCHEMES if not method.rejects(scheme)] if method.kind == "quantizer" else [None]
    return itertools.product(DATA_SETS.values(), taken)


@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_every_option_has_a_value_unless_its_description_says_what_none_means(kind, preset):
    method = build(kind, preset)
    for network, scheme in places(method):
        options = method.resolved(network, scheme).options()
        left = {name: LEFT_OPEN[method.kind, method.name, name] for name, value in options.items() if value is None}
        for name, meaning in left.items():
            assert meaning in kind.model_fields[name].description


def test_the_list_of_options_that_stay_open_has_no_other():
    found = {
        (method.kind, method.name, name)
        for method in SHIPPED.values()
        for preset in method.presets or [""]
        for network, scheme in places(build(method, preset))
        for name, value in build(method, preset).resolved(network, scheme).options().items()
        if value is None
    }
    assert found == set(LEFT_OPEN)


@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_what_is_filled_in_is_filled_in_once_and_survives_the_way_to_a_worker(kind, preset):
    method = build(kind, preset)
    for network, scheme in places(method):
        resolved = method.resolved(network, scheme)
        assert resolved.resolved(network, scheme) is resolved
        assert kind.model_validate_json(resolved.model_dump_json(by_alias=True), strict=True) == resolved


@pytest.mark.parametrize(("kind", "preset"), [case for case in CASES if case.values[0].presets])
def test_another_value_in_a_preset_table_gives_other_options(kind, preset, monkeypatch):
    goes_by_data_set, values = issubclass(kind, ByDataSet), kind.presets[preset]
    given = {"host": "qimera"} if kind.name == "ait" else {}
    for data_set, network in DATA_SETS.items():
        table = values[data_set] if goes_by_data_set else values
        before = build(kind, preset, **given).resolved(network, SCHEMES[0]).options()
        for option, value in table.items():
            changed = {**table, option: other_than(kind, option, value)}
            with monkeypatch.context() as patched:
                new = {**values, data_set: changed} if goes_by_data_set else changed
                patched.setattr(kind, "presets", {**kind.presets, preset: new})
                after = build(kind, preset, **given).resolved(network, SCHEMES[0]).options()
            assert {name for name in before if before[name] != after[name]} == {option}


def other_than(kind, option, value):
    """Another value that an option may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        found = kind.model_json_schema()["properties"][option]["anyOf"]
        return next(other for part in found for other in part.get("enum", [3]) if other != value)
    if isinstance(value, list):
        return [*value, 999]
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


class Toy(ByDataSet):
    """A method with presets of its own."""

    kind: ClassVar = "generator"
    name: ClassVar = "toy"
    presets: ClassVar = {
        "large": {
            "cifar10": {"lr": 1, "steps": 5},
            "cifar100": {"lr": 2, "steps": 5},
            "imagenet": {"lr": 3, "steps": 9},
        },
        "small": {name: {"lr": 0.5, "steps": 1} for name in DATA_SETS},
    }
    preset: Literal["large", "small"] = "large"
    lr: Auto[float] = auto(gt=0, description="learning rate")
    steps: Auto[int] = auto(ge=0, description="steps")
    limit: int | None = Field(None, description="unset: no limit")

    @model_validator(mode="after")
    def _is_short(self):
        if self.steps and self.limit and self.steps > self.limit:
            raise ValueError(f"steps {self.steps} are more than limit {self.limit}")
        return self


@pytest.mark.parametrize(
    ("given", "network", "expected"),
    [
        ({}, "cifar10", (1.0, 5, None)),
        ({}, "cifar100", (2.0, 5, None)),
        ({}, "imagenet", (3.0, 9, None)),
        ({"preset": "small"}, "imagenet", (0.5, 1, None)),
        ({"lr": 7, "limit": 8}, "cifar10", (7.0, 5, 8)),
        ({"lr": 7, "steps": 0}, "cifar10", (7.0, 0, None)),
    ],
)
def test_what_is_given_stays_and_the_rest_is_the_presets(given, network, expected):
    found = Toy(**given).resolved(DATA_SETS[network])
    assert (found.lr, found.steps, found.limit) == expected


def test_what_the_suite_changed_stays_what_it_changed():
    method = Toy(lr=7)
    assert method.changed_options() == {"lr": 7.0}
    method.resolved(DATA_SETS["cifar10"])
    assert method.options() == {"preset": "large", "lr": 7.0, "steps": None, "limit": None}


def test_null_may_be_given_for_an_option_that_is_left_to_the_method_and_its_limits_hold():
    assert Toy.model_validate_json('{"lr": null}', strict=True) == Toy()
    with pytest.raises(ValueError, match="greater than 0"):
        Toy(lr=0)


def test_values_that_do_not_go_together_are_one_line():
    with pytest.raises(
        ZSQBenchError, match=r"'toy' fills in lr: 3, steps: 9 for this network, .* steps 9 are more than limit 8; give"
    ):
        Toy(limit=8).resolved(DATA_SETS["imagenet"])


def test_a_network_and_the_facts_that_are_kept_of_it_give_the_same():
    teacher = replace(tiny_teacher(), architecture="torchvision/resnet50")
    facts = NetworkTraits(teacher.input_size, teacher.classes, teacher.architecture)
    for method in SHIPPED.values():
        chosen = build(method, next(iter(method.presets), ""))
        assert chosen.resolved(teacher, SCHEMES[0]) == chosen.resolved(facts, SCHEMES[0])


@pytest.mark.parametrize(
    ("scheme", "options", "weights"),
    [
        ("hw/w4a4", {}, "symmetric"),
        ("hw/w4a4", {"preset": "paper"}, "power_of_two"),
        ("pot/w8a8", {}, "power_of_two"),
        ("hw/w4a4", {"weights": "power_of_two"}, "power_of_two"),
    ],
)
def test_the_scheme_decides_before_the_preset_does(scheme, options, weights):
    hptq = SHIPPED["quantizer", "hptq"](**options)
    assert hptq.resolved(tiny_teacher(), parse_scheme(scheme)).weights == weights


def test_without_a_scheme_what_depends_on_it_stays_open():
    teacher = tiny_teacher()
    assert SHIPPED["quantizer", "hptq"]().resolved(teacher).weights is None
    assert SHIPPED["quantizer", "rtn"]().resolved(teacher).grid is None


def test_the_example_of_the_tutorial_fills_in_what_it_says():
    text = (CHECKOUT / "docs" / "tutorial.md").read_text().partition("```py\n")[2].partition("```")[0]
    names = {"zsqbench": zsqbench, "Literal": Literal, "Field": Field}
    exec(text, names)  # noqa: S102 - our own document
    mine = type("Finished", (names["Mine"],), {"quantize": lambda *_: None})
    found = mine(epochs=3).resolved(tiny_teacher())
    assert (found.lr, found.epochs) == (1e-3, 3)


def test_options_are_resolved_without_torch(python):
    done = python(
        """
        import sys
        from zsqbench.methods import DATA_SETS
        from zsqbench.plugins import load_plugins
        from zsqbench.scheme import parse_scheme
        for (kind, name), provided in load_plugins().provided.items():
            if kind in ("generator", "quantizer") and name not in ("file", "mixed"):
                provided.method().resolved(DATA_SETS["imagenet"], parse_scheme("hw/w4a4"))
        print("torch" in sys.modules)
        """
    )
    assert done.stdout == "False\n", done.stderr
