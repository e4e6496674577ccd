"""The Roles of the manifests against what is really asked for: enough for the work, and no more."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl

from bebygan.errors import BebyganError
from components.config import from_yaml
from components.start import kubeflow_client as kubeflow
from components.start.kubeflow_client import connect
from components.start.step import PIPELINE, start
from components.train import trainjob
from components.train.trainjob import TrainJobSettings, TrainJobSpec, run_trainjob
from pipelines.kubeflow.manifests import build
from pipelines.kubeflow.resources import load_cluster, trainjob_yaml
from tests.standins.kubeflow import Standin, standin
from tests.standins.kubernetes import ApiServer
from tests.standins.trainer import Controllers

ROOT = Path(__file__).parents[2]
KUBEFLOW = {
    # What Kubeflow Pipelines asks the API server whether an account may, by its request.
    r"GET /apis/v2beta1/pipelines": "list pipelines",
    r"GET /apis/v2beta1/pipelines/[^/]+/versions": "list pipelines/versions",
    r"GET /apis/v2beta1/experiments": "list experiments",
    r"POST /apis/v2beta1/experiments": "create experiments",
    r"GET /apis/v2beta1/runs": "list runs",
    r"GET /apis/v2beta1/runs/[^/]+": "get runs",
    r"POST /apis/v2beta1/runs": "create runs",
    r"POST /apis/v2beta1/runs/[^/]+:terminate": "terminate runs",
}


@pytest.fixture(scope="module")
def granted() -> dict[str, set[str]]:
    """Verb and resource of each right, by role."""
    built = yaml.safe_load_all(build(ROOT / "infra/kubernetes/overlays/single-node"))
    return {
        each["metadata"]["name"]: {
            f"{verb} {resource}" for rule in each["rules"] for verb in rule["verbs"] for resource in rule["resources"]
        }
        for each in built
        if each["kind"] == "Role"
    }


def _right(method: str, path: str) -> str:
    """The right that a request to the Kubernetes API needs."""
    kind, *names = path.partition("/namespaces/")[2].split("/")[1:]
    resource = "/".join([kind, *names[1:]])
    if method == "GET":
        return f"{'get' if names else 'list'} {resource}"
    return f"{ {'POST': 'create', 'DELETE': 'delete', 'WATCH': 'watch'}[method] } {resource}"


def test_the_launcher_of_a_trainjob_asks_for_what_its_role_grants(
    granted: dict[str, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_SECONDS_BETWEEN_LOOKS", 0.05)
    settings = from_yaml(TrainJobSettings, trainjob_yaml(load_cluster(ROOT / "infra/cluster.yaml")))
    spec = TrainJobSpec(
        name="bebygan-train-rights",
        settings=settings.model_copy(update={"gpus": 0, "cpu": "1", "memory": "1Gi"}),
        # Not over before it was watched, however slow the watcher is.
        command=(
            "sh",
            "-c",
            f"until [ -e {tmp_path}/watched ]; do sleep 0.05; done; echo trained; [ -e {tmp_path}/mended ] || exit 3",
        ),
        environment={},
        lineage={},
    )
    with ApiServer() as server, Controllers(server, tmp_path):
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))

        def let_it_end() -> None:
            server.wait_until(lambda: any(method == "WATCH" for method, _ in server.requests))
            (tmp_path / "watched").touch()

        threading.Thread(target=let_it_end, daemon=True).start()
        # A failed one is looked at, deleted and started again.
        with pytest.raises(BebyganError):
            run_trainjob(spec, lambda _: None)
        (tmp_path / "mended").touch()
        lines: list[str] = []
        run_trainjob(spec, lines.append)
        assert "trained" in lines
        used = {_right(*request) for request in server.requests}
    assert used == granted["bebygan-trainjob"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """A server that knows the retraining pipeline and has no experiment yet."""

    @dsl.component(base_image="example:1", install_kfp_package=False)
    def train(source: str) -> str:
        return source

    @dsl.pipeline(name=PIPELINE)
    def retrain(source: str, reason: str = "") -> None:
        train(source=source)
        train(source=reason)

    for name in [name for name in os.environ if name.startswith(("KFP_", "KF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(kubeflow, "_PAUSES", (0.01,))
    compiler.Compiler().compile(retrain, str(tmp_path / "retrain.yaml"))
    with standin() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        connected = connect()
        connected.version(connected.pipeline(PIPELINE), "version", tmp_path / "retrain.yaml")
        server.requests.clear()
        yield server


def test_the_change_detector_asks_for_what_its_roles_grant(granted: dict[str, set[str]], server: Standin) -> None:
    together = threading.Barrier(2)

    def wait_for_both(request: str) -> None:
        # Both have looked by then and found no run, so that one has to stop its own.
        if request == "POST /apis/v2beta1/runs":
            together.wait(30)

    server.before = wait_for_both
    begin = {"experiment": "tests", "version": "", "service_account": "bebygan-retrain", "reason": "new"}
    both = [threading.Thread(target=start, args=({"source": "s3://photographs"},), kwargs=begin) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    asked = {
        right
        for request in server.requests
        for pattern, right in KUBEFLOW.items()
        if re.fullmatch(pattern, request.partition("?")[0])
    }
    known = [request for request in server.requests if "healthz" not in request]
    assert len(known) == len([each for each in known if any(re.fullmatch(one, each) for one in KUBEFLOW)])
    assert asked <= granted["bebygan-detect"] | granted["bebygan-task"]
    # Whoever may list may also look at one, which Kubeflow may ask for when it makes a run of a version.
    assert {right for right in granted["bebygan-detect"] - asked if not right.startswith("get ")} == set()
