"""A result row as a page of text for people. JSON has the complete row."""

from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from zsqbench.reports.results import Described, Result

MB = 1e6
KEY = 12
"""Number of characters of a key that are shown. Folders in the store are named by keys."""

INDENT = "  "


def render(row: Result) -> str:
    """The content of a row in an order for people, without the traceback."""
    sections = (
        _result(row),
        _section("why", _why(row)),
        _section("measured on", _data(row)),
        _section("network", _network(row)),
        _section("methods (* set by the suite)", _methods(row)),
        _section("steps", _steps(row)),
        _section("not run", [f"{name}: {why}" for name, why in row.not_run.items()]),
        _section("footnotes", row.footnotes),
        _section("notes", row.notes),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, *(f"{INDENT}{line}" for line in lines)] if lines else []


def _result(row: Result) -> list[str]:
    """Name, status, result beside the float network, and the other metrics."""
    when = "" if row.finished is None else f", {row.finished:%Y-%m-%d %H:%M} UTC"
    lines = [row.cell, f"{row.status}{when} (suite {row.suite})"]
    if row.value is not None:
        beside = "" if row.float_value is None else f"; float {_number(row.float_value)}, drop {_number(row.drop)}"
        lines.append(f"{row.metric} {_number(row.value)}{beside}")
    others = [f"{name} {_number(value)}" for name, value in row.metrics.items() if name != row.metric]
    if others:
        lines.append(", ".join(others))
    if "value" in row.published:
        source = row.published.get("citation") or row.published.get("source")
        lines.append(f"published: {_number(row.published['value'])}" + (f" ({source})" if source else ""))
    if row.oracle_value is not None:
        lines.append(f"best kept epoch by the evaluated images: {_number(row.oracle_value)}")
    lines += [f"clipped: {100 * share:.3g} % of output {name}" for name, share in row.clipped.items()]
    return lines


def _why(row: Result) -> list[str]:
    """The reason of every status except done, and where more is."""
    if row.status == "done":
        return []
    lines = (row.reason or "no reason was noted").splitlines()
    if row.traceback:
        lines.append("the traceback is at the end; `--format json` has it as `traceback` of `row`")
    elif row.status == "failed":
        lines.append("there is no traceback: the reason says what to correct")
    return lines


def _data(row: Result) -> list[str]:
    """Counts of images, and their origin."""
    counts, lines = row.data, []
    if counts.get("evaluated") is not None:
        digest = f" (data {counts['digest'][:KEY]})" if counts.get("digest") else ""
        lines.append(f"{counts['evaluated']} evaluated samples{digest}")
    if counts.get("images") is not None:
        read = counts.get("calibrated")
        lines.append(f"{counts['images']} calibration images" + ("" if read is None else f", {read} of them read"))
    if lines and not row.data_free:
        lines.append("the generator was given real images, so the result is not data-free")
    return lines


def _network(row: Result) -> list[str]:
    """The network, and counts of its tensors."""
    facts = row.model_facts
    lines = []
    known = [f"{facts['parameters']:,} parameters"] if "parameters" in facts else []
    known += [f"{facts['classes']} classes"] if facts.get("classes") is not None else []
    known += [f"images {' x '.join(map(str, facts['input_size']))}"] if facts.get("input_size") else []
    known += [f"digest {facts['digest'][:KEY]}"] if "digest" in facts else []
    lines += [f"{row.model}: {', '.join(known)}"] if known else []
    lines += ["its weights are random"] if facts.get("random_weights") else []
    lines += facts.get("notes", [])
    tensors = row.tensors
    if "quantized_weights" in tensors:
        line = f"{tensors['quantized_weights']} weights and {tensors['quantized_activations']} activations quantized"
        if "mean_weight_bits" in tensors:
            line += f"; weights have {tensors['mean_weight_bits']:g} bits on average, {tensors['size_mb']:g} MB in all"
        lines.append(line)
    return lines


def _methods(row: Result) -> list[str]:
    """Each method with its effective options. Methods that it starts from or is over are below it."""
    lines = [line for axis, method in row.methods.items() for line in _method(axis, method)]
    if row.settings:
        lines.append(f"settings: {_pairs(row.settings)}")
    return lines


def _method(axis: str, method: Described) -> Iterator[str]:
    said = [f"version {method['version']}"] if "version" in method else []
    said += [f"of {method['origin']}"] if "origin" in method else []
    said += [f"{method['control']} control"] if method.get("control") else []
    yield f"{axis} {method.get('method', '')}" + (f" ({', '.join(said)})" if said else "")
    changed = method.get("changed", {})
    for name, value in method.get("options", {}).items():
        yield f"{INDENT}{'*' if name in changed else ' '} {name}: {_text(value)}"
    for relation, label in (("start", "starts from"), ("over", "is over")):
        if relation in method:
            other: Described = method[relation]  # type: ignore[literal-required]
            yield from (f"{INDENT}{line}" for line in _method(label, other))


def _steps(row: Result) -> list[str]:
    """Seconds, peak memory and key of each step."""
    names = dict.fromkeys([*row.keys, *row.seconds, *row.peak_memory])
    if not names:
        return []
    rows = [
        (
            name,
            "-" if name not in row.seconds else f"{row.seconds[name]:.2f} s",
            "-" if name not in row.peak_memory else f"{row.peak_memory[name] / MB:.0f} MB",
            row.keys.get(name, "-")[:KEY],
        )
        for name in names
    ]
    table = tabulate(
        rows,
        ("step", "took", "peak", "key"),
        "plain",
        disable_numparse=True,
        colalign=("left", "right", "right", "left"),
    )
    where = row.environment
    versions = [f"{name} {where[name]}" for name in ("zsqbench", "torch", "python") if name in where]
    made = [f"on {where['device']}, with {', '.join(versions)}"] if "device" in where and versions else []
    return [*(line.rstrip() for line in table.splitlines()), *made]


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    """An option in the form of YAML."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value != int(value) else f"{value:.0f}"
