"""The rules about Secrets of infra/kubernetes/admission.yaml, evaluated on real and on altered objects.

No API server is involved: a library evaluates the same expressions.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml

from components.config import from_yaml, load_params
from components.train.trainjob import TrainJobSettings, TrainJobSpec, manifest
from pipelines.kubeflow.compilation import retrain_yaml
from pipelines.kubeflow.requests import SERVICE_ACCOUNT
from pipelines.kubeflow.resources import load_cluster, trainjob_yaml
from tests.infra.manifest_checks import Manifest, name_of, pod_template, wrong_schemas

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra/kubernetes/admission.yaml"
POLICIES = {name_of(each): each["spec"] for each in yaml.safe_load_all(FILE.read_text())}
Alter = Callable[[Any], object]


def refusals(policy: str, body: Manifest) -> list[str]:
    """What a policy says about an object, in the order of its rules."""
    spec = POLICIES[f"ValidatingAdmissionPolicy {policy}"]
    variables: dict[str, Any] = {}
    known = {"object": body, "variables": variables}
    for each in spec.get("variables", []):
        variables[each["name"]] = cel.evaluate(each["expression"], known)
    return [each["message"] for each in spec["validations"] if cel.evaluate(each["expression"], known) is not True]


def pod(account: str | None, labels: dict[str, str], *secrets: str) -> Manifest:
    env = [{"name": "A", "value": "1"}]
    env += [{"name": f"V{index}", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}  # type: ignore[dict-item]
            for index, name in enumerate(secrets)]  # fmt: skip
    named = {"serviceAccountName": account} if account else {}
    return {"metadata": {"labels": labels}, "spec": {**named, "containers": [{"name": "main", "env": env}]}}


def trainjob() -> Manifest:
    settings = from_yaml(TrainJobSettings, trainjob_yaml(load_cluster(ROOT / "infra/cluster.yaml")))
    spec = TrainJobSpec(
        name="bebygan-train-x", settings=settings, command=("true",), environment={"A": "1"}, lineage={}
    )
    return manifest(spec)


RUN = {"workflows.argoproj.io/workflow": "bebygan-retrain-x7k2p"}
NODE = {"jobset.sigs.k8s.io/jobset-name": "bebygan-train-x"}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_knows_the_policies_and_their_bindings(version: str) -> None:
    assert list(wrong_schemas(list(yaml.safe_load_all(FILE.read_text())), version)) == []
    for name in ("bebygan-secrets", "bebygan-trainjobs"):
        binding = POLICIES[f"ValidatingAdmissionPolicyBinding {name}"]
        assert (binding["policyName"], binding["validationActions"]) == (name, ["Deny"])
        assert POLICIES[f"ValidatingAdmissionPolicy {name}"]["failurePolicy"] == "Fail"


def test_the_pods_of_the_manifests_and_the_tasks_of_a_run_may_read_their_secrets(manifests: list[Manifest]) -> None:
    templates = {name_of(each): template for each in manifests if (template := pod_template(each))}
    assert len(templates) >= 6
    for name, template in templates.items():
        labels = template.get("metadata", {}).get("labels", {}) | (NODE if name.startswith("TrainingRuntime") else {})
        assert refusals("bebygan-secrets", {**template, "metadata": {"labels": labels}}) == [], name
    cluster = load_cluster(ROOT / "infra/cluster.yaml")
    platform = list(yaml.safe_load_all(retrain_yaml(cluster, load_params(ROOT / "params.yaml"))))[1]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    named = {each["secretName"] for told in executors.values() for each in told.get("secretAsEnv", [])}
    assert named >= {"bebygan-s3", "bebygan-evaluate-s3", "bebygan-webhook"}
    assert refusals("bebygan-secrets", pod(SERVICE_ACCOUNT, RUN, *named, "mlpipeline-minio-artifact")) == []
    assert refusals("bebygan-secrets", pod(None, {"app": "ml-pipeline-ui-artifact"}, "mlpipeline-minio-artifact")) == []


def test_the_trainjob_of_a_run_and_its_pods_are_accepted() -> None:
    body = trainjob()
    assert refusals("bebygan-trainjobs", body) == []
    node = pod("bebygan-training", NODE)
    node["spec"]["containers"][0]["env"] = body["spec"]["trainer"]["env"]
    assert refusals("bebygan-secrets", node) == []


def _volume(**volume: Any) -> Alter:
    return lambda spec: spec.update(volumes=[{"name": "v", **volume}])


PODS: dict[str, Alter] = {
    "a variable": lambda spec: spec["containers"][0]["env"].append(
        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "bebygan-mlflow", "key": "k"}}}
    ),
    "all variables": lambda spec: spec["containers"][0].update(envFrom=[{"secretRef": {"name": "bebygan-s3"}}]),
    "a container before": lambda spec: spec.update(
        initContainers=[{"name": "i", "envFrom": [{"secretRef": {"name": "mlflow-server"}}]}]
    ),
    "a container that is added later": lambda spec: spec.update(
        ephemeralContainers=[{"name": "e", "envFrom": [{"secretRef": {"name": "mlflow-server"}}]}]
    ),
    "a volume": _volume(secret={"secretName": "seaweedfs"}),
    "a projected volume": _volume(
        projected={"sources": [{"configMap": {"name": "bebygan"}}, {"secret": {"name": "backup"}}]}
    ),
    "a driver": _volume(csi={"driver": "d", "nodePublishSecretRef": {"name": "backup"}}),
    "another account": lambda spec: spec.update(serviceAccountName="bebygan-retrain"),
    "the account of a server": lambda spec: spec.update(serviceAccountName="mlflow"),
    "no account": lambda spec: spec.pop("serviceAccountName"),
}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_of_a_trainjob_that_reads_another_secret_is_refused(name: str) -> None:
    node = pod("bebygan-training", NODE, "bebygan-training-s3")
    altered = copy.deepcopy(node)
    PODS[name](altered["spec"])
    assert refusals("bebygan-secrets", node) == []
    assert refusals("bebygan-secrets", altered)


@pytest.mark.parametrize("secret", ["mlflow-server", "backup", "seaweedfs", "ledger-keeper", "photographer"])
def test_a_task_of_a_run_that_reads_a_secret_of_a_server_is_refused(secret: str) -> None:
    assert refusals("bebygan-secrets", pod(SERVICE_ACCOUNT, RUN, secret))
    for account in ("mlflow", "backup", "seaweedfs", None):
        assert refusals("bebygan-secrets", pod(account, RUN, secret))


JOBS: dict[str, Alter] = {
    "a secret": lambda spec: spec["trainer"]["env"].append(
        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "bebygan-mlflow", "key": "k"}}}
    ),
    "another runtime": lambda spec: spec["runtimeRef"].update(name="torch-distributed"),
    "a runtime of the cluster": lambda spec: spec["runtimeRef"].update(kind="ClusterTrainingRuntime"),
    "the default runtime": lambda spec: spec["runtimeRef"].pop("kind"),
    "an initializer": lambda spec: spec.update(initializer={"dataset": {"secretRef": {"name": "bebygan-s3"}}}),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_trainjob_that_reads_another_secret_or_has_another_runtime_is_refused(name: str) -> None:
    body = trainjob()
    JOBS[name](body["spec"])
    assert len(refusals("bebygan-trainjobs", body)) == 1
