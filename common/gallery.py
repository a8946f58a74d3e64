"""What a paper's gallery holds: small pictures, drawings and sentences of one small training run, as they came out.

`papers/<slug>/gallery.py` gives them, `encore gallery` keeps them as JSON, and the report shows them without torch.
Every item says in words what it shows.
"""

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

Png = Annotated[str, Field(pattern=r"^iVBORw0KGgo[A-Za-z0-9+/]+=*$")]
Coordinate = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """No unknown keys, so that a damaged file is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(Strict):
    """caption: what one sees, with what is right or wrong about it."""

    title: str
    caption: str


class Drawing(Shown):
    """Points of the unit square and closed polygons through some of them, {name: indices}."""

    kind: Literal["drawing"] = "drawing"
    points: list[tuple[Coordinate, Coordinate]] = Field(min_length=1)
    paths: dict[str, list[Annotated[int, Field(ge=0)]]]

    @model_validator(mode="after")
    def paths_lead_through_the_points(self) -> "Drawing":
        if any(index >= len(self.points) for path in self.paths.values() for index in path):
            raise ValueError(f"a path names a point beyond the {len(self.points)} there are")
        return self


class Picture(Strict):
    """One picture; `label` is also its text alternative. lines: ranked predictions and the like."""

    label: str
    png: Png
    lines: list[str] = []


class Pictures(Shown):
    """Pictures side by side, in reading order."""

    kind: Literal["pictures"] = "pictures"
    pictures: list[Picture] = Field(min_length=1)


class Sentences(Shown):
    """A table of words: one row a sentence, one column a version of it."""

    kind: Literal["sentences"] = "sentences"
    columns: list[str] = Field(min_length=1)
    rows: list[list[str]]

    @model_validator(mode="after")
    def rows_fill_the_columns(self) -> "Sentences":
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has not the {len(self.columns)} columns of the table")
        return self


class Spectrogram(Shown):
    """A spectrogram (png, low frequencies at the bottom) and the token of each of its patches, rows from the top."""

    kind: Literal["spectrogram"] = "spectrogram"
    png: Png
    tokens: list[Annotated[list[int], Field(min_length=1)]] = Field(min_length=1)

    @model_validator(mode="after")
    def tokens_form_a_grid(self) -> "Spectrogram":
        if len({len(row) for row in self.tokens}) > 1:
            raise ValueError("the rows of tokens differ in length")
        return self


Item = Annotated[Drawing | Pictures | Sentences | Spectrogram, Field(discriminator="kind")]


class Gallery(Strict):
    """trained: one sentence saying which model was trained, on what, for how many steps."""

    trained: str
    items: Sequence[Item]


def film(strips: dict[str, np.ndarray]) -> list[Picture]:
    """Every second frame of each named clip, (T, H, W) grey or (T, H, W, 3) colour, clip after clip."""
    return [
        Picture(label=f"{name}, frame {2 * time + 1}", png=png(frame))
        for name, strip in strips.items()
        for time, frame in enumerate(strip[::2])
    ]


def png(pixels: np.ndarray) -> str:
    """(H, W) grey or (H, W, 3) colour, floats in [0, 1] (clipped) or uint8 -> base64 of a PNG."""
    if pixels.dtype != np.uint8:
        pixels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
