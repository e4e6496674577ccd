"""The change detector, really run: its tasks as processes, with a real tracker, against a stand-in of Kubeflow."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kfp import local
from PIL import Image

from components.config import load_params
from components.job import Job, inputs_of
from components.progress import WATCHER
from components.start.kubeflow_client import connect
from components.stores.source import source_version
from components.tracking.runs import close_pipeline_run, mlflow_client, open_pipeline_run, step_run
from pipelines.kubeflow.detect import detect_on
from pipelines.kubeflow.resources import Cluster, load_cluster
from pipelines.kubeflow.schedule_file import Package, retrain_package
from pipelines.kubeflow.schedules import upload
from tests.standins.kubeflow import ALIVE, Standin, standin
from tests.standins.webhook import webhook

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """A folder of photographs, a cluster to train on, and what the detector's tasks told."""

    photographs: Path
    server: Standin
    cluster: Cluster
    version: str
    folder: Path

    def detect(self, *overrides: str) -> str:
        """Run the detector; return what its tasks told."""
        watched = self.folder / "told"
        watched.write_text("")
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self.folder / "pipeline"),
            workspace_root=None,
            enable_caching=False,
        )
        detect_on(self.cluster)(
            source=str(self.photographs),
            experiment="tests",
            service_account="trainer",
            version=self.version,
            ledger="s3://ledger",
            **inputs_of(load_params(ROOT / "params.yaml", overrides)),
        )
        return watched.read_text()


@pytest.fixture
def place(tmp_path: Path, picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "BEBYGAN_", "KFP_", "KF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv(WATCHER, str(tmp_path / "told"))
    monkeypatch.chdir(ROOT)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    picture(1).save(photographs / "1.png")
    cluster = load_cluster()
    # The runner waits between attempts as long as a cluster does.
    look = cluster.steps.look.model_copy(update={"retries": 0})
    cluster = cluster.model_copy(update={"steps": replace(cluster.steps, look=look)})
    package: Package = retrain_package(cluster)
    with standin() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        upload(connect(), package)
        yield Place(photographs, server, cluster, package.version, tmp_path)


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """What a webhook is told."""
    with webhook() as hook:
        monkeypatch.setenv("BEBYGAN_WEBHOOK_URL", hook.address)
        yield hook.taken


def leave_a_champion(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a whole run on the cluster leaves."""
    params = load_params()
    job = Job(params, str(place.photographs), source_version(str(place.photographs)), place.cluster.images.version)
    monkeypatch.setenv("BEBYGAN_PARENT_RUN", open_pipeline_run(params, job.tags))
    with step_run("register", params.register) as run:
        client = mlflow_client()
        client.create_registered_model(params.evaluate.model_name)
        client.create_model_version(params.evaluate.model_name, "file:///nowhere", run.run_id)
        client.set_registered_model_alias(params.evaluate.model_name, "champion", "1")
    close_pipeline_run("FINISHED", {})
    monkeypatch.delenv("BEBYGAN_PARENT_RUN")


def test_a_training_is_started_once_for_a_change_and_not_without(
    place: Place, posted: list[dict[str, str]], picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = place.server
    leave_a_champion(place, monkeypatch)

    assert "nothing to do: photographs, parameters and code are those of the finished run" in place.detect()
    assert server.runs() == []

    picture(2).save(place.photographs / "2.png")
    told = place.detect("train.seed=7")
    assert "training: photographs changed, parameters changed (train.seed 1 -> 7) since the champion" in told
    [run] = server.runs(*ALIVE)
    assert f"started the run {run['run_id']}" in told
    parameters = run["runtime_config"]["parameters"]
    assert inputs_of(load_params(overrides=["train.seed=7"])).items() <= parameters.items()
    assert (parameters["source"], parameters["ledger"]) == (str(place.photographs), "s3://ledger")
    assert parameters["reason"].startswith("the change detector ")
    assert "{" not in parameters["reason"]
    version = server.tables["pipeline_versions"][run["pipeline_version_reference"]["pipeline_version_id"]]
    assert (version["display_name"], run["service_account"]) == (place.version, "trainer")

    # It trains for days, and the detector looks every few minutes.
    assert f"not started: the run {run['run_id']}" in place.detect("train.seed=7")
    assert len(server.runs()) == 1

    assert not posted
    for photograph in place.photographs.iterdir():
        photograph.unlink()
    with pytest.raises(RuntimeError, match="failed"):
        place.detect()
    [message] = posted
    assert (message["pipeline"], message["state"], message["model"]) == ("change detector", "FAILED", "bebygan")
