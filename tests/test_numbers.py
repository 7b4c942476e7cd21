"""A few numbers of what each shipped method makes, so that none changes unnoticed: keys hold versions, not code.

`pytest tests/test_numbers.py --refresh-numbers` writes numbers.json anew, after a version was raised.
"""

import json
from pathlib import Path

import pytest

from zsqbench import CalibrationSet
from zsqbench.methods import Generator, Quantizer
from zsqbench.plugins import SHIPPED, load_plugins
from zsqbench.quant import effective_map, finalize, rank_weights
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context, tiny_teacher, tiny_transformer
from zsqbench.testing.conformance import reduce_options
from zsqbench.versions import QUANT_VERSION, SYNTHESIS_VERSION

FILE = Path(__file__).with_name("numbers.json")
SCHEMES = ("hw/w4a4", "hast/w4a4", "pot/w8a8", "float")
TOLERANCE = 2e-3
"""Relative, of numbers of the order of one. Those of torch 2.5 and 2.14 differ by less."""
LOOSE = {"ait": 5e-2}
"""Where they differ by more: `ait` searches what to change of a step, and a last digit decides.

One number of it differs by 3 % between an AMD and an Intel processor."""

ROUNDING = {"rounding_lr": 0.03}
"""So that roundings change in a few iterations."""
GIVEN = {
    "adaround": {"iterations": 40, **ROUNDING},
    "brecq": {"weight_iterations": 40, "activation_iterations": 20, **ROUNDING},
    "qdrop": {"iterations": 40, **ROUNDING},
    "flexround": {"iterations": 40, "division_lr": 0.03, "weight_scale_lr": 1e-3},
    "genie_m": {"iterations": 40, **ROUNDING},
    "pd_quant": {"iterations": 40, "correction_steps": 20, **ROUNDING},
    "mixed": {"over": "rtn", "layers": 2},
}

KNOWN = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def shipped(kind):
    provided = load_plugins().provided
    return sorted(
        found.method.name
        for (of_kind, _), found in provided.items()
        if of_kind == kind and found.method.__module__.startswith(SHIPPED)
    )


def images(teacher, labels=True):
    """A set with structure: noise, blurred by pooling, with labels."""
    import torch
    from torch.nn import functional

    rng = torch.Generator().manual_seed(7)
    pixels = functional.avg_pool2d(torch.randn(16, 3, 10, 10, generator=rng), 3, stride=1)
    return CalibrationSet(1.5 * pixels, torch.arange(16) % teacher.classes if labels else None)


def of_generator(kind, tmp_path):
    teacher, given = tiny_transformer() if kind.needs_attention else tiny_teacher(), {}
    if kind.name == "file":
        images(teacher).save(tmp_path / "set.safetensors")
        given = {"path": str(tmp_path / "set.safetensors")}
    generator, _ = reduce_options(kind, given)
    ctx = context(seed=3)
    if kind.uses_real_data:
        ctx.real_images = images(teacher)
    made = generator.resolved(teacher).generate(teacher, ctx).images.double()
    return [made.mean(), made.std(), made[0].abs().mean(), made[0, 0, 0, 0], made[-1, -1, -1, -1]]


def projection(codes):
    """Of codes on one direction, so that a single weight that rounds otherwise is seen."""
    import torch

    return (codes.flatten() * torch.arange(codes.numel()).sin()).sum() / codes.numel() ** 0.5


def of_quantizer(kind):
    import torch

    teacher = tiny_teacher()
    quantizer, _ = reduce_options(kind, GIVEN.get(kind.name, {}))
    scheme = next(s for s in map(parse_scheme, SCHEMES) if quantizer.rejects(s) is None)
    quantizer, ctx = quantizer.resolved(teacher, scheme), context(seed=3, scheme=scheme)
    if quantizer.ranking_images is not None:
        given = images(teacher).images[: quantizer.ranking_images]
        ctx.scheme = quantizer.adapted(scheme, rank_weights(teacher.module, scheme, teacher.input_size, given))
    preparing = quantizer
    if quantizer.works_over is not None:
        preparing = ctx.over = load_plugins().find("quantizer", quantizer.works_over).method().resolved(teacher, scheme)
    student = preparing.prepare(teacher, ctx.scheme)
    quantizer.quantize(student, teacher, images(teacher) if kind.needs_images else None, ctx)
    finalize(student)
    state = {name: tensor.double() for name, tensor in student.state_dict().items() if tensor.numel()}
    scales = [tensor.mean() for name, tensor in state.items() if name.endswith("scale")]
    codes = [projection(tensor) for name, tensor in state.items() if name.endswith("weight_codes")]
    with torch.no_grad():
        logits = student(images(teacher).images).double()
    assert len(scales) == sum(entry.bits != 32 for entry in effective_map(student))
    return [torch.stack(part).mean() for part in (scales, codes) if part] + [logits.mean(), logits.std(), logits[0, 0]]


def versions(kind):
    library = SYNTHESIS_VERSION if issubclass(kind, Generator) else f"{QUANT_VERSION} {SYNTHESIS_VERSION}"
    return {"version": kind.version, "library": library}


def check(kind, made, request):
    entry = {**versions(kind), "numbers": [round(float(number), 6) for number in made]}
    place = f"{kind.kind} {kind.name}"
    if request.config.getoption("--refresh-numbers"):
        known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted((known | {place: entry}).items())]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    assert place in KNOWN, f"{FILE.name} has no numbers of {place}: refresh it"
    held = {name: KNOWN[place][name] for name in ("version", "library")}
    assert versions(kind) == held, f"a version of {place} was raised: refresh {FILE.name}"
    tolerance = LOOSE.get(kind.name, TOLERANCE)
    raised = f"{place} makes other numbers: raise its `version` (or that of the library, see versions.py), then refresh"
    assert entry["numbers"] == pytest.approx(KNOWN[place]["numbers"], rel=tolerance, abs=tolerance), raised


@pytest.mark.parametrize("name", shipped("generator"))
def test_a_generator_makes_the_numbers_that_its_version_stands_for(name, tmp_path, request):
    kind = load_plugins().find("generator", name).method
    assert issubclass(kind, Generator)
    check(kind, of_generator(kind, tmp_path), request)


@pytest.mark.parametrize("name", shipped("quantizer"))
def test_a_quantizer_makes_the_numbers_that_its_version_stands_for(name, request):
    kind = load_plugins().find("quantizer", name).method
    assert issubclass(kind, Quantizer)
    check(kind, of_quantizer(kind), request)


def test_no_numbers_are_kept_of_what_is_not_shipped():
    assert {f"{kind} {name}" for kind in ("generator", "quantizer") for name in shipped(kind)} == set(KNOWN)
