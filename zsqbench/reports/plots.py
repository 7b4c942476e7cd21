"""Pictures of a calibration set: its images for a person, and its diagnostics as plots."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

BOXED_SIDE = 320
"""Pixels of the longer side of an image with boxes."""
GRID_IMAGES = 64
GRID_SIDE = (512, 1024)
"""Smallest and largest side of an image grid in pixels. So 8 x 8 digits stay visible, and photographs small."""

SET, REAL = "#0072B2", "#E69F00"
"""Blue and orange of Okabe and Ito. No kind of colour blindness confuses them. Shapes differ, too."""

_HATCH = "///"
_NAMED_LAYERS = 48
_NAMED_CLASSES = 40
_LONGEST_NAME = 22


@dataclass(frozen=True)
class PixelSpace:
    """The preprocessing of a network: pixels are normalised by means and deviations of channels, in this order."""

    mean: Sequence[float]
    std: Sequence[float]
    value_range: tuple[float, float]
    """The values of black and white before normalisation."""
    channels: str = "rgb"

    def viewable(self, images: "NDArray[np.float32]") -> "NDArray[np.uint8]":
        """Images [N, C, H, W] for a person: red, green and blue [N, 3, H, W].

        Values that no image can have are shown as the nearest possible value.
        """
        import numpy as np

        low, high = self.value_range
        values = np.nan_to_num(images) * _per_channel(self.std) + _per_channel(self.mean)
        shares = np.clip((values - low) / (high - low), 0, 1)
        if self.channels == "bgr":
            shares = shares[:, ::-1]
        if shares.shape[1] != 3:  # noqa: PLR2004 - red, green, blue
            shares = np.repeat(shares[:, :1], 3, axis=1)
        colours: NDArray[np.uint8] = (255 * shares).round().astype(np.uint8)
        return colours


def image_grid(images: "NDArray[np.float32]", space: PixelSpace) -> "Image":
    """The first images [N, C, H, W] of a set side by side, for a person.

    Small images are enlarged without smoothing.
    """
    import torch
    from torch.nn.functional import pad
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    tiles = pad(torch.from_numpy(space.viewable(images[:GRID_IMAGES])), (0, 1, 0, 1))
    grid = make_grid(tiles, nrow=math.ceil(math.sqrt(len(tiles))), padding=0)
    return _fitted(to_pil_image(grid))


def boxes_side_by_side(rows: "Sequence[tuple[Image, Sequence[Sequence[tuple[Sequence[float], str]]]]]") -> "Image":
    """Images with boxes (left, top, right, bottom in pixels) and labels, a row for each, once for each list."""
    from PIL import Image, ImageDraw

    pictures = []
    for image, found in rows:
        scale = BOXED_SIDE / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        row = Image.new("RGB", ((BOXED_SIDE + 1) * len(found), height + 1))
        for column, boxes in enumerate(found):
            tile = image.convert("RGB").resize((width, height))
            draw = ImageDraw.Draw(tile)
            for box, label in boxes:
                left, top, right, bottom = (value * scale for value in box)
                draw.rectangle((min(left, right), min(top, bottom), max(left, right), max(top, bottom)), outline="red")
                draw.text((left + 2, top + 1), label, fill="yellow")
            row.paste(tile, (column * (BOXED_SIDE + 1), 0))
        pictures.append(row)
    whole = Image.new("RGB", (max(row.width for row in pictures), sum(row.height for row in pictures)))
    top = 0
    for row in pictures:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def _per_channel(values: Sequence[float]) -> "NDArray[np.float32]":
    import numpy as np

    return np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)


def _fitted(grid: "Image") -> "Image":
    from PIL import Image

    smallest, largest = GRID_SIDE
    side = max(grid.size)
    if side > largest:
        grid.thumbnail((largest, largest))
        return grid
    width, height = (length * max(1, smallest // side) for length in grid.size)
    return grid.resize((width, height), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Looks:
    """Some images, and the attention map of a network for each."""

    heading: str
    images: "NDArray[np.uint8]"
    """[N, 3, H, W]."""
    maps: "NDArray[np.float32]"
    """[N, rows, columns]."""


def attention_figure(sides: Sequence[Looks], title: str) -> "Figure":
    """Images side by side, and below each its map, enlarged smoothly to the image's size.

    Colours of a map go from its smallest value (dark) to its largest value (bright). Values that are not finite are
    blank.
    """
    from matplotlib.figure import Figure

    height, width = sides[0].images.shape[2:]
    columns = max(len(side.images) for side in sides)
    tall = 0.5 + len(sides) * (0.3 + 2 * 10.6 * height / width / columns)
    figure = Figure(figsize=(11, tall), dpi=100)
    grid = figure.add_gridspec(len(sides), 1, left=0.02, right=0.98, bottom=0.02, top=1 - 0.7 / tall, hspace=0.1)
    for number, side in enumerate(sides):
        parts = grid[number].subgridspec(2, 1, hspace=0.02)
        above, below = (figure.add_subplot(parts[place]) for place in range(2))
        above.imshow(_in_a_line(side.images.transpose(0, 2, 3, 1), columns))
        below.imshow(_in_a_line(_enlarged(side.maps, height, width), columns), cmap="viridis", vmin=0, vmax=1)
        above.set_title(side.heading, fontsize=9, loc="left")
        for axes in (above, below):
            axes.set_axis_off()
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    return figure


def _in_a_line(tiles: "NDArray[Any]", columns: int) -> "NDArray[Any]":
    """Tiles [N, H, W, ...] as one [H, W, ...]. Missing tiles of the last row are blank."""
    import numpy as np

    blank = 255 if tiles.dtype == np.uint8 else np.nan
    missing = np.full((columns - len(tiles), *tiles.shape[1:]), blank, tiles.dtype)
    return np.concatenate([*tiles, *missing], axis=1)


def _enlarged(maps: "NDArray[np.float32]", height: int, width: int) -> "NDArray[np.float32]":
    """Maps scaled to 0 (the smallest value of each) to 1 (the largest). All 0: all values are the same."""
    import numpy as np
    from PIL import Image

    low = maps.min((1, 2), keepdims=True)
    span = maps.max((1, 2), keepdims=True) - low
    shares = (maps - low) / np.where(span == 0, 1, span)
    return np.stack(
        [np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR)) for share in shares]
    )


def diagnostics_figure(data: Mapping[str, Any], title: str) -> "Figure":
    """Diagnostics, as in diagnostics.json, as four plots. A missing plot is replaced by the reason.

    The last plot is of layers: BN gaps, or entropies of patch similarities if the network has no batch normalisation.
    The figure is made without pyplot and its global state.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=100)
    grid = figure.add_gridspec(2, 3, left=0.07, right=0.98, top=0.88, bottom=0.22, wspace=0.3, hspace=0.4)
    panels = (
        (grid[0, 0], _Panel("output_ranges", "range of outputs", _plot_ranges)),
        (grid[0, 1], _Panel("difficulty", "sample difficulty", _plot_difficulty)),
        (grid[0, 2], _Panel("class_balance", "predicted classes", _plot_classes)),
        (grid[1, :], _of_layers(data["set"])),
    )
    for place, panel in panels:
        axes, name = figure.add_subplot(place), panel.part
        axes.set_title(panel.heading, fontsize=10, y=1.02)  # a fixed place: searching one takes as long as the rest
        if data["set"][name] is None:
            _say(axes, data["set"]["absent"].get(name, "not measured"))
        else:
            panel.plot(axes, data, bool(data["real"] and data["real"][name] is not None))
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    _explain_colours(figure, real=data["real"] is not None)
    return figure


def _explain_colours(figure: "Figure", *, real: bool) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=SET, label="calibration set")]
    patches += [Patch(facecolor=REAL, hatch=_HATCH, edgecolor="white", label="real images")] if real else []
    figure.legend(handles=patches, loc="upper right", ncols=2, fontsize=9, frameon=False)


def _sides(data: Mapping[str, Any], name: str, real: bool) -> list[tuple[str, Any]]:
    """Colour and content of the set and, if there are any, of real images."""
    sides = [(SET, data["set"][name])]
    return [*sides, (REAL, data["real"][name])] if real else sides


@dataclass(frozen=True)
class _Panel:
    """A plot of one part of the diagnostics."""

    part: str
    """Its name in diagnostics.json."""
    heading: str
    plot: "Callable[[Axes, Mapping[str, Any], bool], None]"


def _of_layers(of_set: Mapping[str, Any]) -> _Panel:
    """The plot of the layers of a network: BN gaps or patch similarities."""
    if of_set["bn_gaps"] is None and of_set["patch_similarities"] is not None:
        return _Panel("patch_similarities", "patch similarity", _plot_entropies)
    return _Panel("bn_gaps", "distance from BN statistics", _plot_gaps)


def _plot_gaps(axes: "Axes", data: Mapping[str, Any], real: bool) -> None:
    values = _plot_layers(axes, _sides(data, "bn_gaps", real), "gap")
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("gap in stored deviations", fontsize=8)
    if min(values) > 0:  # false for NaN
        _log_scale(axes)


def _plot_entropies(axes: "Axes", data: Mapping[str, Any], real: bool) -> None:
    _plot_layers(axes, _sides(data, "patch_similarities", real), "entropy")
    axes.set_xlabel("attention of each block", fontsize=8)
    axes.set_ylabel("entropy of patch similarities", fontsize=8)


def _plot_layers(axes: "Axes", sides: Sequence[tuple[str, Any]], number: str) -> list[float]:
    """A line for each side over its layers. Returns all values."""
    values = []
    for (colour, layers), marker in zip(sides, "os", strict=False):
        line = [math.nan if layer[number] is None else layer[number] for layer in layers]
        axes.plot(line, color=colour, marker=marker, markersize=4, linewidth=1)
        values += line
    names = [layer["layer"] for layer in sides[0][1]]
    stride = math.ceil(len(names) / _NAMED_LAYERS)
    axes.set_xticks(range(0, len(names), stride), [short_name(name) for name in names[::stride]], rotation=90)
    axes.grid(axis="y", linewidth=0.3)
    return values


def _plot_ranges(axes: "Axes", data: Mapping[str, Any], real: bool) -> None:
    sides = _sides(data, "output_ranges", real)
    names = [each["output"] for each in data["set"]["output_ranges"]]
    for number, (colour, ranges) in enumerate(sides):
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), each["quantiles"], strict=True), fliers=[])
            for each in ranges
            if None not in each["quantiles"]
        ]
        places = [index + 0.3 * number for index, each in enumerate(ranges) if None not in each["quantiles"]]
        axes.bxp(
            boxes,
            positions=places,
            widths=0.25,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.7},
            medianprops={"color": "black"},
            manage_ticks=False,
        )
    axes.set_xticks(
        [index + 0.15 * (len(sides) - 1) for index in range(len(names))], [short_name(name) for name in names]
    )
    axes.set_xlim(-0.6, len(names) - 0.1)
    axes.set_ylabel("largest - smallest value of an image\n(quantiles 5, 25, 50, 75, 95 %)", fontsize=8)
    axes.grid(axis="y", linewidth=0.3)


def _plot_difficulty(axes: "Axes", data: Mapping[str, Any], real: bool) -> None:
    sides = _sides(data, "difficulty", real)
    for number, (colour, found) in enumerate(sides):
        _bars(axes, found["counts"], number, len(sides), colour)
    bins = len(data["set"]["difficulty"]["counts"])
    axes.set_xticks([index - 0.5 for index in range(bins + 1)], [f"{index / bins:.1f}" for index in range(bins + 1)])
    _log_scale(axes)
    axes.set_ylim(50 / max(sum(found["counts"]) for _, found in sides), 100)
    axes.set_xlabel(f"1 - p of the {data['set']['difficulty']['by']}", fontsize=8)
    axes.set_ylabel("share of images in %", fontsize=8)


def _plot_classes(axes: "Axes", data: Mapping[str, Any], real: bool) -> None:
    sides = _sides(data, "class_balance", real)
    classes = len(data["set"]["class_balance"]["predicted"])
    for number, (colour, found) in enumerate(sides):
        counts = found["predicted"]
        if classes <= _NAMED_CLASSES:
            _bars(axes, counts, number, len(sides), colour)
        else:
            shares = [100 * count / max(1, sum(counts)) for count in sorted(counts, reverse=True)]
            axes.plot(range(1, classes + 1), shares, color=colour, linestyle="-" if not number else "--")
    if classes <= _NAMED_CLASSES:
        axes.set_xticks(range(classes))
    axes.set_xlabel("class" if classes <= _NAMED_CLASSES else "classes, most frequent first", fontsize=8)
    axes.set_ylabel("share of images in %", fontsize=8)


def _bars(axes: "Axes", counts: Sequence[int], number: int, sides: int, colour: str) -> None:
    width = 0.8 / sides
    places = [index + width * (number - (sides - 1) / 2) for index in range(len(counts))]
    shares = [100 * count / max(1, sum(counts)) for count in counts]
    hatch = _HATCH if number else None
    axes.bar(places, shares, width, color=colour, hatch=hatch, edgecolor="white", linewidth=0)


def _log_scale(axes: "Axes") -> None:
    """Set plain numbers at an axis. Typesetting powers of ten takes as long as all the rest."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _say(axes: "Axes", text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 50), ha="center", va="center", fontsize=9, transform=axes.transAxes)


def short_name(name: str) -> str:
    """A name that fits at an axis. Of a long name, only the end is kept."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME + 3 :]}"
