import base64
import io

import numpy as np
from PIL import Image

from components.evaluate.pictures import embedded, most_textured, side_by_side


def test_most_textured_finds_the_textured_square() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    image[100:140, 220:260] = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    rows, columns = most_textured(image, 48)
    assert (rows.start % 4, columns.start % 4) == (0, 0)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (48, 48)
    assert rows.start <= 100
    assert rows.stop >= 140
    assert columns.start <= 220
    assert columns.stop >= 260
    assert most_textured(image[:40, :44], 48) == (slice(0, 40), slice(0, 44))


def test_side_by_side_keeps_the_pixels_of_the_panels() -> None:
    images = {name: np.full((20, 30, 3), level, np.uint8) for name, level in (("a", 10), ("b", 200))}
    picture = np.asarray(side_by_side(images))
    assert picture.shape[1] == 30 + 6 + 30
    assert (picture[-20:, :30] == 10).all()
    assert (picture[-20:, -30:] == 200).all()


def test_an_embedded_picture_decodes_to_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    prefix, content = embedded(image).split(",")
    assert prefix == "data:image/webp;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), image)
