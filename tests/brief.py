"""Parameters of which a few run each time, and the others with -m slow."""

import itertools
from collections.abc import Iterable, Sequence

import pytest

_Parameters = type(pytest.param())


def parametrize_briefly(names: str, values: Iterable[object], brief: int, **options: object) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize`, in which all values after the first `brief` ones are slow."""
    slow = pytest.mark.slow(f"{brief} of its values run each time")
    several = "," in names
    parameters = []
    for index, value in enumerate(values):
        if isinstance(value, _Parameters):
            parameter = value
        else:
            parameter = pytest.param(*value) if several else pytest.param(value)
        marks = [*parameter.marks, slow] if index >= brief else parameter.marks
        parameters.append(pytest.param(*parameter.values, marks=marks, id=parameter.id))
    return pytest.mark.parametrize(names, parameters, **options)


def each_once(first: Sequence[object], second: Sequence[object]) -> list[tuple[object, object]]:
    """All pairs, in front those of the first with the first, the second with the second, and so on."""
    front = list(zip(first, second, strict=False))
    return [*front, *(pair for pair in itertools.product(first, second) if pair not in front)]
