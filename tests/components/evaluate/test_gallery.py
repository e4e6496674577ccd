from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from components.evaluate.gallery import Gallery, Photograph
from components.evaluate.pictures import SIDE

SIZE = 200


def measured(name: str, lpips: float, *, seed: int = 0, artefacts: float = 0.0, levels: int = 0) -> Photograph:
    """A photograph on which champion and challenger have LPIPS 0.5 and `lpips`, and differ by `levels`."""
    hr = np.random.default_rng(seed).integers(60, 190, (SIZE, SIZE + 40, 3), np.uint8)
    smooth = np.full_like(hr, 128)
    metrics: Any = {
        "champion": {"lpips": 0.5, "artefacts": 0.0},
        "challenger": {"lpips": lpips, "artefacts": artefacts},
    }
    return Photograph(
        name=name,
        hr=hr,
        lr=hr[::4, ::4],
        textured=hr[..., 0] > 100,
        upscaled={"bicubic": smooth, "champion": smooth, "challenger": smooth + np.uint8(levels)},
        metrics=metrics,
        opponent="champion",
        start=smooth,
    )


def test_best_worst_and_most_changed_are_kept_whatever_the_order() -> None:
    gains = np.random.default_rng(1).permutation(20)
    gallery = Gallery()
    for gain in gains:
        gallery.add(measured(f"{gain}.png", 0.5 - gain / 100, levels=10 if gain == 9 else 1))
    sights = gallery.sights()
    roles = {sight.photograph: sight.roles for sight in sights}
    assert [sight.photograph for sight in sights[:3]] == ["19.png", "0.png", "9.png"]
    assert {name for name, role in roles.items() if role == ("best",)} == {"19.png", "18.png", "17.png"}
    assert {name for name, role in roles.items() if role == ("worst",)} == {"0.png", "1.png", "2.png"}
    assert roles["9.png"] == ("most changed",)
    assert sights[0].facts == pytest.approx({"gain": 0.19, "change": 1.0, "artefacts": 0.0})


def test_all_photographs_of_a_small_set_are_shown_once() -> None:
    gallery = Gallery()
    for number in range(3):
        gallery.add(measured(f"{number}.png", 0.5 - number / 100))
    sights = gallery.sights()
    assert sorted(sight.photograph for sight in sights) == ["0.png", "1.png", "2.png"]
    assert all(sight.roles for sight in sights)


def test_panels_are_the_pixels_at_one_place_and_lr_is_smaller_by_the_scale() -> None:
    photograph = measured("a.png", 0.4)
    sight = photograph.with_texture
    left, top, width, height = sight.frame
    columns = slice(round(left * 2.4), round((left + width) * 2.4))
    rows = slice(round(top * 2), round((top + height) * 2))
    assert np.array_equal(sight.panels["original"], photograph.hr[rows, columns])
    assert np.array_equal(sight.panels["LR"], sight.panels["original"][::4, ::4])
    assert list(sight.panels) == ["LR", "bicubic", "champion", "challenger", "original"]
    assert sight.panels["original"].shape == (SIDE, SIDE, 3)
    assert np.array_equal(sight.textured, sight.panels["original"][..., 0] > 100)


def test_the_map_of_artefacts_and_its_square_are_where_the_challenger_varies_too_much() -> None:
    photograph = measured("a.png", 0.4, artefacts=0.01)
    broken = photograph.upscaled["challenger"].copy()
    broken[180:196, 220:236] = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    photograph = replace(photograph, upscaled={**photograph.upscaled, "challenger": broken})
    gallery = Gallery()
    gallery.add(photograph)
    [alarm] = [sight for sight in gallery.sights() if "most artefacts" in sight.roles]
    assert alarm.artefacts.sum() >= 16 * 16
    rows, columns = np.nonzero(alarm.artefacts)
    left, top = round(alarm.frame[0] * 2.4), round(alarm.frame[1] * 2)
    assert rows.min() + top >= 180 - 3
    assert rows.max() + top < 196 + 3
    assert columns.min() + left >= 220 - 3
    assert columns.max() + left < 236 + 3


def test_a_photograph_without_artefacts_is_not_shown_for_them() -> None:
    gallery = Gallery()
    gallery.add(measured("a.png", 0.4))
    assert all("most artefacts" not in sight.roles for sight in gallery.sights())
