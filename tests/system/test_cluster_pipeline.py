"""The pipeline for a cluster, really run: its tasks as processes, with a real tracker and a real webhook."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kfp import local
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from components.config import from_yaml, load_params
from components.job import inputs_of
from components.progress import WATCHER
from pipelines.kubeflow.resources import Cluster
from pipelines.retrain import retrain_on
from tests.standins.webhook import webhook

pytestmark = [
    pytest.mark.slow,
    # The local runner says of each task that it takes no notice of the machine.
    pytest.mark.filterwarnings("ignore:.*have no effect in the current local runner:UserWarning"),
]
ROOT = Path(__file__).parents[2]
STEPS = ["ingest", "patches", "warmup", "train", "evaluate", "register"]


@dataclass
class Place:
    """A project, the environment that a cluster gives its tasks, and what they told."""

    project: Path
    client: MlflowClient
    posted: list[dict[str, str]]
    environment: pytest.MonkeyPatch

    def run(self, kubeflow_run: str, *overrides: str, source: str = "data/sample", **inputs: str) -> tuple[bool, str]:
        """Run the pipeline; return whether it went well and what its tasks told."""
        watched = self.project / f"{kubeflow_run}.log"
        watched.touch()
        self.environment.setenv("KFP_RUN_ID", kubeflow_run)
        self.environment.setenv(WATCHER, str(watched))
        params = load_params(self.project / "params.yaml", overrides)
        values = yaml.safe_load((ROOT / "infra/cluster.yaml").read_text())
        # The runner waits between attempts as long as a cluster does, and there may be no GPU here.
        values["steps"] = {name: step | {"retries": 0, "gpus": 0} for name, step in values["steps"].items()}
        pipeline = retrain_on(from_yaml(Cluster, yaml.safe_dump(values)))
        given = {
            "source": str(self.project / source),
            "remote": str(self.project / "remote"),
            "ledger": str(self.project / "ledger"),
            "checkpoints": str(self.project / "checkpoints"),
        }
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self.project / "pipeline"),
            workspace_root=None,
            enable_caching=False,
        )
        try:
            pipeline(**{**given, **inputs_of(params), **inputs})
        except RuntimeError:
            return False, watched.read_text()
        return True, watched.read_text()

    def runs(self, kubeflow_run: str) -> dict[str, Run]:
        """Return the runs in MLflow that belong to a run of the pipeline, by step."""
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        found = self.client.search_runs(experiments, f"tags.kfp_run_id = '{kubeflow_run}'")
        return {run.data.tags["step"]: run for run in found}


@pytest.fixture(scope="module")
def place(new_project: Callable[[str], Path]) -> Iterator[Place]:
    project = new_project("cluster")
    uri = f"sqlite:///{project / 'mlflow.db'}"
    # Making its tables takes longer than preflight gives a server, on a busy machine.
    SqlAlchemyStore(uri, (project / "mlartifacts").as_uri())
    with pytest.MonkeyPatch.context() as environment, webhook() as hook:
        environment.chdir(project)
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "BEBYGAN_PARENT_RUN"):
            environment.delenv(name, raising=False)
        environment.setenv("MLFLOW_TRACKING_URI", uri)
        environment.setenv("BEBYGAN_WEBHOOK_URL", hook.address)
        environment.setenv("BEBYGAN_CONSOLE", "https://kubeflow.invalid")
        yield Place(project, MlflowClient(tracking_uri=uri, registry_uri=uri), hook.taken, environment)


def stepped(told: str) -> list[str]:
    return re.findall(r"^(\w+) done in \d+ s$", told, re.MULTILINE)


@pytest.fixture(scope="module")
def first(place: Place) -> str:
    well, told = place.run("kubeflow-1", reason="it was uploaded")
    assert well, told
    return told


def test_the_first_run_looks_decides_tries_trains_and_promotes(place: Place, first: str) -> None:
    assert stepped(first) == ["look", "decide", "preflight", *STEPS, "notify"]
    assert "training: there is no champion yet; started because it was uploaded\n" in first
    version = place.client.get_model_version_by_alias("bebygan", "champion")
    runs = place.runs("kubeflow-1")
    assert set(runs) == {"retrain", *STEPS[2:]}
    parent = runs["retrain"]
    assert version.tags["parent_run"] == parent.info.run_id
    assert version.run_id == runs["register"].info.run_id
    for step in STEPS[2:]:
        assert runs[step].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[step].data.tags["kfp_run_id"] == "kubeflow-1"
    # As on a desk, the machine's load is logged beside the losses.
    assert [name for name in runs["train"].data.metrics if name.startswith("system/")]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["reason"] == "there is no champion yet; started because it was uploaded"
    assert parent.data.tags["console"] == "https://kubeflow.invalid/#/runs/details/kubeflow-1"
    assert len(list((place.project / "ledger").rglob("*.json"))) == 1
    [message] = [each for each in place.posted if each["kfp_run_id"] == "kubeflow-1"]
    assert (message["status"], message["champion"], message["mlflow_run"]) == ("FINISHED", "1", parent.info.run_id)


def test_the_same_again_is_skipped_with_the_reason(place: Place, first: str) -> None:
    assert first
    before = place.runs("kubeflow-1")["retrain"].info.run_id
    well, told = place.run("kubeflow-2")
    assert well
    assert f"nothing to do: photographs, parameters and code are those of the finished run {before}\n" in told
    assert stepped(told) == ["look", "decide", "notify"]
    assert not place.runs("kubeflow-2")
    assert str(place.client.get_model_version_by_alias("bebygan", "champion").version) == "1"
    assert not [each for each in place.posted if each["kfp_run_id"] == "kubeflow-2"]


def test_a_step_that_fails_ends_the_run_as_failed_and_is_told(place: Place, first: str) -> None:
    assert first
    well, told = place.run("kubeflow-3", "ingest.minimum_side=1000")
    assert not well
    assert "training: parameters changed (ingest.minimum_side 128 -> 1000" in told
    assert stepped(told) == ["look", "decide", "preflight", "notify"]
    parent = place.runs("kubeflow-3")["retrain"]
    assert parent.info.status == "FAILED"
    [message] = [each for each in place.posted if each["kfp_run_id"] == "kubeflow-3"]
    assert (message["state"], message["status"], message["champion"]) == ("FAILED", "FAILED", "1")
    assert message["console"] == "https://kubeflow.invalid/#/runs/details/kubeflow-3"


def posted(place: Place, kubeflow_run: str) -> list[str]:
    return [each["status"] for each in place.posted if each["kfp_run_id"] == kubeflow_run]


def test_photographs_that_cannot_be_listed_end_the_run_and_are_told(place: Place, first: str) -> None:
    assert first
    well, told = place.run("kubeflow-4", source="nowhere")
    assert not well
    assert stepped(told) == ["notify"]
    assert posted(place, "kubeflow-4") == ["FAILED"]


def test_what_preflight_misses_stops_the_run_before_anything_expensive_and_is_no_failure_of_the_job(
    place: Place, first: str
) -> None:
    assert first
    lost = place.project / "lost"
    lost.write_text("no folder")
    for number in range(5, 9):
        well, told = place.run(f"kubeflow-{number}", "train.seed=5", ledger=str(lost))
        assert not well
        assert stepped(told) == ["look", "decide", "notify"]
        assert f"ledger {lost}: FAILED" in told
        assert place.runs(f"kubeflow-{number}")["retrain"].info.status == "FAILED"
        assert posted(place, f"kubeflow-{number}") == ["FAILED"]


def test_a_job_that_failed_three_times_is_skipped_in_silence(place: Place, first: str) -> None:
    assert first
    fails = ("ingest.minimum_side=1000", "train.seed=6")
    for number in range(10, 13):
        well, _ = place.run(f"kubeflow-{number}", *fails)
        assert not well
        assert posted(place, f"kubeflow-{number}") == ["FAILED"]
    well, told = place.run("kubeflow-13", *fails)
    assert well
    assert "nothing to do: 3 runs of the same photographs, parameters and code failed" in told
    assert "`bebygan submit --force`" in told
    assert stepped(told) == ["look", "decide", "notify"]
    assert posted(place, "kubeflow-13") == []
