"""A ReLU or the like before a grid cuts its codes off."""

import pytest
from onnxgraphs import changed, computed, model, types

from zsqbench.export.bounds import clip_codes
from zsqbench.export.graph import DEQUANTIZE, QUANTIZE, constant


def rounding(before, value="r", grid="s, z", top=255):
    """Body of a graph that rounds to a marked grid behind a convolution and what cuts off."""
    mark = f'<zsqbench_tensor="name", zsqbench_top={top}>'
    return (
        f"c = Conv (image, w)\n{before}\nq = QuantizeLinear {mark} ({value}, {grid})\n"
        f"output = DequantizeLinear ({grid and 'q, ' + grid})"
    )


CLIPS = {
    # what cuts off, the grid, its largest code: the codes that are cut off at, or none
    "relu, zero inside": ("r = Relu (c)", "s, z", 255, (40, 255)),
    "relu, zero at the end": ("r = Relu (c)", "s, none", 255, None),
    "relu6 above the end": ("r = Clip (c, zero, six)", "s, none", 255, None),
    "relu6 below the end": ("r = Clip (c, zero, six)", "t, none", 255, (0, 200)),
    "one end": ("r = Clip (c, , one)", "t, z", 255, (0, 73)),
    "four bits": ("r = Relu (c)", "s, none", 15, (0, 15)),
    "least and most": ("a = Max (c, zero)\nr = Min (a, one)", "s, z", 255, (40, 90)),
    "in turn": ("a = Clip (c, one, six)\nr = Clip (a, zero, one)", "s, z", 255, (90, 90)),
    "in vain": ("a = Relu (c)\nr = Relu (a)", "s, none", 255, None),
}


@pytest.mark.parametrize("name", CLIPS)
def test_what_cuts_off_before_a_grid_cuts_codes_off_or_is_gone(name):
    before, grid, top, ends = CLIPS[name]
    body = rounding(before, grid=grid, top=top)
    if top != 255:  # without the marks, the grid of the same bits
        made = model(body)
        clip_codes(made.graph)
        codes = computed(made)[0] / 0.02
        assert (codes.min(), codes.max()) == (pytest.approx(0), pytest.approx(15))
    else:
        made = changed(body, clip_codes)
    clips = [node for node in made.graph if node.op_type == "Clip"]
    assert types(made) == ["Conv", QUANTIZE, *(["Clip"] if ends else []), DEQUANTIZE]
    assert [tuple(int(constant(value)) for value in node.inputs[1:]) for node in clips] == ([ends] if ends else [])
    assert made.graph[-1].inputs[0].name == "name/codes"
    assert not any("zsqbench" in name for node in made.graph for name in node.attributes)


def test_what_others_read_too_is_cut_off_as_values():
    body = rounding("r = Relu (c)").replace("output = Deq", "d = Deq") + "\noutput = Add (d, r)"
    assert types(changed(body, clip_codes)) == ["Conv", "Relu", QUANTIZE, DEQUANTIZE, "Add"]


def test_a_bound_for_each_channel_stays():
    assert "Min" in types(changed(rounding("r = Min (c, bounds)"), clip_codes))


def test_codes_of_sixteen_bits_are_cut_off_as_values():
    body = rounding("r = Clip (c, zero, one)", grid="s, wide", top=65535)
    made = changed(body, clip_codes)
    assert types(made) == ["Conv", "Clip", QUANTIZE, DEQUANTIZE]
    clipped = computed(made)[0]
    assert (clipped.min(), clipped.max()) == (0, pytest.approx(1))
    made = model(rounding("r = Relu (c)", grid="s, wide", top=15))
    clip_codes(made.graph)
    assert computed(made)[0].max() == pytest.approx(15 * 0.02)
