"""The retraining pipeline by its real command, from photographs to a champion, and then again."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bebygan.files import sha256_of
from bebygan.networks.naming import load_generator
from components.artifacts import read_means
from components.stores.data_version import data_version, fetch
from components.tracking.ledger import entries
from tests.system.conftest import Finished, output_of, run, start

pytestmark = pytest.mark.slow
STEPS = ("ingest", "patches", "warmup", "train", "evaluate", "register")
TRACKED = STEPS[2:]
PROVENANCE = {
    "git_sha", "git_dirty", "code_hash", "data_version", "params_hash", "image_digest", "kfp_run_id", "seed",
    "metric_protocol", "python_version", "torch_version",
}  # fmt: skip


def client_of(project: Path) -> MlflowClient:
    uri = f"sqlite:///{project / 'workspace' / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs_of(project: Path) -> list[Run]:
    """Return all runs, oldest first."""
    client = client_of(project)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def left(project: Path) -> dict[str, Path]:
    """Return what each task left in the workspace, by its name; fails where one left it twice."""
    found = {path.name: path for path in (project / "workspace" / "pipeline").glob("*/*")}
    assert len(found) == len(list((project / "workspace" / "pipeline").glob("*/*")))
    return found


def stepped(finished: Finished) -> list[str]:
    """Return the steps that worked, in order, as a person was told."""
    return re.findall(r"^(\w+) done in \d+ s$", finished.err, re.MULTILINE)


@pytest.fixture(scope="module")
def second_run(project: Path, first_run: Finished) -> Finished:  # noqa: ARG001
    """The same again."""
    return run(project, "pipelines.cli", "run")


@pytest.fixture(scope="module")
def changed_run(project: Path, second_run: Finished) -> Finished:  # noqa: ARG001
    """A longer training, judged by a threshold that it cannot reach, after the DVC remote lost its objects."""
    shutil.rmtree(project / "workspace" / "dvc-remote" / "files")
    return run(
        project, "pipelines.cli", "run",
        "--set", "train.iterations=4", "--set", "evaluate.thresholds.champion.psnr_y=50",
    )  # fmt: skip


def test_a_run_tells_each_step_and_nothing_else(first_run: Finished) -> None:
    told = [line for step in STEPS for line in (f"{step} ...", f"{step} done in # s")]
    lines = [re.sub(r"\d+", "#", line) for line in first_run.err.splitlines()]
    # A slow machine tells how far a step is, too.
    lines = [line for line in lines if not re.match(r"[\w ]+: # of [#?]", line)]
    assert lines == ["training: there is no champion yet", *told]


def test_a_run_ends_with_the_table_the_champion_and_where_to_look(first_run: Finished, project: Path) -> None:
    lines = first_run.out.splitlines()
    assert lines[0].split() == ["PSNR-Y", "↑", "SSIM-Y", "↑", "LPIPS", "↓", "LR-PSNR", "↑"]
    assert [line.split()[0] for line in lines[1:4]] == ["bicubic", "warm-up", "challenger"]
    values = [[float(value) for value in line.split()[1:]] for line in lines[1:4]]
    metrics = read_means(output_of(project, "evaluate", "evaluation"))
    for row, means in zip(values, metrics.values(), strict=True):
        assert row == pytest.approx(list(means.values())[: len(row)], abs=0.006)
    said = dict(re.findall(r"^(\w+): +(.+)$", first_run.out, re.MULTILINE))
    assert said["verdict"] == "promote"
    assert said["champion"] == "bebygan version 1"
    assert "\nchange against the warm-up, with 95% intervals:\n" in first_run.out
    assert "\nThe challenger becomes the first champion: LPIPS " in first_run.out
    page = (project / said["report"]).read_text()
    assert page.count("data:image/webp;base64,") >= 4
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert said["runs"].endswith("bebygan ui --workspace workspace")


def test_evaluate_gives_kubeflow_the_figures_the_verdict_and_the_report(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    evaluation = output_of(project, "evaluate", "evaluation")
    task = json.loads((evaluation.parent / "executor_output.json").read_text())
    [metrics], [page] = (task["artifacts"][name]["artifacts"] for name in ("metrics", "report"))
    shown = metrics["metadata"]
    assert (shown.pop("verdict"), task["parameterValues"]["Output"]) == ("promote", "promote")
    assert shown.pop("summary").startswith("The challenger becomes the first champion: LPIPS ")
    means = read_means(evaluation)
    assert shown == {f"{name} {metric}": value for name, row in means.items() for metric, value in row.items()}
    assert (evaluation.parent / Path(page["uri"]).name).read_text() == (evaluation / "report.html").read_text()


def test_the_champion_is_the_challenger_that_was_trained(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    champion = client_of(project).get_model_version_by_alias("bebygan", "champion")
    trained = output_of(project, "train", "challenger") / "generator.safetensors"
    assert champion.tags["weights_sha256"] == sha256_of(trained)
    kept = (project / "workspace" / "mlartifacts").rglob("generator.safetensors")
    assert trained.read_bytes() in [path.read_bytes() for path in kept]
    metrics = read_means(output_of(project, "evaluate", "evaluation"))
    for name, value in metrics["challenger"].items():
        assert float(champion.tags[f"metric.{name}"]) == pytest.approx(value, rel=1e-5)
    assert champion.tags["verdict"] == "promote"


def test_training_changed_the_warm_up_weights(first_run: Finished, project: Path) -> None:
    assert stepped(first_run) == list(STEPS)
    before, after = (
        load_generator(output_of(project, step, name) / "generator.safetensors").conv_last.weight.detach()
        for step, name in (("warmup", "generator"), ("train", "challenger"))
    )
    assert 0 < float((after - before).abs().max()) < 1e-2
    history = output_of(project, "train", "challenger") / "history.jsonl"
    start, *logged = (json.loads(line) for line in history.read_text().splitlines())
    assert start["iteration"] == 0
    assert {name.partition(".")[0] for name in start} == {"iteration", "validation"}
    assert [entry["iteration"] for entry in logged] == [1, 2]
    assert {"best_buddy", "back_projection", "dists", "adversarial", "discriminator"} <= logged[0].keys()


def test_held_out_photographs_are_neither_trained_on_nor_left_unmeasured(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    dataset = output_of(project, "ingest", "dataset")
    manifest = pq.read_table(dataset / "manifest.parquet").to_pylist()
    assert {row["split"] for row in manifest} == {"train", "validation", "test"}
    report = (output_of(project, "evaluate", "evaluation") / "per_photograph.csv").read_text()
    measured = {line.split(",")[1] for line in report.splitlines()[1:]}
    assert measured == {row["sha256"] for row in manifest if row["split"] == "test"}
    about = json.loads((output_of(project, "patches", "shards") / "patches.json").read_text())
    assert about["made_from"]["data_version"] == data_version(dataset)


def test_the_data_version_can_be_fetched_from_the_remote(first_run: Finished, project: Path, tmp_path: Path) -> None:
    assert first_run.code == 0
    version = data_version(output_of(project, "ingest", "dataset"))
    fetch(version, str(project / "workspace" / "dvc-remote"), tmp_path / "back")
    assert data_version(tmp_path / "back") == version


def test_runs_hang_together_and_say_where_they_come_from(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    parent, *children = runs_of(project)[:5]
    assert parent.data.tags["step"] == "retrain"
    assert [child.data.tags["step"] for child in children] == list(TRACKED)
    version = data_version(output_of(project, "ingest", "dataset"))
    for each in (parent, *children):
        assert each.info.status == "FINISHED"
        assert each.data.tags.keys() >= PROVENANCE
    for child in children:
        assert child.data.tags["data_version"] == version
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["challenger/lpips"] > 0
    [used] = parent.inputs.dataset_inputs
    assert used.dataset.digest == version
    champion = client_of(project).get_model_version_by_alias("bebygan", "champion")
    assert champion.tags["params_hash"] == parent.data.tags["params_hash"]
    assert champion.tags["seed"] == "1"
    assert champion.tags["parent_run"] == parent.info.run_id
    assert champion.tags["data_version"] == version
    assert champion.run_id == children[-1].info.run_id


def test_the_champion_is_what_its_records_say_and_can_be_made_again(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    verified = run(project, "pipelines.cli", "verify", "champion", "--retrain")
    assert verified.code == 0, verified.err
    assert verified.out.count("as registered") == 4
    assert "  trained again: the weights are equal, bit for bit\n" in verified.out
    assert verified.out.endswith("bebygan version 1 is what its records say\n")
    (project / "components" / "extra.py").touch()
    refused = run(project, "pipelines.cli", "verify", "1", "--retrain")
    (project / "components" / "extra.py").unlink()
    assert refused.code == 2
    assert "models:/bebygan/1 was made with code_hash" in refused.err


def test_losses_and_comparison_are_in_mlflow(first_run: Finished, project: Path) -> None:
    assert first_run.code == 0
    _, _, train, evaluate, _ = runs_of(project)[:5]
    assert train.data.metrics["best_buddy"] > 0
    assert train.data.params["iterations"] == "2"
    metrics = read_means(output_of(project, "evaluate", "evaluation"))
    assert evaluate.data.metrics["challenger/lpips"] == pytest.approx(metrics["challenger"]["lpips"])


def test_a_second_run_has_nothing_to_do_and_names_the_champion(second_run: Finished, project: Path) -> None:
    assert second_run.code == 0, second_run.err
    reason, photographs, checks, version, champion, report, runs = second_run.out.splitlines()
    assert reason.startswith("nothing to do: ")
    assert reason.endswith("; --force runs all steps again")
    assert re.fullmatch(r"data:     \d+ photographs \(\d+ train, \d+ validation, \d+ test\)", photographs)
    assert checks == f"{'':10}checks: workspace/data-docs/index.html"
    assert version == f"{'':10}data version: {data_version(output_of(project, 'ingest', 'dataset'))}"
    assert champion == "champion: bebygan version 1"
    assert report == "report:   workspace/report/report.html"
    assert runs.startswith("runs:     ")
    assert runs.endswith("bebygan ui --workspace workspace")
    assert second_run.err == ""
    assert second_run.seconds < 20
    assert len(list((project / "workspace" / "pipeline").iterdir())) == 1


def test_a_missing_report_is_restored_by_a_run_with_nothing_to_do(second_run: Finished, project: Path) -> None:
    assert second_run.code == 0
    before = (project / "workspace" / "report" / "report.html").read_bytes()
    shutil.rmtree(project / "workspace" / "report")
    again = run(project, "pipelines.cli", "run")
    assert "report:   workspace/report/report.html (restored from MLflow)\n" in again.out, again.err
    assert (project / "workspace" / "report" / "report.html").read_bytes() == before


def test_a_dry_run_with_nothing_to_do_says_so(second_run: Finished, project: Path) -> None:
    assert second_run.code == 0
    planned = run(project, "pipelines.cli", "run", "--dry-run")
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.startswith("nothing to do: photographs, parameters and code are those of the finished run ")
    assert "preflight" not in planned.out


def test_a_changed_parameter_trains_again_on_what_is_cached(changed_run: Finished, project: Path) -> None:
    assert changed_run.code == 0, changed_run.err
    assert stepped(changed_run) == ["train", "evaluate", "register"]
    history = left(project)["train"] / "challenger" / "history.jsonl"
    # The first line is the validation of the start.
    assert len(history.read_text().splitlines()) == 1 + 4
    parent, *children = runs_of(project)[5:]
    assert parent.data.tags["reason"].startswith("parameters changed (evaluate.thresholds.champion.psnr_y -20.0 -> 50")
    assert [child.data.tags["step"] for child in children] == ["train", "evaluate", "register"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}


def test_objects_that_the_remote_lost_are_sent_again_although_ingest_is_cached(
    changed_run: Finished, project: Path, tmp_path: Path
) -> None:
    assert changed_run.code == 0
    version = data_version(output_of(project, "ingest", "dataset"))
    fetch(version, str(project / "workspace" / "dvc-remote"), tmp_path / "back")
    assert data_version(tmp_path / "back") == version
    assert re.search(
        rf"^data version {version} is in .*: (\d+) of \1 objects were missing$", changed_run.err, re.MULTILINE
    )


def test_a_run_leaves_in_the_workspace_what_it_used_and_nothing_of_earlier_ones(
    changed_run: Finished, project: Path
) -> None:
    assert changed_run.code == 0
    tasks = left(project)
    assert set(tasks) == set(STEPS)
    runs = {name: path.parent.name for name, path in tasks.items()}
    assert runs["ingest"] == runs["patches"] == runs["warmup"] != runs["train"] == runs["evaluate"] == runs["register"]
    assert set(runs.values()) == {path.name for path in (project / "workspace" / "pipeline").iterdir()}


def test_a_challenger_that_fails_a_threshold_leaves_the_champion(changed_run: Finished, project: Path) -> None:
    assert [line.split()[0] for line in changed_run.out.splitlines()[1:5]] == [
        "bicubic", "warm-up", "challenger", "champion",
    ]  # fmt: skip
    assert re.search(
        r"\nVersion 1 stays champion: psnr_y .*\nverdict:  keep\n"
        r"failed:   psnr_y .*, required: more than 50 at 95% confidence .*\nchampion: bebygan version 1\n",
        changed_run.out,
    )
    client = client_of(project)
    assert client.get_model_version_by_alias("bebygan", "challenger").tags["verdict"] == "keep"
    assert client.get_model_version_by_alias("bebygan", "champion").tags["verdict"] == "promote"
    report = (project / "workspace" / "report" / "report.html").read_text()
    assert "required: more than 50" in report


def test_the_promotion_stands_in_the_workspaces_ledger(changed_run: Finished, project: Path) -> None:
    assert changed_run.code == 0
    [move] = entries(str(project / "workspace" / "ledger"), "bebygan")
    holder = client_of(project).get_model_version_by_alias("bebygan", "champion")
    assert (move.version, move.previous, move.verdict) == ("1", None, "promote")
    assert (move.weights_sha256, move.run) == (holder.tags["weights_sha256"], holder.run_id)


def test_the_champion_is_measured_anew_and_as_before(changed_run: Finished, project: Path) -> None:
    """The champion's numbers come from its registered weights, on the same bytes, in the same run."""
    assert changed_run.code == 0
    evaluations = (output_of(project, "evaluate", "evaluation"), left(project)["evaluate"] / "evaluation")
    first, second = map(read_means, evaluations)
    assert second["champion"] == first["challenger"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--source", "nowhere"), 3, r"the source nowhere does not exist.*"),
        (("--source", "data/sample/dogs.png"), 3, r".*data/sample/dogs\.png.*"),
        (
            ("--set", "train.iteration=3"),
            2,
            r"there is no parameter train\.iteration; did you mean train\.iterations\?",
        ),
        (("--set", "warmup.ema_decay=2"), 2, r"parameter warmup\.ema_decay must be at least 0 and below 1, got 2\.0"),
        (("--params", "nothing.yaml"), 2, r"cannot read the parameters nothing\.yaml: No such file or directory"),
    ],
)
def test_what_is_wrong_from_the_start_ends_with_one_line_and_its_code(
    arguments: tuple[str, ...], code: int, message: str, first_run: Finished, project: Path
) -> None:
    assert first_run.code == 0
    before = len(runs_of(project))
    done = run(project, "pipelines.cli", "run", *arguments)
    assert done.code == code, done.err
    assert re.fullmatch(f"error: {message}\n", done.err)
    assert len(runs_of(project)) == before


def test_a_step_that_refuses_ends_the_run_with_its_line_and_its_code(changed_run: Finished, project: Path) -> None:
    assert changed_run.code == 0
    done = run(project, "pipelines.cli", "run", "--set", "patches.texture_threshold=1.0")
    assert done.code == 3
    reason, began, *rest = done.err.splitlines()
    assert reason.startswith("training: parameters changed (patches.texture_threshold 0.025 -> 1.0)")
    assert began == "patches ..."
    [line] = [line for line in rest if line]
    assert re.fullmatch(r"error: patches: no training patch of 64 pixels in .* lower patches\.minimum_texture .*", line)
    assert done.out == ""
    assert runs_of(project)[-1].info.status == "FAILED"
    again = run(project, "pipelines.cli", "run")
    assert again.out.startswith("nothing to do")
    assert "\nchampion: bebygan version 1\nreport: " in again.out


def test_a_bug_in_a_step_says_where_its_traceback_is(new_project: Callable[[str], Path]) -> None:
    broken = new_project("broken")
    step = broken / "components" / "ingest" / "step.py"
    step.write_text("raise ZeroDivisionError('a bug')\n")
    done = run(broken, "pipelines.cli", "run")
    assert done.code == 1
    assert "a step failed unexpectedly" in done.err.splitlines()[-1]
    log = broken / "workspace" / "run.log"
    assert str(log) in done.err.splitlines()[-1]
    assert "ZeroDivisionError: a bug" in log.read_text()
    shutil.rmtree(broken)


def _press_ctrl_c(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGINT)


def _kill_the_task(process: "subprocess.Popen[str]") -> None:
    [task] = [each for each in psutil.Process(process.pid).children(recursive=True) if not each.children()]
    task.kill()


def test_a_stopped_run_saves_its_training_and_goes_on_from_there(
    new_project: Callable[[str], Path], first_run: Finished
) -> None:
    assert first_run.code == 0
    project = new_project("stopped")
    command = ("pipelines.cli", "run", "--set", "train.iterations=120")
    process = start(project, *command)
    checkpoints = project / "workspace" / "checkpoints"
    while not list(checkpoints.glob("train-*/*.checkpoint")) and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate()

    assert process.returncode == 75, told
    assert re.search(r"error: train: stopped on request after iteration \d+; run again", told)
    for stop, said in (
        (_press_ctrl_c, r"stopping: .*\n(.*\n)*error: train: stopped on request after iteration \d+; run again"),
        (_kill_the_task, r"error: train was killed, perhaps because memory ran out .*: run again; "),
    ):
        process = start(project, *command, new_session=True)
        before = max(path.stat().st_mtime_ns for path in checkpoints.glob("train-*/*.checkpoint"))
        while not any(path.stat().st_mtime_ns > before for path in checkpoints.glob("train-*/*.checkpoint")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        stop(process)
        _, told = process.communicate()
        assert process.returncode == 75, told
        assert re.search(said, told)
        assert {each.info.status for each in runs_of(project)[-2:]} == {"KILLED"}
    again = run(project, *command)
    assert again.code == 0, again.err
    log = (project / "workspace" / "run.log").read_text()
    assert "ingest" in log
    assert "champion: bebygan version 1" in again.out
