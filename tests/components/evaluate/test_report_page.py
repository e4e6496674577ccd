"""The report in a real browser: sizes, colours, mouse, keyboard."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from components.artifacts import Anchor, DataSummary, Finding, Gain, Quarantined, Verdict
from components.comparison import METRICS
from components.evaluate.background import Background
from components.evaluate.gallery import ROLES, Sight
from components.evaluate.pictures import SIDE
from components.evaluate.report import html_report
from tests.pipelines.serving.browser import Browser, browser

CANDIDATES: tuple[Any, ...] = ("bicubic", "warmup", "challenger", "champion")
RANDOM = np.random.default_rng(0)
STAGE = "document.querySelector('.stage')"


def page() -> str:
    """A report with everything in it: all metrics and candidates, a long name, every kind of notice."""
    names = [f"{'a-very-long-name-' * 6}{number}.png" for number in range(24)]
    rows: list[Any] = [
        {"photograph": name, "candidate": candidate, **{metric: RANDOM.uniform(0.1, 0.9) for metric in METRICS}}
        for name in names
        for candidate in CANDIDATES
    ]
    gains = [
        Gain(opponent=other, metric=metric, mean=0.01, interval=(0.002, 0.02), better=20, ties=1, worse=3)
        for other in ("bicubic", "warmup", "champion")
        for metric in METRICS
    ]
    verdict = Verdict(
        verdict="promote",
        reasons=("passed: lpips 0.0512, required: at most 0.2", "passed: psnr_y"),
        summary="The challenger replaces champion version 7: LPIPS -0.0100 [-0.0200, -0.0020] against champion.",
        gains=tuple(gains),
        confidence=0.95,
        model="tests",
        champion="7",
        challenger_sha256="0" * 64,
        protocol={"start": "the warm-up generator", "lpips": "lower is better, " * 20},
        health=(Finding(True, "mask: fine"), Finding(False, "logits: far apart")),
        provenance={"data_version": f"{'0' * 32}.dir", "git_sha": "0" * 40},
    )
    summary = DataSummary(
        data_version=f"{'0' * 32}.dir",
        photographs={"train": 70, "validation": 6, "test": 24},
        quarantined=tuple(Quarantined(f"{'long' * 20}{n}.png", "tiny", "take a larger one " * 5) for n in range(12)),
        patchless={"train": (names[0],)},
    )
    pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
    pixels[20:60, 20:60] = RANDOM.integers(0, 256, (40, 40, 3), np.uint8)
    level = np.full_like(pixels, 100)
    sight = Sight(
        photograph=names[0],
        roles=("best",),
        panels={
            "LR": pixels[::4, ::4],
            "bicubic": level,
            "warm-up": level,
            "challenger": level + np.uint8(6),
            "champion": level,
            "original": pixels,
        },
        textured=pixels[..., 0] > 100,
        artefacts=pixels[..., 0] > 200,
        overview=pixels,
        frame=(10, 10, 50, 50),
        facts={"gain": 0.0488, "change": 2.0, "artefacts": 0.01},
    )
    history = [
        {"iteration": 10 * n, "total": RANDOM.uniform(), "l1": 1 / n, "discriminator": 0.5, "validation.lpips": 0.3}
        for n in range(1, 40)
    ]
    means: Any = {name: dict.fromkeys(METRICS, 0.5) for name in CANDIDATES}
    return html_report(
        verdict,
        means,
        rows,
        [sight, *(replace(sight, photograph=names[n], roles=(ROLES[n % 4],)) for n in range(1, 9))],
        [*history, {"iteration": 390, "delivered": 200}],
        summary=summary,
        thumbnails={0: pixels},
        anchor=Anchor(data_version=f"{'1' * 32}.dir", photographs=12, means=means),
        on_anchor=[(str(number), means["champion"]) for number in range(1, 5)],
        bounds={"champion": {"lpips": 0.003, "psnr_y": -0.25}},
        background=Background(
            run_id="7" * 32,
            parameters={"train.schedule.milestones": ("[1000, 2000]", "[]")},
            new={"train": tuple(names), "validation": (), "test": ()},
            gone=1,
        ),
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(page())
    assert (folder / "report.html").stat().st_size < 5_000_000
    with browser(folder) as opened:
        opened.size(1100, 900)
        opened.open((folder / "report.html").as_uri())
        yield opened
        assert opened.exceptions == []


@pytest.fixture(autouse=True)
def fresh(tab: Browser) -> None:
    tab.size(1100, 900)
    tab.open(tab.value("location.href"))
    tab.exceptions.clear()


def choose(tab: Browser, name: str, value: str) -> None:
    tab.value(
        f"document.getElementById('{name}').value = '{value}';"
        f"document.getElementById('{name}').dispatchEvent(new Event('change'))"
    )


def box(tab: Browser, element: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(tab.value(f"JSON.stringify({element}.getBoundingClientRect())"))
    return found


def test_a_report_fetches_nothing(tab: Browser) -> None:
    assert tab.value("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0 || image.parentElement.hidden)")


@pytest.mark.parametrize("width", [390, 800, 1100])
def test_a_report_does_not_scroll_sideways(tab: Browser, width: int) -> None:
    tab.size(width, 900)
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    outside = (
        "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && !e.closest('.stage, .tile')"
        " && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML)"
    )
    assert tab.value(outside) == []


def test_the_divider_moves_by_mouse_and_by_keyboard(tab: Browser) -> None:
    place = f"{STAGE}.querySelector('.divider').style.left + {STAGE}.querySelector('.over').style.clipPath"
    assert tab.value(place) == "50%inset(0px 0px 0px 50%)"
    tab.value(f"{STAGE}.scrollIntoView({{block: 'center'}})")
    stage = box(tab, STAGE)
    left, top, width = stage["x"], stage["y"] + stage["height"] / 2, stage["width"]
    tab.drag((left + width / 2, top), (left + width / 4, top))
    assert tab.value(place) == "25%inset(0px 0px 0px 25%)"
    tab.value("document.getElementById('divider').focus()")
    tab.press("ArrowRight", 39)
    assert tab.value(place) == "26%inset(0px 0px 0px 26%)"
    tab.press("End", 35)
    assert tab.value(place) == "100%inset(0px 0px 0px 100%)"
    assert tab.value("document.getElementById('divider').ariaValueText") == "100% champion, 0% challenger"


@pytest.mark.parametrize("width", [390, 800, 1100])
def test_pictures_are_shown_at_whole_multiples_of_their_pixels_and_at_one_place(tab: Browser, width: int) -> None:
    tab.size(width, 900)
    zooms = tab.value("[...document.getElementById('zoom').options].map(each => Number(each.value))")
    assert zooms[0] == 1
    assert len(zooms) == 4
    for zoom in zooms:
        choose(tab, "zoom", str(zoom))
        pictures = (
            f"[...{STAGE}.querySelectorAll('.layer:not([hidden]) img'), ...document.querySelectorAll('.tile img')]"
        )
        sizes = tab.value(
            f"{pictures}.filter(e => e.checkVisibility()).map(e => [e.getBoundingClientRect().width, e.naturalWidth,"
            " getComputedStyle(e).imageRendering])"
        )
        assert len(sizes) == 2 + 6
        assert {shown % real for shown, real, _ in sizes} == {0}
        assert {how for _, _, how in sizes} == {"pixelated"}
        assert sizes[0][0] == sizes[1][0] == SIDE * zoom
    tile = "document.querySelector('.strip .tile')"
    tab.value(f"{tile}.focus()")
    before = tab.value("[...document.querySelectorAll('.strip .tile img')].map(e => e.style.left)")
    tab.press("ArrowRight", 39)
    after = tab.value("[...document.querySelectorAll('.strip .tile img')].map(e => e.style.left)")
    assert len({*after}) == 1
    assert before != after


def test_the_difference_of_two_sides_is_measured_and_masks_are_laid_over_them(tab: Browser) -> None:
    choose(tab, "show", "difference")
    tab.wait_for("document.querySelector('.told').textContent != ''")
    assert tab.value("document.querySelector('.told').textContent").startswith("Mean difference 6.00 of 255 levels")
    levels = f"{STAGE}.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data"
    assert tab.value(f"[...{levels}]") == [48, 48, 48, 255]
    choose(tab, "show", "artefacts")
    assert tab.value(f"{STAGE}.querySelector('canvas').checkVisibility()") is False
    marked = f"{STAGE}.querySelector('.marked img')"
    assert tab.value(f"{marked}.src == document.querySelector('.strip [data-name=artefacts]').src")
    assert tab.value(f"{marked}.checkVisibility()")


def test_each_photograph_and_each_side_can_be_chosen_by_keyboard(tab: Browser) -> None:
    tab.value("document.querySelector('.picker button:nth-child(3)').focus()")
    tab.press(" ", 32)
    assert tab.value("document.querySelectorAll('.picker [aria-pressed=true]').length") == 1
    chosen = "document.querySelector('.picker [aria-pressed=true]').dataset.sight"
    assert tab.value(chosen) == "2"
    assert tab.value("document.querySelector('.strip .sight').dataset.sight") == "2"
    tab.value("document.querySelector('.strip [data-name=original]').focus()")
    tab.press(" ", 32)
    assert tab.value("document.getElementById('right').value") == "original"
    tab.value("document.querySelector('.chart a').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert tab.value(chosen) == tab.value("document.querySelector('.chart a').dataset.sight")


def test_everything_that_is_used_or_seen_has_a_name_for_a_screen_reader(tab: Browser) -> None:
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "combobox", "slider", "image", "img", "graphics-document"}
    unnamed = [
        node
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    assert sum(node["role"]["value"] == "slider" for node in nodes) == 1


CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.6) return colour;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, select, title")) continue;
    const { fill, color } = getComputedStyle(element);
    const colours = [parse(element.closest("svg") ? fill : color), behind(element)];
    const [dark, bright] = colours.map(light).sort((a, b) => a - b);
    found.push([(bright + 0.05) / (dark + 0.05), `${element.className} ${text.slice(0, 40)}`]);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast_in_light_and_in_dark(tab: Browser, dark: bool) -> None:
    tab.size(1100, 900, dark=dark)
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 22, 28)" if dark else "rgb(255, 255, 255)")
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = tab.value(CONTRAST)
    assert len(found) > 300
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []
