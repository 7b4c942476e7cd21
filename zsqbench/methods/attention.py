"""Attention of a network without batch normalisation, made available for diagnostics."""

from typing import TYPE_CHECKING

from zsqbench.errors import ZSQBenchError
from zsqbench.methods.generator import lack_of_attention

if TYPE_CHECKING:
    from zsqbench.methods.data import Pretrained
    from zsqbench.quant import Attention
    from zsqbench.synthesis import MapForm, OpenAttention


def open_attention(teacher: "Pretrained") -> "OpenAttention | str":
    """A copy of a network that also returns its attention, or the reason why there is none.

    Patches are those that `psaq_vit` compares. A network with batch normalisation is not opened. Its stored statistics
    already give a measure of calibration images.
    """
    from zsqbench.quant import also_returning, capture, find_attention, has_class_token, patch_size, tensor_name
    from zsqbench.synthesis import OpenAttention, batch_norms

    network = type(teacher.module).__name__
    if batch_norms(teacher.module):
        return f"{network} has batch normalisation: the distance from its statistics is measured in place of attention"
    try:
        captured = capture(teacher.module, teacher.input_size)
    except ZSQBenchError as error:
        return f"it needs the network as a graph: {error}"
    found = find_attention(captured)
    if (lack := lack_of_attention(len(found), (), teacher.input_size, network)) is not None:
        return f"it {lack}"
    class_token = has_class_token(captured)
    form = _form(found[-1], teacher.input_size[1:], patch_size(captured))
    names = [tensor_name(each.context) for each in found]
    blocks = tuple(name.rpartition(".")[0] or name for name in names)  # the last part of the name is the same in each
    drop_first = class_token or any(each.windows > 1 for each in found)
    opened = also_returning(captured, [*(each.context for each in found), found[-1].weights])
    return OpenAttention(opened.requires_grad_(requires_grad=False), blocks, drop_first, form)


def _form(last: "Attention", size: tuple[int, int], patch: tuple[int, int] | None) -> "MapForm | str":
    """The layout of the last block's attention over an image of height and width `size`, or why there is none."""
    from zsqbench.quant import key_grid
    from zsqbench.synthesis import MapForm

    if last.windows > 1:
        return "the last block attends within windows, and the graph does not give their places in the image"
    grid = key_grid(last, size, patch)
    if grid is None:
        height, width = size
        return f"the {last.keys} tokens that the last block attends to are not a grid over {height} x {width} pixels"
    return MapForm(grid.before, (grid.height, grid.width))
