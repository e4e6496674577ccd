"""Pictures of the report: crops side by side, and training curves."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from bebygan import SCALE
from bebygan.imaging import Image
from bebygan.imaging.texture import local_deviation

SIDE = 192
"""Side of the crops in the report, pixels."""
_TEXTURE_WINDOW = 11
_GAP = 6
_CAPTION = 22
_CURVES_IN_A_ROW = 3
_MARKS = ("iteration", "delivered", "stopped.")
"""What values of the history begin with that are no curves."""


def square_with_most(values: npt.NDArray[np.float64], side: int) -> tuple[slice, slice]:
    """Return rows and columns of the square with the largest sum of values (H, W), at multiples of the scale.

    Args:
        values: one for each pixel.
        side: pixels; the square is smaller if the image is.
    """
    height, width = (min(side, length) for length in values.shape)
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    sums = sums[::SCALE, ::SCALE]
    top, left = (int(index) * SCALE for index in np.unravel_index(sums.argmax(), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def most_textured(image: Image, side: int) -> tuple[slice, slice]:
    """Return rows and columns of the square with the highest mean local deviation, at multiples of the scale.

    Args:
        image: (H, W, 3) RGB; larger than half the texture window.
        side: pixels; the square is smaller if the image is.
    """
    return square_with_most(local_deviation(image, _TEXTURE_WINDOW), side)


def side_by_side(panels: Mapping[str, Image]) -> PillowImage.Image:
    """Return images of equal size in one picture, each below its name."""
    height, width = next(iter(panels.values())).shape[:2]
    picture = PillowImage.new("RGB", (len(panels) * (width + _GAP) - _GAP, height + _CAPTION), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    for number, (name, image) in enumerate(panels.items()):
        left = number * (width + _GAP)
        draw.text((left + width // 2, _CAPTION // 2), name, "black", font, "mm")
        picture.paste(PillowImage.fromarray(image), (left, _CAPTION))
    return picture


def embedded(image: Image) -> str:
    """Return an image as the data URL of a PNG."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def training_curves(history: Sequence[Mapping[str, float]]) -> str | None:
    """Return the logged values of a training as an SVG with one plot each, or None if it logged less than twice."""
    names = list(dict.fromkeys(name for entry in history for name in entry if not name.startswith(_MARKS)))
    if len(history) < 2 or not names:
        return None
    rows = -(-len(names) // _CURVES_IN_A_ROW)
    figure = Figure(figsize=(9, 2.1 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, _CURVES_IN_A_ROW, number + 1)
        points = [(entry["iteration"], entry[name]) for entry in history if name in entry]
        axes.plot(*zip(*points, strict=True), color="#2563a8", linewidth=1.4)
        axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    # A fixed salt and no date: the same history gives the same bytes.
    with rc_context({"svg.hashsalt": "bebygan", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
