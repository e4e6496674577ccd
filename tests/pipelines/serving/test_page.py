"""The page on which a person drops a photograph, in a real browser."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.serving.asking import RGB
from tests.pipelines.serving.browser import Browser, browser
from tests.pipelines.serving.conftest import Running

pytestmark = pytest.mark.slow
END, HOME, RIGHT = ("End", 35), ("Home", 36), ("ArrowRight", 39)


def said(tab: Browser) -> tuple[str, str]:
    """What the page says, and whether it is an error."""
    tab.wait_for("document.getElementById('busy').hidden && document.getElementById('said').textContent != ''")
    return tab.value("document.getElementById('said').textContent"), tab.value(
        "document.getElementById('said').className"
    )


def place(tab: Browser) -> tuple[str, str, str]:
    """Where the slider, the line, and the edge of the photograph before are."""
    return (
        tab.value("document.getElementById('slider').value"),
        tab.value("document.getElementById('line').style.left"),
        tab.value("document.getElementById('before').style.clipPath"),
    )


def test_a_person_compares_a_photograph_with_its_upscaled_one(ready: Callable[..., Running], tmp_path: Path) -> None:
    running = ready()
    photograph = tmp_path / "a photograph.png"
    Image.fromarray(RGB).save(photograph)
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    with browser(tmp_path) as tab:
        tab.size(1000, 900)
        tab.open(f"http://127.0.0.1:{running.port}/")
        assert tab.value("document.getElementById('view').checkVisibility()") is False

        tab.choose("#file", photograph)
        text, kind = said(tab)
        assert text.startswith("48 x 64 pixels in ")
        assert text.endswith(" s, by version 1")
        assert kind == ""
        assert tab.value("document.getElementById('save').download") == "a photograph-x4.png"
        assert tab.value("document.getElementById('before').naturalWidth") == 12
        assert place(tab) == ("50", "50%", "inset(0px 50% 0px 0px)")

        box = tab.value(
            "(({x, y, width, height}) => [x, y, width, height])"
            "(document.getElementById('view').getBoundingClientRect())"
        )
        left, top, width, height = box
        tab.drag((left + width / 2, top + height / 2), (left + width / 4, top + height / 2))
        assert place(tab) == ("25", "25%", "inset(0px 75% 0px 0px)")
        for (key, code), moved in ((RIGHT, 26), (RIGHT, 27), (END, 100), (HOME, 0)):
            tab.value("document.getElementById('slider').focus()")
            tab.press(key, code)
            assert place(tab) == (str(moved), f"{moved}%", f"inset(0px {100 - moved}% 0px 0px)")
        tab.screenshot(tmp_path / "light.png")

        tab.drop(500, 150, photograph)
        assert said(tab)[0].startswith("48 x 64 pixels in ")
        for name, sentence in (
            ("notes.txt", "notes.txt cannot be upscaled: the body is no JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"),
            ("large.png", "large.png cannot be upscaled: the image has 20000 pixels, and 10000 are allowed"),
        ):
            tab.choose("#file", tmp_path / name)
            text, kind = said(tab)
            assert (text.strip(), kind) == (sentence, "error")
        tab.size(390, 844, dark=True)
        tab.screenshot(tmp_path / "dark.png")
        assert tab.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        running.program.should_exit = True
        running.thread.join(30)
        tab.choose("#file", photograph)
        assert said(tab) == ("the server does not answer (Failed to fetch)", "error")
        assert tab.exceptions == []
