from html.parser import HTMLParser
from typing import Any

import numpy as np

from components.artifacts import Finding, Verdict
from components.evaluate.report import html_report

ROW: dict[Any, float] = {"psnr_y": 28.126, "ssim_y": 0.81239, "lpips": 0.1, "lr_psnr": 45.0}
MEANS: dict[Any, dict[Any, float]] = {"bicubic": ROW, "challenger": ROW | {"lpips": 0.0512}}
HISTORY = [{"iteration": number, "l1": 1 / number} for number in range(1, 4)]


class Page(HTMLParser):
    """Checks that tags are closed, and collects text and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(recommendation: Any = "keep", champion: str | None = None, **changed: Any) -> Page:
    verdict = Verdict(
        verdict=recommendation,
        reasons=("passed: lpips 0.0512, required: at most 0.2", "failed: a <reason>: with & colon"),
        model="tests",
        champion=champion,
        challenger_sha256="0" * 64,
        protocol={"lpips": "lower is better"},
        provenance={"data_version": "0123.dir"},
        **changed,
    )
    rows = [{"photograph": "a & <b>.png", "candidate": name, **row} for name, row in MEANS.items()]
    panels = {"a & <b>.png": dict.fromkeys(("bicubic", "original"), np.zeros((8, 8, 3), np.uint8))}
    page = Page()
    page.feed(html_report(verdict, MEANS, rows, panels, HISTORY))
    assert page.open == []
    return page


def test_names_and_reasons_are_escaped_and_shown() -> None:
    page = rendered()
    assert len(page.pictures) == 2
    for text in ("a & <b>.png", "a <reason>: with & colon", "lpips 0.0512, required: at most 0.2", "0123.dir"):
        assert text in page.text
    assert "passed: lpips" not in page.text


def test_the_report_names_the_decision_and_the_opponents() -> None:
    assert "tests: challenger against bicubic and warm-up" in rendered().text
    promoted = rendered("promote", champion="7").text
    assert "tests: challenger against champion, version 7" in promoted
    assert "the challenger becomes champion." in promoted
    assert "the challenger does not become champion." in rendered().text


def test_the_report_shows_health_only_if_there_are_findings() -> None:
    assert "Adversarial training" not in rendered().text
    healthy, ill = Finding(True, "mask: fine"), Finding(False, "logits: far apart")
    assert "Adversarial training looks healthy." in rendered(health=(healthy,)).text
    assert "logits: far apart" in rendered(health=(healthy, ill)).text
    assert "looks healthy" not in rendered(health=(healthy, ill)).text
