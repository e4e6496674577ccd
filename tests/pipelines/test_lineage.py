"""`bebygan why` and `bebygan lineage` from a real MLflow database, a ledger and a DVC remote."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.tracking.client import mlflow_client
from tests.pipelines.conftest import MODEL

Command = Callable[..., tuple[int, str]]


def test_why_shows_verdict_figures_and_every_move(
    made: str, version: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    for number in (made, version()):
        command("promote", number, "--reason", f"try {number}")
    command("rollback", "--reason", "faces look worse")
    lines = command("why", "champion")[1].splitlines()
    assert lines[:3] == [f"{MODEL} version 1: verdict promote", "aliases: champion", "  passed: lpips 0.5"]
    assert lines[4].split()[0] == "PSNR-Y"
    assert re.match(r"challenger +0\.50 ", lines[6])
    moves = [line.partition("+00:00  ")[2] for line in lines[lines.index("as champion:") + 1 :]]
    assert moves == [
        "champion, the first one (by command, by ada): try 1",
        "replaced by version 2 (by command, by ada): try 2",
        "champion, after version 2 (rollback, by ada): faces look worse",
    ]
    facts = json.loads(command("why", "1", "--json")[1])
    assert [move["verdict"] for move in facts["moves"]] == ["by command", "by command", "rollback"]
    assert facts["means"]["challenger"]["lpips"] == 0.5
    assert (
        command("why", "2")[1]
        .splitlines()[-1]
        .endswith("rolled back to version 1 (rollback, by ada): faces look worse")
    )


def test_why_of_a_version_without_runs_says_what_is_missing(version: Callable[..., str], command: Command) -> None:
    version(verdict="keep", reasons="failed: lpips 0.3; passed: psnr_y 27")
    lines = command("why", "1")[1].splitlines()
    assert lines[2:] == [
        "  failed: lpips 0.3",
        "  passed: psnr_y 27",
        "the figures are not available: the run that measured them is not in MLflow",
        "",
        "as champion:",
        "  never",
    ]


def test_a_verdict_that_was_replaced_is_not_shown(made: str, command: Command, workspace: Path) -> None:
    [verdict] = workspace.glob("mlartifacts/**/evaluation/verdict.json")
    verdict.write_text(verdict.read_text().replace("0.5", "0.4"))
    code, told = command("why", made)
    assert code == 3
    assert "is not the one that models:/bebygan/1 was registered with" in told


def test_lineage_leads_from_a_version_to_its_photographs(made: str, command: Command) -> None:
    lines = [line.split() for line in command("lineage", made)[1].splitlines()]
    assert [line for line in lines if line[0] in ("source", "reason", "seed")] == [
        ["reason", "a", "test"],
        ["source", "s3://photographs"],
        ["seed", "1"],
    ]
    assert ["trip/0.png", "(train)"] in lines
    told = command("lineage", made, "--json")[1]
    facts = json.loads(told)
    assert facts["photographs"][2] == {"source": "trip/2.png", "sha256": "2" * 64, "split": "test"}
    assert facts["run"]["steps"].keys() == {"train", "evaluate"}
    assert facts["parameters"]["values"]["train.seed"] == "1"
    assert facts["parameters"]["params_hash"] == mlflow_client().get_run(facts["run"]["id"]).data.tags["params_hash"]
    assert "unknown" not in told


def test_lineage_names_the_parameters_that_changed_since_the_champion_before(
    made: str, version: Callable[..., str], command: Command
) -> None:
    client = mlflow_client()
    parent = client.create_run(client.get_experiment_by_name("bebygan").experiment_id).info.run_id
    client.log_param(parent, "train.seed", "2")
    for name, value in client.get_run(client.get_model_version(MODEL, made).tags["parent_run"]).data.params.items():
        if name != "train.seed":
            client.log_param(parent, name, value)
    second = version(parent_run=parent, compared_with_champion=made)
    assert "changed         train.seed 1 -> 2 (since version 1)" in command("lineage", second)[1]


def test_lineage_of_a_version_outlives_the_champion_that_it_was_compared_with(
    made: str, version: Callable[..., str], command: Command
) -> None:
    second = version(compared_with_champion=made)
    mlflow_client().delete_model_version(MODEL, made)
    code, told = command("lineage", second)
    assert (code, told.splitlines()[-1]) == (
        0,
        "  changed         not known, because that version was deleted (since version 1)",
    )


def test_lineage_says_which_photographs_the_remote_has_lost(made: str, command: Command, workspace: Path) -> None:
    shutil.rmtree(workspace / "dvc-remote")
    code, told = command("lineage", made)
    assert code == 0
    assert re.search(r"\n  not known: .*dvc-remote has no object [0-9a-f]{32}\.dir: push the data version there", told)
