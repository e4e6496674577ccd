import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from components.artifacts import Anchor, DataSummary, Finding, Gain, Quarantined, Verdict
from components.evaluate.background import Background
from components.evaluate.gallery import ROLES, Sight
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
BARE = Verdict(verdict="keep", reasons=(), model="m", champion=None, challenger_sha256="0", protocol={}, provenance={})
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
        elif tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def sight(name: str = "a & <b>.png", *roles: str) -> Sight:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return Sight(
        photograph=name,
        roles=roles or ("best",),
        panels={"LR": pixels[:2, :2], "bicubic": pixels, "challenger": pixels, "original": pixels},
        textured=pixels[..., 0] > 0,
        artefacts=pixels[..., 0] > 0,
        overview=pixels,
        frame=(0, 0, 100, 100),
        facts={"gain": 0.0488, "change": 2.0, "artefacts": 0.01},
    )


def rendered(recommendation: Any = "keep", champion: str | None = None, **changed: Any) -> Page:
    known = {name: changed.pop(name) for name in ("background", "bounds", "anchor", "on_anchor") if name in changed}
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
    page = Page()
    thumbnails = {0: np.zeros((8, 8, 3), np.uint8)}
    page.feed(html_report(verdict, MEANS, rows, [sight()], HISTORY, summary=SUMMARY, thumbnails=thumbnails, **known))
    assert page.open == []
    return page


def test_names_and_reasons_are_escaped_and_shown() -> None:
    page = rendered()
    # The photograph, four squares, two masks, and a thumbnail.
    assert len(page.pictures) == 8
    for text in ("a & <b>.png", "a <reason>: with & colon", "lpips 0.0512, required: at most 0.2", "0123.dir"):
        assert text in page.text
    assert "passed: lpips" not in page.text


def test_the_report_tells_what_the_data_are_and_what_was_left_out() -> None:
    page = rendered()
    assert [picture[:22] for picture in page.pictures] == ["data:image/webp;base64"] * 8
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
    told = (
        "challengeragainstchampion",
        "PSNR-Y↑-0.25toofewphotographs24,1,3",
        "challengeragainstbicubic",
        "LPIPS↓-0.0120[-0.0190,-0.0050]24,1,3",
    )
    places = [text.index(part) for part in told]
    assert places == sorted(places)
    assert "photograph by photograph" not in rendered().text


def test_the_verdict_is_told_in_one_sentence() -> None:
    assert "Version 7 stays champion: <too> few." in rendered(summary="Version 7 stays champion: <too> few.").text


def test_the_report_shows_health_only_if_there_are_findings() -> None:
    assert "Adversarial training" not in rendered().text
    healthy, ill = Finding(True, "mask: fine"), Finding(False, "logits: far apart")
    assert "Adversarial training looks healthy." in rendered(health=(healthy,)).text
    assert "logits: far apart" in rendered(health=(healthy, ill)).text
    assert "looks healthy" not in rendered(health=(healthy, ill)).text


def test_the_report_tells_which_photographs_and_parameters_are_new_since_the_champion() -> None:
    known = Background(
        began=datetime(2026, 11, 30, 13, 5, tzinfo=UTC),
        run_id="77",
        parameters={"train.<iterations>": ("100", "200")},
        new={"train": ("new & old.png",), "validation": (), "test": ()},
        gone=2,
    )
    text = " ".join(rendered(champion="7", background=known).text.split())
    for part in (
        "30 November 2026, 13:05 UTC",
        "Since the champion: 1 new, 2 gone",
        "train: new & old.png",
        "train.<iterations> 100 200",
        "Run 77 in MLflow: bebygan ui opens it",
    ):
        assert part.replace(" ", "") in text.replace(" ", "")


def test_the_report_says_why_it_does_not_know_what_is_new() -> None:
    known = Background(
        unknown="the remote <is> unreachable", link="http://mlflow/#/experiments/1/runs/7", parameters={}
    )
    text = " ".join(rendered(champion="7", background=known).text.split())
    assert "Which photographs are new since the champion is not known: the remote <is> unreachable." in text
    assert "Parameters that differ from the champion's run None." in text
    assert "The run in MLflow" in text


def test_the_anchor_shows_the_champions_and_the_challenger_as_the_last() -> None:
    anchor = Anchor(data_version="9.dir", photographs=5, means=MEANS)
    before = [("1", ROW), ("old", {"lpips": 0.3}), ("4", ROW)]
    text = " ".join(rendered(anchor=anchor, on_anchor=before).text.split())
    assert "5 photographs that stay the same" in text
    told = ("version 1 28.13", "version 4 28.13", "challenger 28.13 0.8124 0.0512")
    places = [text.replace(" ", "").index(part.replace(" ", "")) for part in told]
    assert places == sorted(places)
    assert "version old" not in text


def test_a_report_without_sights_gains_or_history_is_a_page() -> None:
    page = Page()
    rows = [{"photograph": "a.png", "candidate": name, **row} for name, row in MEANS.items()]
    page.feed(html_report(BARE, MEANS, rows, [], [], summary=SUMMARY, thumbnails={}))
    assert page.open == page.pictures == []


def test_the_photographs_that_rank_first_are_kept_if_a_page_cannot_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.evaluate.report._MOST_CHARACTERS", 5_000)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    panels = dict.fromkeys(("bicubic", "original"), noise)
    many = [replace(sight(f"{n}.png", ROLES[n % 4]), panels=panels) for n in range(12)]
    rows = [{"photograph": "a.png", "candidate": name, **row} for name, row in MEANS.items()]
    page = html_report(BARE, MEANS, rows, many, [], summary=SUMMARY, thumbnails={})
    shown = [int(name) for name in re.findall(r'class="sight" data-sight="\d+" aria-label="(\d+)\.png"', page)]
    assert 0 < len(shown) < 12
    assert sorted(shown) == list(range(len(shown)))
