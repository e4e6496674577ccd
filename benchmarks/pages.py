"""Render pages of text: a kind of picture that generators trained on photographs saw little of.

`python -m benchmarks.pages FOLDER` writes the same pictures each time, to retrain on (docs/own-kind.md).
"""

import argparse
import random
from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

COUNT = 60
SIDE = 448
_MARGIN = 16
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")
_PAPERS = ((255, 255, 255), (250, 244, 230), (236, 240, 244), (24, 26, 30), (40, 44, 66), (232, 226, 240))
_TEXT = (
    "a the of and to in is for with by from on at as it its each all when where between under over after before light "
    "paper ink letter line page column table figure number method result measure sample network pixel sharp detail "
    "photograph archive register volume chapter margin heading footnote caption index edition printer reader author"
)
_WORDS = _TEXT.split()


def _word(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return f"{chance.uniform(0, 10 ** chance.randint(1, 4)):.{chance.randint(0, 3)}f}"
    word = chance.choice(_WORDS)
    return word.capitalize() if chance.random() < 0.15 else word


def _column(draw: ImageDraw.ImageDraw, chance: random.Random, left: int, right: int, ink: tuple[int, int, int]) -> None:
    """Fill a column with paragraphs of one font each, a rule now and then."""
    top = _MARGIN
    while top < SIDE - _MARGIN:
        size = chance.choice((10, 11, 12, 13, 14, 16, 18, 22, 30))
        font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{chance.choice(_FONTS)}.ttf", size)
        for _ in range(chance.randint(1, 5)):
            line = _word(chance)
            while draw.textlength(longer := f"{line} {_word(chance)}", font) < right - left:
                line = longer
            if top + size > SIDE - _MARGIN:
                return
            draw.text((left, top), line, ink, font)
            top += round(1.25 * size)
        if chance.random() < 0.3:
            draw.line((left, top + 4, right, top + 4), ink, chance.randint(1, 2))
        top += chance.randint(6, 18)


def page(number: int) -> Image.Image:
    """Return a page, RGB of `SIDE` pixels on each side, the same for the same number."""
    chance = random.Random(number)  # noqa: S311 - no secret depends on it
    paper = chance.choice(_PAPERS)
    dark = sum(paper) < 300
    image = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    columns = chance.choice((1, 1, 2, 3))
    width = (SIDE - _MARGIN) // columns
    for column in range(columns):
        ink = tuple(chance.randint(170, 255) if dark else chance.randint(0, 90) for _ in range(3))
        left = _MARGIN + column * width
        _column(draw, chance, left, left + width - _MARGIN, (ink[0], ink[1], ink[2]))
    return image


def main() -> None:
    """Write the pages as PNG files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description="Render pages of text.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        page(number).save(folder / f"page-{number:02}.png")


if __name__ == "__main__":
    main()
