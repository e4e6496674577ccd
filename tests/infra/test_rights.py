"""The Roles of the manifests against what is really asked for: enough for the work, and no more."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bebygan.errors import BebyganError
from components.config import from_yaml
from components.train.cluster_api import Patience
from components.train.trainjob import TrainJobSettings, TrainJobSpec
from components.train.trainjob_run import run_trainjob
from pipelines.kubeflow.manifests import build
from pipelines.kubeflow.resources import load_cluster, trainjob_yaml
from tests.standins.kubernetes import ApiServer
from tests.standins.trainer import Controllers

ROOT = Path(__file__).parents[2]


def rights(overlay: str) -> dict[str, set[str]]:
    """Verb and resource of each right, by role."""
    built = yaml.safe_load_all(build(ROOT / "infra/kubernetes/overlays" / overlay))
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


def test_no_task_may_create_a_trainjob_on_a_cluster_without_the_component_trainer() -> None:
    granted = rights("single-node")
    assert granted.keys() == {"bebygan-task"}
    assert not [right for right in granted["bebygan-task"] if "trainjobs" in right or right.endswith("pods/log")]


def test_the_launcher_of_a_trainjob_needs_exactly_the_permissions_of_its_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(between_looks=0.05)
    settings = from_yaml(TrainJobSettings, trainjob_yaml(load_cluster(ROOT / "infra/cluster.yaml")))
    spec = TrainJobSpec(
        name="bebygan-train-rights",
        settings=replace(settings, gpus=0, cpu="1", memory="1Gi"),
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
            run_trainjob(spec, lambda _: None, patience)
        (tmp_path / "mended").touch()
        lines: list[str] = []
        run_trainjob(spec, lines.append, patience)
        assert "trained" in lines
        used = {_right(*request) for request in server.requests}
    assert used == rights("production")["bebygan-trainjob"]
