"""Compares published_defaults.yaml with the code: options that are left out, what methods hand on, and constants."""

import dataclasses
import importlib
import itertools
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from brief import parametrize_briefly
from PIL import Image
from zsqbench_plugins.shared.gdfq_generator import ConditionalImages, QimeraTraining

import zsqbench
from zsqbench import CalibrationSet
from zsqbench.plugins import load_plugins
from zsqbench.quant import (
    FineTuning,
    MovingRanges,
    Reconstruction,
    activation_quantizers,
    affine_parameters,
    include_zero,
    lp_search,
    minmax,
    quantized_layers,
    range_search,
    shrink_search,
)
from zsqbench.scheme import parse_scheme
from zsqbench.synthesis import BNLoss, ConditionalTraining, PixelBatch
from zsqbench.testing import MemoryReporter, context, tiny_teacher
from zsqbench.zoo import models
from zsqbench.zoo.geometry import Geometry
from zsqbench.zoo.images import PixelCache, Sample, pixels

TABLE = yaml.safe_load(Path(__file__).with_name("published_defaults.yaml").read_text(encoding="utf-8"))
METHODS = {f"{kind}s.{name}": found.method for (kind, name), found in load_plugins().provided.items()}
METHODS = {name: method for name, method in METHODS.items() if name.startswith(("generators.", "quantizers."))}
ROWS = {f"{kind}.{name}": rows for kind in ("generators", "quantizers") for name, rows in TABLE[kind].items()}
SIZES = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "imagenet": ((3, 224, 224), 1000)}
REQUIRED = {"path": __file__, "over": "rtn"}  # of the generator `file` and of `mixed`, which have no default
TOGETHER = {"quantizers.mixed": {"layers": 2}}  # one of several options has to be given

each_method = pytest.mark.parametrize("name", METHODS)
tiny = lru_cache(tiny_teacher)


def effective(method, option, network, scheme):
    """The value that a run takes for an option."""
    return getattr(method.resolved(network, scheme), option)


class Begun(Exception):  # noqa: N818 - no error
    """A method has handed on all that it does before work begins."""


class Quiet(MemoryReporter):
    def checkpoint(self, state):
        pass

    def log(self, name, value, step):
        pass


@lru_cache
def observe(method, data_set):
    """Runs a method on a tiny network of a data set; returns what it hands on, as plain data."""
    teacher = tiny_teacher((3, 64, 64), 1000) if data_set == "imagenet" else tiny_teacher(classes=SIZES[data_set][1])
    teacher.module.stem[0].weight[0].abs_()  # a channel of one sign, for which searches give different grids
    ctx, found = context(), {}
    ctx.reporter = Quiet()
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, found)
        try:
            if method.kind == "generator":
                method.generate(teacher, ctx)
            else:
                found |= quantize(method, teacher, ctx)
        except Begun:
            pass
    return found


def watch(patch, found):
    def before(owner, note):
        original = owner.__init__

        def noting(self, *arguments, **options):
            found.update(note(*arguments, **options))
            original(self, *arguments, **options)

        patch.setattr(owner, "__init__", noting)

    def begun(*_, **__):
        raise Begun

    def count(what, gives=None):
        def counting(*_, **__):
            found[what] = found.get(what, 0) + 1
            return gives

        return counting

    patch.setattr(PixelBatch, "__init__", begun)
    patch.setattr(FineTuning, "__init__", begun)
    patch.setattr(Reconstruction, "__init__", lambda *_, **__: None)
    patch.setattr(Reconstruction, "run", lambda *_: None)
    patch.setattr(MovingRanges, "update", count("range_updates"))
    patch.setattr(ConditionalTraining, "state", lambda _: {})
    patch.setattr(ConditionalTraining, "step", count("generator_updates", (None, None, None, {})))
    before(BNLoss, lambda _, statistics: {"BNStatistics": dataclasses.asdict(statistics)})
    before(PixelBatch, pixel_batch)
    before(FineTuning, lambda *arguments, **_: {"Schedule": dataclasses.asdict(arguments[2])})
    before(Reconstruction, recipes)
    before(ConditionalImages, conditional_images)
    before(ConditionalTraining, conditional_training)
    before(QimeraTraining, lambda *arguments, **_: {"mixtures": [arguments[5].mixed, arguments[5].mixed_classes]})


def pixel_batch(values, optimizer, plateau, iterations, **_):
    names = ("highest", "steps", "lr", "factor", "patience", "min_lr", "reset", "threshold")
    schedule = {name: value for name, value in dataclasses.asdict(plateau).items() if name in names}
    start = {
        "mean": pytest.approx(values.mean().item(), abs=0.02),
        "deviation": pytest.approx(values.std().item(), 0.02),
    }
    found = {"optimizer": optimizer.__name__, "iterations": iterations, "plateau": schedule, "start": start}
    return {"PixelBatch": found}


def recipes(student, images, ctx, stages, *, grain="block", **_):
    found = {name: dataclasses.asdict(stage) for name, stage in stages.items()}
    for (
        stage
    ) in found.values():  # these are ours: no loss of the method's own, and what learning made worse is not kept
        own = stage.pop("loss")
        assert own is None or own.__self__.name == "pd_quant"
        assert stage.pop("keep_better")
        if not stage["doubled"]:  # as most have it
            del stage["doubled"]
    return {"grain": grain, "stages": found}


def conditional_images(latent, classes, size, conditioning, *_):
    return {"ConditionalImages": {"latent": latent, "conditioning": conditioning}}


def conditional_training(maker, bn_loss, batch_size, classes, rng, *, loss, **options):
    return {"ConditionalTraining": {"batch_size": batch_size, "loss": loss.__name__, **options}}


SEARCHES = {
    "mse80": lambda x, quantizer, axis: lp_search(x, quantizer.bits, axis, grid=quantizer.grid),
    "shrink100": lambda x, quantizer, axis: shrink_search(x, quantizer.bits, axis),
    "ranges100": lambda x, quantizer, axis: range_search(x, quantizer.bits, axis),
    "minmax": lambda x, quantizer, axis: affine_parameters(*include_zero(*minmax(x, axis)), quantizer.bits),
}


def search_of(x, quantizer, axis=None):
    """Name of the search whose grid a quantizer has that rounds x; none where it is none of them."""
    scales = {name: search(x, quantizer, axis)[0].flatten() for name, search in SEARCHES.items()}
    return next((name for name, scale in scales.items() if torch.equal(scale, quantizer.scale.flatten())), None)


def quantize(method, teacher, ctx):
    """Quantizes; of methods that reconstruct, returns by which searches the first weight and the input got grids."""
    count = 64 if isinstance(method, zsqbench.UnitQuantizer) else 256  # as many as all searches take; a batch
    images = torch.randn(count, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    ctx.scheme = parse_scheme("hw_strict/w4a4")
    student = method.prepare(teacher, ctx.scheme)
    method.quantize(student, teacher, CalibrationSet(images) if method.needs_images else None, ctx)
    layer, (_, of_input) = quantized_layers(student)[0][1], activation_quantizers(student)[0]
    of_weight = layer.weight_quantizer
    return {"input": search_of(images, of_input), "weights": search_of(layer.weight, of_weight, of_weight.axis)}


def choose(value, *cases):
    """The value for these cases of a row, whose mappings are by one kind of case each."""
    while isinstance(value, dict):
        value = next((value[case] for case in cases if case in value), value.get("other"))
    return value


def architectures(value):
    return [name for name in value if "/" in name] if isinstance(value, dict) else []


def bits_of(value):
    """The bits that a row has values for; those of weights and activations alike."""
    if not isinstance(value, dict):
        return set()
    return {case for case in value if case.startswith("w") and case[1:2].isdigit()}.union(*map(bits_of, value.values()))


def network_of(data_set, architecture):
    size, classes = SIZES[data_set]
    return dataclasses.replace(tiny(), input_size=size, classes=classes, architecture=architecture)


@pytest.fixture(scope="module", params=METHODS)
def case(request):
    """The name of a method, and what it is for each preset."""
    method = METHODS[request.param]
    fields = method.model_fields
    presets = method.presets if "preset" in fields else [None]
    given = {name: value for name, value in REQUIRED.items() if name in fields and fields[name].is_required()}
    given |= TOGETHER.get(request.param, {})
    return request.param, {preset: method(**given, **({"preset": preset} if preset else {})) for preset in presets}


def test_every_shipped_generator_and_quantizer_stands_in_the_table():
    assert sorted(ROWS) == sorted(METHODS)


@each_method
def test_every_option_stands_in_the_table(name):
    method = METHODS[name]
    options = {option for option, field in method.model_fields.items() if not field.is_required()}
    assert set(ROWS[name]) == options


def test_what_is_left_out_is_as_published(case):
    name, by_preset = case
    for option, (value, _) in ROWS[name].items():
        if option == "preset":  # which decides the others
            assert {method.__class__.model_fields[option].default for method in by_preset.values()} == {value}
            continue
        if option in TOGETHER.get(name, {}):
            assert METHODS[name].model_fields[option].default == value
            continue
        schemes = ("hw", "pot") if option in ("grid", "weights") else ("hw",)
        for (preset, method), data_set, scheme, bits, architecture in itertools.product(
            by_preset.items(), SIZES, schemes, bits_of(value) or ["w4a4"], [*architectures(value), None]
        ):
            found = effective(method, option, network_of(data_set, architecture), parse_scheme(f"{scheme}/{bits}"))
            expected = choose(value, preset, data_set, scheme, architecture, bits)
            assert found == expected, f"{option}: {found} for {preset}, {data_set}, {scheme}, {architecture}, {bits}"


def test_every_method_that_learns_has_a_row_of_what_it_hands_on():
    bases = zsqbench.ReconstructionQuantizer, zsqbench.TrainingQuantizer
    generators = {name for name, method in METHODS.items() if method.kind == "generator" and method.needs_bn}
    quantizers = {name for name, method in METHODS.items() if issubclass(method, bases) or method.compiles == "units"}
    assert {run["method"] for run in TABLE["handed"]} == generators | quantizers


@parametrize_briefly(
    "run", TABLE["handed"], 14, ids=lambda run: "-".join(filter(None, map(run.get, ("method", "preset", "data_set"))))
)
def test_methods_hand_on_what_is_published(run):
    method = METHODS[run["method"]]
    method = method(preset=run["preset"]) if "preset" in run else method()
    assert observe(method, run.get("data_set", "cifar10")) == run["gives"]


@pytest.mark.parametrize("row", TABLE["constants"], ids=lambda row: row["name"])
def test_constants_are_as_published(row):
    found = getattr(module_of(row["beside"]), row["name"])
    if isinstance(found, frozenset):
        found = sorted(found)
    elif isinstance(found, tuple):
        found = list(found)
    elif dataclasses.is_dataclass(found):
        found = dataclasses.asdict(found)
    assert found == row["is"]


def module_of(path):
    """A module by its name, or the one in which a class or function is defined."""
    parent, _, name = path.rpartition(".")
    if parent == "zsqbench_plugins":
        return importlib.import_module(path)
    return sys.modules[getattr(importlib.import_module(parent), name).__module__]


@pytest.mark.parametrize("data_set", TABLE["feeding"])
def test_images_are_fed_as_published(data_set):
    row = TABLE["feeding"][data_set]
    fed = {"cifar10": models.CIFAR10, "cifar100": models.CIFAR100, "imagenet": models.IMAGENET}[data_set]
    found = {name: getattr(fed, name) for name in row if name != "cite"}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()} == {
        name: value for name, value in row.items() if name != "cite"
    }


@pytest.mark.parametrize("row", TABLE["resizing"], ids=lambda row: str(row["image"]))
def test_images_are_resized_as_published(row):
    (width, height), (wide, high) = row["image"], row["becomes"]
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    geometry = Geometry((3, high, wide), row["shorter_side"], None, "bilinear", "rgb")
    assert pixels([Sample("x", 0, lambda: image)], geometry, PixelCache(0)).shape[2:] == (high, wide)


def cited(table):
    """All that a table cites."""
    if isinstance(table, dict):
        return itertools.chain([table["cite"]] if "cite" in table else [], *map(cited, table.values()))
    return itertools.chain.from_iterable(map(cited, table)) if isinstance(table, list) else []


def test_every_row_names_a_source_that_is_known():
    rows = [row for rows in ROWS.values() for row in rows.values()]
    for cite in [*(cite for _, cite in rows), *cited(TABLE)]:
        assert cite.partition(":")[0] in TABLE["sources"], cite
