from pathlib import Path

import pytest

from pipelines.local import _alone, _remove_unused


def test_a_run_is_not_alone_while_another_one_is_under_way_in_the_workspace(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with path.open("w") as ours:
        with path.open("w") as theirs:
            assert _alone(theirs)
            assert not _alone(ours)
        assert _alone(ours)


def test_what_was_not_used_is_removed_and_what_cannot_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("first/ingest", "first/train", "second/train", "third/evaluate"):
        (tmp_path / task / "artifact").mkdir(parents=True)
    (tmp_path / "foreign").touch()
    _remove_unused(tmp_path, {tmp_path / "first/ingest", tmp_path / "third/evaluate"})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert left == {"first/ingest", "third/evaluate"}
    assert {path.name for path in tmp_path.iterdir()} == {"first", "third", "foreign"}
    assert capsys.readouterr().err == (
        f"warning: what an earlier run left in {tmp_path / 'foreign'} cannot be removed: Not a directory\n"
    )
