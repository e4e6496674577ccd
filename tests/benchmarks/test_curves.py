import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import curves

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(tmp_path: Path) -> ElementTree.Element:
    entries = [{"iteration": each, "total": 2.0, "discriminator": 0.7 - each / 100} for each in range(1, 21)]
    entries += [{"iteration": each, "validation.lpips": 0.2 - each / 1000} for each in (0, 10, 20)]
    entries += [{"iteration": 20, "delivered": 10}]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    curves.main([str(history), "--output", str(tmp_path / "curves.svg")])
    return ElementTree.parse(tmp_path / "curves.svg").getroot()  # noqa: S314 - written above


def test_each_known_value_has_a_chart_and_others_have_none(drawn: ElementTree.Element) -> None:
    titles = [each.text for each in drawn.iter(f"{SVG}text") if each.get("class") == "title"]
    assert titles == ["LPIPS, validation", "discriminator"]


def test_validations_are_points_and_the_delivered_iteration_is_marked(drawn: ElementTree.Element) -> None:
    assert len(list(drawn.iter(f"{SVG}circle"))) == 3
    mark = next(each.get("x1") for each in drawn.iter(f"{SVG}line") if each.get("class") == "mark")
    middle = [each.get("cx") for each in drawn.iter(f"{SVG}circle")][1]
    assert mark == middle


def test_the_picture_tells_its_content_to_those_who_do_not_see_it(drawn: ElementTree.Element) -> None:
    assert "LPIPS from 0.2 at iteration 0 to 0.18 at iteration 20" in str(drawn.get("aria-label"))
