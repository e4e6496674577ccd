from pathlib import Path
from typing import Any

import pytest
import yaml

from components.start.step import PIPELINE as STARTED
from pipelines.kubeflow.resources import Cluster, load_cluster
from pipelines.kubeflow.schedule_file import detect_package, retrain_package
from pipelines.retrain import PIPELINE

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster(ROOT / "infra" / "cluster.yaml")


@pytest.fixture(scope="module")
def compiled(cluster: Cluster) -> tuple[dict[str, Any], dict[str, Any]]:
    """The detector's graph, and what its tasks are given by Kubernetes."""
    graph, platform = yaml.safe_load_all(detect_package(cluster).content)
    return graph, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_compiling_again_gives_the_same_bytes_in_ascii(cluster: Cluster) -> None:
    package = detect_package(cluster)
    assert package == detect_package(cluster)
    assert package.content.isascii()
    assert len(package.version) <= 63


def test_it_only_looks_decides_and_starts_and_tells_how_it_ended(
    compiled: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    graph, _ = compiled
    outer = graph["root"]["dag"]["tasks"]
    assert set(outer) == {"exit-handler-1", "notify"}
    assert outer["notify"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert outer["notify"]["inputs"]["parameters"]["pipeline"]["runtimeValue"] == {"constant": "change detector"}
    guarded = graph["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(guarded) == {"look", "decide", "condition-2"}
    assert set(graph["components"]["comp-condition-2"]["dag"]["tasks"]) == {"start"}
    assert "== 'train'" in guarded["condition-2"]["triggerPolicy"]["condition"]
    for executor in graph["deploymentSpec"]["executors"].values():
        assert "accelerator" not in executor["container"]["resources"]


def test_the_code_that_it_compares_is_that_of_the_images(
    compiled: tuple[dict[str, Any], dict[str, Any]], cluster: Cluster
) -> None:
    """And that of the retraining pipeline which it starts: another one would be found changed for ever."""
    given = {}
    for graph in (compiled[0], next(yaml.safe_load_all(retrain_package(cluster).content))):
        dags = [graph["root"]["dag"], *(each["dag"] for each in graph["components"].values() if "dag" in each)]
        [decide] = [dag["tasks"]["decide"] for dag in dags if "decide" in dag["tasks"]]
        given[graph["pipelineInfo"]["name"]] = decide["inputs"]["parameters"]["code_version"]["runtimeValue"]
    assert given == {name: {"constant": cluster.images.version} for name in ("bebygan-detect", PIPELINE)}


def test_only_start_is_let_into_kubeflow(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, given = compiled
    for name in ("look", "decide", "notify"):
        assert "access-ml-pipeline" not in str(given[f"exec-{name}"])
    start = given["exec-start"]
    assert start["podMetadata"]["labels"] == {"access-ml-pipeline": "true"}
    namespace = {"name": "KFP_NAMESPACE", "fieldPath": "metadata.namespace"}
    assert namespace in start["fieldPathAsEnv"]
    assert "KFP_HOST" in str(start["configMapAsEnv"])
    assert "secretAsEnv" not in start


def test_it_declares_what_the_retraining_pipeline_takes(cluster: Cluster) -> None:
    declared = {}
    for package in (detect_package(cluster), retrain_package(cluster)):
        graph = next(yaml.safe_load_all(package.content))
        declared[package.pipeline] = set(graph["root"]["inputDefinitions"]["parameters"])
    assert declared["bebygan-detect"] - declared[PIPELINE] == {"experiment", "service_account", "version"}
    assert declared[PIPELINE] - declared["bebygan-detect"] == {"force", "reason"}
    assert STARTED == PIPELINE
