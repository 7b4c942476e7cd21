"""How a placement states bit-widths of tensors: by role, and by patterns of tensor names."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from zsqbench.errors import did_you_mean

MIN_BITS = 2
MAX_BITS = 16
"""The most integer bits. The float32 arithmetic of the simulation cannot represent more."""

KINDS = ("weight", "activation")
"""The kinds of tensors."""


def _bits(value: Any) -> Any:
    if value in ("w", "a", "float"):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"expected 'w' (weight bits), 'a' (activation bits), 'float' or {MIN_BITS} to {MAX_BITS} bits")
    return value


Width = Annotated[Literal["w", "a", "float"] | int, BeforeValidator(_bits)]
"""A tensor's width: the scheme's weight bits, its activation bits, a fixed number of bits, or float."""

PositionWidth = Annotated[
    Literal["w", "a", "float"] | int | None, BeforeValidator(lambda value: None if value is None else _bits(value))
]
"""A width, or None. None: the tensor has the width of its role."""

GivenWidth = Annotated[Literal["w", "a", "float"] | int | None, BeforeValidator(_bits)]
"""A width that may be left out. If it is given, it must be a width."""


class PatternWidths(BaseModel):
    """The widths that a pattern of tensor names gives. A width alone stands for `both`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    both: GivenWidth = Field(None, description="width of the weights and the activations that the pattern matches")
    weight: GivenWidth = Field(None, description="width of the weights that it matches")
    activation: GivenWidth = Field(None, description="width of the activations that it matches")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.both is None) == (self.weight is None and self.activation is None):
            raise ValueError("expected a width, or a mapping of 'weight', 'activation' or these two to widths")
        return self

    def of(self, kind: str) -> int | str | None:
        """The width of tensors of this kind (`weight` or `activation`). None: not given."""
        width: int | str | None = self.both if self.both is not None else getattr(self, kind)
        return width

    def mismatch(self, pattern: str, tensors: Collection[tuple[str, str]]) -> str | None:
        """A clause that says that its pattern matches none of these tensors, given by kind and name. None: it matches.

        The pattern has to match a tensor of each kind that it names. With one width for `both`, a tensor of either kind
        is enough.
        """
        matched = {kind for kind, name in tensors if fnmatchcase(name, pattern)}
        named = [kind for kind in KINDS if self.of(kind) is not None]
        missing = [kind for kind in named if kind not in matched]
        if not missing or (self.both is not None and matched):
            return None
        if matched:
            return f"the pattern {pattern!r} matches no {missing[0]} of the network, {matched.pop()}s only;"
        close = did_you_mean(pattern, _patterns_for([name for kind, name in tensors if kind in missing])) or ";"
        return f"the pattern {pattern!r} matches no {' and no '.join(missing)} of the network{close}"


def _as_widths(value: Any) -> Any:
    return value if isinstance(value, Mapping | PatternWidths) else {"both": value}


def _as_list(patterns: Mapping[str, PatternWidths]) -> list[dict[str, Any]]:
    """Patterns as they are written and hashed. Their order matters, and a mapping would lose it."""
    return [{"pattern": pattern, **widths.model_dump(exclude_none=True)} for pattern, widths in patterns.items()]


def _from_list(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(entry, Mapping) and "pattern" in entry for entry in value):
        return {str(entry["pattern"]): {key: entry[key] for key in entry if key != "pattern"} for entry in value}
    return value


TensorPatterns = Annotated[
    Mapping[str, Annotated[PatternWidths, BeforeValidator(_as_widths)]],
    BeforeValidator(_from_list),
    PlainSerializer(_as_list),
]
"""Widths by patterns of tensor names (`features.18.*`, as in fnmatch); where several match, the last counts."""


def _patterns_for(names: Sequence[str]) -> list[str]:
    """Names of tensors, and patterns of all that lies below a module: `features.18.*`."""
    modules = [name.split(".")[:depth] for name in names for depth in range(1, name.count(".") + 1)]
    return list(dict.fromkeys([*names, *(".".join([*module, "*"]) for module in modules)]))
