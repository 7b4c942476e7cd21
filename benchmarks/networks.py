"""Try the quantization library on networks of torchvision and timm: `python benchmarks/networks.py`.

Each network has random weights. Norms, LayerScale and zero-initialised gains have random values, too, so that a part
that gets lost shows: with fresh values, a network without its batch normalisations differs by 5e-5 from the one with
them. Each is captured and prepared in two schemes. With all quantizers off, the student must give what the network
gives. With one batch normalisation dropped it must not, which shows that the comparison sees anything (the control).

Images are as small as a network takes them: which tensors there are does not depend on their size. A line for each
network goes to `--lines`, so that an interrupted run goes on; lines of other code or other libraries are made anew.
`--only NAME...` takes some networks, `--table` prints the page docs/networks.md from the lines that are there, and
`--quick` takes three small networks and keeps no lines.
"""

import argparse
import copy
import gc
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models

import zsqbench
from zsqbench import quant
from zsqbench.errors import ZSQBenchError, did_you_mean, one_line
from zsqbench.hashing import digest_of, file_digest
from zsqbench.scheme import parse_scheme

TOLERANCE = 1e-5
"""How far outputs may depart, relative to the largest one."""

SCHEMES = ("hw/w8a8", "hw_strict/w8a8")
SIDES = (96, 224, 256)
"""Image sizes that are tried, in this order."""

IMAGES = 4
LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
QUICK = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
LARGE = ("regnet_y_128gf", "vit_h_14")
"""These need most memory, and come last."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TIMM = _names("""
    resnet18 resnet26d resnet50 resnetaa50 resnetv2_50 resnext50_32x4d seresnet50 skresnet18 ecaresnet26t nf_resnet50
    nf_regnet_b0 regnetx_004 regnety_004 regnetz_b16 densenet121 efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0
    tf_efficientnetv2_b0 mobilenetv1_100 mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_050
    mobilenetv4_conv_small mobilenetv4_hybrid_medium ghostnet_100 ghostnetv2_100 hrnet_w18_small dla34 dla60_res2net
    vgg16_bn inception_v3 inception_v4 inception_resnet_v2 xception41 convnext_atto convnextv2_atto mixnet_s
    tf_mixnet_s mnasnet_100 semnasnet_100 fbnetc_100 fbnetv3_b tinynet_a repvgg_a0 mobileone_s0 res2net50_26w_4s
    resnest14d cspresnet50 cspdarknet53 darknet53 hardcorenas_a levit_128s convmixer_768_32 poolformer_s12
    mixer_s32_224 edgenext_xx_small rexnet_100 selecsls42b dpn68 vit_tiny_patch16_224 deit_tiny_patch16_224
    swin_tiny_patch4_window7_224
""")
"""63 networks of timm of moderate size, of as many families as there are."""

Row = dict[str, Any]


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Each network by LIBRARY/NAME, and what builds it with random weights."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name in models.list_models(module=models):
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        found[f"torchvision/{name}"] = lambda name=name, more=more: models.get_model(name, weights=None, **more)
    for name in models.list_models(module=models.segmentation):
        found[f"torchvision/{name}"] = lambda name=name: models.get_model(name, weights=None, weights_backbone=None)
    for name in TIMM:
        found[f"timm/{name}"] = lambda name=name: _timm().create_model(name)
    return dict(sorted(found.items(), key=lambda item: item[0].partition("/")[2] in LARGE))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ZSQBenchError("networks of timm need it: pip install 'zsqbench[timm]'") from error
    return timm


def image_side(module: nn.Module) -> int:
    """The first of `SIDES` that a network takes. Raises what it raises at the last of them."""
    for side in SIDES[:-1]:
        try:
            module(torch.zeros(2, 3, side, side))
        except Exception:  # noqa: BLE001, S112  # networks refuse a size in any way
            continue
        return side
    module(torch.zeros(2, 3, SIDES[-1], SIDES[-1]))
    return SIDES[-1]


def randomise(module: nn.Module, images: Tensor, rng: torch.Generator) -> tuple[list[str], list[str]]:
    """Give norms, LayerScale and all that begins as one value random values; returns the layers and norms it calls.

    Means and variances of batch normalisations are random around those of these images, so that no network overflows.
    """
    for name, parameter in module.named_parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.copy_(_random(name, parameter, rng))
    paths = {child: name for name, child in module.named_modules()}
    called: dict[nn.Module, None] = {}

    def note(child: nn.Module, inputs: tuple[Any, ...]) -> None:
        called[child] = None
        if is_norm(child):
            _randomise_statistics(child, inputs[0], rng)

    hooks = [child.register_forward_pre_hook(note) for child in paths if isinstance(child, LAYERS) or is_norm(child)]
    module(images)
    for hook in hooks:
        hook.remove()
    norms = [paths[child] for child in called if is_norm(child)]
    return [paths[child] for child in called if not is_norm(child)], norms


def _random(name: str, parameter: Tensor, rng: torch.Generator) -> Tensor:
    if name.endswith("bias") or parameter.squeeze().dim() > 1:
        return 0.1 * torch.randn(parameter.shape, generator=rng)
    value = float(parameter.flatten()[0])
    return (value if abs(value) > 0.1 else 1.0) * (0.5 + torch.rand(parameter.shape, generator=rng))


def is_norm(module: nn.Module) -> bool:
    """True for a batch normalisation with running statistics, of whatever class."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _randomise_statistics(norm: Any, values: Tensor, rng: torch.Generator) -> None:
    variance, mean = torch.var_mean(values, [dim for dim in range(values.dim()) if dim != 1], correction=0)
    variance = variance + 0.01 * variance.mean() + 1e-6  # so that no channel is dead
    norm.running_mean.copy_(mean + variance.sqrt() * torch.randn(mean.shape, generator=rng))
    norm.running_var.copy_(variance * (0.5 + 1.5 * torch.rand(mean.shape, generator=rng)))


@torch.no_grad()
def departure(module: nn.Module, student: nn.Module, images: Tensor) -> float:
    """The largest departure of what the student returns over the largest output, of all tensors that are returned.

    Infinite where shapes or names differ, or where an output is not finite.
    """
    expected, found = (dict(_tensors(each(images.clone()))) for each in (module, student))
    if {name: tensor.shape for name, tensor in expected.items()} != {n: tensor.shape for n, tensor in found.items()}:
        return float("inf")
    ratios = [(found[name] - tensor).abs().max() / tensor.abs().max() for name, tensor in expected.items()]
    worst = float(torch.stack(ratios).max())
    return min(float("inf"), worst)  # which NaN is not below


def _tensors(value: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}")
    else:
        for index, part in enumerate(value):
            yield from _tensors(part, f"{name}.{index}")


@torch.no_grad()
def measure(build: Callable[[], nn.Module]) -> Row:
    """All that is found of one network."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    module = build().eval().requires_grad_(requires_grad=False)
    row: Row = {"side": image_side(module), "parameters": sum(each.numel() for each in module.parameters())}
    images = torch.randn(IMAGES, 3, row["side"], row["side"], generator=rng)
    layers, norms = randomise(module, images, rng)
    row |= {"layers": len(layers), "norms": len(norms)}
    row["capture"] = refusal(lambda: quant.capture(module, tuple(images.shape[1:])))
    if row["capture"] is None:
        row["schemes"] = {scheme: prepared(module, scheme, images, len(norms)) for scheme in SCHEMES}
        if norms and row["schemes"][SCHEMES[0]]["refusal"] is None:
            row["control"] = control(module, norms[len(norms) // 2], images)
    return row


def refusal(action: Callable[[], object]) -> str | None:
    """The one line of an action that is refused; CRASH and the error where it ends in any other way."""
    try:
        action()
    except ZSQBenchError as error:
        return one_line(error)
    except Exception as error:  # noqa: BLE001  # which is what is asked
        return f"CRASH {one_line(error)}"
    return None


def prepared(module: nn.Module, scheme: str, images: Tensor, norms: int) -> Row:
    """How a network's student compares to it, in float64 where float32 leaves doubt, and what of it is quantized."""
    row: Row = {}

    def prepare(dtype: torch.dtype) -> None:
        student = quant.prepare(module.to(dtype), parse_scheme(scheme), tuple(images.shape[1:]))
        folded = len(student.meta.get(quant.graph.FOLDED, {}))
        row.update(
            dtype=str(dtype).removeprefix("torch."),
            departure=departure(module, student, images.to(dtype)),
            weights=len(quant.weight_quantizers(student)),
            activations=len(quant.activation_quantizers(student)),
            folded=folded,
            unfolded=norms - folded,
        )

    row["refusal"] = refusal(lambda: prepare(torch.float32))
    if row.get("departure", 0.0) > TOLERANCE:
        row["departure_float32"] = row["departure"]
        row["refusal"] = refusal(lambda: prepare(torch.float64))
        module.float()
    return row


def control(module: nn.Module, norm: str, images: Tensor) -> Row:
    """How far the student departs of a network in which one batch normalisation does nothing."""
    damaged = copy.deepcopy(module)
    neutral: Any = damaged.get_submodule(norm)
    values = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
    for name, value in values.items():
        if isinstance(tensor := getattr(neutral, name, None), Tensor):
            tensor.fill_(value)
    student = quant.prepare(damaged, parse_scheme(SCHEMES[0]), tuple(images.shape[1:]))
    return {"norm": norm, "departure": departure(module, student, images)}


def code_digest() -> str:
    """Changes with the library's code and with the versions of the others."""
    folder = Path(zsqbench.__file__).parent
    files = {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.glob("quant/**/*.py"))}
    try:
        timm = _timm().__version__
    except ZSQBenchError:
        timm = ""
    own = file_digest(Path(__file__))
    return digest_of([files, own, torch.__version__, torchvision.__version__, timm])[:16]


def describe(row: Row) -> str:
    """One line of what was found of a network."""
    start = f"{row['name']:44} {row.get('side', 0):3} px {row['seconds']:6.1f} s  "
    if reason := refused(row):
        return f"{start}{reason}"
    parts = [f"{scheme}: {_said(found, row)}" for scheme, found in row["schemes"].items()]
    if "control" in row:
        parts.append(f"control {row['control']['departure']:.1e} {'caught' if is_caught(row) else 'NOT CAUGHT'}")
    return start + "; ".join(parts)


def _said(found: Row, row: Row) -> str:
    equal = "equal" if is_equal(found) else "DEPARTS"
    return (
        f"{equal} {found['departure']:.1e} ({found['dtype']}), {found['weights']} of {row['layers']} weights, "
        f"{found['activations']} activations, {found['folded']} norms folded, {found['unfolded']} not"
    )


def refused(row: Row) -> str:
    """Why a network could not be run, captured or prepared; nothing where all that was done."""
    if "error" in row:
        return f"cannot be run: {row['error']}"
    if row["capture"]:
        return f"not captured: {row['capture']}"
    return next((f"refused: {found['refusal']}" for found in row["schemes"].values() if found["refusal"]), "")


def is_equal(found: Row) -> bool:
    """True if a student gives what its network gives."""
    return found["refusal"] is None and found["departure"] <= TOLERANCE


def is_caught(row: Row) -> bool:
    """True if the comparison saw the dropped batch normalisation."""
    return bool(row["control"]["departure"] > TOLERANCE)


def summary(rows: list[Row]) -> list[str]:
    """The counts over all networks, a line for each library."""
    lines = []
    for library in dict.fromkeys(row["name"].partition("/")[0] for row in rows):
        mine = [row for row in rows if row["name"].startswith(f"{library}/")]
        captured = [row for row in mine if "schemes" in row]
        equal = {scheme: [row for row in captured if is_equal(row["schemes"][scheme])] for scheme in SCHEMES}
        whole = [row for row in equal[SCHEMES[0]] if row["schemes"][SCHEMES[0]]["weights"] == row["layers"]]
        controls = [row for row in captured if "control" in row]
        lines.append(
            f"{library}: {len(mine)} networks, {len(captured)} captured, "
            + ", ".join(f"{len(found)} equal at {scheme}" for scheme, found in equal.items())
            + f", {len(whole)} with all weights quantized; control caught in {sum(map(is_caught, controls))} of "
            f"{len(controls)}"
        )
    return lines


HEAD = """# Networks

These networks of torchvision and timm have random weights. Norms, LayerScale and zero-initialised gains have random
values, too.

- *Departs*: the largest departure of the student's outputs, as a part of the largest output. All quantizers of the
  student are off. It is measured on four seeded images, and in float64 (f64) where float32 leaves doubt. A value of at
  most 1e-5 means that the student equals the network.
- *Control*: the same with one batch normalisation dropped from the student. It has to be more than 1e-5.
- *Weights*: the number of quantized weights, of the number of convolutions and linear layers that are called. Swin and
  ViT have more quantized weights than layers, because their attention reads weights in functions.
- *Activations*: the number of quantized activations.
- *Norms*: the number of folded batch normalisations, of the number that are called.

Two figures with a slash between them are at hw/w8a8 and at hw_strict/w8a8. `python benchmarks/networks.py` tries the
networks. With `--table` it prints this page.
"""


def page(rows: list[Row]) -> Iterator[str]:
    """The page docs/networks.md."""
    yield HEAD
    yield from (f"- {line}" for line in summary(rows))
    yield "\n| network | departs | control | weights | activations | norms |\n|:--|--:|--:|--:|--:|--:|"
    yield from (_table_row(row) for row in rows if not refused(row))
    yield "\n## Refused\n"
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if reason := refused(row):
            reasons.setdefault(re.sub(r"/\S*site-packages/", "", reason), []).append(row["name"])
    yield from (f"- {', '.join(names)}: {reason}" for reason, names in reasons.items())


def _table_row(row: Row) -> str:
    found = list(row["schemes"].values())
    departs = [f"{each['departure']:.0e}{' f64' if each['dtype'] == 'float64' else ''}" for each in found]
    cells = [
        row["name"],
        " / ".join(dict.fromkeys(departs)),
        f"{row['control']['departure']:.0e}" if "control" in row else "",
        f"{found[0]['weights']} of {row['layers']}",
        " / ".join(str(each["activations"]) for each in found),
        f"{found[0]['folded']} of {row['norms']}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Try each network, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks, as LIBRARY/NAME or NAME")
    parser.add_argument("--lines", type=Path, default=Path("networks.jsonl"), help="where lines are kept")
    parser.add_argument("--table", action="store_true", help="print the page of the lines that are there")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    only = [f"torchvision/{name}" for name in QUICK] if arguments.quick else arguments.only
    known = {name: {name, name.partition("/")[2]} for name in networks()}
    for name in only:
        if not any(name in names for names in known.values()):
            close = did_you_mean(name, [each for names in known.values() for each in names])
            parser.error(f"unknown network {name!r}{close}; {len(known)} are known")
    chosen = {name: build for name, build in networks().items() if not only or known[name] & {*only}}
    code = code_digest()
    done = {} if arguments.quick else read(arguments.lines, code)
    if arguments.table:
        print("\n".join(page([done[name] for name in chosen if name in done])))
        return
    for name, build in chosen.items():
        if name not in done:
            done[name] = one(name, build, code)
            if not arguments.quick:
                with arguments.lines.open("a") as file:
                    file.write(json.dumps(done[name]) + "\n")
        print(describe(done[name]), flush=True)
    print("\n".join(summary([done[name] for name in chosen])))


def read(path: Path, code: str) -> dict[str, Row]:
    """The lines of an earlier run of the same code, by network."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["name"]: row for row in rows if row["code"] == code}


def one(name: str, build: Callable[[], nn.Module], code: str) -> Row:
    """The row of a network, or the one line of why it could not be built and run."""
    started = time.perf_counter()
    row: Row = {"name": name, "code": code}
    with warnings.catch_warnings(action="ignore"):  # of libraries, about their own future
        try:
            row |= measure(build)
        except Exception as error:  # noqa: BLE001  # the other networks are to be tried
            row["error"] = one_line(error)
    gc.collect()
    return row | {"seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    main()
