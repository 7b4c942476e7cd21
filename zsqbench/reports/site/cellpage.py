"""The page of a cell: the content of its row and of the store."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from zsqbench.errors import CorruptArtifactError
from zsqbench.reports.results import Result, changed_options, flat, flat_method
from zsqbench.reports.site.charts import Value
from zsqbench.reports.site.curves import Curves, find_curves
from zsqbench.reports.site.flips import LISTED, Flip, Flips, find_flips
from zsqbench.reports.site.pages import PICTURES, Grid, Page, Part, Picture
from zsqbench.reports.site.recipe import Recipes
from zsqbench.reports.site.samples import SHOWN, flip_pictures
from zsqbench.reports.site.source import Source, Viewer, slug
from zsqbench.reports.tables.axes import ColumnKind
from zsqbench.reports.tables.notes import remarks_on
from zsqbench.reports.tables.tabulation import single_line
from zsqbench.steps import KINDS
from zsqbench.steps.step import Job
from zsqbench.store import Store

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")
"""Endings of files that a page shows as pictures."""

_SETTINGS = "settings"


def cell_page(row: Result, source: Source, recipes: Recipes, store: Store) -> Page:
    """The page of a row. `store` may be a store that reads shared artifacts only once."""
    curves = find_curves(row, store)
    parts = [
        Part("Result", _reasons(row), _metrics(row), text=row.traceback or "", notes=_notes(row)),
        Part("Make it again", text=recipes.command(row.cell)),
        Part("Options that held", grid=_options(row)),
        *_left(row, store),
        *_curves(curves),
        *_flips(row, source, store),
        Part("Time and memory", grid=_costs(row)),
        Part("Artifacts", grid=_keys(row, store), notes=[f"here: in the store {store.home}, when this page was made"]),
        Part("Environment", grid=_facts({**row.environment, **_data(row)})),
    ]
    return Page(
        title=row.cell,
        lead=[_headline(row)],
        parts=[part for part in parts if not part.is_empty],
        data=curves.data,
        back=[(source.suite, "../index.html")],
    )


def _headline(row: Result) -> str:
    """The result in a sentence."""
    if row.value is None or row.status != "done":
        return f"{row.status}: {single_line(row.reason)}"
    compared = f", {row.drop:.2f} less than the float network ({row.float_value:.2f})" if row.drop is not None else ""
    return f"{row.metric} {row.value:.2f}{compared}"


def _reasons(row: Result) -> list[str]:
    """Why the cell is not done, and why groups of metrics were not measured."""
    why = [] if row.status == "done" else [f"{row.status}: {single_line(row.reason)}"]
    return [*why, *(f"{group} was not measured: {single_line(reason)}" for group, reason in row.not_run.items())]


def _notes(row: Result) -> list[str]:
    """Notes that a reader of the number needs."""
    free = [] if row.data_free else ["not data-free: its generator was given real images"]
    random = ["random weights: the network was never trained"] if row.model_facts.get("random_weights") else []
    own = remarks_on([row]) if row.status == "done" else row.footnotes
    published = row.published
    cited = [f"published: {published['value']:g} ({published['source']}; {published['citation']})"] if published else []
    return [*free, *random, *own, *row.notes, *cited]


def _metrics(row: Result) -> Grid | None:
    """Metrics beside those of the float network, and of the best epoch by the evaluation images."""
    oracle = row.oracle.get("metrics", {})
    columns = {"quantized": row.metrics, "float": row.float_metrics, str(ColumnKind.ORACLE): oracle}
    there = {head: metrics for head, metrics in columns.items() if metrics}
    names = dict.fromkeys(name for metrics in there.values() for name in metrics)
    rows = [[name, *(_number(metrics.get(name)) for metrics in there.values())] for name in names]
    return Grid([["metric", *there]], rows) if rows else None


def _options(row: Result) -> Grid | None:
    """Every option of every method, and if the suite set it, then the settings."""
    rows: list[list[Value]] = []
    for axis, method in row.methods.items():
        changed = set(changed_options(axis, method))
        rows += [[name, _text(value), "set" if name in changed else ""] for name, value in flat_method(axis, method)]
    rows += [[name, _text(value), ""] for name, value in flat(_SETTINGS, row.settings)]
    return Grid([["option", "value", "by the suite"]], rows, labels=3) if rows else None


def _left(row: Result, store: Store) -> Iterator[Part]:
    """A part with pictures for each kind of step that shows its artifact. A new kind needs no line here."""
    for kind, job in KINDS.items():
        files = _pictures(job, store, row)
        pictures = list(map(_copied, files))
        try:
            shown = job.show(store, row)
        except CorruptArtifactError as error:
            yield Part(kind.capitalize(), [str(error)], pictures=pictures)
            continue
        text = _without_places(shown.text, files) if shown is not None else ""
        if text or pictures:
            title = shown.name.replace("_", " ") if shown is not None else kind
            yield Part(title.capitalize(), text=text, pictures=pictures)


def _pictures(job: type[Job], store: Store, row: Result) -> list[Path]:
    """The pictures of a kind of step. MLflow also gets them."""
    try:
        tracked = job.track(store, row)
    except CorruptArtifactError:
        return []  # `show` says so
    return [path for path in (tracked.files if tracked else ()) if path.suffix.lower() in IMAGES and path.is_file()]


def _copied(path: Path) -> Picture:
    """A picture of an artifact. It has one copy for all cells that share the artifact."""
    return Picture(path.stem, f"{PICTURES}/{path.parent.name[:24]}-{slug(path.name)}", partial(shutil.copyfile, path))


def _without_places(text: str, files: Sequence[Path]) -> str:
    """A text without the lines on paths of pictures, because the page shows the pictures."""
    places = set(map(str, files))
    return "\n".join(line for line in text.splitlines() if line not in places)


def _curves(found: Curves) -> Iterator[Part]:
    if found.charts or found.notes:
        yield Part("Curves", charts=found.charts, notes=found.notes)


def _flips(row: Result, source: Source, store: Store) -> Iterator[Part]:
    """Samples that flip beside the float network, with pictures, or why they are not known."""
    if row.status != "done":
        return
    title = "Samples that flip"
    found = find_flips(row, store)
    if isinstance(found, str):
        yield Part(title, [f"not known: {found}"])
        return
    change = f"{found.losses:,} right to wrong, {found.wins:,} wrong to right"
    said = f"from the float network to this one, of {found.samples:,} samples: {change}"
    rows = [
        [what, *(_known(value) for value in (flip.sample, flip.label, flip.before, flip.after))]
        for what, flips in (("right to wrong", found.lost), ("wrong to right", found.won))
        for flip in flips
    ]
    heads = ["change", "sample", "label", "float predicts", "quantized predicts"]
    viewer = source.viewer(row)
    pictures = flip_pictures(found, viewer) if isinstance(viewer, Viewer) else []
    notes = list(_about_flips(found, viewer))
    yield Part(title, [said], Grid([heads], rows) if rows else None, pictures=pictures, notes=notes)


def _about_flips(found: Flips, viewer: Viewer | str) -> Iterator[str]:
    if max(found.losses, found.wins) > LISTED:
        yield f"the first {LISTED} of each kind are listed"
    if found.losses + found.wins:
        yield "a sample is told by its place among those that are evaluated"
        if isinstance(viewer, str):
            yield f"samples have no pictures here: {viewer}"
        elif max(found.losses, found.wins) > SHOWN:
            yield f"the first {SHOWN} of each kind have pictures"
    flips: Sequence[Flip] = (*found.lost, *found.won)
    if any(flip.after is None for flip in flips):
        yield "predictions of the quantized network are not here: its measurement is not in the store, or keeps none"


def _costs(row: Result) -> Grid | None:
    """Seconds and memory of each step."""
    rows = [[step, f"{seconds:,.3f}", _mebibytes(row.peak_memory.get(step))] for step, seconds in row.seconds.items()]
    return Grid([["step", "seconds", "peak memory (MiB)"]], rows) if rows else None


def _keys(row: Result, store: Store) -> Grid | None:
    """The artifact of each step, and if it is in the store."""
    rows = [[step, key, "here" if store.kind_of(key) else "not here"] for step, key in row.keys.items()]
    return Grid([["step", "key", "artifact"]], rows, labels=3) if rows else None


def _data(row: Result) -> dict[str, object]:
    """Facts about data, network and tensors, by names such as `data.evaluated`."""
    parts: dict[str, Mapping[str, object]] = {"data": row.data, "network": row.model_facts, "tensors": row.tensors}
    found = {name: value for prefix, part in parts.items() for name, value in flat(prefix, part)}
    when = {} if row.finished is None else {"finished": f"{row.finished:%Y-%m-%d %H:%M:%S} UTC"}
    return {**found, "definition": row.definition, **when}


def _facts(facts: Mapping[str, object]) -> Grid | None:
    rows = [[name, _text(value)] for name, value in facts.items() if value not in (None, "", [], {})]
    return Grid([["name", "value"]], rows, labels=2) if rows else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4f}".rstrip("0").rstrip(".")


def _known(value: int | None) -> Value:
    return "not known" if value is None else value


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"
