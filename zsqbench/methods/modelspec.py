"""A network as named in a suite."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, model_validator

from zsqbench.methods.base import InputFile, existing_file
from zsqbench.zoo.models import BUILT, RANDOM, Checkpoint, Weights


def _weights(text: str, info: ValidationInfo) -> str:
    return text if text in (RANDOM, BUILT) else str(existing_file(Path(text), info))


NOT_BUILT = "a named network has its own where no weights are given"

Side = PositiveInt | tuple[PositiveInt, PositiveInt]


class ModelSpec(BaseModel):
    """A network as named in a suite: a shipped or published one, a variant of one, or a user's own file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the model in the suite")
    base: str | None = Field(None, description="a named model that this one is a variant of")
    file: InputFile | None = Field(None, description="a .py file with a function that returns the module")
    build: str = Field("build", description="name of that function")
    weights: Annotated[str, AfterValidator(_weights)] | None = Field(
        None,
        description="safetensors or a weights-only checkpoint; 'built' for those that a file's function loads itself; "
        "'none' for seeded random weights",
    )
    checkpoint: Literal["model", "ema"] | None = Field(
        None,
        description="weights that are taken from a file that holds both kinds: the model's own, or their "
        "exponential moving average; unset: the model's own, or the average where there are no "
        "others",
    )
    classes: int | None = Field(
        None, gt=0, description="number of classes, for a shipped definition that is built for it"
    )
    input_size: tuple[int, int, int] | None = Field(None, description="channels, height, width")
    resize: Side | Literal["none"] | None = Field(
        None, description="length of the shorter side before the crop, or height and width"
    )
    crop: Side | Literal["none"] | None = Field(None, description="side of the central crop, or height and width")
    crop_mode: Literal["center", "squash", "border"] | None = Field(
        None, description="keep the proportions and cut, give the image those of `resize`, or fit it in and fill"
    )
    mean: tuple[float, ...] | None = Field(None, description="mean of each channel, on the value range")
    std: tuple[float, ...] | None = Field(None, description="standard deviation of each channel, on the value range")
    channels: Literal["rgb", "bgr"] | None = Field(None, description="order of the input channels")
    value_range: tuple[float, float] | None = Field(
        None, description="values of black and white before mean and std are applied"
    )
    float_accuracy: float | None = Field(
        None,
        allow_inf_nan=False,
        description="accuracy of the float network in percent, as published; its cells fail where it is not within 0.1",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if (self.base is None) == (self.file is None):
            raise ValueError("a model is either a variant of a named one ('base') or a 'file' of your own")
        if self.file is not None and self.weights is None:
            raise ValueError(
                "a model from a 'file' needs 'weights': a path, built for those that its function loads itself, or "
                "none for seeded random weights"
            )
        if self.file is None and self.weights == BUILT:
            raise ValueError(f"'weights: {BUILT}' is for a 'file' of your own, whose function loads them: {NOT_BUILT}")
        if self.file is not None and self.input_size is None:
            raise ValueError("a model from a 'file' needs 'input_size': [channels, height, width]")
        if self.checkpoint is not None and self.weights in (None, RANDOM, BUILT):
            raise ValueError("'checkpoint' says which weights of a file are taken, and 'weights' names no file")
        return self

    def weights_to_load(self, note: Callable[[str], None]) -> Weights | None:
        """The suite's weights, or None. `note` is told the findings about their file, like `ctx.note`."""
        source = self.weights_from
        return Checkpoint(source, self.checkpoint, note) if isinstance(source, Path) else source

    @property
    def builder(self) -> str:
        """The function that builds a user's network, as text: `build() of net.py`."""
        return f"{self.build}() of {self.file.name if self.file else 'no file'}"

    @property
    def weights_from(self) -> Path | Literal["none", "built"] | None:
        """The suite's weights, or None. "none" means random ones, "built" those of the built network."""
        if self.weights == RANDOM:
            return RANDOM
        if self.weights == BUILT:
            return BUILT
        return None if self.weights is None else Path(self.weights)

    @property
    def random_weights(self) -> bool:
        """True if the weights are seeded random numbers. Rows of these models are marked."""
        return self.weights == RANDOM
