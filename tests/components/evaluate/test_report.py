from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from components.artifacts import DataSummary, Finding, Gain, Quarantined, Verdict
from components.evaluate.report import html_report

ROW: dict[Any, float] = {"psnr_y": 28.126, "ssim_y": 0.81239, "lpips": 0.1, "lr_psnr": 45.0}
MEANS: dict[Any, dict[Any, float]] = {"bicubic": ROW, "challenger": ROW | {"lpips": 0.0512}}
SUMMARY = DataSummary(
    data_version="0123.dir",
    photographs={"train": 4, "validation": 1, "test": 2},
    quarantined=(
        Quarantined("<b>\n\x1b[31m.png", "grey", "it is grey & more"),
        *(Quarantined(f"{n}.png", "tiny", "take a larger one") for n in range(11)),
    ),
    patchless={"train": ("<i>.png",), "validation": ("v.png",)},
)
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
    thumbnails = {0: np.zeros((8, 8, 3), np.uint8)}
    page.feed(html_report(verdict, MEANS, rows, panels, HISTORY, summary=SUMMARY, thumbnails=thumbnails))
    assert page.open == []
    return page


def test_names_and_reasons_are_escaped_and_shown() -> None:
    page = rendered()
    assert len(page.pictures) == 3
    for text in ("a & <b>.png", "a <reason>: with & colon", "lpips 0.0512, required: at most 0.2", "0123.dir"):
        assert text in page.text
    assert "passed: lpips" not in page.text


def test_the_report_tells_what_the_data_are_and_what_was_left_out() -> None:
    page = rendered()
    assert [picture[:22] for picture in page.pictures] == ["data:image/png;base64,"] * 3
    for text in (
        "7 photographs (4 train, 1 validation, 2 test), data version 0123.dir",
        "Quarantined: 12 files (1 grey, 11 tiny)",
        r"<b>\n\x1b[31m.png",
        "it is grey & more",
        "8.png",
        "and 2 more in data.json",
        "no patches: 2 photographs",
        "<i>.png, v.png",
        "no validation: none of the 1 validation photographs gives a patch",
    ):
        assert text in page.text
    assert "9.png" not in page.text
    assert page.text.count("no preview") == 9


def test_the_report_names_the_decision_and_the_opponents() -> None:
    assert "tests: challenger against bicubic and warm-up" in rendered().text
    promoted = rendered("promote", champion="7").text
    assert "tests: challenger against champion, version 7" in promoted
    assert "the challenger becomes champion." in promoted
    assert "the challenger does not become champion." in rendered().text


def test_the_report_shows_each_change_with_its_interval_and_the_champion_first() -> None:
    gain = Gain(opponent="bicubic", metric="lpips", mean=0.012, interval=(0.005, 0.019), better=24, ties=1, worse=3)
    few = replace(gain, opponent="champion", metric="psnr_y", mean=-0.25, interval=None)
    text = "".join(rendered(champion="7", gains=(gain, few), confidence=0.95).text.split())
    assert "95%interval" in text
    assert "championPSNR-Y↑-0.25toofewphotographs24,1,3bicubicLPIPS↓-0.0120[-0.0190,-0.0050]24,1,3" in text
    assert "photograph by photograph" not in rendered().text


def test_the_verdict_is_told_in_one_sentence() -> None:
    assert "Version 7 stays champion: <too> few." in rendered(summary="Version 7 stays champion: <too> few.").text


def test_the_report_shows_health_only_if_there_are_findings() -> None:
    assert "Adversarial training" not in rendered().text
    healthy, ill = Finding(True, "mask: fine"), Finding(False, "logits: far apart")
    assert "Adversarial training looks healthy." in rendered(health=(healthy,)).text
    assert "logits: far apart" in rendered(health=(healthy, ill)).text
    assert "looks healthy" not in rendered(health=(healthy, ill)).text
