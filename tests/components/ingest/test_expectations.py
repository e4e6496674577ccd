import html
import re
from pathlib import Path

import pandas as pd
import pytest

from components.config import IngestParams
from components.ingest.expectations import validate

PARAMS = IngestParams(
    minimum_side=64,
    convert=(),
    near_duplicate_bits=4,
    validation_share=0.3,
    test_share=0.3,
    quarantine_tolerance=0.4,
)


def manifest() -> pd.DataFrame:
    sides = ["train", "validation", "test"]
    return pd.DataFrame(
        {
            "sha256": [f"{index:064x}" for index in range(3)],
            "source": [f"{side}.png" for side in sides],
            "file": [f"photographs/{side}.png" for side in sides],
            "size_bytes": 1000,
            "width": 64,
            "height": 100,
            "mode": "RGB",
            "bit_depth": 8,
            "format": "PNG",
            "converted": "",
            "texture_mean": 0.1,
            "texture_share": 0.5,
            "phash": [f"{index:016x}" for index in range(3)],
            "split": sides,
            "near_duplicates": 0,
        }
    )


def test_a_sound_manifest_passes_and_has_its_page(tmp_path: Path) -> None:
    assert validate(manifest(), tmp_path, PARAMS) == []
    pages = list(tmp_path.glob("validations/**/*.html"))
    assert len(pages) == 1
    assert "Succeeded" in pages[0].read_text()
    assert (tmp_path / "index.html").exists()


def test_the_pages_load_nothing_and_name_no_missing_label(tmp_path: Path) -> None:
    validate(manifest(), tmp_path, PARAMS)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"<script|<link|<img|@import|url\(|https?:", text)
        assert "__none__" not in f"{page}{text}"
        assert "Data asset: None" not in text
    [result] = tmp_path.glob("validations/**/*.html")
    assert ".alert {" in result.read_text()
    index = (tmp_path / "index.html").read_text()
    assert "Succeeded" in index
    links = re.findall(r'href="([^"#]+)"', index)
    assert {(tmp_path / link).relative_to(tmp_path).as_posix() for link in links} == {
        "index.html", "expectations/photographs.html",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "expectations", "validations"}


def test_names_forge_nothing_in_the_pages_even_if_two_are_equal(tmp_path: Path) -> None:
    table = manifest()
    table.loc[[0, 1], "source"] = "<img src=x onerror=alert(1)>\n\x1b[31m.png"
    table.loc[2, "source"] = r"<img src=x onerror=alert(1)>\n\x1b[31m.png"
    [line] = validate(table, tmp_path, PARAMS)
    assert "values_to_be_unique of source does not hold (2 values, such as ['<img src=x onerror=alert(1)>" in line
    assert "\n" not in line
    [result] = tmp_path.glob("validations/**/*.html")
    text = result.read_text()
    assert "<img" not in text
    assert "\x1b" not in text
    assert r"<img src=x onerror=alert(1)>\n\x1b[31m.png" in html.unescape(text)


def test_the_pages_are_in_a_folder_with_a_dollar_sign_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "elsewhere")
    docs = tmp_path / "a$ELSEWHERE ${ELSEWHERE} $1 %2F?"
    docs.mkdir()
    assert validate(manifest(), docs, PARAMS) == []
    assert (docs / "index.html").exists()
    assert list(tmp_path.iterdir()) == [docs]


@pytest.mark.parametrize(
    ("column", "value", "expectation"),
    [
        ("sha256", f"{1:064x}", "values_to_be_unique of sha256"),
        ("sha256", "short", "match_regex of sha256"),
        ("source", None, "not_be_null of source"),
        ("source", "test.png", "values_to_be_unique of source"),
        ("file", "photographs/test.png", "values_to_be_unique of file"),
        ("size_bytes", 0, "to_be_between of size_bytes"),
        ("width", 63, "to_be_between of width"),
        ("height", 63, "to_be_between of height"),
        ("mode", "L", "in_set of mode"),
        ("bit_depth", 16, "in_set of bit_depth"),
        ("texture_mean", 1.5, "to_be_between of texture_mean"),
        ("texture_share", -0.1, "to_be_between of texture_share"),
        ("phash", "x", "match_regex of phash"),
        ("split", "holdout", "equal_set of split"),
        ("split", "test", "equal_set of split"),
        ("near_duplicates", 1, "max_to_be_between of near_duplicates"),
    ],
)
def test_each_expectation_is_named_when_it_does_not_hold(
    column: str, value: object, expectation: str, tmp_path: Path
) -> None:
    table = manifest()
    table.loc[0, column] = value
    failed = validate(table, tmp_path, PARAMS)
    assert any(expectation in line for line in failed), failed
    assert all("\n" not in line for line in failed)
    assert "Failed" in next(tmp_path.glob("validations/**/*.html")).read_text()
