"""The file of schedules is read, and invalid files are rejected."""

from pathlib import Path

import pytest

from bebygan.errors import ConfigError
from pipelines.kubeflow.schedule_file import interval_seconds, load_schedules

FILE = """
owner: us
cluster: infra/cluster.yaml
schedules:
  - name: weekly
    cron: 0 0 2 * * sun
    source: s3://photographs/new
  - name: often
    every: 15min
    source: s3://photographs/new
    set: [train.seed=2]
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "schedules.yaml"
    path.write_text(FILE)
    found = load_schedules(path)
    weekly, often = found.schedules
    assert (found.owner, found.require_digests) == ("us", False)
    assert (weekly.cron, weekly.every, weekly.concurrency, weekly.catchup) == ("0 0 2 * * sun", None, 1, False)
    assert (interval_seconds(often.every), often.set) == (900, ("train.seed=2",))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0 0 2 * * sun", "0 0 25 * * sun", "schedule weekly: parameter cron: hour: '25' is not within 0-23"),
        ("0 0 2 * * sun", "0 2 * * sun", "six are needed"),
        ("15min", "often", "schedule often: parameter every: 'often' is not an interval"),
        ("    every:", "    pipeline: detect\n    every:", "schedule often: remove the line `pipeline: detect`"),
        ("    every:", "    pipeline: retrain\n    every:", "schedule often: remove the line `pipeline: retrain`"),
        ("    cron:", "    corn:", "there is no parameter corn; did you mean cron?"),
        ("    every: 15min\n", "", "schedule often: give one of cron and every"),
        ("name: often", "name: weekly", "schedule weekly: two schedules have this name"),
        ("name: often", "name: Often!", "parameter name"),
        ("    source: s3://photographs/new\n    set", "    set", "parameter source is missing"),
        ("set: [train.seed=2]", "concurrency: 11", "parameter concurrency"),
        ("owner: us", "onwer: us", "did you mean owner?"),
        ("schedules:\n", "schedules: 3\nrest:\n", "the last one a list"),
        ("owner: us", "owner: [", "is not YAML"),
    ],
)
def test_an_invalid_file_is_rejected_with_the_name_of_the_schedule(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = tmp_path / "schedules.yaml"
    assert old in FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_schedules(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
