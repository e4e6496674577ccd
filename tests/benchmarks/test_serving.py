from pathlib import Path

import pytest

from benchmarks import serving


@pytest.mark.slow
def test_promotions_and_rollbacks_under_load_lose_no_request_and_broken_versions_are_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The load sets it; this restores it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    found = serving.load(tmp_path / "workspace", requests=240, clients=4, moves=7, side=16, poll=0.1)
    assert (found.wrong, found.stale()) == ([], [])
    assert [status for _, _, status, _ in found.answers] == [200] * 240
    assert min([version for *_, version in found.answers].count(each) for each in ("1", "2")) > 5
    assert [number for *_, number in found.moves] == ["1", *"2121212"]
    assert found.refused == 7
    assert max(served - began for began, served, _ in found.moves) < 20


def test_an_answer_of_a_version_that_was_champion_before_or_after_the_request_is_found() -> None:
    found = serving.Load(moves=[(0, 0, "1"), (10, 11, "2"), (20, 21, "1")])
    found.answers = [(1, 2, 200, "1"), (10.5, 10.8, 200, "1"), (10.5, 10.8, 200, "2"), (11.5, 19, 200, "2")]
    assert found.stale() == []
    found.answers = [(1, 2, 200, "2"), (12, 13, 200, "1"), (1, 2, 200, "3")]
    assert len(found.stale()) == 3
